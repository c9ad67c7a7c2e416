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
from slabnorm.kernels.elements import load, part, zeros
from slabnorm.kernels.memory import (
    AFFINE,
    COUNT,
    OUT_SPAN,
    RUNS0,
    RUNS1,
    SAMPLE_RUN_STEP,
    SAMPLE_RUNS,
    SERIAL,
    TASKS,
    TILE,
    X_SPAN,
    array,
    doubtful,
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
    add,
    all_narrow,
    bounds,
    clear,
    coefficients,
    pieces,
    runs_of,
    slabs_of,
)  # fmt: skip

FLUSH = 64  # runs added up in float32, four at a time


@serial
def _shift(fast, g, task, x, k):
    """Write the mean of some runs, as many as eight: near each column's mean, as a rule."""
    # Added to the first of them, so that constant columns have exactly themselves.
    block, lo, hi = bounds(g, task)
    first = in_x(g, block, (0, 0)) + lo
    for j in range(g[SAMPLE_RUNS]):
        at = in_x(g, block, (0, j * g[SAMPLE_RUN_STEP])) + lo
        for i in range(hi - lo):
            k[i] += load(x, at + i, 0.0) - load(x, first + i, 0.0)
    for i in range(hi - lo):
        k[i] = load(x, first + i, 0.0) + k[i] / g[SAMPLE_RUNS]
        if fast is not None:
            k[i] = np.float64(np.float32(k[i]))


@serial
def _sum_piece(g, task, piece, x, k, sums, s1, s2):
    """Write the sums of x - k and of its square over the runs of a piece; `sums` are in the arithmetic of
    k."""
    block, lo, hi = bounds(g, task)
    clear(s1)
    clear(s2)
    first, last = runs_of(g, piece)
    n, r, run, p, q = hi - lo, run_of(g, first), first, sums[0], sums[1]
    while run < last:
        clear(p)
        clear(q)
        end = min(last, run + FLUSH)
        while run < end:
            a0 = in_x(g, block, r) + lo
            r = next_run(g, r)
            if run + 4 <= end:
                a1 = in_x(g, block, r) + lo
                r = next_run(g, r)
                a2 = in_x(g, block, r) + lo
                r = next_run(g, r)
                a3 = in_x(g, block, r) + lo
                r = next_run(g, r)
                loops.sum_four_columns(
                    x[a0 : a0 + n], x[a1 : a1 + n], x[a2 : a2 + n], x[a3 : a3 + n], k, p, q
                )
                run += 4
            else:
                loops.sum_columns(x[a0 : a0 + n], k, p, q)
                run += 1
        add(s1, p)
        add(s2, q)


@serial
def _narrowed(k, k32):
    for i in range(k.size):
        k32[i] = k[i]


@serial
def _sum_task(fast, g, task, x, work, sums, again):
    """Write the sums of a task; of doubtful columns, and with `again` of all, around their mean."""
    k, s1, s2 = work[0], work[1], work[2]
    if fast is not None and not again:
        _narrowed(k, sums[2])
        for piece in range(pieces(g)):
            _sum_piece(g, task, piece, x, sums[2], sums, work[3], work[4])
            add(s1, work[3])
            add(s2, work[4])
    if fast is None or again or _any_doubtful(g, task, s1, s2):
        _sum_carefully(fast, g, task, x, work, again)


@serial
def _any_doubtful(g, task, s1, s2):
    _, lo, hi = bounds(g, task)
    for i in range(hi - lo):
        if doubtful(g[RUNS1] * g[RUNS0], s1[i], s2[i]):
            return True
    return False


@serial
def _sum_carefully(fast, g, task, x, work, again):
    careful, wide = np.zeros((3, g[TILE])), np.zeros((2, g[TILE]))
    for sweep in range(1, 3):
        _around(g, sweep, work, careful)
        clear(careful[1])
        clear(careful[2])
        for piece in range(pieces(g)):
            _sum_piece(g, task, piece, x, careful[0], wide, work[3], work[4])
            add(careful[1], work[3])
            add(careful[2], work[4])
    _replace(fast, g, task, work, careful, again)


@serial
def _around(g, sweep, work, careful):
    """Set the shift of a careful sweep: first the one there is, then the mean it found."""
    for i in range(g[TILE]):
        if sweep == 1:
            careful[0, i] = work[0, i]
        else:
            careful[0, i] += careful[1, i] / (g[RUNS1] * g[RUNS0])


@serial
def _replace(fast, g, task, work, careful, again):
    """Put careful sums in the place of doubtful ones: what one column holds changes no bit of another."""
    _, lo, hi = bounds(g, task)
    for i in range(hi - lo):
        if fast is None or again or doubtful(g[RUNS1] * g[RUNS0], work[1, i], work[2, i]):
            work[0, i], work[1, i], work[2, i] = careful[0, i], careful[1, i], careful[2, i]


@serial
def _add_pieces(parts, s1, s2):
    clear(s1)
    clear(s2)
    for piece in range(len(parts)):
        add(s1, parts[piece, 0])
        add(s2, parts[piece, 1])


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
        _shift(fast, g, task, x, work[0])
        _sum_task(fast, g, task, x, work, sums, again)
        _merge(g, task, work[0], work[1], work[2], slab_of, stats, eps, center)
    if write:
        _write(code, each, fast, g, task, 0, pieces(g), x, residual, out, slab_of, affine_of, w, bias, stats)


@serial
def _share_piece(fast, g, task, piece, x, shift, parts):
    """Sum one piece in float32."""
    sums = zeros(fast, 3 * g[TILE]).reshape((3, g[TILE]))
    _narrowed(shift, sums[2])
    _sum_piece(g, task, piece, x, sums[2], sums, parts[0], parts[1])


@serial
def _share_piece_carefully(g, task, piece, x, shift, parts):
    _sum_piece(g, task, piece, x, shift, np.zeros((2, g[TILE])), parts[0], parts[1])


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
                _shift(fast, g, task, x, work[task, 0])
            for sweep in range(3 * own):
                if sweep == 0 and (fast is None or again):
                    continue
                for task in range(tasks * (sweep > 0)):
                    _around(g, sweep, work[task], careful[task])
                for i in prange(tasks * between):
                    task, piece = np.int64(i) // between, np.int64(i) % between
                    if todo[task] and sweep == 0:
                        _share_piece(fast, g, task, piece, x, work[task, 0], parts[task, piece])
                    elif todo[task]:
                        _share_piece_carefully(g, task, piece, x, careful[task, 0], parts[task, piece])
                for task in range(tasks):
                    if todo[task]:
                        to = work[task] if sweep == 0 else careful[task]
                        _add_pieces(parts[task], to[1], to[2])
                    if sweep == 0:
                        todo[task] = _any_doubtful(g, task, work[task, 1], work[task, 2])
            for task in range(tasks * own):
                if todo[task]:
                    _replace(fast, g, task, work[task], careful[task], again)
                _merge(g, task, work[task, 0], work[task, 1], work[task, 2], slab_of, stats, eps, center)
            for i in prange(tasks * between * write):
                task, piece = np.int64(i) // between, np.int64(i) % between
                _write(
                    code, each, fast, g, task, piece, piece + 1, x, residual, out, slab_of, affine_of, w,
                    bias, stats
                )  # fmt: skip

    return columns_forward
