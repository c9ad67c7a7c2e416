"""Moments of columns in one pass: count, NaN, mean, squared deviations and extremes of every feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import types

from slabnorm.inputs.kernels import SOURCES
from slabnorm.inputs.kernels.hashing import DISTANCE, KEY_TYPES, add_hashes, hashing_of, keys
from slabnorm.inputs.kernels.vectors import LANES, less, load, more, store, widened
from slabnorm.kernels.cpu.kernel_cache import compile_function, flag
from slabnorm.kernels.cpu.llvm import INNER, ahead, data, njit, overload, read
from slabnorm.mergeable_moments import Moments

# What is counted of some features, table by table.

EXACT_DTYPES = frozenset({"uint8", "int8", "uint16", "int16"})  # whose squares int64 adds up, 2^31 of them
EXACT_INTEGERS = 1 << 53  # from here on float64 skips integers
REFUSED, MISSING = 1, 2  # what kernels find: values that no fit takes, and NaN


class ColumnMoments:
    """Count, NaN, mean, squared deviations and extremes of features, to which tables are added.

    Args:
        dtype: of the values; bool goes as uint8.
        features: how many.
        like: another of the same dtype and as many features, whose working memory is shared; then both are
            of one thread.
    """

    def __init__(self, dtype: np.dtype, features: int, like: ColumnMoments | None = None) -> None:
        self.dtype, self.features = dtype, features
        # A name of a dtype takes NumPy 25 us, more than all the rest of a column of a few rows.
        self._exact: bool = like._exact if like else dtype.name in EXACT_DTYPES
        self._add: Compiled = like._add if like else Compiled(dtype)
        self._found = 0
        wide = np.int64 if self._exact else np.float64
        self._state = np.zeros((2 if self._exact else 4, features), wide)
        self._counts = np.zeros((2, features), np.int64)
        ends = (np.inf, -np.inf) if dtype.kind == "f" else (np.iinfo(dtype).max, np.iinfo(dtype).min)
        self._extremes = np.repeat(np.array(ends, dtype)[:, None], features, axis=1)
        self._room: tuple[np.ndarray, ...] = like._room if like else _working_memory(dtype, features, wide)

    def add(self, values: np.ndarray, run: int = 1, hashes: np.ndarray | None = None) -> None:
        """Add a table: a flat, contiguous array of rows, each `features` times `run` values.

        Args:
            values: the array.
            run: how many values of a feature lie together.
            hashes: of the samples, of one length, that the array holds; their values are added to these.
        """
        if values.size:
            rows = values.size // (self.features * run)
            length = 0 if hashes is None else values.size // len(hashes)
            keyed = _NO_KEYS if hashes is None else (*keys(), hashes)
            layout = np.array([rows, self.features, run, length])
            add = self._add[hashes is not None]
            self._found = add(values, layout, self._state, self._counts, self._extremes, *self._room, *keyed)

    @property
    def nan(self) -> np.ndarray:
        """NaN so far, per feature."""
        return self._counts[1]

    def hold_refusable(self, nan: bool) -> bool:
        """Whether what was added holds infinity, an integer that float64 skips, or NaN without `nan`; or
        whether the sum of its values overflows float64.
        """
        return bool(self._found & REFUSED or (self._found & MISSING and not nan))

    def moments(self) -> Moments:
        """Return the Moments so far, one per feature, in memory's order."""
        return concatenate_moments([self])

    def fields(self) -> tuple[np.ndarray, ...]:
        """Return the fields of the Moments so far, in memory's order; views of what is still added to."""
        count = self._counts[0]
        low, high = self._extremes.astype(np.float64)
        low, high = np.where(count > 0, low, np.inf), np.where(count > 0, high, -np.inf)
        if self._exact:
            parts = [_exact_moments(*map(int, column)) for column in zip(count, *self._state, strict=True)]
            mean, mean_low, m2, m2_low = np.array(parts).reshape(-1, 4).T
        else:
            mean, mean_low, m2, m2_low = self._state
        return count, mean, m2, low, high, mean_low, m2_low


def concatenate_moments(columns: Sequence[ColumnMoments]) -> Moments:
    """Return the Moments of several columns or tables, one after another."""
    fields = zip(*(part.fields() for part in columns), strict=True)
    return Moments(*(torch.from_numpy(np.concatenate(field)) for field in fields))


def _working_memory(dtype: np.dtype, features: int, wide: Any) -> tuple[np.ndarray, ...]:
    # 64 bytes more a row: rows of the same address modulo 4096 would wait for each other.
    work: np.ndarray = np.zeros((4, STRIP + 8), wide)
    return np.zeros(features, wide), work, np.zeros((2, STRIP + 64), dtype), np.zeros((3, features), wide)


def _exact_moments(count: int, total: int, squares: int) -> tuple[float, float, float, float]:
    """Return mean and squared deviations of integers, each as two float64 numbers."""
    if not count:
        return 0.0, 0.0, 0.0, 0.0
    return *_quotient(total, count), *_quotient(count * squares - total * total, count)


def _quotient(a: int, b: int) -> tuple[float, float]:
    # True division of integers is rounded once, whatever their size; so is what is left.
    high = a / b
    p, q = high.as_integer_ratio()
    return high, (a * q - p * b) / (b * q)


_NO_KEYS = (None,) * 4


class Compiled(dict[bool, Callable[..., Any]]):
    """The compiled functions that add a table of a dtype, by whether they hash its samples, too."""

    def __init__(self, dtype: np.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __missing__(self, hashed: bool) -> Callable[..., Any]:
        self[hashed] = _compiled(self._dtype.name, hashed)
        return self[hashed]


@cache
def _compiled(dtype: str, hashed: bool) -> Callable[..., Any]:
    """Return the compiled function that adds a table of this dtype to the moments of its features."""
    exact = dtype in EXACT_DTYPES
    values, wide = numba.from_dtype(np.dtype(dtype)), types.int64 if exact else types.float64
    line, table = (lambda of: types.Array(of, 1, "C")), (lambda of: types.Array(of, 2, "C"))
    results = table(wide), table(types.int64), table(values)
    room = line(wide), table(wide), table(values), table(wide)
    more = (*KEY_TYPES, line(types.uint64)) if hashed else (types.none,) * 4
    signature = line(values), line(types.int64), *results, *room, *more
    return compile_function(signature, add_kernel, flag(exact), sources=SOURCES)


# Sums of a table's columns: values around a shift, integers as they are, values that may be NaN.

TALL = 8  # rows that are summed at once

_loop = njit(**INNER, fastmath={"reassoc", "contract"})


@_loop
def _less(a, b):
    return a if a < b else b


@_loop
def _more(a, b):
    return a if a > b else b


@_loop
def sum_columns(p, rows, step, width, k, s1, s2, lo, hi):
    """Add v - k and its square to s1 and s2, column by column; keep the extremes."""
    whole, last = width // LANES * LANES, rows // TALL * TALL
    shifts, totals, squares = data(k, 0), data(s1, 0), data(s2, 0)
    least, most = data(lo, 0), data(hi, 0)
    # Several rows at once: sums are loaded and stored as many times less often, and rounded less.
    for r in range(0, last, TALL):
        x = ahead(p, r * step)
        for j in range(0, whole, LANES):
            v, shift = load(x, j), load(shifts, j)
            low, high = less(v, load(least, j)), more(v, load(most, j))  # NaN is never less and never more
            t = widened(v) - shift
            s, q = t, t * t
            for i in range(1, TALL):
                v = load(x, i * step + j)
                low, high = less(v, low), more(v, high)
                t = widened(v) - shift
                s += t
                q += t * t
            store(totals, j, load(totals, j) + s)
            store(squares, j, load(squares, j) + q)
            store(least, j, low)
            store(most, j, high)
        for j in range(whole, width):
            s, q, low, high = 0.0, 0.0, lo[j], hi[j]
            for i in range(TALL):
                a = read(x, i * step + j)
                t = a - k[j]
                s += t
                q += t * t
                low, high = _less(a, low), _more(a, high)
            s1[j] += s
            s2[j] += q
            lo[j], hi[j] = low, high
    for r in range(last, rows):
        x = ahead(p, r * step)
        for j in range(width):
            a = read(x, j)
            t = a - k[j]
            s1[j] += t
            s2[j] += t * t
            lo[j] = a if a < lo[j] else lo[j]
            hi[j] = a if a > hi[j] else hi[j]


@_loop
def sum_exact(p, rows, step, width, s1, s2, lo, hi):
    """As `sum_columns`, of integers, around 0."""
    # Two loops, each as wide as its values: bytes, ns a value: 0.09, and 0.23 as one loop.
    for r in range(0, rows - 7, 8):
        x0 = ahead(p, r * step)
        x1, x2, x3 = ahead(x0, step), ahead(x0, 2 * step), ahead(x0, 3 * step)
        x4, x5 = ahead(x0, 4 * step), ahead(x0, 5 * step)
        x6, x7 = ahead(x0, 6 * step), ahead(x0, 7 * step)
        for j in range(width):
            a, b, c, d = read(x0, j), read(x1, j), read(x2, j), read(x3, j)
            e, f, g, h = read(x4, j), read(x5, j), read(x6, j), read(x7, j)
            s1[j] += ((a + b) + (c + d)) + ((e + f) + (g + h))
            s2[j] += ((a * a + b * b) + (c * c + d * d)) + ((e * e + f * f) + (g * g + h * h))
        for j in range(width):
            a, b, c, d = read(x0, j), read(x1, j), read(x2, j), read(x3, j)
            e, f, g, h = read(x4, j), read(x5, j), read(x6, j), read(x7, j)
            lo[j] = _less(_less(_less(a, b), _less(c, d)), _less(_less(_less(e, f), _less(g, h)), lo[j]))
            hi[j] = _more(_more(_more(a, b), _more(c, d)), _more(_more(_more(e, f), _more(g, h)), hi[j]))
    for r in range(rows // 8 * 8, rows):
        x0 = ahead(p, r * step)
        for j in range(width):
            a = read(x0, j)
            s1[j] += a
            s2[j] += a * a
            lo[j] = a if a < lo[j] else lo[j]
            hi[j] = a if a > hi[j] else hi[j]


@_loop
def sum_present(p, rows, step, width, k, s1, s2, lo, hi, missing):
    """As `sum_columns`, leaving NaN out and counting it."""
    for r in range(rows):
        x0 = ahead(p, r * step)
        for j in range(width):
            a = read(x0, j)
            t = a - k[j]
            t = t if t == t else 0.0
            s1[j] += t
            s2[j] += t * t
            missing[j] += 1.0 if a != a else 0.0
            lo[j] = a if a < lo[j] else lo[j]
            hi[j] = a if a > hi[j] else hi[j]


# One pass over a table of values: count, NaN, mean, squared deviations and extremes of every feature.
#
# Memory is rows of `features` times `run` values: a table has runs of one value, an image in NCHW a run of
# pixels for every channel. Floats are summed in float64 around a shift, in pieces of at most 2^20 values of
# a feature; the pieces are merged in twice the precision. Integers of 8 and 16 bits are summed exactly, in
# int64.

ROWS = 1024  # rows of a piece, or more if they are narrow
# Columns, float32, ns an element on one core: 128 wide 0.62, 256 0.50, 512 0.35, 1024 0.26.
# Their sums take 32 KiB; narrower strips start loops more often.
STRIP = 1024  # columns that are summed together
LONG = 8192  # a run of so many values is a table of its own, FOLD columns wide
FOLD = 1024
WIDE = 1024  # narrow rows are joined to at least so many columns
# Values that are counted and then hashed, while they are in the second cache and the next ones are fetched to
# it. 1M x 64 float32, ns a value: 0.42 to 0.44 with 2^13 to 2^16 of them, 0.46 without fetching, 0.50 if a
# chunk is counted before it is hashed.
NEAR = DISTANCE
DOUBTFUL = 64  # (mean - shift)^2 / variance, from which a piece is summed again around its mean

_serial = njit(**INNER)


@_serial
def _start(place, width, layout, shift, work, ends, extremes):
    """Clear the sums of a strip of columns, the first of which has this place in a row."""
    feature, at = place // layout[2] % layout[1], place % layout[2]
    for j in range(width):
        work[0, j] = shift[feature]
        work[1, j] = 0
        work[2, j] = 0
        work[3, j] = 0
        ends[0, j] = extremes[0, feature]
        ends[1, j] = extremes[1, feature]
        feature, at = _next(feature, at, layout)


@_serial
def _next(feature, at, layout):
    """Return the feature of the next column, and its place in the run; divisions cost more than sums."""
    if at + 1 < layout[2]:
        return feature, at + 1
    return (feature + 1 if feature + 1 < layout[1] else 0), 0


@_serial
def _take(p, rows, step, width, work, ends, present):
    """Sum a table into a strip's columns; `present` is whether NaN may be in it, None for integers."""
    k, s1, s2, missing, lo, hi = work[0], work[1], work[2], work[3], ends[0], ends[1]
    if present is None:
        sum_exact(p, rows, step, width, s1, s2, lo, hi)
    elif present:
        sum_present(p, rows, step, width, k, s1, s2, lo, hi, missing)
    else:
        sum_columns(p, rows, step, width, k, s1, s2, lo, hi)


@_serial
def _end(place, width, layout, work, ends, sums, extremes):
    """Add the sums of a strip to those of its features."""
    feature, at = place // layout[2] % layout[1], place % layout[2]
    for j in range(width):
        sums[0, feature] += work[1, j]
        sums[1, feature] += work[2, j]
        sums[2, feature] += work[3, j]
        extremes[0, feature] = min(extremes[0, feature], ends[0, j])
        extremes[1, feature] = max(extremes[1, feature], ends[1, j])
        feature, at = _next(feature, at, layout)


@_serial
def _short_runs(p, first, last, layout, shift, work, ends, present, sums, extremes, hashing):
    """Sum rows, joined where they are narrow, in strips of columns."""
    width = layout[1] * layout[2]
    joined = max(1, WIDE // width)
    # An odd number: rows that are 4096 bytes apart have the same eight places in the first cache, and a value
    # of 64 columns takes 0.21 ns then instead of 0.19.
    joined -= joined > 1 and joined % 2 == 0
    rows, rest = (last - first) // joined, (last - first) % joined
    for place in range(0, width * joined, STRIP):
        strip = min(STRIP, width * joined - place)
        _start(place, strip, layout, shift, work, ends, extremes)
        # Rows that are left over are joined to none; then all columns are one strip.
        for left in range(2 if rest else 1):
            at = (last - rest) * width if left else first * width + place
            n, columns, step = (rest, width, width) if left else (rows, strip, width * joined)
            # Rows of one strip are hashed while they are in the second cache.
            block = max(TALL, NEAR // step // TALL * TALL) if strip == width * joined else n
            for top in range(0, n, block):
                end = min(top + block, n)
                _take(ahead(p, at + top * step), end - top, step, columns, work, ends, present)
                if block < n:
                    add_hashes(p, at + end * step, hashing, _doubt(present, work[1, :columns]))
        _end(place, strip, layout, work, ends, sums, extremes)


@_serial
def _long_runs(p, first, last, layout, shift, work, ends, present, sums, extremes):
    """Sum rows run by run, each a table of its own."""
    run = layout[2]
    fold = min(FOLD, run)  # FOLD: but functions are compiled anew for a constant
    for feature in range(layout[1]):
        _start(feature * run, fold, layout, shift, work, ends, extremes)
        for row in range(first, last):
            start = (row * layout[1] + feature) * run
            for left in range(2):
                at = start + left * (run - run % FOLD)
                n, columns = (1, run % FOLD) if left else (run // FOLD, fold)
                _take(ahead(p, at), n, fold, columns, work, ends, present)
        _end(feature * run, fold, layout, work, ends, sums, extremes)


@_serial
def _piece(p, first, last, layout, shift, work, ends, present, sums, extremes, hashing):
    for f in range(layout[1]):
        for i in range(3):
            sums[i, f] = 0
    if layout[2] >= LONG:
        _long_runs(p, first, last, layout, shift, work, ends, present, sums, extremes)
    else:
        _short_runs(p, first, last, layout, shift, work, ends, present, sums, extremes, hashing)
    add_hashes(p, last * layout[1] * layout[2], hashing, _doubt(present, sums[0]))


@_serial
def _piece_rows(layout):
    """Return how many rows are a piece."""
    if layout[2] >= LONG:
        return max(1, ROWS * FOLD // layout[2])
    return max(ROWS, ROWS * WIDE // (layout[1] * layout[2]))


@_serial
def _shift(p, first, last, layout, shift):
    """Write a value of each feature: the first, or the first few's that is finite, else 0."""
    width = layout[1] * layout[2]
    for feature in range(layout[1]):
        shift[feature] = 0.0
        for row in range(first, min(first + 8, last)):
            value = np.float64(read(p, row * width + feature * layout[2]))
            if np.isfinite(value):
                shift[feature] = value
                break


@_serial
def _again(n, shift, sums):
    """Return whether sums are doubtful, by features whose mean is far from the shift; move that there."""
    doubtful = False
    for feature in range(len(shift)):
        count = n - sums[2, feature]
        if count > 0:
            away = sums[0, feature] / count
            rest = sums[1, feature] - away * sums[0, feature]
            if away * sums[0, feature] > DOUBTFUL * rest and np.isfinite(shift[feature] + away):
                shift[feature] += away
                doubtful = doubtful or away != 0.0
    return doubtful


@_serial
def _any_nan(sums):
    found = 0
    for f in range(len(sums)):
        found += sums[f] != sums[f]
    return found > 0


@_serial
def _doubt(present, sums):
    """Return whether there may be NaN in what was summed."""
    if present is None:
        return False
    return present or _any_nan(sums)


@_serial
def _two_sum(a, b):
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return total, error if np.isfinite(error) else 0.0


@_serial
def _merge(n, shift, sums, counts, state):
    """Merge a piece into what came before it, as `Moments.merge` does."""
    for f in range(len(shift)):
        nb = n - sums[2, f]
        counts[1, f] += np.int64(sums[2, f])
        if nb == 0:
            continue
        na = np.float64(counts[0, f])
        away = sums[0, f] / nb
        squares = max(sums[1, f] - away * sums[0, f], 0.0) if sums[1, f] < np.inf else sums[1, f]
        mean, low = _two_sum(shift[f], away)
        counts[0, f] += np.int64(nb)
        if na == 0:
            state[0, f], state[1, f], state[2, f], state[3, f] = mean, low, squares, 0.0
            continue
        share = nb / (na + nb)
        high, error = _two_sum(mean, -state[0, f])
        delta = high + (error + (low - state[1, f]))
        mean, low = _two_sum(state[0, f], delta * share)
        state[0, f], state[1, f] = _two_sum(mean, low + state[1, f])
        m2, m2_low = _two_sum(state[2, f], squares)
        m2, extra = _two_sum(m2, delta * delta * na * share)
        state[2, f], state[3, f] = _two_sum(m2, m2_low + extra + state[3, f])


@_serial
def _found(state, counts, extremes, exact):
    """Return REFUSED if there is infinity, an integer that float64 skips or a sum that overflows; MISSING."""
    found = 0
    if exact is None:
        for f in range(counts.shape[1]):
            low, high = extremes[0, f], extremes[1, f]
            if _beyond(low, high) or not np.isfinite(state[0, f]):
                found |= REFUSED
            if counts[1, f]:
                found |= MISSING
    return found


def _beyond(low, high):
    """Return whether values between these are no numbers that a fit takes."""


@overload(_beyond)
def _beyond_of(low, high):
    if isinstance(low, types.Float):
        return lambda low, high: low == -np.inf or high == np.inf
    if low.bitwidth < 64:
        return lambda low, high: False
    if low.signed:
        return lambda low, high: low <= -EXACT_INTEGERS or high >= EXACT_INTEGERS
    return lambda low, high: high >= np.uint64(EXACT_INTEGERS)


def add_kernel(exact):
    """Return a function that adds a table to what is known of its features, and returns what it has found.

    exact: integers, without shift.

    x: the values, in order. layout: rows, features, run, and the values of a sample. state: mean, mean_low,
    m2 and m2_low of each feature; if exact, its sum and its sum of squares. counts: values and NaN.
    extremes: least and most, in x's dtype.
    Working memory: shift (features), work (4, STRIP), ends (2, STRIP), sums (3, features).
    words, rests, halves, hashes: keys, and what the hashes of the samples are so far; or None.
    """

    def add(x, layout, state, counts, extremes, shift, work, ends, sums, words, rests, halves, hashes):
        p, hashing = data(x, 0), hashing_of(layout[3], words, rests, halves, hashes)
        # Not constants, for which Numba would compile once more what is called.
        first, last, no = 0 * layout[0], layout[0], layout[0] < 0
        if exact is not None:
            _piece(p, first, last, layout, shift, work, ends, None, sums, extremes, hashing)
            for f in range(layout[1]):
                state[0, f] += sums[0, f]
                state[1, f] += sums[1, f]
                counts[0, f] += layout[0] * layout[2]
            return _found(state, counts, extremes, True)
        step = _piece_rows(layout)
        for first in range(0, layout[0], step):
            last = min(first + step, layout[0])
            n = np.float64((last - first) * layout[2])
            _shift(p, first, last, layout, shift)
            present = moved = no
            while True:
                _piece(p, first, last, layout, shift, work, ends, present, sums, extremes, hashing)
                if not present and _any_nan(sums[0]):
                    present = not no
                elif not moved and _again(n, shift, sums):
                    moved = not no
                else:
                    break
            _merge(n, shift, sums, counts, state)
        return _found(state, counts, extremes, None)

    return add
