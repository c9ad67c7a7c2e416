"""Rows, backward: reduce, merge and apply a gradient. The words are those of rows.py.

With g the gradient at the pre-activation, z = (x - shift) * rstd, and means over the slab,

    dx = rstd * (w * g - c1 - c2 * z)       c1 = mean(w * g)       c2 = mean(w * g * z)

`cells` hold the sums of g and of g * z that make dbias and dweight.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from slabnorm.kernels import loops
from slabnorm.kernels.cells import add_up, add_up_each, cells_of_block, enter, flush
from slabnorm.kernels.elements import along, part, zeros
from slabnorm.kernels.layout import CHUNK
from slabnorm.kernels.memory import (
    AFFINE,
    BLOCKS0,
    BLOCKS1,
    COUNT,
    LANES,
    OUT_SPAN,
    RUN,
    RUNS0,
    RUNS1,
    SERIAL,
    TASKS,
    TOGETHER,
    X_SPAN,
    array,
    block_of,
    constants,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    keep,
    narrow,
    run_of,
    serial,
)  # fmt: skip
from slabnorm.kernels.rows import chunks_of

FLUSH = 16  # rows whose gradients of weight and bias are added up in float32


@serial
def _sum_chunk(code, fast, g, b, r, chunk, dy, x, residual, w, bias, stats):
    lo, hi = chunk * CHUNK, min((chunk + 1) * CHUNK, g[RUN])
    at, to, j, slab = in_x(g, b, r), in_out(g, b, r), in_affine(g, b, r), in_slabs(g, b)
    k, rstd, rest = stats[2, slab], stats[3, slab], stats[4, slab]
    up, u, v = dy[to + lo : to + hi], x[at + lo : at + hi], part(residual, to + lo, to + hi)
    if fast is not None and narrow(stats, slab):
        high = np.float32(k)
        return loops.back_row(
            code, up, u, v, high, np.float32((k - high) + rest), np.float32(rstd), w[j], bias[j]
        )
    return loops.back_row(code, up, u, v, k, rest, rstd, w[j], bias[j])


@serial
def _sum_chunk_each(code, fast, g, b, chunk, dy, x, residual, w, bias, stats, sums):
    lo, hi, r = chunk * CHUNK, min((chunk + 1) * CHUNK, g[RUN]), (0, 0)
    at, to, j, slab = in_x(g, b, r), in_out(g, b, r), in_affine(g, b, r), in_slabs(g, b)
    k, rstd, rest = stats[2, slab], stats[3, slab], stats[4, slab]
    up, u, v = dy[to + lo : to + hi], x[at + lo : at + hi], part(residual, to + lo, to + hi)
    ws, bs = w[j + lo : j + hi], bias[j + lo : j + hi]
    db, dw = sums[lo:hi], sums[g[RUN] + lo : g[RUN] + hi]
    if fast is not None and narrow(stats, slab):
        high = np.float32(k)
        low, rstd = np.float32((k - high) + rest), np.float32(rstd)
        return loops.back_row_each(code, up, u, v, high, low, rstd, ws, bs, db, dw)
    return loops.back_row_each(code, up, u, v, k, rest, rstd, ws, bs, db, dw)


@serial
def _write(code, each, fast, g, b, r, lo, hi, dy, x, residual, dx, dresidual, w, bias, stats, c1, c2):
    """Write the gradients of one run, from element lo to hi."""
    at, to, j, slab = in_x(g, b, r), in_out(g, b, r), in_affine(g, b, r), in_slabs(g, b)
    up, u, v = dy[to + lo : to + hi], x[at + lo : at + hi], part(residual, to + lo, to + hi)
    out, also = dx[to + lo : to + hi], part(dresidual, to + lo, to + hi)
    k, rstd, rest = stats[2, slab], stats[3, slab], stats[4, slab]
    ws, bs = along(each, w, j, lo, hi), along(each, bias, j, lo, hi)
    if fast is not None and narrow(stats, slab):
        high = np.float32(k)
        low, r32, d1, d2 = np.float32((k - high) + rest), np.float32(rstd), np.float32(c1), np.float32(c2)
        loops.backward(code, up, u, v, out, also, high, low, r32, ws, bs, d1, d2)
    else:
        loops.backward(code, up, u, v, out, also, k, rest, rstd, ws, bs, c1, c2)


@serial
def _backward_lanes(
    code, fast, g, lo, hi, dy, x, residual, dx, dresidual, w, bias, stats, cells, work, own, center, write
):  # fmt: skip
    """Do every step of some lanes, run by run: neighbours share lines and pages of memory."""
    for lane in range(lo, hi):
        work[0, lane - lo] = 0.0
        work[1, lane - lo] = 0.0
    for r1 in range(g[RUNS1]):
        for r0 in range(g[RUNS0]):
            for lane in range(lo, hi):
                b, s1, s2 = block_of(g, lane), work[0, lane - lo], work[1, lane - lo]
                for chunk in range(chunks_of(g)):
                    p, q = _sum_chunk(code, fast, g, b, (r1, r0), chunk, dy, x, residual, w, bias, stats)
                    s1, s2 = enter(g, lane, b, (r1, r0), p, q, w, cells, s1, s2)
                work[0, lane - lo] = s1
                work[1, lane - lo] = s2
    for r1 in range(g[RUNS1] * write):
        for r0 in range(g[RUNS0]):
            for lane in range(lo, hi):
                b, r = block_of(g, lane), (r1, r0)
                c1, c2 = constants(g[COUNT], work[0, lane - lo], work[1, lane - lo], own, center)
                _write(
                    code, None, fast, g, b, r, 0, g[RUN], dy, x, residual, dx, dresidual, w, bias, stats,
                    c1, c2
                )  # fmt: skip


@serial
def _backward_each(
    code, fast, g, lo, hi, dy, x, residual, dx, dresidual, w, bias, stats, cells, sums, own, center, write
):  # fmt: skip
    """Do every step of some lanes, one by one; gradients of weight and bias are float32 at first."""
    for lane in range(lo, hi):
        b, s1, s2 = block_of(g, lane), 0.0, 0.0
        for chunk in range(chunks_of(g)):
            p, q = _sum_chunk_each(code, fast, g, b, chunk, dy, x, residual, w, bias, stats, sums)
            s1 += p
            s2 += q
        if write:
            c1, c2 = constants(g[COUNT], s1, s2, own, center)
            _write(
                code, 1, fast, g, b, (0, 0), 0, g[RUN], dy, x, residual, dx, dresidual, w, bias, stats, c1, c2
            )  # fmt: skip
    flush(sums, cells)


@serial
def _backward_task(
    code, fast, g, task, dy, x, residual, dx, dresidual, w, bias, stats, cells, own, center, write
):  # fmt: skip
    end = min(g[BLOCKS1] * g[BLOCKS0], (task + 1) * g[LANES])
    work = np.empty((2, g[TOGETHER]))
    for lo in range(task * g[LANES], end, g[TOGETHER]):
        hi = min(end, lo + g[TOGETHER])
        _backward_lanes(
            code, fast, g, lo, hi, dy, x, residual, dx, dresidual, w, bias, stats, cells, work, own, center,
            write
        )  # fmt: skip


@serial
def _backward_task_each(
    code, fast, g, task, dy, x, residual, dx, dresidual, w, bias, stats, cells, own, center, write
):  # fmt: skip
    end = min(g[BLOCKS1] * g[BLOCKS0], (task + 1) * g[LANES])
    sums = zeros(fast, 2 * g[RUN])
    for lo in range(task * g[LANES], end, FLUSH):
        hi = min(end, lo + FLUSH)
        _backward_each(
            code, fast, g, lo, hi, dy, x, residual, dx, dresidual, w, bias, stats, cells[task], sums, own,
            center, write
        )  # fmt: skip


@serial
def _share_chunk(code, fast, g, lanes, chunk, dy, x, residual, w, bias, stats, parts, cells):
    """Reduce one chunk of every lane, where there is a single task."""
    sums = zeros(fast, 2 * g[RUN])
    lo, hi = chunk * CHUNK, min((chunk + 1) * CHUNK, g[RUN])
    for lane in range(lanes):
        b = block_of(g, lane)
        p, q = _sum_chunk_each(code, fast, g, b, chunk, dy, x, residual, w, bias, stats, sums)
        parts[0, lane, chunk] = p
        parts[1, lane, chunk] = q
        if lane % FLUSH == FLUSH - 1 or lane == lanes - 1:
            flush(sums[lo:hi], cells[0, lo:hi])
            flush(sums[g[RUN] + lo : g[RUN] + hi], cells[0, g[RUN] + lo : g[RUN] + hi])


def backward_kernel(how, dtype, affine_dtype, code, each, fast, fused, inner, version):
    """Return the backward of a rows layout as plain Python, to be compiled.

    `fused`: None or 1, a residual; `inner`: None or 1, whether its gradient is written.
    """

    def rows_backward(
        g, tasks, dy_at, x_at, residual_at, dx_at, dresidual_at, w_at, b_at, stats, dw_at, db_at, own,
        center, write,
    ):  # fmt: skip
        version  # noqa: B018  see compiled.py
        dy, x = array(dy_at, g[OUT_SPAN], dtype), array(x_at, g[X_SPAN], dtype)
        residual = None if fused is None else array(residual_at, g[OUT_SPAN], dtype)
        dx = array(dx_at, g[OUT_SPAN], dtype)
        dresidual = None if inner is None else array(dresidual_at, g[OUT_SPAN], dtype)
        w, bias = array(w_at, g[AFFINE], affine_dtype), array(b_at, g[AFFINE], affine_dtype)
        dweight, dbias = np.zeros(g[AFFINE]), np.zeros(g[AFFINE])
        lanes, chunks = g[BLOCKS1] * g[BLOCKS0], chunks_of(g)
        units = g[RUNS1] * g[RUNS0] * chunks
        if each is None:
            cells = np.zeros((2, lanes, cells_of_block(g)))
        else:
            cells = np.zeros((tasks, 2 * g[RUN]))
        if how == SERIAL and each is None:
            for task in range(tasks):
                _backward_task(
                    code, fast, g, task, dy, x, residual, dx, dresidual, w, bias, stats, cells, own, center,
                    write
                )  # fmt: skip
        elif how == SERIAL:
            for task in range(tasks):
                _backward_task_each(
                    code, fast, g, task, dy, x, residual, dx, dresidual, w, bias, stats, cells, own, center,
                    write
                )  # fmt: skip
        elif how == TASKS and each is None:
            for i in prange(tasks):
                _backward_task(
                    code, fast, g, np.int64(i), dy, x, residual, dx, dresidual, w, bias, stats, cells, own,
                    center,
                    write,
                )  # fmt: skip
        elif how == TASKS:
            for i in prange(tasks):
                _backward_task_each(
                    code, fast, g, np.int64(i), dy, x, residual, dx, dresidual, w, bias, stats, cells, own,
                    center,
                    write,
                )  # fmt: skip
        else:
            parts, work = np.zeros((2, lanes, units)), np.zeros((2, lanes))
            if each is None:
                for i in prange(lanes * units):
                    lane, unit = np.int64(i) // units, np.int64(i) % units
                    b, r = block_of(g, lane), run_of(g, unit // chunks)
                    p, q = _sum_chunk(code, fast, g, b, r, unit % chunks, dy, x, residual, w, bias, stats)
                    parts[0, lane, unit] = p
                    parts[1, lane, unit] = q
            else:
                for i in prange(chunks):
                    _share_chunk(
                        code, fast, g, lanes, np.int64(i), dy, x, residual, w, bias, stats, parts, cells
                    )  # fmt: skip
            for lane in range(lanes):
                b, s1, s2 = block_of(g, lane), 0.0, 0.0
                for unit in range(units):
                    p, q = parts[0, lane, unit], parts[1, lane, unit]
                    if each is None:
                        s1, s2 = enter(g, lane, b, run_of(g, unit // chunks), p, q, w, cells, s1, s2)
                    else:
                        s1 += p
                        s2 += q
                work[0, lane], work[1, lane] = constants(g[COUNT], s1, s2, own, center)
            for i in prange(lanes * units * write):
                lane, unit = np.int64(i) // units, np.int64(i) % units
                b, r, lo = block_of(g, lane), run_of(g, unit // chunks), unit % chunks * CHUNK
                hi = min(lo + CHUNK, g[RUN])
                _write(
                    code, each, fast, g, b, r, lo, hi, dy, x, residual, dx, dresidual, w, bias, stats,
                    work[0, lane], work[1, lane],
                )  # fmt: skip
        if each is None:
            add_up(g, cells, dweight, dbias)
        else:
            add_up_each(g, cells, dweight, dbias)
        keep(dweight, dw_at, affine_dtype)
        keep(dbias, db_at, affine_dtype)

    return rows_backward
