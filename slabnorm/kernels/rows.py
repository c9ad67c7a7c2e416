"""Rows: a run of memory belongs to one slab.

A *lane* is a block being worked on. Where there are many lanes, each thread takes some, and does every step
of a few while they are still in the thread's cache. Where there are few, all threads share the runs of
each. Sums are taken over the same chunks and added in the same order in both, so that the number of
threads changes no bit.

Arrays: x, residual, out, dy, dx are flat memory; w and bias have one number for each element of weight and
bias; `stats` is [5, slabs]: mean, sum of squared deviations, shift, rstd,
and the rest of the shift; `g` holds the numbers of the
layout. `each` is None where weight and bias are constant along a run, else 1; `fast` is None where all
arithmetic is float64, else 1.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from slabnorm.kernels import loops
from slabnorm.kernels.elements import along, load, part
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
    SAMPLE_RUN_STEP,
    SAMPLE_RUNS,
    SAMPLE_STEP,
    SAMPLES,
    SERIAL,
    TASKS,
    TOGETHER,
    X_SPAN,
    array,
    block_of,
    doubtful,
    finish,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    inlined,
    narrow,
    run_of,
    serial,
    total,
)  # fmt: skip


@inlined
def chunks_of(g):
    """Return how many chunks a run is summed in."""
    return (g[RUN] + CHUNK - 1) // CHUNK


@inlined
def _sum_chunk(g, at, chunk, x, k):
    return loops.sum_row(x[at + chunk * CHUNK : at + min((chunk + 1) * CHUNK, g[RUN])], k)


@inlined
def _sum_slab(g, b, x, k):
    """Return the sums of x - k and of its square over a slab, in the arithmetic of k."""
    s1, s2 = 0.0, 0.0
    for r1 in range(g[RUNS1]):
        for r0 in range(g[RUNS0]):
            at = in_x(g, b, (r1, r0))
            for chunk in range(chunks_of(g)):
                p, q = _sum_chunk(g, at, chunk, x, k)
                s1 += p
                s2 += q
    return s1, s2


@inlined
def _shift(g, b, x):
    """Return the mean of eight elements of a slab, or of all that are in it: near the mean, as a rule."""
    # Added to the first of them, so that a constant slab has exactly itself.
    first = np.float64(load(x, in_x(g, b, (0, 0)), 0.0))
    apart = 0.0
    for r in range(g[SAMPLE_RUNS]):
        at = in_x(g, b, (0, r * g[SAMPLE_RUN_STEP]))
        for i in range(g[SAMPLES]):
            apart += load(x, at + i * g[SAMPLE_STEP], 0.0) - first
    return first + apart / (g[SAMPLE_RUNS] * g[SAMPLES])


@serial
def _reduce_lanes(fast, g, lo, hi, x, work, again, eps, center, stats):
    """Write the statistics of some lanes; `again`: summed around the mean, in float64."""
    for lane in range(lo, hi):
        work[0, lane - lo] = _shift(g, block_of(g, lane), x)
        work[1, lane - lo] = 0.0
        work[2, lane - lo] = 0.0
    if fast is not None and not again:
        for r1 in range(g[RUNS1]):
            for r0 in range(g[RUNS0]):
                for lane in range(lo, hi):
                    at = in_x(g, block_of(g, lane), (r1, r0))
                    for chunk in range(chunks_of(g)):
                        p, q = _sum_chunk(g, at, chunk, x, np.float32(work[0, lane - lo]))
                        work[1, lane - lo] += p
                        work[2, lane - lo] += q
    for lane in range(lo, hi):
        b, k, s1, s2 = block_of(g, lane), work[0, lane - lo], work[1, lane - lo], work[2, lane - lo]
        if fast is not None:
            k = np.float64(np.float32(k))
        if fast is None or again or doubtful(g[COUNT], s1, s2):
            k, s1, s2 = _carefully(g, b, x, k)
        finish(stats, in_slabs(g, b), g[COUNT], k, s1, s2, eps, center)


@serial
def _carefully(g, b, x, k):
    """Return a shift, the mean, and the sums around it, in float64."""
    for _ in range(2):
        s1, s2 = _sum_slab(g, b, x, k)
        if _ == 0:
            k += s1 / g[COUNT]
    return k, s1, s2


@serial
def _write(code, each, fast, g, b, r, lo, hi, x, residual, out, w, bias, stats):
    """Write the output of one run, from element lo to hi."""
    at, to, j, slab = in_x(g, b, r), in_out(g, b, r), in_affine(g, b, r), in_slabs(g, b)
    u, v, y = x[at + lo : at + hi], part(residual, to + lo, to + hi), out[to + lo : to + hi]
    k, rstd, rest = stats[2, slab], stats[3, slab], stats[4, slab]
    ws, bs = along(each, w, j, lo, hi), along(each, bias, j, lo, hi)
    if fast is not None and narrow(stats, slab):
        high = np.float32(k)
        loops.forward(code, u, v, y, high, np.float32((k - high) + rest), np.float32(rstd), ws, bs)
    else:
        loops.forward(code, u, v, y, k, rest, rstd, ws, bs)


@serial
def _forward_task(
    code, each, fast, g, task, x, residual, out, w, bias, stats, own, write, center, again, eps
):
    end = min(g[BLOCKS1] * g[BLOCKS0], (task + 1) * g[LANES])
    work = np.empty((3, g[TOGETHER]))
    for lo in range(task * g[LANES], end, g[TOGETHER]):
        hi = min(end, lo + g[TOGETHER])
        if own:
            _reduce_lanes(fast, g, lo, hi, x, work, again, eps, center, stats)
        for r1 in range(g[RUNS1] * write):
            for r0 in range(g[RUNS0]):
                for lane in range(lo, hi):
                    b, r = block_of(g, lane), (r1, r0)
                    _write(code, each, fast, g, b, r, 0, g[RUN], x, residual, out, w, bias, stats)


def forward_kernel(how, dtype, affine_dtype, code, each, fast, fused, version):
    """Return the forward of a rows layout as plain Python, to be compiled; `fused`: None or 1, a residual."""

    def rows_forward(g, tasks, x_at, residual_at, out_at, w_at, b_at, stats, own, write, center, again, eps):
        version  # noqa: B018  see compiled.py
        x, out = array(x_at, g[X_SPAN], dtype), array(out_at, g[OUT_SPAN], dtype)
        residual = None if fused is None else array(residual_at, g[OUT_SPAN], dtype)
        w, bias = array(w_at, g[AFFINE], affine_dtype), array(b_at, g[AFFINE], affine_dtype)
        lanes, chunks = g[BLOCKS1] * g[BLOCKS0], chunks_of(g)
        units = g[RUNS1] * g[RUNS0] * chunks
        if how == SERIAL:
            for task in range(tasks):
                _forward_task(
                    code,
                    each,
                    fast,
                    g,
                    task,
                    x,
                    residual,
                    out,
                    w,
                    bias,
                    stats,
                    own,
                    write,
                    center,
                    again,
                    eps,
                )
        elif how == TASKS:
            for i in prange(tasks):
                _forward_task(
                    code, each, fast, g, np.int64(i), x, residual, out, w, bias, stats, own, write, center,
                    again,
                    eps,
                )  # fmt: skip
        else:
            # Three sweeps at most: in float32; of doubtful lanes, in float64; and around their mean.
            shift, parts = np.empty(lanes), np.zeros((2, lanes, units))
            todo, sums = np.ones(lanes, dtype=np.int64), np.zeros((2, lanes))
            for lane in range(lanes):
                shift[lane] = _shift(g, block_of(g, lane), x)
                if fast is not None:
                    shift[lane] = np.float64(np.float32(shift[lane]))
            for sweep in range(3 * own):
                if sweep == 0 and (fast is None or again):
                    continue
                for i in prange(lanes * units):
                    lane, unit = np.int64(i) // units, np.int64(i) % units
                    if todo[lane]:
                        at = in_x(g, block_of(g, lane), run_of(g, unit // chunks))
                        if fast is not None and sweep == 0:
                            p, q = _sum_chunk(g, at, unit % chunks, x, np.float32(shift[lane]))
                        else:
                            p, q = _sum_chunk(g, at, unit % chunks, x, shift[lane])
                        parts[0, lane, unit] = p
                        parts[1, lane, unit] = q
                for lane in range(lanes):
                    if todo[lane]:
                        s1, s2 = total(parts[0, lane]), total(parts[1, lane])
                        sums[0, lane], sums[1, lane] = s1, s2
                        todo[lane] = sweep > 0 or doubtful(g[COUNT], s1, s2)
                        if sweep == 1:
                            shift[lane] += s1 / g[COUNT]
            for lane in range(lanes * own):
                slab = in_slabs(g, block_of(g, lane))
                finish(stats, slab, g[COUNT], shift[lane], sums[0, lane], sums[1, lane], eps, center)
            for i in prange(lanes * units * write):
                lane, unit = np.int64(i) // units, np.int64(i) % units
                b, r, lo = block_of(g, lane), run_of(g, unit // chunks), unit % chunks * CHUNK
                hi = min(lo + CHUNK, g[RUN])
                _write(code, each, fast, g, b, r, lo, hi, x, residual, out, w, bias, stats)

    return rows_forward
