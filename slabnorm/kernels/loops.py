"""The loops over memory, compiled by Numba: arrays in, arrays out.

An array is the flat memory of a tensor; `loops` (A, O, C, I) says how its cells lie in it: cell a * C + c
holds the elements [a, :, c, :]. Where I > 1 a cell is made of contiguous runs (rows); where I = 1
neighbouring cells are contiguous (columns). Both are cut into *pieces* whose bounds depend on the
shape alone. A reduction writes one partial sum per piece and cell, and adds them in order, so the
result has the same bits for any number of threads.

All arithmetic is float64 in registers: next to reading memory it costs nothing that shows, and an output
is then the float64 result, rounded once.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import prange

_CHUNK = 16384  # elements in a piece, or less: 64 KiB of float32
# Rows in a piece. A column is summed one by one, so rounding grows with its length; and a piece leaves
# two float64 sums a column, which is much where it has few rows.
_LEAST_ROWS, _MOST_ROWS = 32, 2048


def compiled(**options: Any) -> Any:
    """Return a decorator that compiles a function on its first call and keeps the result on disk."""

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError:  # there is no folder to keep compiled code in
            return numba.njit(error_model="numpy", **options)(function)

    return decorate


# Reassociation lets a sum use all SIMD lanes, contraction a fused multiply-add. NaN and inf keep
# their meaning: the flags that assume there are none stay off.
_loop = compiled(fastmath={"reassoc", "contract"})
serial = compiled()
parallel = compiled(parallel=True)


# The four innermost loops, over one contiguous piece each. `if v is None` is decided when a loop is
# compiled: one source, two loops. They take slices: an index into the whole array, which may be
# negative for all Numba knows, is not vectorised (measured: 0.92 ns an element, against 0.17).


@_loop
def _sum(u, v, k):  # type: ignore[no-untyped-def]
    s1 = 0.0
    s2 = 0.0
    for i in range(u.size):
        if v is None:
            t = np.float64(u[i]) - k
            s1 += t
            s2 += t * t
        else:
            t = np.float64(u[i])
            s1 += t
            s2 += t * (np.float64(v[i]) - k)
    return s1, s2


@_loop
def _add(u, v, k, s1, s2):  # type: ignore[no-untyped-def]
    for c in range(u.size):
        if v is None:
            t = np.float64(u[c]) - k[c]
            s1[c] += t
            s2[c] += t * t
        else:
            t = np.float64(u[c])
            s1[c] += t
            s2[c] += t * (np.float64(v[c]) - k[c])


@_loop
def _map(u, v, out, a, q, k, b):  # type: ignore[no-untyped-def]
    for i in range(u.size):
        if v is None:
            out[i] = a * (np.float64(u[i]) - k) + b
        else:
            out[i] = a * np.float64(u[i]) + (q * (np.float64(v[i]) - k) + b)


@_loop
def _map_each(u, v, out, a, q, k, b):  # type: ignore[no-untyped-def]
    for c in range(u.size):
        if v is None:
            out[c] = a[c] * (np.float64(u[c]) - k[c]) + b[c]
        else:
            out[c] = a[c] * np.float64(u[c]) + (q[c] * (np.float64(v[c]) - k[c]) + b[c])


# Pieces: the bounds of the innermost loops. A long run is cut into chunks; short runs, or rows of
# cells, are taken a block at a time.


@serial
def cut(loops):  # type: ignore[no-untyped-def]
    """Return the number of pieces, the runs or rows in one, and the chunks of a run."""
    outer, pooled, cells, inner = loops
    if inner > 1:
        chunks = (inner + _CHUNK - 1) // _CHUNK
        block = max(1, _CHUNK // inner)
        return (outer * pooled * cells + block - 1) // block * chunks, block, chunks
    block = min(_MOST_ROWS, max(_LEAST_ROWS, _CHUNK // cells))
    return outer * ((pooled + block - 1) // block), block, 1


@serial
def _part(v, lo, hi):  # type: ignore[no-untyped-def]
    return None if v is None else v[lo:hi]


@serial
def reduce_piece(piece, u, v, shift, loops, parts):  # type: ignore[no-untyped-def]
    """Write two sums of one piece: without v of u - shift and its square, with v of u and u * (v - shift).

    u and v are flat memory; shift has one number per cell; parts is [2, A * (O or blocks) * C * chunks].
    """
    outer, pooled, cells, inner = loops
    _, block, chunks = cut(loops)
    if inner > 1:
        chunk = piece % chunks
        first = piece // chunks * block
        for run in range(first, min(outer * pooled * cells, first + block)):
            cell = run // (pooled * cells) * cells + run % cells
            lo = run * inner + chunk * _CHUNK
            hi = min((run + 1) * inner, lo + _CHUNK)
            s1, s2 = _sum(u[lo:hi], _part(v, lo, hi), shift[cell])
            parts[0, run * chunks + chunk] = s1
            parts[1, run * chunks + chunk] = s2
    else:
        blocks = (pooled + block - 1) // block
        a = piece // blocks
        k = shift[a * cells : (a + 1) * cells]
        s1 = parts[0, piece * cells : (piece + 1) * cells]
        s2 = parts[1, piece * cells : (piece + 1) * cells]
        first = piece % blocks * block
        for row in range(first, min(pooled, first + block)):
            lo = (a * pooled + row) * cells
            _add(u[lo : lo + cells], _part(v, lo, lo + cells), k, s1, s2)


@serial
def apply_piece(piece, u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    """Write one piece of out = scale * (u - shift) + offset, or scale * u + slope * (v - shift) + offset.

    u, v and out are flat memory; the rest has one number per cell.
    """
    outer, pooled, cells, inner = loops
    _, block, chunks = cut(loops)
    if inner > 1:
        chunk = piece % chunks
        first = piece // chunks * block
        for run in range(first, min(outer * pooled * cells, first + block)):
            j = run // (pooled * cells) * cells + run % cells
            lo = run * inner + chunk * _CHUNK
            hi = min((run + 1) * inner, lo + _CHUNK)
            _map(u[lo:hi], _part(v, lo, hi), out[lo:hi], scale[j], slope[j], shift[j], offset[j])
    else:
        blocks = (pooled + block - 1) // block
        a = piece // blocks
        i, j = a * cells, (a + 1) * cells
        first = piece % blocks * block
        for row in range(first, min(pooled, first + block)):
            lo = (a * pooled + row) * cells
            hi = lo + cells
            _map_each(u[lo:hi], _part(v, lo, hi), out[lo:hi], scale[i:j], slope[i:j], shift[i:j], offset[i:j])


# prange counts in unsigned numbers, for which the pieces would be compiled once more.


@parallel
def reduce_pieces(pieces, u, v, shift, loops, parts):  # type: ignore[no-untyped-def]
    """Run reduce_piece for every piece, on all threads."""
    for piece in prange(pieces):
        reduce_piece(np.int64(piece), u, v, shift, loops, parts)


@parallel
def apply_pieces(pieces, u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    """Run apply_piece for every piece, on all threads."""
    for piece in prange(pieces):
        apply_piece(np.int64(piece), u, v, out, loops, scale, slope, shift, offset)
