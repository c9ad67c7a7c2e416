"""64-bit hashes of samples, by value: the same numbers have the same hash in every dtype that holds them.

A value is a 32-bit word, its float32 bits; what float32 loses of a 64-bit value is a second one. A
sample's hash is sum(word * key) over blocks of KEYS values, joined by a polynomial, and mixed so that its
leading bits are as good as the others (multilinear hashing: Lemire and Kaser, "Strongly universal string
hashing is fast", 2014). Two samples collide with probability 2^-33 at worst, where all words that
differ do so by multiples of 2^31.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from slabnorm.inputs.kernels import SOURCES
from slabnorm.inputs.kernels.vectors import LANES, float_words, load, prefetch, products, total, zeros
from slabnorm.kernels.cpu.kernel_cache import compile_function
from slabnorm.kernels.cpu.llvm import INNER, LINE, ahead, data, njit, overload, read

KEYS = 4096
DISTANCE = 1 << 15  # values ahead of those that are hashed, which are fetched meanwhile
JOIN = np.uint64(0x9E3779B97F4A7C15)  # what joins blocks
_LOW, _NO, _HALF = np.uint64((1 << 29) - 1), np.uint64(0), np.uint64((1 << 32) - 1)
_ZERO, _NAN = np.float32(0.0), np.float32(np.nan)
_MIX1, _MIX2, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)

# The hashes of samples, part by part.


def add_values(values: np.ndarray, length: int, at: int, hashes: np.ndarray) -> None:
    """Add `length` values of each sample, from place `at` on, to the hashes, which began as lengths."""
    if values.size and length == 1:
        _compiled_columns(values.dtype)(values, at, *keys()[:2], hashes)
    elif values.size:
        _compiled_rows(values.dtype)(values, length, at, *keys(), hashes)


def finish_hashes(hashes: np.ndarray, room: np.ndarray, bound: int = 1 << 64) -> tuple[np.ndarray, int]:
    """Finish the samples' hashes in place; return those below a bound, and the sum of all modulo 2^64.

    Args:
        hashes: of samples, all their parts added.
        room: working memory, of as many uint64.
        bound: 1 to 2^64.
    """
    total = np.zeros(1, np.uint64)
    kept = _compiled_finish()(hashes, np.uint64(bound - 1), room, total)
    return room[:kept].copy(), int(total[0])


_WORDS = types.Array(types.uint64, 1, "C")
KEY_TYPES = _WORDS, _WORDS, types.Array(types.uint32, 2, "C")  # of `keys`


@cache
def _compiled_rows(dtype: np.dtype) -> Callable[..., Any]:
    signature = (_array_of(dtype), types.int64, types.int64, *KEY_TYPES, _WORDS)
    return compile_function(signature, rows_kernel, sources=SOURCES)


@cache
def _compiled_columns(dtype: np.dtype) -> Callable[..., Any]:
    signature = (_array_of(dtype), types.int64, _WORDS, _WORDS, _WORDS)
    return compile_function(signature, column_kernel, sources=SOURCES)


@cache
def _compiled_finish() -> Callable[..., int]:
    return compile_function((_WORDS, types.uint64, _WORDS, _WORDS), finish_kernel, sources=SOURCES)


def _array_of(dtype: np.dtype) -> types.Array:
    return types.Array(numba.from_dtype(dtype), 1, "C")


@cache
def keys() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the keys of words and of rests: odd numbers of 64 bits (splitmix64). Then halves of the first.

    Halves are 32-bit words in two rows, the lower ones first.
    """
    z = np.arange(1, 2 * KEYS + 1, dtype=np.uint64) * JOIN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    words = z[:KEYS].copy()
    halves = np.array([words & _HALF, words >> np.uint64(32)], np.uint32)
    return words, z[KEYS:].copy(), halves


# The kernels.


@intrinsic
def _bits(context, value):
    def build(context, builder, signature, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(32)), ir.IntType(64))

    return types.uint64(types.float32), build


@intrinsic
def _wide_bits(context, value):
    def build(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), build


def _term(value, key, rest):
    """Return a value's word times its key, and the rest of a 64-bit value, what float32 loses, times its."""


@overload(_term)
def _term_of(value, key, rest):
    if value in (types.float64, types.int64, types.uint64, types.int32, types.uint32):

        def long(value, key, rest):
            v = np.float64(value)
            narrow, bits = np.float32(v), _wide_bits(v)
            # What float32 holds ends in 29 zero bits; what it has no exponent for keeps all its bits.
            beyond = (narrow == 0) != (v == 0) or (abs(narrow) == np.inf) != (abs(v) == np.inf)
            low = bits if beyond else bits & _LOW
            return _bits(_one(narrow)) * key + (low if v == v else _NO) * rest

        return long
    return lambda value, key, rest: _bits(_one(np.float32(value))) * key


@njit(**INNER)
def _one(v):
    """Return v with one zero and one NaN: -0 + 0 is 0."""
    return v + _ZERO if v == v else _NAN


@njit(**INNER, fastmath={"reassoc"})
def _sum(x, n, keys):
    words, rests, _, _ = keys
    terms = np.uint64(0)
    for j in range(n):
        terms += _term(read(x, j), read(words, j), read(rests, j))
    return terms


@njit(**INNER)
def _mixed(h):
    h ^= h >> _SHIFT
    h *= _MIX1
    h ^= h >> _SHIFT
    h *= _MIX2
    return h ^ (h >> _SHIFT)


@njit(**INNER)
def _add_terms(x, y, j, low, high, sums, nan):
    lower, upper = load(low, j), load(high, j)
    v, w = float_words(load(x, j), nan), float_words(load(y, j), nan)
    x_low, x_high, y_low, y_high = sums
    return (
        x_low + products(v, lower), x_high + v * upper, y_low + products(w, lower), y_high + w * upper
    )  # fmt: skip


def _sum_two(x, y, n, keys, distance, nan):
    """Return the terms of n values of two samples, added up; fetch values at a distance meanwhile."""


@overload(_sum_two)
def _sum_two_of(x, y, n, keys, distance, nan):
    if x.dtype.bitwidth > 32 or x.dtype in (types.int32, types.uint32):
        return lambda x, y, n, keys, distance, nan: (_sum(x, n, keys), _sum(y, n, keys))
    line = LINE // (x.dtype.bitwidth // 8)

    # Modulo 2^64, a word times a key is the word times the key's lower half, and 2^32 times the lower 32 bits
    # of the word times its upper half: three multiplications of eight words, where LLVM makes four of 64-bit
    # products and spreads words and keys for them. In the cache a float32 takes 0.13 ns instead of 0.33. Two
    # samples share the keys that are loaded.
    def together(x, y, n, keys, distance, nan):
        _, _, low, high = keys
        sums = zeros(np.uint64), zeros(np.uint32), zeros(np.uint64), zeros(np.uint32)
        lines, whole = n // line * line, n // LANES * LANES
        for first in range(0, lines, line):
            prefetch(x, distance + first)
            prefetch(y, distance + first)
            for j in range(first, first + line, LANES):
                sums = _add_terms(x, y, j, low, high, sums, nan)
        for j in range(lines, whole, LANES):
            sums = _add_terms(x, y, j, low, high, sums, nan)
        g, h = total(sums[0], sums[1]), total(sums[2], sums[3])
        if whole < n:
            g += _sum(ahead(x, whole), n - whole, ahead(keys, whole))
            h += _sum(ahead(y, whole), n - whole, ahead(keys, whole))
        return g, h

    return together


@njit(**INNER)
def _add_rows(p, first, last, length, at, keys, out, distance, nan):
    """Add `length` values of each of some samples, from place `at` on, to their hashes.

    keys: what `_key_memory` returns. distance: how far ahead of the values are those that are to be fetched
    meanwhile. nan: whether there may be NaN, None if not.
    """
    for r in range(first, last, 2):
        s = min(r + 1, last - 1)  # r again, if it is the last
        x, y, g, h = ahead(p, r * length), ahead(p, s * length), out[r], out[s]
        done, place = 0, at % KEYS
        while done < length:
            n = min(KEYS - place, length - done)
            if place == 0:
                g *= JOIN
                h *= JOIN
            more_g, more_h = _sum_two(ahead(x, done), ahead(y, done), n, ahead(keys, place), distance, nan)
            g += more_g
            h += more_h
            done += n
            place = 0
        out[r], out[s] = g, h


@njit(**INNER)
def _key_memory(words, rests, halves):
    """Return the memory of keys as loops take it."""
    return data(words, 0), data(rests, 0), data(halves[0], 0), data(halves[1], 0)


def hashing_of(length, words, rests, halves, hashes):
    """Return how samples of `length` values are hashed, as `add_hashes` takes it; None without keys."""


def add_hashes(p, end, hashing, nan):
    """Add values, of which so many can be read, to the hashes of samples that they complete.

    nan: whether there may be NaN in those that were not told of yet.
    """


@overload(hashing_of)
def _hashing_of(length, words, rests, halves, hashes):
    if isinstance(words, types.NoneType):
        return lambda length, words, rests, halves, hashes: None
    return lambda length, words, rests, halves, hashes: (
        length, _key_memory(words, rests, halves), hashes, np.zeros(2, np.int64)
    )  # fmt: skip


@overload(add_hashes)
def _add_hashes(p, end, hashing, nan):
    if isinstance(hashing, types.NoneType):
        return lambda p, end, hashing, nan: None

    def add(p, end, hashing, nan):
        length, keys, hashes, seen = hashing
        first, last = seen[0], end // length
        if nan:
            seen[1] = 1
        if seen[1]:  # also of samples that began before
            _add_rows(p, first, last, length, 0, keys, hashes, DISTANCE, True)
        else:
            _add_rows(p, first, last, length, 0, keys, hashes, DISTANCE, None)
        seen[0] = max(first, last)

    return add


def rows_kernel():
    """Return a function that adds the words of `length` values of each sample to its hash.

    x: the samples, each of `length` values, one after another. at: the first value's place in the sample.
    out: hashes so far, which `finish_kernel` finishes.
    """

    def add(x, length, at, words, rests, halves, out):
        _add_rows(data(x, 0), 0, len(out), length, at, _key_memory(words, rests, halves), out, 0, True)
        return x[0]

    return add


def column_kernel():
    """Return a function that adds one value of each sample to its hash: a column of a table.

    x: the values. at: their place in the sample. Further arguments as in `rows_kernel`, whose loop over the
    values of a sample takes 2.6 ns a float32 here; this one 0.4.
    """

    def add(x, at, words, rests, out):
        p = data(x, 0)
        place = at % KEYS
        key, rest = words[place], rests[place]
        if place == 0:
            for r in range(len(out)):
                out[r] *= JOIN
        for r in range(len(out)):
            out[r] += _term(read(p, r), key, rest)
        return x[0]

    return add


def finish_kernel():
    """Return a function that finishes hashes in place, and returns how many are at most `most`.

    few: those hashes, in order; as long as `hashes`. total: grows by the sum of all hashes, modulo 2^64.
    """

    def finish(hashes, most, few, total):
        kept, every = 0, np.uint64(0)
        for r in range(len(hashes)):  # which LLVM vectorises, without the places of those that are kept
            h = _mixed(hashes[r])
            hashes[r] = h
            every += h
        total[0] += every
        for r in range(len(hashes)):
            h = hashes[r]
            few[kept] = h  # written over by the next where it is too great: no branch, which would be guessed
            kept += h <= most
        return kept

    return finish
