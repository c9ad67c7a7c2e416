"""Rows: a run of memory belongs to one slab. Forward and backward."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu import addressing, loops
from slabnorm.kernels.cpu.addressing import (
    ADD_UP,
    CALL,
    FINISH,
    MERGE,
    RSTD,
    START,
    SUM,
    TASK,
    WRITE,
    backward_ahead,
    block_of,
    first_slab,
    forward_ahead,
    inlined,
    keep,
    next_block,
    of_backward,
    of_forward,
    run_before,
    run_of,
    serial,
    start_of,
    statistics,
    work,
)
from slabnorm.kernels.cpu.coefficients import (
    add_sums,
    add_up,
    add_up_each,
    affine,
    beside,
    cells_of_block,
    constants,
    doubtful,
    finish,
    flush,
    gradient,
    narrow,
    shift_of,
    total,
)
from slabnorm.kernels.cpu.elements import load, real, zeros
from slabnorm.kernels.cpu.llvm import ahead, data, fence, record, room, stream
from slabnorm.kernels.cpu.loops import BLOCK
from slabnorm.kernels.layout import CHUNK, LAYOUT

# No elements held back. Numba compiles all that a literal 0 is passed to, and then anew for other numbers:
# some 0.8 s of the 6 of a forward.
NONE = np.int64(0)

# Forward.
#
# A *lane* is a block being worked on. Where there are many lanes, each thread takes some, and does every step
# of a few while they are still in the thread's cache. Where there are few, all threads share the runs of
# each. Sums are taken over the same chunks and added in the same order in both, so that the number of
# threads changes no bit.
#
# `tensors`, `stats`, `call` and `layout` are described in addressing.py. `each` is None where weight and bias
# are constant along a run, else 1; `fast` is None where all arithmetic is float64, else 1. Of `sums`, [3,
# lanes], each column holds a lane's shift and its two sums around that.


@inlined
def chunks_of(layout):
    """Return how many chunks a run is summed in."""
    return (layout.run + CHUNK - 1) // CHUNK


@inlined
def chunk_of(layout, chunk):
    """Return where a chunk starts in its run, and its length."""
    return chunk * CHUNK, min(CHUNK, layout.run - chunk * CHUNK)


@inlined
def _guess(layout, block, x):
    """Return the mean of eight elements of a slab, or of all that are in it: near the mean, as a rule."""
    # Added to the first of them, so that a constant slab has exactly itself.
    first = load(x, start_of(layout.x, block, (0, 0)), 0.0)
    apart = 0.0
    for run in range(layout.sample_runs):
        at = start_of(layout.x, block, (0, run * layout.sample_run_step))
        for i in range(layout.samples):
            apart += load(x, at + i * layout.sample_step, 0.0) - first
    return first + apart / (layout.sample_runs * layout.samples)


@inlined
def _sweep(fast, layout, lo, hi, x, sums, column):
    """Write the sums around their shifts of lanes lo to hi, which are those of `sums` from a column on."""
    for lane in range(hi - lo):
        sums[1, column + lane] = 0.0
        sums[2, column + lane] = 0.0
    chunks = chunks_of(layout)
    for r1 in range(layout.runs1):
        for r0 in range(layout.runs0):
            block = block_of(layout, lo)
            for lane in range(column, column + hi - lo):
                start, shift = ahead(x, start_of(layout.x, block, (r1, r0))), real(fast, sums[0, lane])
                for chunk in range(chunks):
                    at, n = chunk_of(layout, chunk)
                    p, q = loops.sum_row(n, ahead(start, at), shift)
                    sums[1, lane] += p
                    sums[2, lane] += q
                block = next_block(layout, block)


@inlined
def _reduce_lanes(fast, call, layout, lo, hi, x, sums, stats):
    """Write the statistics of some lanes."""
    block = block_of(layout, lo)
    for lane in range(hi - lo):
        sums[0, lane] = np.float64(real(fast, _guess(layout, block, x)))
        block = next_block(layout, block)
    if not call.again:
        _sweep(fast, layout, lo, hi, x, sums, 0)
    block, count = block_of(layout, lo), layout.count
    for lane in range(hi - lo):
        if call.again or fast is None or doubtful(count, sums[1, lane], sums[2, lane]):
            _carefully(layout, lo + lane, x, sums, lane)
        slab = first_slab(layout, block)
        finish(stats, slab, count, sums[0, lane], sums[1, lane], sums[2, lane], call)
        block = next_block(layout, block)


@serial
def _carefully(layout, lane, x, sums, column):
    """Sum a lane around a shift, then around the mean which that gives, in float64."""
    _sweep(None, layout, lane, lane + 1, x, sums, column)
    sums[0, column] += sums[1, column] / layout.count
    _sweep(None, layout, lane, lane + 1, x, sums, column)


@inlined
def _write(code, each, fast, layout, block, run, start, n, tensors, stats, buffer, past, held, end):
    """Write n elements of the output of one run, from element `start` on.

    `held` elements before place `end` of the output are still in the buffer; return the same again.
    """
    to, j = start_of(layout.out, block, run) + start, start_of(layout.affine, block, run)
    slab = first_slab(layout, block)
    weight, bias = beside(each, tensors, j + start)
    here = forward_ahead(layout, tensors, block, run, start, weight, bias)
    if to != end:
        stream(ahead(tensors.out, end - held), data(buffer, 0), held)
        held = NONE
    if fast is not None and narrow(stats, slab):
        of32 = affine(1, each, tensors, j, stats, slab)
        held = loops.forward(code, n, here, data(buffer, 0), past, held, of32)
    else:
        of64 = affine(None, each, tensors, j, stats, slab)
        held = loops.forward(code, n, here, data(buffer, 0), past, held, of64)
    return held, to + n


@inlined
def _forward_lanes(code, each, fast, call, layout, lo, hi, tensors, stats, sums, buffer):
    if call.own:
        _reduce_lanes(fast, call, layout, lo, hi, tensors.x, sums, stats)
    # From the last run to the first: what was summed last is still in the cache.
    run, held, end, n = (layout.runs1 - 1, layout.runs0 - 1), NONE, NONE, layout.run
    past = call.past
    for _ in range(layout.runs1 * layout.runs0 * call.write):
        block = block_of(layout, lo)
        for _ in range(lo, hi):
            held, end = _write(
                code, each, fast, layout, block, run, 0, n, tensors, stats, buffer, past, held, end
            )
            block = next_block(layout, block)
        run = run_before(layout, run)
    stream(ahead(tensors.out, end - held), data(buffer, 0), held)


@inlined
def _forward_task(code, each, fast, call, layout, task, tensors, stats):
    end = min(layout.blocks1 * layout.blocks0, (task + 1) * layout.lanes)
    sums, buffer = np.empty((3, layout.together)), room(tensors.out, BLOCK)
    for lo in range(task * layout.lanes, end, layout.together):
        hi = min(end, lo + layout.together)
        _forward_lanes(code, each, fast, call, layout, lo, hi, tensors, stats, sums, buffer)
    fence()


@inlined
def unit_of(layout, unit):
    """Return the lane, run and chunk of one of the units that threads share."""
    chunks, runs = chunks_of(layout), layout.runs1 * layout.runs0
    return unit // (runs * chunks), run_of(layout, unit // chunks % runs), unit % chunks


@serial
def _share_start(fast, layout, x, shift, todo):
    """Find a shift for every lane."""
    for lane in range(shift.size):
        shift[lane] = np.float64(real(fast, _guess(layout, block_of(layout, lane), x)))
        todo[lane] = 1.0


@inlined
def _share_sum(fast, layout, unit, x, shift, parts):
    """Sum one chunk around its lane's shift."""
    lane, run, chunk = unit_of(layout, unit)
    at, n = chunk_of(layout, chunk)
    start = ahead(x, start_of(layout.x, block_of(layout, lane), run) + at)
    parts[0, unit], parts[1, unit] = loops.sum_row(n, start, real(fast, shift[lane]))


@serial
def _share_merge(layout, sweep, shift, todo, sums, parts):
    """Add the chunks of every lane up; of those still to do, move the shift to the mean after sweep 1."""
    units = layout.runs1 * layout.runs0 * chunks_of(layout)
    for lane in range(todo.size):
        if todo[lane]:
            s1 = total(parts[0, lane * units : (lane + 1) * units])
            s2 = total(parts[1, lane * units : (lane + 1) * units])
            sums[0, lane], sums[1, lane] = s1, s2
            todo[lane] = sweep > 0 or doubtful(layout.count, s1, s2)
            if sweep == 1:
                shift[lane] += s1 / layout.count


@serial
def _share_finish(call, layout, shift, sums, stats):
    for lane in range(shift.size):
        slab = first_slab(layout, block_of(layout, lane))
        finish(stats, slab, layout.count, shift[lane], sums[0, lane], sums[1, lane], call)


@inlined
def _share_write(code, each, fast, call, layout, unit, tensors, stats):
    """Write the output of one chunk."""
    (lane, run, chunk), buffer = unit_of(layout, unit), room(tensors.out, BLOCK)
    (start, n), block, past = chunk_of(layout, chunk), block_of(layout, lane), call.past
    held, end = _write(
        code, each, fast, layout, block, run, start, n, tensors, stats, buffer, past, NONE, NONE
    )
    stream(ahead(tensors.out, end - held), data(buffer, 0), held)
    fence()


def forward_kernel(shared, dtype, affine_dtype, code, each, fast, fused):
    """Return the forward of a rows layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual.
    """

    def rows_forward(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_forward(call, dtype, affine_dtype, fused), statistics(call)
        _forward_task(code, each, fast, call, layout, i, tensors, stats)

    def rows_forward_shared(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_forward(call, dtype, affine_dtype, fused), statistics(call)
        lanes = layout.blocks1 * layout.blocks0
        units = lanes * layout.runs1 * layout.runs0 * chunks_of(layout)
        shift, todo = work(call, 0, (lanes,)), work(call, lanes, (lanes,))
        sums, parts = work(call, 2 * lanes, (2, lanes)), work(call, 4 * lanes, (2, units))
        if phase == START:
            _share_start(fast, layout, tensors.x, shift, todo)
        elif phase == SUM and fast is not None:
            _share_sum(1, layout, i, tensors.x, shift, parts)
        elif phase < MERGE:
            if todo[unit_of(layout, i)[0]]:
                _share_sum(None, layout, i, tensors.x, shift, parts)
        elif phase < FINISH:
            _share_merge(layout, phase - MERGE, shift, todo, sums, parts)
        elif phase == FINISH and call.own:
            _share_finish(call, layout, shift, sums, stats)
        elif phase == WRITE:
            _share_write(code, each, fast, call, layout, i, tensors, stats)

    return rows_forward_shared if shared else rows_forward


# Backward: reduce, merge and apply a gradient.
#
# With dp the gradient at the pre-activation, z = (x - mean) * rstd, and means over the slab,
#
#     dx = rstd * (weight * dp - c1 - c2 * z)     c1 = mean(weight * dp)     c2 = mean(weight * dp * z)
#
# `cells` hold the sums of dp and of dp * z that make dbias and dweight.

FLUSH = 16  # rows whose gradients of weight and bias are added up in float32


@inlined
def _sum_chunk(code, fast, layout, block, run, chunk, tensors, stats):
    """Return the sums of dp and of dp * z over one chunk of a run."""
    start, n = chunk_of(layout, chunk)
    j, slab = start_of(layout.affine, block, run), first_slab(layout, block)
    here = backward_ahead(layout, tensors, block, run, start, None, None)
    is_narrow = fast is not None and narrow(stats, slab)
    if fast is not None and is_narrow:
        p, q = loops.back_row(code, n, here, affine(1, None, tensors, j, stats, slab))
    else:
        p, q = loops.back_row(code, n, here, affine(None, None, tensors, j, stats, slab))
    _, low = shift_of(stats, slab, is_narrow)
    return p, stats[RSTD, slab] * (q - low * p)


@inlined
def _sum_chunk_each(code, fast, layout, block, chunk, tensors, stats, sums):
    """Return the sums of weight * dp and of weight * dp * z over one chunk; add dp and dp * z to `sums`."""
    (start, n), first, slab = chunk_of(layout, chunk), (0, 0), first_slab(layout, block)
    j = start_of(layout.affine, block, first)
    weight, bias = beside(1, tensors, j + start)
    here = backward_ahead(layout, tensors, block, first, start, weight, bias)
    dbias, dweight = data(sums, start), data(sums, layout.run + start)
    if fast is not None and narrow(stats, slab):
        of32 = affine(1, 1, tensors, j, stats, slab)
        return loops.back_row_each(code, n, here, of32, dweight, dbias)
    of64 = affine(None, 1, tensors, j, stats, slab)
    return loops.back_row_each(code, n, here, of64, dweight, dbias)


@inlined
def _release(tensors, buffers, held, end):
    """Write what the buffers hold of the gradients before place `end`."""
    stream(ahead(tensors.dx, end - held), data(buffers[0], 0), held)
    stream(ahead(tensors.dresidual, end - held), data(buffers[1], 0), held)


@inlined
def _write_backward(
    code, each, fast, layout, block, run, start, n, tensors, stats, means, buffers, past, held, end
):
    """Write n elements of the gradients of one run, from element `start` on; held, end: as in _write.

    `means` are c1 and c2.
    """
    to, j = start_of(layout.out, block, run) + start, start_of(layout.affine, block, run)
    slab = first_slab(layout, block)
    weight, bias = beside(each, tensors, j + start)
    here = backward_ahead(layout, tensors, block, run, start, weight, bias)
    one, two = data(buffers[0], 0), data(buffers[1], 0)
    if to != end:
        _release(tensors, buffers, held, end)
        held = NONE
    if fast is not None and narrow(stats, slab):
        of32 = gradient(1, each, tensors, j, stats, slab, *means)
        held = loops.backward(code, n, here, one, two, past, held, of32)
    else:
        of64 = gradient(None, each, tensors, j, stats, slab, *means)
        held = loops.backward(code, n, here, one, two, past, held, of64)
    return held, to + n


@inlined
def _backward_lanes(code, fast, call, layout, lo, hi, tensors, stats, cells, sums, buffers):
    """Do every step of some lanes, run by run: neighbours share lines and pages of memory."""
    for lane in range(hi - lo):
        sums[0, lane] = 0.0
        sums[1, lane] = 0.0
    chunks, past = chunks_of(layout), call.past
    for r1 in range(layout.runs1):
        for r0 in range(layout.runs0):
            block = block_of(layout, lo)
            for lane in range(lo, hi):
                for chunk in range(chunks):
                    p, q = _sum_chunk(code, fast, layout, block, (r1, r0), chunk, tensors, stats)
                    add_sums(layout, lane, block, (r1, r0), p, q, tensors.weight, cells, sums, lane - lo)
                block = next_block(layout, block)
    run, held, end, n = (layout.runs1 - 1, layout.runs0 - 1), NONE, NONE, layout.run
    for _ in range(layout.runs1 * layout.runs0 * call.write):
        block = block_of(layout, lo)
        for lane in range(hi - lo):
            means = constants(layout.count, sums[0, lane], sums[1, lane], call)
            held, end = _write_backward(
                code, None, fast, layout, block, run, 0, n, tensors, stats, means, buffers, past, held, end
            )
            block = next_block(layout, block)
        run = run_before(layout, run)
    _release(tensors, buffers, held, end)


@inlined
def _backward_each(code, fast, call, layout, lo, hi, tensors, stats, cells, sums, buffers):
    """Do every step of some lanes, one by one; gradients of weight and bias are float32 at first."""
    chunks, block, run, n, past = chunks_of(layout), block_of(layout, lo), (0, 0), layout.run, call.past
    held, end = NONE, NONE
    for _ in range(lo, hi):
        s1, s2 = 0.0, 0.0
        for chunk in range(chunks):
            p, q = _sum_chunk_each(code, fast, layout, block, chunk, tensors, stats, sums)
            s1 += p
            s2 += q
        if call.write:
            means = constants(layout.count, s1, s2, call)
            held, end = _write_backward(
                code, 1, fast, layout, block, run, 0, n, tensors, stats, means, buffers, past, held, end
            )
        block = next_block(layout, block)
    _release(tensors, buffers, held, end)
    flush(sums, cells)


@inlined
def _backward_task(code, each, fast, call, layout, task, tensors, stats, cells):
    end = min(layout.blocks1 * layout.blocks0, (task + 1) * layout.lanes)
    buffers = room(tensors.dx, BLOCK), room(tensors.dresidual, BLOCK)
    if each is None:
        sums = np.empty((2, layout.together))
        for lo in range(task * layout.lanes, end, layout.together):
            hi = min(end, lo + layout.together)
            _backward_lanes(code, fast, call, layout, lo, hi, tensors, stats, cells, sums, buffers)
    else:
        sums32, own = zeros(fast, 2 * layout.run), cells[0, task]
        for lo in range(task * layout.lanes, end, FLUSH):
            hi = min(end, lo + FLUSH)
            _backward_each(code, fast, call, layout, lo, hi, tensors, stats, own, sums32, buffers)
    fence()


@serial
def _share_sum_each(code, fast, layout, chunk, tensors, stats, parts, cells):
    """Reduce one chunk of every lane, where there is a single task."""
    sums, chunks, block = zeros(fast, 2 * layout.run), chunks_of(layout), (0, 0)
    start, n = chunk_of(layout, chunk)
    lanes, second = layout.blocks1 * layout.blocks0, layout.run + start
    for lane in range(lanes):
        p, q = _sum_chunk_each(code, fast, layout, block, chunk, tensors, stats, sums)
        parts[0, lane * chunks + chunk] = p
        parts[1, lane * chunks + chunk] = q
        block = next_block(layout, block)
        if lane % FLUSH == FLUSH - 1 or lane == lanes - 1:
            flush(sums[start : start + n], cells[start : start + n])
            flush(sums[second : second + n], cells[second : second + n])


@serial
def _share_merge_backward(each, layout, parts, weight, cells, sums):
    """Add the chunks of every lane up, and to the cells."""
    chunks, unit, block = chunks_of(layout), 0, (0, 0)
    for lane in range(sums.shape[1]):
        for run in range(layout.runs1 * layout.runs0):
            for _ in range(chunks):
                p, q = parts[0, unit], parts[1, unit]
                if each is None:
                    add_sums(layout, lane, block, run_of(layout, run), p, q, weight, cells, sums, lane)
                else:
                    sums[0, lane] += p
                    sums[1, lane] += q
                unit += 1
        block = next_block(layout, block)


@inlined
def _share_write_backward(code, each, fast, call, layout, unit, tensors, stats, sums):
    """Write the gradients of one chunk."""
    lane, run, chunk = unit_of(layout, unit)
    (start, n), block, past = chunk_of(layout, chunk), block_of(layout, lane), call.past
    buffers = room(tensors.dx, BLOCK), room(tensors.dresidual, BLOCK)
    means = constants(layout.count, sums[0, lane], sums[1, lane], call)
    held, end = _write_backward(
        code, each, fast, layout, block, run, start, n, tensors, stats, means, buffers, past, NONE, NONE
    )
    _release(tensors, buffers, held, end)
    fence()


@serial
def _add_up(each, call, layout, cells, affine_dtype):
    """Write the gradients of weight and bias."""
    dweight, dbias = np.zeros(layout.parameters), np.zeros(layout.parameters)
    if each is None:
        add_up(layout, cells, dweight, dbias)
    else:
        add_up_each(layout, cells[0], dweight, dbias)
    keep(dweight, call.dweight, affine_dtype)
    keep(dbias, call.dbias, affine_dtype)


@inlined
def _cells(each, call, layout):
    lanes = layout.blocks1 * layout.blocks0
    if each is None:
        return addressing.cells(call, (2, lanes, cells_of_block(layout)))
    return addressing.cells(call, (1, (lanes + layout.lanes - 1) // layout.lanes, 2 * layout.run))


def backward_kernel(shared, dtype, affine_dtype, code, each, fast, fused, inner, keeps):
    """Return the backward of a rows layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual; `inner`: None or 1,
    whether its gradient is written; `keeps`: None or 1, whether the gradient at the pre-activation is kept.
    """

    def rows_backward(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_backward(call, dtype, affine_dtype, fused, inner, keeps), statistics(call)
        cells = _cells(each, call, layout)
        if phase == TASK:
            _backward_task(code, each, fast, call, layout, i, tensors, stats, cells)
        else:
            _add_up(each, call, layout, cells, affine_dtype)

    def rows_backward_shared(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_backward(call, dtype, affine_dtype, fused, inner, keeps), statistics(call)
        cells, lanes = _cells(each, call, layout), layout.blocks1 * layout.blocks0
        units = lanes * layout.runs1 * layout.runs0 * chunks_of(layout)
        sums, parts = work(call, 0, (2, lanes)), work(call, 2 * lanes, (2, units))
        if phase == SUM:
            if each is None:
                lane, run, chunk = unit_of(layout, i)
                block = block_of(layout, lane)
                parts[0, i], parts[1, i] = _sum_chunk(code, fast, layout, block, run, chunk, tensors, stats)
            else:
                _share_sum_each(code, fast, layout, i, tensors, stats, parts, cells[0, 0])
        elif phase == FINISH:
            _share_merge_backward(each, layout, parts, tensors.weight, cells, sums)
        elif phase == WRITE:
            _share_write_backward(code, each, fast, call, layout, i, tensors, stats, sums)
        elif phase == ADD_UP:
            _add_up(each, call, layout, cells, affine_dtype)

    return rows_backward_shared if shared else rows_backward
