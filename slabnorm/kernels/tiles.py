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
def slabs_of(slab_of, lo, hi):
    """Return the first slab of some columns, and how many there are from it to the last."""
    first, last = slab_of[lo], slab_of[lo]
    for i in range(lo, hi):
        first, last = min(first, slab_of[i]), max(last, slab_of[i])
    return first, last - first + 1


@serial
def all_narrow(g, task, slab_of, stats):
    """Return whether every slab of a task can be normalised in float32."""
    block, lo, hi = bounds(g, task)
    base = in_slabs(g, block)
    for i in range(lo, hi):
        if not narrow(stats, base + slab_of[i]):
            return False
    return True


@serial
def coefficients(each, g, task, slab_of, affine_of, w, bias, stats, rounded, of):
    """Write k, r and l of every column (coefficients.py), in float64; k `rounded` to float32 or not."""
    block, lo, hi = bounds(g, task)
    base, start = in_slabs(g, block), in_affine(g, block, (0, 0))
    for i in range(hi - lo):
        slab = base + slab_of[lo + i]
        k, low = shift_of(stats, slab, rounded)
        of[0, i] = k
        of[1, i], of[2, i] = folded(each, w, bias, start + affine_of[lo + i], stats[3, slab], low)


@serial
def narrowed(of, n):
    """Return coefficients as float32."""
    out = np.empty(of.shape, dtype=np.float32)
    for row in range(of.shape[0]):
        for i in range(n):
            out[row, i] = of[row, i]
    return out
