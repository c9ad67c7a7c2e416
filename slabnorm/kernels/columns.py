"""Columns: every element of a run is a column, and a slab is made of whole columns.

A *task* is a tile of columns of one block, and holds whole slabs. Its runs are taken in *pieces*; the sums of
a piece are one number per column, and pieces are added up in order. Where there are many tasks, each thread
takes some; where there are few, all threads share the pieces of each: the same sums, the same bits.

Arrays are those of rows.py; `slab_of` and `affine_of` say which slab and which element of weight and bias
a column has. `each` is None where weight and bias vary from column to column, 1 where from run to run.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from slabnorm.kernels import loops
from slabnorm.kernels.column_sums import (
    add_pieces,
    any_doubtful,
    around,
    replace,
    share_piece,
    share_piece_carefully,
    shift,
    sum_task,
)
from slabnorm.kernels.elements import part, zeros
from slabnorm.kernels.memory import (
    AFFINE,
    COUNT,
    OUT_SPAN,
    RUNS0,
    RUNS1,
    SERIAL,
    TASKS,
    TILE,
    X_SPAN,
    array,
    finish,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    next_run,
    run_of,
    serial,
)  # fmt: skip
from slabnorm.kernels.tiles import (
    all_narrow,
    bounds,
    coefficients,
    pieces,
    runs_of,
    slabs_of,
)  # fmt: skip


@serial
def _merge(g, task, k, s1, s2, slab_of, stats, eps, center):
    """Merge columns into the statistics of their slabs, around the mean of one column of each.

    All columns count as much, so equal ones merge without a rounding,
    and a constant slab has exactly no variance.
    """
    block, lo, hi = bounds(g, task)
    base, count = in_slabs(g, block), g[RUNS1] * g[RUNS0]
    first, size = slabs_of(slab_of, lo, hi)
    sums = np.zeros((3, size))  # around what, and the slab's sums around it
    for i in range(hi - lo):
        sums[0, slab_of[lo + i] - first] = k[i] + s1[i] / count
    for i in range(hi - lo):
        slab = slab_of[lo + i] - first
        apart = (k[i] - sums[0, slab]) + s1[i] / count
        sums[1, slab] += count * apart
        sums[2, slab] += s2[i] - s1[i] * s1[i] / count + count * apart * apart
    for i in range(hi - lo):
        slab = slab_of[lo + i] - first
        finish(stats, base + first + slab, g[COUNT], sums[0, slab], sums[1, slab], sums[2, slab], eps, center)


@serial
def _write_piece(code, each, g, task, piece, x, residual, out, w, bias, of):
    block, lo, hi = bounds(g, task)
    n, k, low, rstd = hi - lo, of[0], of[1], of[2]
    first, last = runs_of(g, piece)
    r = run_of(g, first)
    for _ in range(first, last):
        at, to = in_x(g, block, r) + lo, in_out(g, block, r) + lo
        u, v, y = x[at : at + n], part(residual, to, to + n), out[to : to + n]
        if each is None:
            loops.forward(code, u, v, y, k, low, rstd, of[3], of[4])
        else:
            j = in_affine(g, block, r)
            loops.forward(code, u, v, y, k, low, rstd, w[j], bias[j])
        r = next_run(g, r)


@serial
def _write_pieces(code, each, g, task, first, last, x, residual, out, slab_of, affine_of, w, bias, stats, of):
    coefficients(each, g, task, slab_of, affine_of, w, bias, stats, of)
    for piece in range(first, last):
        _write_piece(code, each, g, task, piece, x, residual, out, w, bias, of)


@serial
def _write(code, each, fast, g, task, first, last, x, residual, out, slab_of, affine_of, w, bias, stats):
    """Write the output of some pieces of a task."""
    if fast is not None and all_narrow(g, task, slab_of, stats):
        of = zeros(1, 5 * g[TILE]).reshape((5, g[TILE]))
        _write_pieces(
            code, each, g, task, first, last, x, residual, out, slab_of, affine_of, w, bias, stats, of
        )
    else:
        wide = np.zeros((5, g[TILE]))
        _write_pieces(
            code, each, g, task, first, last, x, residual, out, slab_of, affine_of, w, bias, stats, wide
        )


@serial
def _forward_task(
    code, each, fast, g, task, x, residual, out, slab_of, affine_of, w, bias, stats, own, write, center,
    again, eps
):  # fmt: skip
    if own:
        work, sums = np.zeros((5, g[TILE])), zeros(fast, 3 * g[TILE]).reshape((3, g[TILE]))
        shift(fast, g, task, x, work[0])
        sum_task(fast, g, task, x, work, sums, again)
        _merge(g, task, work[0], work[1], work[2], slab_of, stats, eps, center)
    if write:
        _write(code, each, fast, g, task, 0, pieces(g), x, residual, out, slab_of, affine_of, w, bias, stats)


def forward_kernel(how, dtype, affine_dtype, code, each, fast, fused, version):
    """Return the forward of a columns layout as plain Python; `fused`: None or 1, a residual."""

    def columns_forward(
        g, slab_of, affine_of, tasks, x_at, residual_at, out_at, w_at, b_at, stats, own, write, center,
        again, eps
    ):  # fmt: skip
        version  # noqa: B018  see compiled.py
        x, out = array(x_at, g[X_SPAN], dtype), array(out_at, g[OUT_SPAN], dtype)
        residual = None if fused is None else array(residual_at, g[OUT_SPAN], dtype)
        w, bias = array(w_at, g[AFFINE], affine_dtype), array(b_at, g[AFFINE], affine_dtype)
        between = pieces(g)
        if how == SERIAL:
            for task in range(tasks):
                _forward_task(
                    code, each, fast, g, task, x, residual, out, slab_of, affine_of, w, bias, stats, own,
                    write,
                    center, again, eps,
                )  # fmt: skip
        elif how == TASKS:
            for i in prange(tasks):
                _forward_task(
                    code, each, fast, g, np.int64(i), x, residual, out, slab_of, affine_of, w, bias, stats,
                    own, write,
                    center, again, eps,
                )  # fmt: skip
        else:
            # Three sweeps at most: in float32; where columns are doubtful, in float64; and around their mean.
            work, parts = np.zeros((tasks, 5, g[TILE])), np.empty((tasks, between, 2, g[TILE]))
            careful, todo = np.zeros((tasks, 3, g[TILE])), np.ones(tasks, dtype=np.int64)
            for task in range(tasks * own):
                shift(fast, g, task, x, work[task, 0])
            for sweep in range(3 * own):
                if sweep == 0 and (fast is None or again):
                    continue
                for task in range(tasks * (sweep > 0)):
                    around(g, sweep, work[task], careful[task])
                for i in prange(tasks * between):
                    task, piece = np.int64(i) // between, np.int64(i) % between
                    if todo[task] and sweep == 0:
                        share_piece(fast, g, task, piece, x, work[task, 0], parts[task, piece])
                    elif todo[task]:
                        share_piece_carefully(g, task, piece, x, careful[task, 0], parts[task, piece])
                for task in range(tasks):
                    if todo[task]:
                        to = work[task] if sweep == 0 else careful[task]
                        add_pieces(parts[task], to[1], to[2])
                    if sweep == 0:
                        todo[task] = any_doubtful(g, task, work[task, 1], work[task, 2])
            for task in range(tasks * own):
                if todo[task]:
                    replace(fast, g, task, work[task], careful[task], again)
                _merge(g, task, work[task, 0], work[task, 1], work[task, 2], slab_of, stats, eps, center)
            for i in prange(tasks * between * write):
                task, piece = np.int64(i) // between, np.int64(i) % between
                _write(
                    code, each, fast, g, task, piece, piece + 1, x, residual, out, slab_of, affine_of, w,
                    bias, stats
                )  # fmt: skip

    return columns_forward
