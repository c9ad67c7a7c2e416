"""Cells: what shares a slab and an element of weight and bias. Their sums make the gradients of these."""

from __future__ import annotations

from slabnorm.kernels.elements import load
from slabnorm.kernels.memory import (
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
