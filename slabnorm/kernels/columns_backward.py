"""Columns, backward: reduce, merge and apply a gradient. The words are those of columns.py.

With g the gradient at the pre-activation, z = (x - shift) * rstd, and means over the slab,

    dx = rstd * (w * g - c1 - c2 * z)       c1 = mean(w * g)       c2 = mean(w * g * z)
"""

from __future__ import annotations

import numpy as np
from numba import prange

from slabnorm.kernels import loops
from slabnorm.kernels.elements import part, zeros
from slabnorm.kernels.memory import (
    AFFINE,
    BLOCKS0,
    BLOCKS1,
    COUNT,
    OUT_SPAN,
    RUNS0,
    RUNS1,
    SERIAL,
    TASKS,
    TILE,
    X_SPAN,
    array,
    block_of,
    constants,
    in_affine,
    in_out,
    in_x,
    keep,
    next_run,
    run_of,
    serial,
)  # fmt: skip
from slabnorm.kernels.tiles import (
    add,
    all_narrow,
    bounds,
    clear,
    coefficients,
    pieces,
    runs_of,
    slabs_of,
    tiles,
)  # fmt: skip

FLUSH = 16  # runs added up in float32


@serial
def _sum_piece(code, each, g, task, piece, dy, x, residual, w, bias, of, sums, s1, s2, cells):
    """Write the sums of g and of g * z over the runs of a piece; weighted where w varies by run."""
    block, lo, hi = bounds(g, task)
    n, k, low, rstd, p, q = hi - lo, of[0], of[1], of[2], sums[0], sums[1]
    clear(s1)
    clear(s2)
    clear(p)
    clear(q)
    first, last = runs_of(g, piece)
    r = run_of(g, first)
    for run in range(first, last):
        at, to = in_x(g, block, r) + lo, in_out(g, block, r) + lo
        up, u, v = dy[to : to + n], x[at : at + n], part(residual, to, to + n)
        if each is None:
            loops.back_columns(code, up, u, v, k, low, rstd, of[3], of[4], p, q)
        else:
            j = in_affine(g, block, r)
            c, d = loops.back_columns_weighted(code, up, u, v, k, low, rstd, w[j], bias[j], p, q)
            cells[0, run] = c
            cells[1, run] = d
        r = next_run(g, r)
        if (run - first) % FLUSH == FLUSH - 1 or run == last - 1:
            add(s1, p)
            add(s2, q)
            clear(p)
            clear(q)


@serial
def _sum_pieces(
    code, each, g, task, first, last, dy, x, residual, slab_of, affine_of, w, bias, stats, of, sums, s1, s2,
    work, cells
):  # fmt: skip
    coefficients(each, g, task, slab_of, affine_of, w, bias, stats, of)
    for piece in range(first, last):
        _sum_piece(code, each, g, task, piece, dy, x, residual, w, bias, of, sums, work[0], work[1], cells)
        add(s1, work[0])
        add(s2, work[1])


@serial
def _reduce(
    code, each, fast, g, task, first, last, dy, x, residual, slab_of, affine_of, w, bias, stats, s1, s2, cells
):  # fmt: skip
    """Add the sums of some pieces of a task to s1 and s2."""
    work = np.empty((2, g[TILE]))
    if fast is not None and all_narrow(g, task, slab_of, stats):
        of = zeros(1, 7 * g[TILE]).reshape((7, g[TILE]))
        _sum_pieces(
            code, each, g, task, first, last, dy, x, residual, slab_of, affine_of, w, bias, stats, of,
            of[5:], s1, s2,
            work, cells,
        )  # fmt: skip
    else:
        wide = np.zeros((7, g[TILE]))
        _sum_pieces(
            code, each, g, task, first, last, dy, x, residual, slab_of, affine_of, w, bias, stats, wide,
            wide[5:], s1,
            s2, work, cells,
        )  # fmt: skip


@serial
def _merge(each, g, task, s1, s2, slab_of, affine_of, w, own, center, cells):
    """Turn the sums of columns into the constants c1 and c2 of their slabs, in place."""
    block, lo, hi = bounds(g, task)
    start = in_affine(g, block, (0, 0))
    first, size = slabs_of(slab_of, lo, hi)
    of_g, of_gz = np.zeros(size), np.zeros(size)
    for i in range(hi - lo):
        weight = 1.0
        if each is None:
            weight = np.float64(w[start + affine_of[lo + i]])
            cells[0, lo + i] = s1[i]
            cells[1, lo + i] = s2[i]
        of_g[slab_of[lo + i] - first] += weight * s1[i]
        of_gz[slab_of[lo + i] - first] += weight * s2[i]
    for i in range(hi - lo):
        slab = slab_of[lo + i] - first
        s1[i], s2[i] = constants(g[COUNT], of_g[slab], of_gz[slab], own, center)


@serial
def _write_pieces(
    code, each, g, task, first, last, dy, x, residual, dx, dresidual, slab_of, affine_of, w, bias, stats,
    c1, c2, of
):  # fmt: skip
    coefficients(each, g, task, slab_of, affine_of, w, bias, stats, of)
    block, lo, hi = bounds(g, task)
    n, k, low, rstd, d1, d2 = hi - lo, of[0], of[1], of[2], of[5], of[6]
    for i in range(n):
        d1[i], d2[i] = c1[i], c2[i]
    run, last_run = runs_of(g, first)[0], runs_of(g, last - 1)[1]
    r = run_of(g, run)
    for _ in range(run, last_run):
        at, to = in_x(g, block, r) + lo, in_out(g, block, r) + lo
        up, u, v = dy[to : to + n], x[at : at + n], part(residual, to, to + n)
        out, also = dx[to : to + n], part(dresidual, to, to + n)
        if each is None:
            loops.backward(code, up, u, v, out, also, k, low, rstd, of[3], of[4], d1, d2)
        else:
            j = in_affine(g, block, r)
            loops.backward(code, up, u, v, out, also, k, low, rstd, w[j], bias[j], d1, d2)
        r = next_run(g, r)


@serial
def _write(
    code, each, fast, g, task, first, last, dy, x, residual, dx, dresidual, slab_of, affine_of, w, bias,
    stats, c1, c2
):  # fmt: skip
    """Write the gradients of some pieces of a task."""
    if fast is not None and all_narrow(g, task, slab_of, stats):
        of = zeros(1, 7 * g[TILE]).reshape((7, g[TILE]))
        _write_pieces(
            code, each, g, task, first, last, dy, x, residual, dx, dresidual, slab_of, affine_of, w, bias,
            stats, c1, c2,
            of,
        )  # fmt: skip
    else:
        wide = np.zeros((7, g[TILE]))
        _write_pieces(
            code, each, g, task, first, last, dy, x, residual, dx, dresidual, slab_of, affine_of, w, bias,
            stats, c1, c2,
            wide,
        )  # fmt: skip


@serial
def _backward_task(
    code, each, fast, g, task, dy, x, residual, dx, dresidual, slab_of, affine_of, w, bias, stats, cells,
    own, center,
    write,
):  # fmt: skip
    s1, s2 = np.zeros(g[TILE]), np.zeros(g[TILE])
    own_cells = cells[task // tiles(g)] if each is None else cells[task]
    _reduce(
        code, each, fast, g, task, 0, pieces(g), dy, x, residual, slab_of, affine_of, w, bias, stats, s1,
        s2, own_cells
    )  # fmt: skip
    _merge(each, g, task, s1, s2, slab_of, affine_of, w, own, center, own_cells)
    if write:
        _write(
            code, each, fast, g, task, 0, pieces(g), dy, x, residual, dx, dresidual, slab_of, affine_of, w,
            bias, stats,
            s1, s2,
        )  # fmt: skip


@serial
def _add_up(each, g, cells, affine_of, dweight, dbias):
    """Add the cells of every block or task up to the gradients of weight and bias, always in one order."""
    for i in range(len(cells)):
        block = block_of(g, i if each is None else i // tiles(g))
        start = in_affine(g, block, (0, 0))
        for j in range(cells.shape[2]):
            to = start + affine_of[j] if each is None else in_affine(g, block, run_of(g, j))
            dbias[to] += cells[i, 0, j]
            dweight[to] += cells[i, 1, j]


def backward_kernel(how, dtype, affine_dtype, code, each, fast, fused, inner, version):
    """Return the backward of a columns layout as plain Python, to be compiled.

    `fused`: None or 1, a residual; `inner`: None or 1, whether its gradient is written.
    """

    def columns_backward(
        g, slab_of, affine_of, tasks, dy_at, x_at, residual_at, dx_at, dresidual_at, w_at, b_at, stats,
        dw_at, db_at, own, center, write,
    ):  # fmt: skip
        version  # noqa: B018  see compiled.py
        dy, x = array(dy_at, g[OUT_SPAN], dtype), array(x_at, g[X_SPAN], dtype)
        residual = None if fused is None else array(residual_at, g[OUT_SPAN], dtype)
        dx = array(dx_at, g[OUT_SPAN], dtype)
        dresidual = None if inner is None else array(dresidual_at, g[OUT_SPAN], dtype)
        w, bias = array(w_at, g[AFFINE], affine_dtype), array(b_at, g[AFFINE], affine_dtype)
        between = pieces(g)
        if each is None:
            cells = np.zeros((g[BLOCKS1] * g[BLOCKS0], 2, len(affine_of)))
        else:
            cells = np.zeros((tasks, 2, g[RUNS1] * g[RUNS0]))
        if how == SERIAL:
            for task in range(tasks):
                _backward_task(
                    code, each, fast, g, task, dy, x, residual, dx, dresidual, slab_of, affine_of, w, bias,
                    stats,
                    cells, own, center, write,
                )  # fmt: skip
        elif how == TASKS:
            for i in prange(tasks):
                _backward_task(
                    code, each, fast, g, np.int64(i), dy, x, residual, dx, dresidual, slab_of, affine_of, w,
                    bias,
                    stats, cells, own, center, write,
                )  # fmt: skip
        else:
            sums, parts = np.zeros((tasks, 2, g[TILE])), np.zeros((tasks, between, 2, g[TILE]))
            for i in prange(tasks * between):
                task, piece = np.int64(i) // between, np.int64(i) % between
                own_cells = cells[task // tiles(g)] if each is None else cells[task]
                _reduce(
                    code, each, fast, g, task, piece, piece + 1, dy, x, residual, slab_of, affine_of, w,
                    bias, stats,
                    parts[task, piece, 0], parts[task, piece, 1], own_cells,
                )  # fmt: skip
            for task in range(tasks):
                for piece in range(between):
                    add(sums[task, 0], parts[task, piece, 0])
                    add(sums[task, 1], parts[task, piece, 1])
                own_cells = cells[task // tiles(g)] if each is None else cells[task]
                _merge(
                    each, g, task, sums[task, 0], sums[task, 1], slab_of, affine_of, w, own, center, own_cells
                )
            for i in prange(tasks * between * write):
                task, piece = np.int64(i) // between, np.int64(i) % between
                _write(
                    code, each, fast, g, task, piece, piece + 1, dy, x, residual, dx, dresidual, slab_of,
                    affine_of, w,
                    bias, stats, sums[task, 0], sums[task, 1],
                )  # fmt: skip
        dweight, dbias = np.zeros(g[AFFINE]), np.zeros(g[AFFINE])
        _add_up(each, g, cells, affine_of, dweight, dbias)
        keep(dweight, dw_at, affine_dtype)
        keep(dbias, db_at, affine_dtype)

    return columns_backward
