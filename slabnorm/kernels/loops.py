"""The loops, compiled by Numba: arrays in, arrays out.

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
_ROWS = 2048  # rows in a piece, or less: a column is summed one by one, so rounding grows with its length


def _compiled(**options: Any) -> Any:
    def decorate(function: Any) -> Any:
        try:
            return numba.njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError:  # there is no folder to keep compiled code in
            return numba.njit(error_model="numpy", **options)(function)

    return decorate


# Reassociation lets a sum use all SIMD lanes, contraction a fused multiply-add. NaN and inf keep
# their meaning: the flags that assume there are none stay off.
_loop = _compiled(fastmath={"reassoc", "contract"})
_serial = _compiled()
_parallel = _compiled(parallel=True)


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


@_serial
def _cut(loops):  # type: ignore[no-untyped-def]
    """Return the number of pieces, the runs or rows in one, and the chunks of a run."""
    outer, pooled, cells, inner = loops
    if inner > 1:
        chunks = (inner + _CHUNK - 1) // _CHUNK
        block = max(1, _CHUNK // inner)
        return (outer * pooled * cells + block - 1) // block * chunks, block, chunks
    block = min(_ROWS, max(1, _CHUNK // cells))
    return outer * ((pooled + block - 1) // block), block, 1


@_serial
def _part(v, lo, hi):  # type: ignore[no-untyped-def]
    return None if v is None else v[lo:hi]


@_serial
def _reduce_piece(piece, u, v, shift, loops, parts):  # type: ignore[no-untyped-def]
    outer, pooled, cells, inner = loops
    _, block, chunks = _cut(loops)
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


@_serial
def _apply_piece(piece, u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    outer, pooled, cells, inner = loops
    _, block, chunks = _cut(loops)
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


@_parallel
def _reduce_pieces(pieces, u, v, shift, loops, parts):  # type: ignore[no-untyped-def]
    for piece in prange(pieces):
        _reduce_piece(piece, u, v, shift, loops, parts)


@_parallel
def _apply_pieces(pieces, u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    for piece in prange(pieces):
        _apply_piece(piece, u, v, out, loops, scale, slope, shift, offset)


# Over all cells. One piece is not worth waking threads for.


@_serial
def _reduce(u, v, shift, loops):  # type: ignore[no-untyped-def]
    outer, pooled, cells, inner = loops
    pieces, block, chunks = _cut(loops)
    between = pooled if inner > 1 else (pooled + block - 1) // block
    parts = np.zeros((2, outer * between * cells * chunks))
    if pieces == 1:
        _reduce_piece(0, u, v, shift, loops, parts)
    else:
        _reduce_pieces(pieces, u, v, shift, loops, parts)
    s1 = np.zeros(outer * cells)
    s2 = np.zeros(outer * cells)
    i = 0
    for a in range(outer):
        for _ in range(between):
            for cell in range(a * cells, (a + 1) * cells):
                for _ in range(chunks):
                    s1[cell] += parts[0, i]
                    s2[cell] += parts[1, i]
                    i += 1
    return s1, s2


@_serial
def _apply(u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    pieces = _cut(loops)[0]
    if pieces == 1:
        _apply_piece(0, u, v, out, loops, scale, slope, shift, offset)
    else:
        _apply_pieces(pieces, u, v, out, loops, scale, slope, shift, offset)


# What cpu.py calls. Small arrays are float64: mean, rstd, c1, c2 one per slab, weight and bias one per
# element of the affine axes; slab_of and affine_of say which of them a cell has.


@_serial
def statistics(x, loops, slab_of, slabs):  # type: ignore[no-untyped-def]
    """Return mean and sum of squared deviations of every slab."""
    outer, pooled, cells, inner = loops
    count = pooled * inner
    shift = np.empty(outer * cells)
    for a in range(outer):
        for c in range(cells):
            shift[a * cells + c] = x[(a * pooled * cells + c) * inner]  # the cell's first element
    s1, s2 = _reduce(x, None, shift, loops)
    # Cells of equal count merge around the mean of one of them, so that equal cells merge without
    # a rounding, and a constant slab has exactly no variance.
    around = np.empty(slabs)
    for cell in range(slab_of.size):
        around[slab_of[cell]] = shift[cell] + s1[cell] / count
    low = np.zeros(slabs)
    for cell in range(slab_of.size):
        low[slab_of[cell]] += (shift[cell] - around[slab_of[cell]]) + s1[cell] / count
    low /= slab_of.size // slabs
    mean = around + low
    m2 = np.zeros(slabs)
    for cell in range(slab_of.size):
        slab = slab_of[cell]
        apart = (shift[cell] - mean[slab]) + s1[cell] / count
        m2[slab] += s2[cell] - s1[cell] * s1[cell] / count + count * apart * apart
    for slab in range(slabs):
        if m2[slab] < 0:  # by rounding; NaN stays NaN
            m2[slab] = 0.0
    return mean, m2


@_serial
def apply(x, out, loops, slab_of, affine_of, mean, rstd, weight, bias):  # type: ignore[no-untyped-def]
    """Write out = (x - mean) * rstd * weight + bias."""
    scale = rstd[slab_of] * weight[affine_of]
    _apply(x, None, out, loops, scale, scale, mean[slab_of], bias[affine_of])


@_serial
def sums(dy, x, loops, slab_of, affine_of, mean, rstd, weight):  # type: ignore[no-untyped-def]
    """Return sum(weight * dy) and sum(weight * dy * z) per slab, sum(dy * z) and sum(dy) per weight."""
    p, q = _reduce(dy, x, mean[slab_of], loops)
    s1, s2 = np.zeros(mean.size), np.zeros(mean.size)
    dweight, dbias = np.zeros(weight.size), np.zeros(weight.size)
    for cell in range(slab_of.size):
        slab, j = slab_of[cell], affine_of[cell]
        z = q[cell] * rstd[slab]
        s1[slab] += weight[j] * p[cell]
        s2[slab] += weight[j] * z
        dweight[j] += z
        dbias[j] += p[cell]
    return s1, s2, dweight, dbias


@_serial
def gradient(dy, x, out, loops, slab_of, affine_of, mean, rstd, weight, c1, c2):  # type: ignore[no-untyped-def]
    """Write out = rstd * (weight * dy - c1 - z * c2)."""
    scale = rstd[slab_of] * weight[affine_of]
    slope, offset = (-rstd * rstd * c2)[slab_of], (-rstd * c1)[slab_of]
    _apply(dy, x, out, loops, scale, slope, mean[slab_of], offset)
