"""What an audit counts beside the Tally: values out of the training range, and samples that the training had.

It is counted in the same pass, only where `Counting.reference` asks for it, and merges like a Tally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from slabnorm.inputs.features import Features
from slabnorm.inputs.sketch import Bounds, Collector, Sketch
from slabnorm.slab import plan

# Distinct hashes of the new data, 8 MiB: an interval of a share is then narrower than 0.2 points.
SKETCH_SIZE = 1 << 20
MOST_PLACES = 10_000  # of samples that are named: a list that somebody still reads, of a megabyte at most

SamplePlace = tuple[str, int | None]  # a file or data set, and the row in it; an image is a file of its own


@dataclass(frozen=True, eq=False)
class Reference:
    """What new data are compared with.

    Attributes:
        low, high: the training range of each feature, of the shape of the statistics.
        bound: of the training sketch: it says of every hash below whether it was seen.
        seen: the hashes of the training sketch, sorted.
    """

    low: Tensor
    high: Tensor
    bound: int
    seen: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    def counter(self, features: Features, sizes: tuple[tuple[str, int], ...]) -> AuditCounter:
        """Return what counts the samples of one shard."""
        return AuditCounter(self, features, sizes)


@dataclass(frozen=True, eq=False)
class AuditCounts:
    """What was counted of some samples. Samples that are alike count each time.

    Attributes:
        below, above: values out of the training range, int64, per feature.
        comparable: samples whose hash lies below the training sketch's bound: it says if they were seen.
        sketch: of the distinct hashes of these.
        leaked: samples that the training sketch holds.
        places: where they stand; the first MOST_PLACES, in the order of the data.
    """

    below: Tensor
    above: Tensor
    comparable: int
    sketch: Sketch
    leaked: int = 0
    places: tuple[SamplePlace, ...] = ()

    def merge(self, other: AuditCounts) -> AuditCounts:
        """Return the counts of both sets of samples."""
        return AuditCounts(
            self.below + other.below,
            self.above + other.above,
            self.comparable + other.comparable,
            self.sketch.merge(other.sketch),
            self.leaked + other.leaked,
            (self.places + other.places)[:MOST_PLACES],
        )


class AuditCounter:
    """Counts the samples of one shard.

    Args:
        reference: what they are compared with.
        features: where the features lie.
        sizes: of the pattern's split axes.
    """

    def __init__(self, reference: Reference, features: Features, sizes: tuple[tuple[str, int], ...]) -> None:
        self._reference, self._features, self._sizes = reference, features, sizes
        self._collector, self._comparable = Collector(SKETCH_SIZE, Bounds()), 0
        self._next, self._leaked, self._rows = 0, 0, list[int]()
        self._below, self._above = torch.zeros(2, *features.shape, dtype=torch.int64)

    def add(self, values: np.ndarray, hashes: np.ndarray) -> None:
        """Count a block of samples, given with their hashes, of which none is kept here but as a copy."""
        bound = self._reference.bound
        rows = np.flatnonzero(hashes < np.uint64(bound)) if bound < 1 << 64 else np.arange(len(hashes))
        hashes = hashes[rows]
        self._comparable += len(hashes)
        if bound:
            leaked = rows[np.isin(hashes, self._reference.seen, kind="sort")] + self._next
            self._leaked += len(leaked)
            self._rows += leaked[: MOST_PLACES - len(self._rows)].tolist()
        self._next += len(values)
        self._collector.add(hashes)
        self._below = self._below + self._count_beyond(values, self._reference.low, np.less)
        self._above = self._above + self._count_beyond(values, self._reference.high, np.greater)

    def counts(self, place_of: Callable[[int], SamplePlace]) -> AuditCounts:
        """Return what has been counted; `place_of` says where the sample of a row stands."""
        places = tuple(map(place_of, self._rows))
        sketch = self._collector.sketch()
        return AuditCounts(self._below, self._above, self._comparable, sketch, self._leaked, places)

    def _count_beyond(self, values: np.ndarray, limit: Tensor, compare: np.ufunc) -> Tensor:
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
