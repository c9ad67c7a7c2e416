"""The loops, compiled by Numba: arrays in, arrays out.

An array is the flat memory of a tensor; `loops` (A, O, C, I) says how its cells lie in it: cell a * C + c
holds the elements [a, :, c, :]. Where I > 1 a cell is made of contiguous runs (rows); where I = 1
neighbouring cells are contiguous (columns). Both are cut into *pieces* whose bounds depend on the
shape alone; a reduction writes one partial sum per piece and cell and adds them in order, so the
result has the same bits for any number of threads.

All arithmetic is float64 in registers. That leaves one rounding: an output is the float64 result, rounded.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import prange

Loops = tuple[int, int, int, int]

# Reassociation lets a sum use all SIMD lanes, contraction a fused multiply-add. NaN and inf keep
# their meaning: the flags that assume there are none stay off.
_FAST = {"reassoc", "contract"}
_CHUNK = 16384  # elements in a piece, or less: 64 KiB of float32


def _compiled(parallel: bool) -> Any:
    def decorate(function: Any) -> Any:
        options: dict[str, Any] = {"fastmath": _FAST, "parallel": parallel, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # there is no folder to keep compiled code in
            return numba.njit(**options)(function)

    return decorate


def reduce(u: np.ndarray, v: np.ndarray | None, shift: np.ndarray, loops: Loops) -> np.ndarray:
    """Return two sums for every cell, as an array [2, cells].

    Without v: sum(u - shift) and sum((u - shift)^2). With v: sum(u) and sum(u * (v - shift)).

    Args:
        u, v: flat memory, A * O * C * I elements.
        shift: float64, one per cell, A * C.
        loops: (A, O, C, I).
    """
    outer, _, cells, inner = loops
    if inner > 1:
        parts = _reduce_rows(u, v, shift, loops).sum(axis=(2, 4))
    else:
        parts = _reduce_columns(u, v, shift, loops).sum(axis=2)
    return parts.reshape(2, outer * cells)


def apply(
    u: np.ndarray,
    v: np.ndarray | None,
    out: np.ndarray,
    loops: Loops,
    coefficients: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Write out = scale * (u - shift) + offset; with v, out = scale * u + slope * (v - shift) + offset.

    Args:
        u, v, out: flat memory, A * O * C * I elements.
        loops: (A, O, C, I).
        coefficients: scale, slope, shift and offset: float64, one per cell, A * C.
    """
    run = _apply_rows if loops[3] > 1 else _apply_columns
    run(u, v, out, loops, *coefficients)


def firsts(x: np.ndarray, loops: Loops) -> np.ndarray:
    """Return the first element of every cell, in float64."""
    outer, _, cells, _ = loops
    return x.reshape(loops)[:, 0, :, 0].astype(np.float64).reshape(outer * cells)


# The four innermost loops, over one contiguous piece each. `if v is None` is decided when a loop is
# compiled: one source, two loops. They take slices: an index into the whole array, which may be
# negative for all Numba knows, is not vectorised (measured: 0.92 ns an element, against 0.17).


@_compiled(parallel=False)
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


@_compiled(parallel=False)
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


@_compiled(parallel=False)
def _map(u, v, out, a, q, k, b):  # type: ignore[no-untyped-def]
    for i in range(u.size):
        if v is None:
            out[i] = a * (np.float64(u[i]) - k) + b
        else:
            out[i] = a * np.float64(u[i]) + (q * (np.float64(v[i]) - k) + b)


@_compiled(parallel=False)
def _map_each(u, v, out, a, q, k, b):  # type: ignore[no-untyped-def]
    for c in range(u.size):
        if v is None:
            out[c] = a[c] * (np.float64(u[c]) - k[c]) + b[c]
        else:
            out[c] = a[c] * np.float64(u[c]) + (q[c] * (np.float64(v[c]) - k[c]) + b[c])


@_compiled(parallel=False)
def _part(v, lo, hi):  # type: ignore[no-untyped-def]
    return None if v is None else v[lo:hi]


@_compiled(parallel=True)
def _reduce_rows(u, v, shift, loops):  # type: ignore[no-untyped-def]
    outer, pooled, cells, inner = loops
    runs = outer * pooled * cells
    chunks = (inner + _CHUNK - 1) // _CHUNK  # pieces of a long run ...
    block = max(1, _CHUNK // inner)  # ... or short runs in a piece
    parts = np.empty((2, outer, pooled, cells, chunks))
    flat = parts.reshape(2, runs * chunks)
    for piece in prange((runs + block - 1) // block * chunks):
        chunk = piece % chunks
        first = piece // chunks * block
        for run in range(first, min(runs, first + block)):
            cell = run // (pooled * cells) * cells + run % cells
            lo = run * inner + chunk * _CHUNK
            hi = min((run + 1) * inner, lo + _CHUNK)
            s1, s2 = _sum(u[lo:hi], _part(v, lo, hi), shift[cell])
            flat[0, run * chunks + chunk] = s1
            flat[1, run * chunks + chunk] = s2
    return parts


@_compiled(parallel=True)
def _reduce_columns(u, v, shift, loops):  # type: ignore[no-untyped-def]
    outer, pooled, cells, _ = loops
    block = max(1, _CHUNK // cells)  # rows in a piece
    blocks = (pooled + block - 1) // block
    parts = np.zeros((2, outer, blocks, cells))
    for piece in prange(outer * blocks):
        a = piece // blocks
        first = piece % blocks * block
        for row in range(first, min(pooled, first + block)):
            lo = (a * pooled + row) * cells
            hi = lo + cells
            k = shift[a * cells : (a + 1) * cells]
            _add(u[lo:hi], _part(v, lo, hi), k, parts[0, a, piece % blocks], parts[1, a, piece % blocks])
    return parts


@_compiled(parallel=True)
def _apply_rows(u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    outer, pooled, cells, inner = loops
    runs = outer * pooled * cells
    chunks = (inner + _CHUNK - 1) // _CHUNK
    block = max(1, _CHUNK // inner)
    for piece in prange((runs + block - 1) // block * chunks):
        chunk = piece % chunks
        first = piece // chunks * block
        for run in range(first, min(runs, first + block)):
            j = run // (pooled * cells) * cells + run % cells
            lo = run * inner + chunk * _CHUNK
            hi = min((run + 1) * inner, lo + _CHUNK)
            _map(u[lo:hi], _part(v, lo, hi), out[lo:hi], scale[j], slope[j], shift[j], offset[j])


@_compiled(parallel=True)
def _apply_columns(u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    outer, pooled, cells, _ = loops
    block = max(1, _CHUNK // cells)
    blocks = (pooled + block - 1) // block
    for piece in prange(outer * blocks):
        a = piece // blocks
        j = a * cells
        first = piece % blocks * block
        for row in range(first, min(pooled, first + block)):
            lo = (a * pooled + row) * cells
            hi = lo + cells
            _map_each(u[lo:hi], _part(v, lo, hi), out[lo:hi], scale[j : j + cells], slope[j : j + cells],
                      shift[j : j + cells], offset[j : j + cells])  # fmt: skip
