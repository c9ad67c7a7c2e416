"""Rows: a run of memory belongs to one slab. Forward and backward."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu import loops
from slabnorm.kernels.cpu.addressing import (
    ADD_UP,
    AFFINE,
    AGAIN,
    BLOCKS0,
    BLOCKS1,
    CENTER,
    COUNT,
    DBIAS,
    DWEIGHT,
    FINISH,
    LANES,
    MERGE,
    OWN,
    PAST,
    RUN,
    RUNS0,
    RUNS1,
    SAMPLE_RUN_STEP,
    SAMPLE_RUNS,
    SAMPLE_STEP,
    SAMPLES,
    START,
    SUM,
    TASK,
    TOGETHER,
    WRITE,
    WRITES,
    arguments,
    block_of,
    constants,
    doubtful,
    finish,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    inlined,
    keep,
    narrow,
    next_block,
    numbers,
    of_backward,
    of_forward,
    run_before,
    run_of,
    serial,
    statistics,
    total,
    work,
)  # fmt: skip
from slabnorm.kernels.cpu.addressing import cells as cells_of
from slabnorm.kernels.cpu.coefficients import (
    add_up,
    add_up_each,
    beside,
    cells_of_block,
    enter,
    flush,
    folded,
    gradient,
    shift_of,
)
from slabnorm.kernels.cpu.elements import load, real, zeros
from slabnorm.kernels.cpu.layout import CHUNK
from slabnorm.kernels.cpu.llvm import ahead, data, fence, room, stream
from slabnorm.kernels.cpu.loops import BLOCK

# Forward.
#
# A *lane* is a block being worked on. Where there are many lanes, each thread takes some, and does every step
# of a few while they are still in the thread's cache. Where there are few, all threads share the runs of
# each. Sums are taken over the same chunks and added in the same order in both, so that the number of
# threads changes no bit.
#
# Tensors are `t`, pointers (addressing.py); `stats` is [5, slabs]: mean, sum of squared deviations, shift,
# rstd, and the rest of the shift; `g` holds the numbers of the layout. `each` is None where weight and bias
# are constant along a run, else 1; `fast` is None where all arithmetic is float64, else 1; with `past` the
# output goes past the caches.


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


# Backward: reduce, merge and apply a gradient.
#
# With g the gradient at the pre-activation, z = (x - mean) * rstd, and means over the slab,
#
#     dx = rstd * (w * g - c1 - c2 * z)       c1 = mean(w * g)       c2 = mean(w * g * z)
#
# `cells` hold the sums of g and of g * z that make dbias and dweight.

FLUSH = 16  # rows whose gradients of weight and bias are added up in float32


@inlined
def _sum_chunk(code, fast, g, b, r, chunk, t, stats):
    """Return the sums of g and of g * z over one chunk of a run."""
    start, n = chunk_of(g, chunk)
    at, to, j, slab = in_x(g, b, r) + start, in_out(g, b, r) + start, in_affine(g, b, r), in_slabs(g, b)
    dy, u, v = ahead(t.dy, to), ahead(t.x, at), ahead(t.residual, to)
    rstd, is_narrow = stats[3, slab], fast is not None and narrow(stats, slab)
    k, low = shift_of(stats, slab, is_narrow)
    r_, l_ = folded(None, t.w, t.bias, j, rstd, low)
    if fast is not None and is_narrow:
        p, q = loops.back_row(code, n, dy, u, v, np.float32(k), np.float32(r_), np.float32(l_))
    else:
        p, q = loops.back_row(code, n, dy, u, v, k, r_, l_)
    return p, rstd * (q - low * p)


@inlined
def _sum_chunk_each(code, fast, g, b, chunk, t, stats, sums):
    """Return the sums of w * g and of w * g * z over one chunk; add g and g * z to `sums`, by element."""
    start, n = chunk_of(g, chunk)
    at, to, j = in_x(g, b, (0, 0)) + start, in_out(g, b, (0, 0)) + start, in_affine(g, b, (0, 0)) + start
    dy, u, v, slab = ahead(t.dy, to), ahead(t.x, at), ahead(t.residual, to), in_slabs(g, b)
    w, bias, db, dw = ahead(t.w, j), ahead(t.bias, j), data(sums, start), data(sums, g[RUN] + start)
    rstd, is_narrow = stats[3, slab], fast is not None and narrow(stats, slab)
    k, low = shift_of(stats, slab, is_narrow)
    if fast is not None and is_narrow:
        k32, r32, l32 = np.float32(k), np.float32(rstd), np.float32(-low * rstd)
        return loops.back_row_each(code, n, dy, u, v, k32, r32, l32, w, bias, db, dw)
    return loops.back_row_each(code, n, dy, u, v, k, rstd, -low * rstd, w, bias, db, dw)


@inlined
def _release(t, buffers, held, end):
    """Write what the buffers hold of the gradients before place `end`."""
    stream(ahead(t.dx, end - held), data(buffers[0], 0), held)
    stream(ahead(t.dresidual, end - held), data(buffers[1], 0), held)


@inlined
def _write_backward(code, each, fast, g, b, r, chunk, n, t, stats, c1, c2, buffers, past, held, end):
    """Write n elements of the gradients of one run, from element `chunk` on; held, end: as in rows.py."""
    at, to, j, slab = in_x(g, b, r) + chunk, in_out(g, b, r) + chunk, in_affine(g, b, r), in_slabs(g, b)
    dy, u, v, dx, dv = (
        ahead(t.dy, to), ahead(t.x, at), ahead(t.residual, to), ahead(t.dx, to), ahead(t.dresidual, to)
    )  # fmt: skip
    w, bias, rstd = beside(each, t.w, j + chunk), beside(each, t.bias, j + chunk), stats[3, slab]
    is_narrow, one, two = fast is not None and narrow(stats, slab), data(buffers[0], 0), data(buffers[1], 0)
    k, low = shift_of(stats, slab, is_narrow)
    p, q = folded(each, t.w, t.bias, j, rstd, low)
    d, e = gradient(rstd, low, c1, c2)
    if to != end:
        _release(t, buffers, held, end)
        held = 0
    if fast is not None and is_narrow:
        held = loops.backward(
            code, n, dy, u, v, dx, dv, one, two, past, held, np.float32(k), np.float32(p), np.float32(q), w,
            bias, np.float32(d), np.float32(e),
        )  # fmt: skip
    else:
        held = loops.backward(code, n, dy, u, v, dx, dv, one, two, past, held, k, p, q, w, bias, d, e)
    return held, to + n


@inlined
def _backward_lanes(code, fast, g, lo, hi, t, stats, cells, sums, buffers, own, center, write, past):
    """Do every step of some lanes, run by run: neighbours share lines and pages of memory."""
    for lane in range(hi - lo):
        sums[0, lane] = 0.0
        sums[1, lane] = 0.0
    chunks = chunks_of(g)
    for r1 in range(g[RUNS1]):
        for r0 in range(g[RUNS0]):
            b = block_of(g, lo)
            for lane in range(lo, hi):
                for chunk in range(chunks):
                    p, q = _sum_chunk(code, fast, g, b, (r1, r0), chunk, t, stats)
                    enter(g, lane, b, (r1, r0), p, q, t.w, cells, sums, lane - lo)
                b = next_block(g, b)
    r, held, end = (g[RUNS1] - 1, g[RUNS0] - 1), 0, 0
    for _ in range(g[RUNS1] * g[RUNS0] * write):
        b = block_of(g, lo)
        for lane in range(hi - lo):
            c1, c2 = constants(g[COUNT], sums[0, lane], sums[1, lane], own, center)
            held, end = _write_backward(
                code, None, fast, g, b, r, 0, g[RUN], t, stats, c1, c2, buffers, past, held, end
            )  # fmt: skip
            b = next_block(g, b)
        r = run_before(g, r)
    _release(t, buffers, held, end)


@inlined
def _backward_each(code, fast, g, lo, hi, t, stats, cells, sums, buffers, own, center, write, past):
    """Do every step of some lanes, one by one; gradients of weight and bias are float32 at first."""
    chunks, b, held, end = chunks_of(g), block_of(g, lo), 0, 0
    for _ in range(lo, hi):
        s1, s2 = 0.0, 0.0
        for chunk in range(chunks):
            p, q = _sum_chunk_each(code, fast, g, b, chunk, t, stats, sums)
            s1 += p
            s2 += q
        if write:
            c1, c2 = constants(g[COUNT], s1, s2, own, center)
            held, end = _write_backward(
                code, 1, fast, g, b, (0, 0), 0, g[RUN], t, stats, c1, c2, buffers, past, held, end
            )  # fmt: skip
        b = next_block(g, b)
    _release(t, buffers, held, end)
    flush(sums, cells)


@inlined
def _backward_task(code, each, fast, g, task, t, stats, cells, own, center, write, past):
    end = min(g[BLOCKS1] * g[BLOCKS0], (task + 1) * g[LANES])
    buffers = room(t.dx, BLOCK), room(t.dresidual, BLOCK)
    if each is None:
        sums = np.empty((2, g[TOGETHER]))
        for lo in range(task * g[LANES], end, g[TOGETHER]):
            hi = min(end, lo + g[TOGETHER])
            _backward_lanes(code, fast, g, lo, hi, t, stats, cells, sums, buffers, own, center, write, past)
    else:
        sums32 = zeros(fast, 2 * g[RUN])
        for lo in range(task * g[LANES], end, FLUSH):
            hi = min(end, lo + FLUSH)
            _backward_each(
                code, fast, g, lo, hi, t, stats, cells[0, task], sums32, buffers, own, center, write, past
            )  # fmt: skip
    fence()


@serial
def _share_sum_each(code, fast, g, chunk, t, stats, parts, cells):
    """Reduce one chunk of every lane, where there is a single task."""
    sums, (start, n), chunks, b = zeros(fast, 2 * g[RUN]), chunk_of(g, chunk), chunks_of(g), (0, 0)
    lanes = g[BLOCKS1] * g[BLOCKS0]
    for lane in range(lanes):
        p, q = _sum_chunk_each(code, fast, g, b, chunk, t, stats, sums)
        parts[0, lane * chunks + chunk] = p
        parts[1, lane * chunks + chunk] = q
        b = next_block(g, b)
        if lane % FLUSH == FLUSH - 1 or lane == lanes - 1:
            flush(sums[start : start + n], cells[start : start + n])
            flush(sums[g[RUN] + start : g[RUN] + start + n], cells[g[RUN] + start : g[RUN] + start + n])


@serial
def _share_merge_backward(each, g, parts, w, cells, sums):
    """Add the chunks of every lane up, and to the cells."""
    chunks, unit, b = chunks_of(g), 0, (0, 0)
    for lane in range(sums.shape[1]):
        for run in range(g[RUNS1] * g[RUNS0]):
            for _ in range(chunks):
                p, q = parts[0, unit], parts[1, unit]
                if each is None:
                    enter(g, lane, b, run_of(g, run), p, q, w, cells, sums, lane)
                else:
                    sums[0, lane] += p
                    sums[1, lane] += q
                unit += 1
        b = next_block(g, b)


@serial
def _add_up(each, g, cells, a, affine_dtype):
    """Write the gradients of weight and bias."""
    dweight, dbias = np.zeros(g[AFFINE]), np.zeros(g[AFFINE])
    if each is None:
        add_up(g, cells, dweight, dbias)
    else:
        add_up_each(g, cells[0], dweight, dbias)
    keep(dweight, a[DWEIGHT], affine_dtype)
    keep(dbias, a[DBIAS], affine_dtype)


@inlined
def _cells(each, g, a):
    lanes = g[BLOCKS1] * g[BLOCKS0]
    if each is None:
        return cells_of(a, (2, lanes, cells_of_block(g)))
    return cells_of(a, (1, (lanes + g[LANES] - 1) // g[LANES], 2 * g[RUN]))


def backward_kernel(shared, dtype, affine_dtype, code, each, fast, fused, inner):
    """Return the backward of a rows layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual; `inner`: None or 1,
    whether its gradient is written.
    """

    def rows_backward(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_backward(a, dtype, affine_dtype, fused, inner), statistics(a)
        cells = _cells(each, g, a)
        if phase == TASK:
            _backward_task(code, each, fast, g, i, t, stats, cells, a[OWN], a[CENTER], a[WRITES], a[PAST])
        else:
            _add_up(each, g, cells, a, affine_dtype)

    def rows_backward_shared(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_backward(a, dtype, affine_dtype, fused, inner), statistics(a)
        cells, lanes = _cells(each, g, a), g[BLOCKS1] * g[BLOCKS0]
        sums, parts = (
            work(a, 0, (2, lanes)),
            work(a, 2 * lanes, (2, lanes * g[RUNS1] * g[RUNS0] * chunks_of(g))),
        )
        if phase == SUM:
            if each is None:
                lane, r, chunk = unit_of(g, i)
                parts[0, i], parts[1, i] = _sum_chunk(code, fast, g, block_of(g, lane), r, chunk, t, stats)
            else:
                _share_sum_each(code, fast, g, i, t, stats, parts, cells[0, 0])
        elif phase == FINISH:
            _share_merge_backward(each, g, parts, t.w, cells, sums)
        elif phase == WRITE:
            (lane, r, chunk), buffers = unit_of(g, i), (room(t.dx, BLOCK), room(t.dresidual, BLOCK))
            start, n = chunk_of(g, chunk)
            c1, c2 = constants(g[COUNT], sums[0, lane], sums[1, lane], a[OWN], a[CENTER])
            held, end = _write_backward(
                code, each, fast, g, block_of(g, lane), r, start, n, t, stats, c1, c2, buffers, a[PAST], 0, 0
            )  # fmt: skip
            _release(t, buffers, held, end)
            fence()
        elif phase == ADD_UP:
            _add_up(each, g, cells, a, affine_dtype)

    return rows_backward_shared if shared else rows_backward
