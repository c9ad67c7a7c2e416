"""A uniform sample of the data's values, for quantiles: the same for any workers, in any order.

Every position gets a random key from its shard's number and its place there; the sample are the positions
of the smallest keys. So samples merge like sketches of hashes, as good as one of all data at once.
A quantile of k of many values is off in rank by at most e with probability 1 - 2 exp(-2 k e^2) (Dvoretzky,
Kiefer and Wolfowitz, 1956; Massart, 1990). A KLL sketch is smaller for the same error, but the one there
is, Apache DataSketches', draws its coins from the clock: no two runs give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZE = 1 << 14  # positions: quantiles within 1.3% in rank
VALUES = 1 << 23  # at most so many values: 64 MB; of fewer positions where there are many features
_DOUBT = 0.01  # probability that a rank is off by more than is said


def rank_error(positions: int, values: int) -> float:
    """Return by how much the rank of a quantile may be off, with 99% probability, as so many are of so many.

    >>> round(rank_error(16384, 10**9), 4), rank_error(500, 500)
    (0.0127, 0.0)
    """
    return math.sqrt(math.log(2 / _DOUBT) / (2 * positions)) if 0 < positions < values else 0.0


@dataclass(frozen=True, eq=False)
class Sample:
    """The values at some positions.

    Attributes:
        keys: sorted, uint64, one per position.
        values: float64, (positions, features).
        size: how many positions are kept at most; 0 keeps none.
    """

    keys: np.ndarray
    values: np.ndarray
    size: int

    @classmethod
    def empty(cls, features: int, size: int) -> Sample:
        """Return the sample of no data."""
        return cls(np.empty(0, np.uint64), np.empty((0, features)), size)

    @property
    def bound(self) -> int:
        """The key below which all positions are kept; 2^64 if all are."""
        return int(self.keys[-1]) + 1 if len(self.keys) >= self.size > 0 else 1 << 64

    def merge(self, other: Sample) -> Sample:
        """Return the sample of both data."""
        if not len(other.keys):
            return self
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")[: self.size]
        return Sample(keys[order], np.concatenate([self.values, other.values])[order], self.size)

    def quantiles(self, ranks: tuple[float, ...]) -> np.ndarray:
        """Return a row of values per rank, one per feature, without NaN; interpolated linearly."""
        found = np.nanquantile(self.values, ranks, axis=0)
        return np.asarray(found, np.float64)


def sampler(counting_size: int, features: int, shard: int, bound: int) -> Sampler:
    """Return the Sampler of a shard, of fewer positions where there are many features."""
    return Sampler(shard, features, min(counting_size, max(1, VALUES // max(1, features))), bound)


class Sampler:
    """Draws the sample of one shard.

    Args:
        shard: its number, which decides the keys.
        features: values at a position.
        size: of the sample.
        bound: keys from this on are left out, as other shards have pushed them out already.
    """

    def __init__(self, shard: int, features: int, size: int, bound: int = 1 << 64) -> None:
        self._random = np.random.Generator(np.random.Philox(key=shard))
        self._sample, self._bound = Sample.empty(features, size), bound
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def add(self, values: np.ndarray, pooled: tuple[int, ...], kept: tuple[int, ...]) -> None:
        """Draw from a block: a position is an index into the pooled axes, its values lie along the kept."""
        shape = [values.shape[axis] for axis in pooled]

        def at(chosen: np.ndarray) -> np.ndarray:
            places = np.unravel_index(chosen, shape) if shape else ()
            return values.transpose(*pooled, *kept)[places].reshape(len(chosen), -1)

        self.draw(math.prod(shape), at)

    def draw(self, count: int, at: Callable[[np.ndarray], np.ndarray]) -> None:
        """Draw from so many positions; `at` returns the values at some, a row for each."""
        keys = self._random.integers(0, 1 << 64, count, dtype=np.uint64)
        bound = min(self._bound, self._sample.bound)
        chosen = np.flatnonzero(keys < np.uint64(bound)) if bound < 1 << 64 else np.arange(count)
        if len(chosen) > self._sample.size:
            chosen = chosen[np.argpartition(keys[chosen], self._sample.size)[: self._sample.size]]
        if not len(chosen):
            return
        self._pending.append((keys[chosen], at(chosen)))
        self._waiting += len(chosen)
        if self._waiting >= self._sample.size:
            self.sample()

    def sample(self) -> Sample:
        """Return the sample so far."""
        if self._pending:
            keys, values = map(np.concatenate, zip(*self._pending, strict=True))
            order = np.argsort(keys, kind="stable")[: self._sample.size]
            drawn = Sample(keys[order], values[order].astype(np.float64), self._sample.size)
            self._sample = self._sample.merge(drawn)
        self._pending, self._waiting = [], 0
        return self._sample
