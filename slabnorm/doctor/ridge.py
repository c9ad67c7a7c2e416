"""How the distribution of a layer's values changes over a training: a histogram at a few of the looks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BINS = 96
MOST = 24  # histograms kept: as many curves as one picture can show
SAMPLE = 4096  # values that are counted of a tensor: a share of 1% is then off by 0.16 points
TAIL = 0.005  # of the values, on each side, may lie outside of the bins


@dataclass
class Ridge:
    """Histograms of one layer's values at a few looks, all with the same bins.

    Memory does not grow with the training, in either direction. When there are `MOST` histograms, every other
    one is dropped, and from then on half as many are taken. When values leave the bins, the range doubles on
    that side and bins are merged in pairs, which loses no count.

    The bins are even between `low` and `high`. On a logarithmic scale (asinh), any drift would fit in bins
    that never change, but a bell curve takes a fifth of them, and the sides on which an activation is flat
    are squeezed into a few. Bins that stayed as the first look has them would lose the drift.

    Attributes:
        low, high: where the bins begin and end.
        steps: the step of each histogram.
        counts: for each of them, how many of the values that were looked at lie in each bin.
        stride: of how many looks one is taken.
    """

    low: float = math.nan
    high: float = math.nan
    steps: list[int] = field(default_factory=list)
    counts: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    stride: int = 1

    @torch.no_grad()
    def add(self, look: int, step: int, x: Tensor) -> None:
        """Take the values of a tensor, if it is this look's turn; NaN and infinity are left out.

        Args:
            look: how many looks there were before this one.
            step: its step in the training.
            x: what enters the layer.
        """
        if look % self.stride:
            return
        values = _sample(x)
        if not len(values):
            return
        if len(self.steps) == MOST:
            self.stride *= 2
            self.steps, self.counts = self.steps[::2], self.counts[::2]
            if look % self.stride:
                return
        values.sort()  # a copy: a mask has made it
        edge = int(TAIL * len(values))
        self._reach(float(values[edge]), float(values[-1 - edge]))
        edges = np.linspace(self.low, self.high, BINS + 1)
        self.steps.append(step)
        self.counts.append(np.diff(np.searchsorted(values, edges)).astype(np.uint16))

    def _reach(self, low: float, high: float) -> None:
        """Make the bins reach from `low` to `high`."""
        if math.isnan(self.low):
            room = (high - low) / 4 or max(abs(low), 1.0) / 4  # a constant has no width
            self.low, self.high = low - room, high + room
        while low < self.low:
            self.low -= self.high - self.low
            self.counts = [np.concatenate([np.zeros_like(pairs), pairs]) for pairs in self._pairs()]
        while high >= self.high:
            self.high += self.high - self.low
            self.counts = [np.concatenate([pairs, np.zeros_like(pairs)]) for pairs in self._pairs()]

    def _pairs(self) -> list[npt.NDArray[np.uint16]]:
        return [row.reshape(-1, 2).sum(1, dtype=np.uint16) for row in self.counts]

    def as_dict(self) -> dict[str, Any] | None:
        """Return it in JSON's own types; None if nothing was counted."""
        if not self.steps:
            return None
        counts = [row.tolist() for row in self.counts]
        return {"low": self.low, "high": self.high, "steps": list(self.steps), "counts": counts}


def _sample(x: Tensor) -> npt.NDArray[np.float32]:
    """Return some finite values of a tensor, evenly from its memory.

    The step has no factor in common with the number of values, and so none with the length of an axis: a
    step of a whole image would see the same pixel of every one.
    """
    flat = (
        x.detach().permute(sorted(range(x.dim()), key=x.stride, reverse=True)).flatten()
    )  # most often a view
    step = max(1, -(-flat.numel() // SAMPLE))
    while step > 1 and math.gcd(step, flat.numel()) > 1:
        step += 1
    values = flat[::step].float().cpu().numpy()
    return values[np.isfinite(values)]
