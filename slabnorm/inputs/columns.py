"""Counting one shard of a table, column by column: nothing is copied to rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import isfinite, isinf, prod

import numpy as np
import torch

from slabnorm.inputs.beside import BesideCounter
from slabnorm.inputs.counter import WIDE, Counting
from slabnorm.inputs.missing import EXACT, Where, refuse_floats, refuse_integers, refuse_null
from slabnorm.inputs.sample import Sampler, most
from slabnorm.inputs.sketch import Bounds, Collector
from slabnorm.inputs.sources.base import Columns
from slabnorm.inputs.sums import Sums, hash_part, joined
from slabnorm.inputs.tally import Tally
from slabnorm.mergeable_moments import Moments

ROWS = 1 << 17  # of a chunk: 1 MB of float64 and of hashes each, so that hashing finds them in the cache
_FIELDS = ("count", "mean", "m2", "min", "max", "mean_low", "m2_low")


class ColumnCounter:
    """Counts the rows of one shard of a table, in order; its interface is that of Counter.

    A row has the hash of the same row in an array; a null hashes as NaN does.

    Args:
        counting: what to count; its schema names the columns.
        name: of the shard, for messages.
        first: the number of its first row in the file, where that is known.
        number: of the shard, which decides what is sampled.
        bounds: what need not be kept.
    """

    def __init__(
        self, counting: Counting, name: str, first: int = 0, number: int = 0, bounds: Bounds | None = None
    ) -> None:
        bounds = bounds or Bounds()
        self._counting, self._name, self._first = counting, name, first
        self._names = counting.schema.names
        self._sums: list[Sums] = []
        self._first_of: dict[np.dtype, Sums] = {}  # whose working memory the others of this dtype share
        self._null = np.zeros(len(self._names), np.int64)
        self._collector, self._samples = Collector(counting.sketch, bounds), 0
        self._features = counting.features()
        features = prod(self._features.shape)
        self._sampler = Sampler(number, features, most(counting.sample, features), bounds)
        self._beside: BesideCounter | None = None
        if counting.reference is not None:
            self._beside = BesideCounter(counting.reference, self._features, counting.sizes)

    def add(self, block: Columns) -> None:
        """Count some rows.

        Raises:
            DataError: null or NaN under the policy "raise", infinity, or an integer beyond 2^53; names column
                and row.
            StatisticsError: the sum of finite values overflows float64.
        """
        for first in range(0, len(block), ROWS):
            self._count(block.rows(first, first + ROWS))

    def tally(self, skipped: Sequence[tuple[str, str]] = ()) -> Tally:
        """Return what has been counted."""
        shape = self._features.shape
        moments, columns = Moments.empty(shape), len(self._names)
        nan = np.array([int(sums.nan[0]) for sums in self._sums] or [0] * columns)
        if self._sums:
            moments = _pooled(joined(self._sums), self._features_of_columns(), shape)
        return Tally(
            self._samples,
            moments,
            self._summed(nan, shape),
            self._summed(self._null, shape),
            self._collector.sketch(),
            self._sampler.sample(),
            self._collector.content,
            tuple(skipped),
            None if self._beside is None else self._beside.counted(),
        )

    def _count(self, block: Columns) -> None:
        hashes = self._collector.begin(len(block), len(self._names))
        for at, (array, missing) in enumerate(zip(block.arrays, block.missing, strict=True)):
            values = _plain(array)
            if at == len(self._sums):
                like = self._first_of.get(values.dtype)
                self._sums.append(Sums(values.dtype, 1, like))
                self._first_of.setdefault(values.dtype, self._sums[-1])
            there = values if missing is None else values[~missing]
            self._sums[at].add(there)
            self._null[at] += len(values) - len(there)
            self._check(at, values, missing)
            if self._counting.sketch:
                hash_part(values if missing is None else _with_nan(values, missing), 1, at, hashes)
        if self._counting.sample:
            self._draw(block)
        if self._counting.sketch:
            self._collector.finish(hashes)
        if self._beside is not None:
            self._beside.add(np.column_stack([*map(dense, block.arrays, block.missing)]), hashes)
        self._samples += len(block)

    def _draw(self, block: Columns) -> None:
        """Sample rows, or, where columns are pooled, single values."""
        table = [*map(dense, block.arrays, block.missing)]
        if prod(self._features.shape) == len(table):
            self._sampler.draw(len(block), lambda rows: np.column_stack([column[rows] for column in table]))
        else:
            self._sampler.add(np.column_stack(table), (0, 1), ())

    def _check(self, at: int, values: np.ndarray, missing: np.ndarray | None) -> None:
        """Raise what is wrong with a column, of which only the sums so far are looked at."""
        sums, strict = self._sums[at], self._counting.nan == "raise"
        low, high = sums.extremes[0, 0], sums.extremes[1, 0]
        where = Where(self._name, self._first + self._samples, Cells((self._names[at],)))
        if strict and missing is not None and missing.any():
            refuse_null(where, missing)
        if values.dtype.kind == "f":
            # Without any value the extremes are infinite, and mean nothing.
            infinite = not isfinite(sums.mean) or (low <= high and (isinf(low) or isinf(high)))
            if infinite or (strict and sums.nan[0]):
                refuse_floats(_filled(values, missing), self._counting.nan, where)
        elif values.dtype.name in WIDE and low <= high and (int(high) >= EXACT or int(low) <= -EXACT):
            refuse_integers(_filled(values, missing), where)

    def _features_of_columns(self) -> np.ndarray:
        """Return of which feature each column is: "n c -> c" has a feature for each, "n c ->" one for all."""
        features = self._features
        numbers = torch.arange(prod(features.shape)).reshape(features.shape)
        return features.spread(numbers, 2).expand(1, len(self._names)).reshape(-1).numpy()

    def _summed(self, counts: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        total = np.zeros(prod(shape), np.int64)
        np.add.at(total, self._features_of_columns(), counts)
        return torch.from_numpy(total.reshape(shape))


@dataclass(frozen=True)
class Cells:
    """Says in messages where a value of a table, or of one of its columns, stands."""

    names: tuple[str, ...]

    def place(self, index: tuple[int, ...]) -> str:
        """Return an index as text."""
        return f"row {index[0]}, column {self.names[index[1] if len(index) > 1 else 0]!r}"


def _plain(array: np.ndarray) -> np.ndarray:
    """Return a column in a dtype that kernels take, a view where it is."""
    array = np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _with_nan(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    # float64 for integers: beyond 2^53 they are refused anyway, and hashes are of its bits.
    copy = values.astype(values.dtype if values.dtype.kind == "f" else np.float64)
    copy[missing] = np.nan
    return copy


def dense(array: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """Return a column in a dtype that kernels take, NaN where a mask says that nothing is."""
    values = _plain(array)
    return values if missing is None else _with_nan(values, missing)


def _filled(values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    return values if missing is None else np.where(missing, values.dtype.type(0), values)


def _pooled(columns: Moments, of: np.ndarray, shape: tuple[int, ...]) -> Moments:
    """Merge the Moments of columns, in their order, to those of features."""
    fields = [getattr(columns, field) for field in _FIELDS]
    if np.array_equal(of, np.arange(prod(shape))):
        return Moments(*(field.reshape(shape) for field in fields))
    single = [Moments(*(field[at] for field in fields)) for at in range(len(of))]
    parts: list[list[Moments]] = [[] for _ in range(prod(shape))]
    for feature, one in zip(of.tolist(), single, strict=True):
        parts[feature].append(one)
    merged = [reduce(Moments.merge, some) for some in parts]
    return Moments(
        *(torch.stack([getattr(one, field) for one in merged]).reshape(shape) for field in _FIELDS)
    )
