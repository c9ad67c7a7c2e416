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

from slabnorm.inputs.sketch import Bounds

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
class QuantileSample:
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
    def empty(cls, features: int, size: int) -> QuantileSample:
        """Return the sample of no data."""
        return cls(np.empty(0, np.uint64), np.empty((0, features)), size)

    @property
    def bound(self) -> int:
        """The key below which all positions are kept; 2^64 if all are."""
        return int(self.keys[-1]) + 1 if len(self.keys) >= self.size > 0 else 1 << 64

    def merge(self, other: QuantileSample) -> QuantileSample:
        """Return the sample of both data."""
        if not len(other.keys):
            return self
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")[: self.size]
        values = np.empty((len(order), self.values.shape[1]))
        first = order < len(self.keys)
        values[first], values[~first] = (
            self.values[order[first]],
            other.values[order[~first] - len(self.keys)],
        )
        return QuantileSample(keys[order], values, self.size)

    def quantiles(self, ranks: tuple[float, ...]) -> np.ndarray:
        """Return a row of values per rank, one per feature, without NaN; interpolated linearly."""
        ordered = np.sort(self.values.T)  # NaN last; a tenth of nanquantile's time, which goes row by row
        last = np.count_nonzero(~np.isnan(ordered), axis=1) - 1
        rows, found = np.arange(len(ordered)), np.empty((len(ranks), len(ordered)))
        for number, rank in enumerate(ranks):
            below = np.floor(rank * last).astype(np.int64)
            low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
            # Not low + (high - low) * part, which overflows between -1e308 and 1e308.
            part = rank * last - below
            found[number] = np.where(low == high, low, low * (1 - part) + high * part)
        return found

    def weighted_quantiles(self, ranks: tuple[float, ...], whole: bool) -> np.ndarray:
        """Return quantiles of values whose weight is the last of each position.

        Whole weights give what repeated values give; of real ones a quantile is the least value up to which
        that share of all weight lies.
        """
        weights, found = self.values[:, -1], np.full((len(ranks), self.values.shape[1] - 1), np.nan)
        for feature, column in enumerate(self.values[:, :-1].T):
            order = np.argsort(column, kind="stable")[: np.count_nonzero(~np.isnan(column))]  # NaN last
            if not len(order):
                continue
            ordered, upto = column[order], np.cumsum(weights[order])
            for number, rank in enumerate(ranks):
                if whole:
                    place = rank * (upto[-1] - 1)
                    below = np.floor(place)
                    ends = np.searchsorted(upto, [below, min(below + 1, upto[-1] - 1)], side="right")
                    low, high = ordered[ends]
                    part = place - below
                    found[number, feature] = low if low == high else low * (1 - part) + high * part
                else:
                    at = np.searchsorted(upto, rank * upto[-1])
                    found[number, feature] = ordered[min(at, len(ordered) - 1)]
        return found

    @property
    def present(self) -> int:
        """As many values as the feature has of which most are missing; features are columns."""
        return int(self.counts.min(initial=len(self.keys)))

    @property
    def counts(self) -> np.ndarray:
        """Values of each feature that are not NaN."""
        found: np.ndarray = np.count_nonzero(~np.isnan(self.values), axis=0)
        return found

    @property
    def effective(self) -> int:
        """As how many positions of one weight these count (Kish, "Survey Sampling", 1965, 11.7)."""
        weights = self.values[:, -1]
        return int(weights.sum() ** 2 / np.square(weights).sum()) if len(weights) else 0


def positions_of(size: int, features: int) -> int:
    """Return how many positions of so many features are sampled, if `size` are asked for."""
    return min(size, max(1, VALUES // max(1, features)))


def likely_bound(size: int, positions: int) -> int:
    """Return a key below which at least `size` of so many positions lie, but for one time in 10^15."""
    share = (size + 8 * math.sqrt(size)) / positions if positions else 1.0
    return int(share * (1 << 64)) if share < 1 else 1 << 64


class QuantileSampler:
    """Draws the sample of one shard.

    Args:
        shard: its number, which decides the keys.
        features: values at a position.
        size: of the sample.
        bounds: what need not be kept.
    """

    def __init__(self, shard: int, features: int, size: int, bounds: Bounds) -> None:
        self._random = np.random.Generator(np.random.Philox(key=shard))
        self._sample, self._bounds = QuantileSample.empty(features, size), bounds
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting = 0

    def add(
        self,
        values: np.ndarray,
        pooled: tuple[int, ...],
        kept: tuple[int, ...],
        weights: np.ndarray | None = None,
    ) -> None:
        """Draw from a block: a position is an index into the pooled axes, its values lie along the kept.

        The first axis are the samples; their weights are drawn with them, as one feature more.
        """
        shape = [values.shape[axis] for axis in pooled]

        def at(chosen: np.ndarray) -> np.ndarray:
            places = np.unravel_index(chosen, shape)
            drawn = values.transpose(*pooled, *kept)[places].reshape(len(chosen), -1)
            return drawn if weights is None else np.column_stack([drawn, weights[places[0]]])

        self.draw(math.prod(shape), at)

    def draw(self, count: int, at: Callable[[np.ndarray], np.ndarray]) -> None:
        """Draw from so many positions; `at` returns the values at some, a row for each."""
        keys = self._random.integers(0, 1 << 64, count, dtype=np.uint64)
        bound = self._bounds.key
        chosen = np.flatnonzero(keys < np.uint64(bound)) if bound < 1 << 64 else np.arange(count)
        if len(chosen) > self._sample.size:
            chosen = chosen[np.argpartition(keys[chosen], self._sample.size)[: self._sample.size]]
        if not len(chosen):
            return
        self._pending.append((keys[chosen], at(chosen)))
        self._waiting += len(chosen)
        if self._waiting >= self._sample.size:
            self._bounds.lower(key=self.sample().bound)

    def sample(self) -> QuantileSample:
        """Return the sample so far."""
        if self._pending:
            keys, values = map(np.concatenate, zip(*self._pending, strict=True))
            order = np.argsort(keys, kind="stable")[: self._sample.size]
            drawn = QuantileSample(keys[order], values[order].astype(np.float64), self._sample.size)
            self._sample = self._sample.merge(drawn)
        self._pending, self._waiting = [], 0
        return self._sample
