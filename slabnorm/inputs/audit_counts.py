"""What an audit counts beside the Tally: values out of the training range, samples the sketch can tell, and
where those stand that were in the training data.

It is counted in the same pass, only where `Counting.reference` asks for it, and merges like a Tally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from slabnorm.inputs.features import Features
from slabnorm.inputs.sketch import Bounds, Collector, Sketch
from slabnorm.slab import plan

# Distinct hashes of the new data, 8 MiB: an interval of a share is then narrower than 0.2 points.
MOST = 1 << 20
NAMED = 10_000  # samples that are named: a list that somebody still reads, of a megabyte at most

SamplePlace = tuple[str, int | None]  # a file or data set, and the row in it; an image is a file of its own


@dataclass(frozen=True, eq=False)
class Reference:
    """What new data are compared with.

    Attributes:
        low, high: the training range of each feature, of the shape of the statistics.
        bound: of the training sketch: it says of every hash below whether it was seen.
        most: how many distinct hashes are kept; the smallest of more, which is as fair a sample.
        seen: the hashes of the training sketch, sorted.
    """

    low: Tensor
    high: Tensor
    bound: int
    most: int = MOST
    seen: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(frozen=True, eq=False)
class Beside:
    """What was counted of some samples.

    Attributes:
        below, above: values out of the training range, int64, per feature.
        told: samples whose hash is below the training sketch's bound, the same one as often as it came.
        sketch: of these hashes, the distinct ones.
        leaked: samples that the training sketch holds, the same one as often as it came.
        rows: of a shard, which rows of it these are; the first NAMED.
        places: where they stand; the first NAMED, in the order of the data.
    """

    below: Tensor
    above: Tensor
    told: int
    sketch: Sketch
    leaked: int = 0
    rows: tuple[int, ...] = ()
    places: tuple[SamplePlace, ...] = ()

    def placed(self, place_of: Callable[[int], SamplePlace]) -> Beside:
        """Return the counts of a shard with the places of its rows."""
        return replace(self, rows=(), places=tuple(map(place_of, self.rows)))

    def merge(self, other: Beside) -> Beside:
        """Return the counts of both sets of samples."""
        return Beside(
            self.below + other.below,
            self.above + other.above,
            self.told + other.told,
            self.sketch.merge(other.sketch),
            self.leaked + other.leaked,
            places=(self.places + other.places)[:NAMED],
        )


class BesideCounter:
    """Counts the samples of one shard.

    Args:
        reference: what they are compared with.
        features: where the features lie.
        sizes: of the pattern's split axes.
    """

    def __init__(self, reference: Reference, features: Features, sizes: tuple[tuple[str, int], ...]) -> None:
        self._reference, self._features, self._sizes = reference, features, sizes
        self._collector, self._told = Collector(reference.most, Bounds()), 0
        self._next, self._leaked, self._rows = 0, 0, list[int]()
        self._below = torch.zeros(features.shape, dtype=torch.int64)
        self._above = torch.zeros(features.shape, dtype=torch.int64)

    def add(self, values: np.ndarray, hashes: np.ndarray) -> None:
        """Count a block of samples, given with their hashes, of which none is kept here but as a copy."""
        bound = self._reference.bound
        rows = np.flatnonzero(hashes < np.uint64(bound)) if bound < 1 << 64 else np.arange(len(hashes))
        self._next += len(hashes)
        hashes = hashes[rows]
        self._told += len(hashes)
        if bound:
            leaked = rows[np.isin(hashes, self._reference.seen, kind="sort")] + self._next - len(values)
            self._leaked += len(leaked)
            self._rows += leaked[: NAMED - len(self._rows)].tolist()
        self._collector.add(hashes)
        self._below += self._where(values, self._reference.low, np.less)
        self._above += self._where(values, self._reference.high, np.greater)

    def counted(self) -> Beside:
        """Return what has been counted."""
        sketch = self._collector.sketch()
        return Beside(self._below, self._above, self._told, sketch, self._leaked, tuple(self._rows))

    def _where(self, values: np.ndarray, limit: Tensor, compare: np.ufunc) -> Tensor:
        """Return how many values of each feature lie beyond a limit; NaN does not."""
        edge = self._features.spread(limit, values.ndim).numpy()
        if values.dtype.kind == "f":
            # float64's 0.1 rounds to float32's: the limit must round likewise.
            with np.errstate(over="ignore"):
                edge = edge.astype(values.dtype)
        beyond = compare(values, edge)
        if not beyond.any():
            return torch.zeros_like(self._below)
        slab = plan(self._features.pattern, (), values.shape, self._sizes)
        counts = torch.from_numpy(beyond).reshape(slab.split).sum(slab.pooled, keepdim=True)
        return slab.kept.gather(counts)
