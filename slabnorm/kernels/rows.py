"""Rows: a run of memory belongs to one slab.

A *lane* is a block being worked on. Where there are many lanes, each thread takes some, and does every step
of a few while they are still in the thread's cache. Where there are few, all threads share the runs of
each. Sums are taken over the same chunks and added in the same order in both, so that the number of
threads changes no bit.

Tensors are `t`, pointers (arguments.py); `stats` is [5, slabs]: mean, sum of squared deviations, shift, rstd,
and the rest of the shift; `g` holds the numbers of the layout. `each` is None where weight and bias are
constant along a run, else 1; `fast` is None where all arithmetic is float64, else 1; with `past` the
output goes past the caches.
"""

from __future__ import annotations

import numpy as np

from slabnorm.kernels import loops
from slabnorm.kernels.arguments import (
    AGAIN,
    CENTER,
    FINISH,
    MERGE,
    OWN,
    PAST,
    START,
    SUM,
    WRITE,
    WRITES,
    arguments,
    numbers,
    of_forward,
    statistics,
    work,
)
from slabnorm.kernels.coefficients import beside, folded, shift_of
from slabnorm.kernels.elements import load, real
from slabnorm.kernels.layout import CHUNK
from slabnorm.kernels.loops import BLOCK
from slabnorm.kernels.memory import (
    BLOCKS0,
    BLOCKS1,
    COUNT,
    LANES,
    RUN,
    RUNS0,
    RUNS1,
    SAMPLE_RUN_STEP,
    SAMPLE_RUNS,
    SAMPLE_STEP,
    SAMPLES,
    TOGETHER,
    block_of,
    doubtful,
    finish,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    inlined,
    narrow,
    next_block,
    run_before,
    run_of,
    serial,
    total,
)  # fmt: skip
from slabnorm.kernels.pointers import ahead, data, fence, room, stream


@inlined
def chunks_of(g):
    """Return how many chunks a run is summed in."""
    return (g[RUN] + CHUNK - 1) // CHUNK


@inlined
def chunk_of(g, chunk):
    """Return where a chunk starts in its run, and its length."""
    return chunk * CHUNK, min(CHUNK, g[RUN] - chunk * CHUNK)


@inlined
def _shift(g, b, x):
    """Return the mean of eight elements of a slab, or of all that are in it: near the mean, as a rule."""
    # Added to the first of them, so that a constant slab has exactly itself.
    first = load(x, in_x(g, b, (0, 0)), 0.0)
    apart = 0.0
    for r in range(g[SAMPLE_RUNS]):
        at = in_x(g, b, (0, r * g[SAMPLE_RUN_STEP]))
        for i in range(g[SAMPLES]):
            apart += load(x, at + i * g[SAMPLE_STEP], 0.0) - first
    return first + apart / (g[SAMPLE_RUNS] * g[SAMPLES])


@inlined
def _sweep(fast, g, lo, hi, x, sums, column):
    """Write the sums around their shifts of lanes lo to hi, which are those of `sums` from a column on."""
    for lane in range(hi - lo):
        sums[1, column + lane] = 0.0
        sums[2, column + lane] = 0.0
    chunks = chunks_of(g)
    for r1 in range(g[RUNS1]):
        for r0 in range(g[RUNS0]):
            b = block_of(g, lo)
            for lane in range(column, column + hi - lo):
                u, k = ahead(x, in_x(g, b, (r1, r0))), real(fast, sums[0, lane])
                for chunk in range(chunks):
                    at, n = chunk_of(g, chunk)
                    p, q = loops.sum_row(n, ahead(u, at), k)
                    sums[1, lane] += p
                    sums[2, lane] += q
                b = next_block(g, b)


@inlined
def _reduce_lanes(fast, g, lo, hi, x, sums, again, eps, center, stats):
    """Write the statistics of some lanes; `again`: summed around the mean, in float64."""
    b = block_of(g, lo)
    for lane in range(hi - lo):
        sums[0, lane] = np.float64(real(fast, _shift(g, b, x)))
        b = next_block(g, b)
    if not again:
        _sweep(fast, g, lo, hi, x, sums, 0)
    b = block_of(g, lo)
    for lane in range(hi - lo):
        if again or fast is None or doubtful(g[COUNT], sums[1, lane], sums[2, lane]):
            _carefully(g, lo + lane, x, sums, lane)
        finish(stats, in_slabs(g, b), g[COUNT], sums[0, lane], sums[1, lane], sums[2, lane], eps, center)
        b = next_block(g, b)


@serial
def _carefully(g, lane, x, sums, column):
    """Sum a lane around a shift, then around the mean which that gives, in float64."""
    _sweep(None, g, lane, lane + 1, x, sums, column)
    sums[0, column] += sums[1, column] / g[COUNT]
    _sweep(None, g, lane, lane + 1, x, sums, column)


@inlined
def _write(code, each, fast, g, b, r, chunk, n, t, stats, buffer, past, held, end):
    """Write n elements of the output of one run, from element `chunk` on.

    `held` elements before place `end` of the output are still in the buffer; return the same again.
    """
    at, to, j, slab = in_x(g, b, r) + chunk, in_out(g, b, r) + chunk, in_affine(g, b, r), in_slabs(g, b)
    u, v, y, space = ahead(t.x, at), ahead(t.residual, to), ahead(t.out, to), data(buffer, 0)
    if to != end:
        stream(ahead(t.out, end - held), space, held)
        held = 0
    w, bias, rstd = beside(each, t.w, j + chunk), beside(each, t.bias, j + chunk), stats[3, slab]
    if fast is not None and narrow(stats, slab):
        k, low = shift_of(stats, slab, True)
        r, l = folded(each, t.w, t.bias, j, rstd, low)  # noqa: E741
        held = loops.forward(
            code, n, u, v, y, space, past, held, np.float32(k), np.float32(r), np.float32(l), w, bias
        )  # fmt: skip
    else:
        k, low = shift_of(stats, slab, False)
        r, l = folded(each, t.w, t.bias, j, rstd, low)  # noqa: E741
        held = loops.forward(code, n, u, v, y, space, past, held, k, r, l, w, bias)
    return held, to + n


@inlined
def _forward_lanes(code, each, fast, g, lo, hi, t, stats, sums, buffer, own, write, center, again, eps, past):
    if own:
        _reduce_lanes(fast, g, lo, hi, t.x, sums, again, eps, center, stats)
    # From the last run to the first: what was summed last is still in the cache.
    r, held, end = (g[RUNS1] - 1, g[RUNS0] - 1), 0, 0
    for _ in range(g[RUNS1] * g[RUNS0] * write):
        b = block_of(g, lo)
        for _ in range(lo, hi):
            held, end = _write(code, each, fast, g, b, r, 0, g[RUN], t, stats, buffer, past, held, end)
            b = next_block(g, b)
        r = run_before(g, r)
    stream(ahead(t.out, end - held), data(buffer, 0), held)


@inlined
def _forward_task(code, each, fast, g, task, t, stats, own, write, center, again, eps, past):
    end = min(g[BLOCKS1] * g[BLOCKS0], (task + 1) * g[LANES])
    sums, buffer = np.empty((3, g[TOGETHER])), room(t.out, BLOCK)
    for lo in range(task * g[LANES], end, g[TOGETHER]):
        hi = min(end, lo + g[TOGETHER])
        _forward_lanes(
            code, each, fast, g, lo, hi, t, stats, sums, buffer, own, write, center, again, eps, past
        )  # fmt: skip
    fence()


@inlined
def unit_of(g, unit):
    """Return the lane, run and chunk of one of the units that threads share."""
    chunks, runs = chunks_of(g), g[RUNS1] * g[RUNS0]
    return unit // (runs * chunks), run_of(g, unit // chunks % runs), unit % chunks


@serial
def _share_start(fast, g, x, shift, todo):
    """Find a shift for every lane."""
    for lane in range(shift.size):
        shift[lane] = np.float64(real(fast, _shift(g, block_of(g, lane), x)))
        todo[lane] = 1.0


@inlined
def _share_sum(fast, g, unit, x, shift, parts):
    """Sum one chunk around its lane's shift."""
    lane, r, chunk = unit_of(g, unit)
    at, n = chunk_of(g, chunk)
    u = ahead(x, in_x(g, block_of(g, lane), r) + at)
    parts[0, unit], parts[1, unit] = loops.sum_row(n, u, real(fast, shift[lane]))


@serial
def _share_merge(g, sweep, shift, todo, sums, parts):
    """Add the chunks of every lane up; of those still to do, move the shift to the mean after sweep 1."""
    units = g[RUNS1] * g[RUNS0] * chunks_of(g)
    for lane in range(todo.size):
        if todo[lane]:
            s1 = total(parts[0, lane * units : (lane + 1) * units])
            s2 = total(parts[1, lane * units : (lane + 1) * units])
            sums[0, lane], sums[1, lane] = s1, s2
            todo[lane] = sweep > 0 or doubtful(g[COUNT], s1, s2)
            if sweep == 1:
                shift[lane] += s1 / g[COUNT]


@serial
def _share_finish(g, shift, sums, stats, eps, center):
    for lane in range(shift.size):
        slab = in_slabs(g, block_of(g, lane))
        finish(stats, slab, g[COUNT], shift[lane], sums[0, lane], sums[1, lane], eps, center)


def forward_kernel(shared, dtype, affine_dtype, code, each, fast, fused):
    """Return the forward of a rows layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual.
    """

    def rows_forward(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_forward(a, dtype, affine_dtype, fused), statistics(a)
        _forward_task(
            code, each, fast, g, i, t, stats, a[OWN], a[WRITES], a[CENTER], a[AGAIN], eps, a[PAST]
        )  # fmt: skip

    def rows_forward_shared(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_forward(a, dtype, affine_dtype, fused), statistics(a)
        lanes = g[BLOCKS1] * g[BLOCKS0]
        units = lanes * g[RUNS1] * g[RUNS0] * chunks_of(g)
        shift, todo, sums = work(a, 0, (lanes,)), work(a, lanes, (lanes,)), work(a, 2 * lanes, (2, lanes))
        parts = work(a, 4 * lanes, (2, units))
        if phase == START:
            _share_start(fast, g, t.x, shift, todo)
        elif phase == SUM and fast is not None:
            _share_sum(1, g, i, t.x, shift, parts)
        elif phase < MERGE:
            if todo[unit_of(g, i)[0]]:
                _share_sum(None, g, i, t.x, shift, parts)
        elif phase < FINISH:
            _share_merge(g, phase - MERGE, shift, todo, sums, parts)
        elif phase == FINISH and a[OWN]:
            _share_finish(g, shift, sums, stats, eps, a[CENTER])
        elif phase == WRITE:
            (lane, r, chunk), buffer = unit_of(g, i), room(t.out, BLOCK)
            at, n = chunk_of(g, chunk)
            held, end = _write(
                code, each, fast, g, block_of(g, lane), r, at, n, t, stats, buffer, a[PAST], 0, 0
            )  # fmt: skip
            stream(ahead(t.out, end - held), data(buffer, 0), held)
            fence()

    return rows_forward_shared if shared else rows_forward
