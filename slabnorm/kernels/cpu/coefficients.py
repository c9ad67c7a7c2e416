"""What a slab is normalised with, as coefficients of the loops; and the sums of cells behind gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from slabnorm.kernels.cpu.addressing import (
    AR0,
    AR1,
    BLOCKS0,
    BLOCKS1,
    RUN,
    RUNS0,
    RUNS1,
    block_of,
    in_affine,
    inlined,
    serial,
)  # fmt: skip
from slabnorm.kernels.cpu.elements import load
from slabnorm.kernels.cpu.llvm import ahead, overload

# What a slab is normalised with, as the coefficients of the loops.
#
#     z = r * (u - k) + l        p = w * z + b        dx = w * r * g + d * (u - k) + e
#
# k is the mean, in float32 rounded, and l = -low * r with low what that has lost. Where weight and bias are
# constant (`each` is None) they go into r and l: p = r * (u - k) + l.


@inlined
def shift_of(stats, slab, rounded):
    """Return the mean, rounded to float32 or not, and what it has lost."""
    shift, rest = stats[2, slab], stats[4, slab]
    k = np.float64(np.float32(shift + rest)) if rounded else shift
    return k, (shift - k) + rest


def folded(each: Any, w: Any, bias: Any, j: Any, rstd: Any, low: Any) -> Any:
    """Return r and l; with element j of weight and bias in them where `each` is None."""


def beside(each: Any, w: Any, j: Any) -> Any:
    """Return weight or bias from element j on; None where `each` is None: it is in r and l already."""


def one(each: Any, w: Any, j: Any, like: Any) -> Any:
    """Return element j of weight or bias in the arithmetic of `like`; None where `each` is None."""


@overload(folded)
def _folded(each, w, bias, j, rstd, low):
    if isinstance(each, types.NoneType):

        def both(each, w, bias, j, rstd, low):
            r = rstd * load(w, j, 0.0)
            return r, load(bias, j, 0.0) - low * r

        return both
    return lambda each, w, bias, j, rstd, low: (rstd, -low * rstd)


@overload(beside)
def _beside(each, w, j):
    if isinstance(each, types.NoneType):
        return lambda each, w, j: None
    return lambda each, w, j: ahead(w, j)


@overload(one)
def _one(each, w, j, like):
    if isinstance(each, types.NoneType):
        return lambda each, w, j, like: None
    return lambda each, w, j, like: load(w, j, like)


@inlined
def gradient(rstd, low, c1, c2):
    """Return d and e: dx = rstd * (w * g - c1 - c2 * z) in powers of u - k, but for the term in g."""
    d = -rstd * rstd * c2
    return d, -rstd * c1 - low * d


# Cells: what shares a slab and an element of weight and bias. Their sums make the gradients of these.


@inlined
def cell_of(g, r):
    """Return the number of a run among the runs of its block that differ in weight and bias."""
    outer, inner = r[0] * (g[AR1] != 0), r[1] * (g[AR0] != 0)
    return outer * g[RUNS0] + inner if g[AR0] != 0 else outer


@serial
def cells_of_block(g):
    """Return how many runs of a block differ in weight and bias."""
    return cell_of(g, (g[RUNS1] - 1, g[RUNS0] - 1)) + 1


@inlined
def enter(g, lane, b, r, p, q, w, cells, work, column):
    """Add the sums of a chunk to its cell, and weighted to those of its slab, a column of `work`."""
    cell, weight = cell_of(g, r), load(w, in_affine(g, b, r), 0.0)
    cells[0, lane, cell] += p
    cells[1, lane, cell] += q
    work[0, column] += weight * p
    work[1, column] += weight * q


@serial
def flush(sums, cells):
    """Add sums to the cells, and set them to 0."""
    for i in range(sums.size):
        cells[i] += sums[i]
        sums[i] = 0


@serial
def add_up(g, cells, dweight, dbias):
    """Add the cells of every lane up to the gradients of weight and bias, always in one order."""
    for lane in range(g[BLOCKS1] * g[BLOCKS0]):
        b = block_of(g, lane)
        for r1 in range(g[RUNS1] if g[AR1] != 0 else 1):
            for r0 in range(g[RUNS0] if g[AR0] != 0 else 1):
                j, cell = in_affine(g, b, (r1, r0)), cell_of(g, (r1, r0))
                dbias[j] += cells[0, lane, cell]
                dweight[j] += cells[1, lane, cell]


@serial
def add_up_each(g, cells, dweight, dbias):
    """Add the cells of every task up to the gradients of weight and bias, always in one order."""
    for task in range(len(cells)):
        for i in range(g[RUN]):
            dbias[i] += cells[task, i]
            dweight[i] += cells[task, g[RUN] + i]
