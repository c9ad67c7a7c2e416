"""A pattern over samples in memory: rows of features, each a run of values, where it is so simple."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slabnorm.pattern import Pattern
from slabnorm.slab import Slab, plan


@dataclass(frozen=True)
class Grid:
    """How memory holds the features of a sample.

    Attributes:
        rows: of a sample; features: in a row; run: values of a feature that lie together in a row.
    """

    rows: int
    features: int
    run: int
    _slab: Slab
    _kept: tuple[int, ...]  # the kept axes of the split sample, in memory's order

    @classmethod
    def of(
        cls, pattern: Pattern, sample: Sequence[int], sizes: tuple[tuple[str, int], ...], order: Sequence[int]
    ) -> Grid | None:
        """Return the grid of samples whose axes memory holds in this order; None where there is none."""
        slab = plan(pattern, (), (1, *sample), sizes)
        axes = _memory_axes(slab, pattern, len(sample) + 1, order)
        if axes is None:
            return None
        axes = [axis for axis in axes if slab.split[axis] > 1]
        kept = [place for place, axis in enumerate(axes) if axis in slab.kept.dims]
        if kept and kept[-1] - kept[0] + 1 != len(kept):
            return None
        first, last = (kept[0], kept[-1] + 1) if kept else (len(axes), len(axes))
        if not kept:  # one feature: everything is its run
            first = last = 0
        size = [slab.split[axis] for axis in axes]
        return cls(
            math.prod(size[:first]), math.prod(size[first:last]), math.prod(size[last:]), slab,
            tuple(axes[first:last]),
        )  # fmt: skip

    def gather(self, values: np.ndarray) -> Tensor:
        """Return a copy of values in memory's order as the tensor that the pattern's right side says."""
        kept = self._slab.kept
        # Axes of one element have no place in memory's order. By NumPy: torch takes ten times as long here.
        opened = values.reshape([self._slab.split[axis] for axis in self._kept])
        order = [self._kept.index(axis) for axis in kept.dims if axis in self._kept]
        return torch.from_numpy(opened.transpose(order).reshape(kept.shape).copy())


def flat(block: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return a block's values in a row, each sample's axes in this order; a view where memory is so."""
    inside = (0, *(axis + 1 for axis in order))
    values = np.ascontiguousarray(block.transpose(inside)).reshape(-1)
    return values.view(np.uint8) if values.dtype == np.bool_ else values


def as_numpy(block: np.ndarray | Tensor) -> np.ndarray:
    """Return a block as an array of the machine's byte order, in a dtype that kernels take."""
    if isinstance(block, Tensor):
        block = block.detach().cpu()
        block = block.float() if block.dtype in (torch.bfloat16, torch.float16) else block
        return block.numpy()
    if block.dtype == np.float16:
        return block.astype(np.float32)
    return block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))


def _memory_axes(slab: Slab, pattern: Pattern, rank: int, order: Sequence[int]) -> list[int] | None:
    """Return the axes of the split sample, all but the first, in memory's order."""
    dots = rank - len(pattern.left) + 1
    parts: list[list[int]] = []
    first = 0
    for item in pattern.left:
        for _ in range(dots if item == ("...",) else 1):
            parts.append(list(range(first, first + len(item))))
            first += len(item)
    if first != len(slab.split):
        return None
    return [axis for place in order for axis in parts[place + 1]]
