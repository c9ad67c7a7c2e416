"""The compiled one-pass statistics of kernels/cpu/column_moments.py, called on arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from slabnorm.mergeable_moments import Moments

EXACT = frozenset({"uint8", "int8", "uint16", "int16"})  # whose squares int64 adds up, 2^31 of them


class Sums:
    """Count, NaN, mean, squared deviations and extremes of features, table by table.

    Args:
        dtype: of the values; bool goes as uint8.
        features: how many.
        like: another of the same dtype and as many features, whose working memory is shared; then both are
            of one thread.
    """

    def __init__(self, dtype: np.dtype, features: int, like: Sums | None = None) -> None:
        from slabnorm.kernels.cpu.column_moments import STRIP  # Numba is imported when it is needed

        self.dtype, self.features = dtype, features
        # A name of a dtype takes NumPy 25 us, more than all the rest of a column of a few rows.
        self.exact: bool = like.exact if like else dtype.name in EXACT
        exact = self.exact
        wide = np.int64 if exact else np.float64
        self._state = np.zeros((2 if exact else 4, features), wide)
        self._counts = np.zeros((2, features), np.int64)
        ends = (np.inf, -np.inf) if dtype.kind == "f" else (np.iinfo(dtype).max, np.iinfo(dtype).min)
        self._extremes = np.repeat(np.array(ends, dtype)[:, None], features, axis=1)
        # 64 bytes more a row: rows of the same address modulo 4096 would wait for each other.
        self._room: tuple[np.ndarray, ...] = like._room if like else (
            np.zeros(features, wide), np.zeros((4, STRIP + 8), wide),
            np.zeros((2, STRIP + 64), dtype), np.zeros((3, features), wide),
        )  # fmt: skip
        self._add: Callable[..., Any] = like._add if like else _adder(dtype.name)

    def add(self, values: np.ndarray, run: int = 1) -> None:
        """Add a table: a flat, contiguous array of rows, each `features` times `run` values."""
        if values.size:
            rows = values.size // (self.features * run)
            g = np.array([rows, self.features, run])
            self._add(values, g, self._state, self._counts, self._extremes, *self._room)

    @property
    def nan(self) -> np.ndarray:
        """NaN so far, per feature."""
        return self._counts[1]

    @property
    def extremes(self) -> np.ndarray:
        """The least and the most of each feature, in the dtype of the data."""
        return self._extremes

    @property
    def finite(self) -> bool:
        """Whether neither a value nor a sum has been infinite."""
        return self._state.dtype == np.int64 or bool(np.isfinite(self._state[0]).all())

    @property
    def mean(self) -> float:
        """The first feature's mean so far, or its sum of integers; cheap, to see whether it is finite."""
        return float(self._state[0, 0])

    def moments(self) -> Moments:
        """Return the Moments so far, one per feature, in memory's order."""
        return joined([self])

    def fields(self) -> tuple[np.ndarray, ...]:
        """Return the fields of the Moments so far, in memory's order; views of what is still added to."""
        count = self._counts[0]
        low, high = (np.where(count > 0, end, none) for end, none in
                     zip(self._extremes.astype(np.float64), (np.inf, -np.inf), strict=True))  # fmt: skip
        if self._state.dtype == np.int64:
            parts = [_exact(*map(int, column)) for column in zip(count, *self._state, strict=True)]
            mean, mean_low, m2, m2_low = np.array(parts).reshape(-1, 4).T
        else:
            mean, mean_low, m2, m2_low = self._state
        return count, mean, m2, low, high, mean_low, m2_low


def joined(sums: Sequence[Sums]) -> Moments:
    """Return the Moments of several sums, one after another."""
    fields = zip(*(part.fields() for part in sums), strict=True)
    return Moments(*(torch.from_numpy(np.concatenate(field)) for field in fields))


def _exact(count: int, total: int, squares: int) -> tuple[float, float, float, float]:
    """Return mean and squared deviations of integers, each as two float64 numbers."""
    if not count:
        return 0.0, 0.0, 0.0, 0.0
    return *_quotient(total, count), *_quotient(count * squares - total * total, count)


def _quotient(a: int, b: int) -> tuple[float, float]:
    # True division of integers is rounded once, whatever their size; so is what is left.
    high = a / b
    p, q = high.as_integer_ratio()
    return high, (a * q - p * b) / (b * q)


def hash_part(values: np.ndarray, length: int, at: int, out: np.ndarray) -> None:
    """Add `length` values of each sample, from place `at` on, to the hashes, which began as lengths."""
    if values.size and length == 1:
        _column_hasher(values.dtype)(values, at, *_keys(), out)
    elif values.size:
        _hasher(values.dtype)(values, length, at, *_keys(), out)


def finish_hashes(hashes: np.ndarray, room: np.ndarray, bound: int = 1 << 64) -> tuple[np.ndarray, int]:
    """Finish the samples' hashes in place; return those below a bound, and the sum of all modulo 2^64.

    Args:
        hashes: of samples, all their parts added.
        room: working memory, of as many uint64.
        bound: 1 to 2^64.
    """
    total = np.zeros(1, np.uint64)
    kept = _mixer()(hashes, np.uint64(bound - 1), room, total)
    return room[:kept].copy(), int(total[0])


@cache
def _adder(dtype: str) -> Callable[..., Any]:
    from slabnorm.kernels.cpu.compiled import tally

    return tally(dtype, dtype in EXACT)


@cache
def _hasher(dtype: np.dtype) -> Callable[..., Any]:
    from slabnorm.kernels.cpu.compiled import hashes

    return hashes(dtype.name)


@cache
def _column_hasher(dtype: np.dtype) -> Callable[..., Any]:  # whose name takes NumPy 7 us to find
    from slabnorm.kernels.cpu.compiled import column_hashes

    return column_hashes(dtype.name)


@cache
def _mixer() -> Callable[..., int]:
    from slabnorm.kernels.cpu.compiled import mix

    return mix()


@cache
def _keys() -> tuple[np.ndarray, np.ndarray]:
    from slabnorm.kernels.cpu.hashing import keys

    return keys()
