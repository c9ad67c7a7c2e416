"""What columns' forward and backward share: tiles, pieces, and what a column is normalised with."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.coefficients import folded, shift_of
from slabnorm.kernels.memory import (
    PIECE,
    RUN,
    RUNS0,
    RUNS1,
    TILE,
    block_of,
    in_affine,
    in_slabs,
    narrow,
    serial,
)  # fmt: skip


@serial
def tiles(g):
    """Return the number of tiles of a block."""
    return (g[RUN] + g[TILE] - 1) // g[TILE]


@serial
def bounds(g, task):
    """Return the block of a task, and its columns."""
    block, tile = block_of(g, task // tiles(g)), task % tiles(g)
    return block, tile * g[TILE], min(g[RUN], (tile + 1) * g[TILE])


@serial
def pieces(g):
    """Return the number of pieces of a task."""
    return (g[RUNS1] * g[RUNS0] + g[PIECE] - 1) // g[PIECE]


@serial
def runs_of(g, piece):
    """Return the runs of a piece."""
    return piece * g[PIECE], min(g[RUNS1] * g[RUNS0], (piece + 1) * g[PIECE])


@serial
def clear(values):
    """Set an array to 0."""
    for i in range(values.size):
        values[i] = 0


@serial
def add(values, more):
    """Add an array to another."""
    for i in range(values.size):
        values[i] += more[i]


@serial
def places(group, lo, hi):
    """Return the slab, and the element of weight and bias, of columns lo to hi of block 0.

    They follow from the axes within a run, counted on like the digits of a number. Tables, kept with a call's
    plan, would take 8 MB for a tensor of (2, 500000) float32, which takes 4.
    """
    last = len(group) - 1
    found, digits = np.empty((2, hi - lo), dtype=np.int64), np.empty(last + 1, dtype=np.int64)
    rest, slab, affine = lo, 0, 0
    for axis in range(last, -1, -1):
        digits[axis] = rest % group[axis, 0]
        rest //= group[axis, 0]
        slab += digits[axis] * group[axis, 1]
        affine += digits[axis] * group[axis, 2]
    size, of_slab, of_affine = group[last, 0], group[last, 1], group[last, 2]
    i = 0
    while i < hi - lo:
        n = min(size - digits[last], hi - lo - i)
        for j in range(n):
            found[0, i + j] = slab + j * of_slab
            found[1, i + j] = affine + j * of_affine
        i += n
        axis = last
        slab += n * of_slab
        affine += n * of_affine
        digits[last] += n
        while axis > 0 and digits[axis] == group[axis, 0]:
            slab += group[axis - 1, 1] - digits[axis] * group[axis, 1]
            affine += group[axis - 1, 2] - digits[axis] * group[axis, 2]
            digits[axis] = 0
            axis -= 1
            digits[axis] += 1
    return found


@serial
def slabs_of(slab_of):
    """Return the first slab of some columns, and how many there are from it to the last."""
    first, last = slab_of[0], slab_of[0]
    for i in range(slab_of.size):
        first, last = min(first, slab_of[i]), max(last, slab_of[i])
    return first, last - first + 1


@serial
def all_narrow(g, task, slab_of, stats):
    """Return whether every slab of a task can be normalised in float32."""
    base = in_slabs(g, bounds(g, task)[0])
    for i in range(slab_of.size):
        if not narrow(stats, base + slab_of[i]):
            return False
    return True


@serial
def coefficients(each, g, task, place, w, bias, stats, rounded, of):
    """Write k, r and l of every column (coefficients.py), in float64; k `rounded` to float32 or not."""
    block = bounds(g, task)[0]
    base, start = in_slabs(g, block), in_affine(g, block, (0, 0))
    for i in range(place.shape[1]):
        slab = base + place[0, i]
        k, low = shift_of(stats, slab, rounded)
        of[0, i] = k
        of[1, i], of[2, i] = folded(each, w, bias, start + place[1, i], stats[3, slab], low)


@serial
def narrowed(of, n):
    """Return coefficients as float32."""
    out = np.empty(of.shape, dtype=np.float32)
    for row in range(of.shape[0]):
        for i in range(n):
            out[row, i] = of[row, i]
    return out
