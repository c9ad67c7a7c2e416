"""Columns: every element of a run is a column, and a slab is made of whole columns. Forward and backward."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu import addressing, loops
from slabnorm.kernels.cpu.addressing import (
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
    group,
    inlined,
    keep,
    next_run,
    of_backward,
    of_forward,
    run_of,
    serial,
    start_of,
    statistics,
    work,
)
from slabnorm.kernels.cpu.coefficients import (
    Affine,
    Gradient,
    constants,
    doubtful,
    finish,
    folded,
    line_of,
    narrow,
    one,
    shift_of,
)
from slabnorm.kernels.cpu.elements import load, zeros
from slabnorm.kernels.cpu.llvm import ahead, data, fence, record, room, stream
from slabnorm.kernels.cpu.loops import BLOCK
from slabnorm.kernels.layout import LAYOUT

# What columns' forward and backward share: tiles, pieces, and what a column is normalised with.


@serial
def tiles(layout):
    """Return the number of tiles of a block."""
    return (layout.run + layout.tile - 1) // layout.tile


@serial
def bounds(layout, task):
    """Return the block of a task, and its columns."""
    block, tile = block_of(layout, task // tiles(layout)), task % tiles(layout)
    return block, tile * layout.tile, min(layout.run, (tile + 1) * layout.tile)


@serial
def pieces(layout):
    """Return the number of pieces of a task."""
    return (layout.runs1 * layout.runs0 + layout.piece - 1) // layout.piece


@serial
def runs_of(layout, piece):
    """Return the runs of a piece."""
    return piece * layout.piece, min(layout.runs1 * layout.runs0, (piece + 1) * layout.piece)


@serial
def clear(values):
    """Set an array to 0."""
    for i in range(values.size):
        values[i] = 0


@serial
def add(values, more):
    """Add an array to another."""
    for i in range(values.size):
        values[i] += more[i]


@serial
def places(group, lo, hi):
    """Return the slab, and the element of weight and bias, of columns lo to hi of block 0.

    They follow from the axes within a run, counted on like the digits of a number. Tables, kept with a call's
    plan, would take 8 MB for a tensor of (2, 500000) float32, which takes 4.
    """
    last = len(group) - 1
    found, digits = np.empty((2, hi - lo), dtype=np.int64), np.empty(last + 1, dtype=np.int64)
    rest, slab, affine = lo, 0, 0
    for axis in range(last, -1, -1):
        digits[axis] = rest % group[axis, 0]
        rest //= group[axis, 0]
        slab += digits[axis] * group[axis, 1]
        affine += digits[axis] * group[axis, 2]
    size, of_slab, of_affine = group[last, 0], group[last, 1], group[last, 2]
    i = 0
    while i < hi - lo:
        n = min(size - digits[last], hi - lo - i)
        for j in range(n):
            found[0, i + j] = slab + j * of_slab
            found[1, i + j] = affine + j * of_affine
        i += n
        axis = last
        slab += n * of_slab
        affine += n * of_affine
        digits[last] += n
        while axis > 0 and digits[axis] == group[axis, 0]:
            slab += group[axis - 1, 1] - digits[axis] * group[axis, 1]
            affine += group[axis - 1, 2] - digits[axis] * group[axis, 2]
            digits[axis] = 0
            axis -= 1
            digits[axis] += 1
    return found


@serial
def slabs_of(slab_of):
    """Return the first slab of some columns, and how many there are from it to the last."""
    first, last = slab_of[0], slab_of[0]
    for i in range(slab_of.size):
        first, last = min(first, slab_of[i]), max(last, slab_of[i])
    return first, last - first + 1


@serial
def all_narrow(layout, task, slab_of, stats):
    """Return whether every slab of a task can be normalised in float32."""
    base = first_slab(layout, bounds(layout, task)[0])
    for i in range(slab_of.size):
        if not narrow(stats, base + slab_of[i]):
            return False
    return True


@serial
def write_affine(each, layout, task, place, tensors, stats, rounded, of):
    """Write shift, scale and offset of every column (coefficients.py), in float64."""
    block = bounds(layout, task)[0]
    base, start = first_slab(layout, block), start_of(layout.affine, block, (0, 0))
    for i in range(place.shape[1]):
        slab = base + place[0, i]
        of[0, i], low = shift_of(stats, slab, rounded)
        of[1, i], of[2, i] = folded(each, tensors, start + place[1, i], stats[RSTD, slab], low)


@serial
def narrowed(of, n):
    """Return coefficients as float32."""
    out = np.empty(of.shape, dtype=np.float32)
    for row in range(of.shape[0]):
        for i in range(n):
            out[row, i] = of[row, i]
    return out


# Columns summed: near each column's mean, in float32, and again in float64 where that is doubtful.
#
# `work` holds, for every column of a task, the shift, the two sums, and room for the sums of a piece;
# `careful` the same in a float64 sweep.

FLUSH = 64  # runs added up in float32


@serial
def shift(fast, layout, task, x, k):
    """Write the mean of some runs, as many as eight: near each column's mean, as a rule."""
    # Added to the first of them, so that constant columns have exactly themselves.
    block, lo, hi = bounds(layout, task)
    first = start_of(layout.x, block, (0, 0)) + lo
    for j in range(layout.sample_runs):
        at = start_of(layout.x, block, (0, j * layout.sample_run_step)) + lo
        for i in range(hi - lo):
            k[i] += load(x, at + i, 0.0) - load(x, first + i, 0.0)
    for i in range(hi - lo):
        k[i] = load(x, first + i, 0.0) + k[i] / layout.sample_runs
        if fast is not None:
            k[i] = np.float64(np.float32(k[i]))


@serial
def _sum_piece(layout, task, piece, x, k, sums, s1, s2):
    """Write the sums of x - k and of its square over the runs of a piece; `sums` have the dtype of k."""
    block, lo, hi = bounds(layout, task)
    clear(s1)
    clear(s2)
    number, last = runs_of(layout, piece)
    n, run, p, q = hi - lo, run_of(layout, number), sums[0], sums[1]
    while number < last:
        clear(p)
        clear(q)
        end = min(last, number + FLUSH)
        while number < end:
            # One after the other: four at once take fewer instructions, but are fetched ahead less well.
            here = ahead(x, start_of(layout.x, block, run) + lo)
            loops.sum_columns(n, here, data(k, 0), data(p, 0), data(q, 0))
            run = next_run(layout, run)
            number += 1
        add(s1, p)
        add(s2, q)


@serial
def _narrowed(k, k32):
    for i in range(k.size):
        k32[i] = k[i]


@serial
def sum_task(fast, layout, task, x, work, sums, again):
    """Write the sums of a task; of doubtful columns, and with `again` of all, around their mean."""
    k, s1, s2 = work[0], work[1], work[2]
    if fast is not None and not again:
        _narrowed(k, sums[2])
        for piece in range(pieces(layout)):
            _sum_piece(layout, task, piece, x, sums[2], sums, work[3], work[4])
            add(s1, work[3])
            add(s2, work[4])
    if fast is None or again or any_doubtful(layout, task, s1, s2):
        _sum_carefully(fast, layout, task, x, work, again)


@serial
def any_doubtful(layout, task, s1, s2):
    """Return whether the float32 sums of some column are not to be trusted."""
    _, lo, hi = bounds(layout, task)
    for i in range(hi - lo):
        if doubtful(layout.runs1 * layout.runs0, s1[i], s2[i]):
            return True
    return False


@serial
def _sum_carefully(fast, layout, task, x, work, again):
    careful, wide = np.zeros((3, layout.tile)), np.zeros((2, layout.tile))
    for sweep in range(1, 3):
        around(layout, sweep, work, careful)
        clear(careful[1])
        clear(careful[2])
        for piece in range(pieces(layout)):
            _sum_piece(layout, task, piece, x, careful[0], wide, work[3], work[4])
            add(careful[1], work[3])
            add(careful[2], work[4])
    replace(fast, layout, task, work, careful, again)


@serial
def around(layout, sweep, work, careful):
    """Set the shift of a careful sweep: first the one there is, then the mean it found."""
    for i in range(layout.tile):
        if sweep == 1:
            careful[0, i] = work[0, i]
        else:
            careful[0, i] += careful[1, i] / (layout.runs1 * layout.runs0)


@serial
def replace(fast, layout, task, work, careful, again):
    """Put careful sums in the place of doubtful ones: what one column holds changes no bit of another."""
    _, lo, hi = bounds(layout, task)
    for i in range(hi - lo):
        if fast is None or again or doubtful(layout.runs1 * layout.runs0, work[1, i], work[2, i]):
            work[0, i], work[1, i], work[2, i] = careful[0, i], careful[1, i], careful[2, i]


@serial
def add_pieces(parts, s1, s2):
    """Write the sums of all pieces, added in order."""
    clear(s1)
    clear(s2)
    for piece in range(len(parts)):
        add(s1, parts[piece, 0])
        add(s2, parts[piece, 1])


@serial
def share_piece(fast, layout, task, piece, x, shift, parts):
    """Sum one piece in float32."""
    sums = zeros(fast, 3 * layout.tile).reshape((3, layout.tile))
    _narrowed(shift, sums[2])
    _sum_piece(layout, task, piece, x, sums[2], sums, parts[0], parts[1])


@serial
def share_piece_carefully(layout, task, piece, x, shift, parts):
    """Sum one piece in float64."""
    _sum_piece(layout, task, piece, x, shift, np.zeros((2, layout.tile)), parts[0], parts[1])


# Forward.
#
# A *task* is a tile of columns of one block, and holds whole slabs. Its runs are taken in *pieces*; the
# sums of a piece are one number per column, and pieces are added up in order. Where there are many tasks,
# each thread takes some; where there are few, all threads share the pieces of each: the same sums, the same
# bits.
#
# Arguments are those of rows.py; `place` says which slab, and which element of weight and bias, each column
# of a task has; `of` holds the columns' coefficients, a row for each. `each` is None where weight and bias
# vary from column to column, 1 where from run to run.


@serial
def _merge(call, layout, task, k, s1, s2, slab_of, stats):
    """Merge columns into the statistics of their slabs, around the mean of one column of each.

    All columns count as much, so equal ones merge without a rounding,
    and a constant slab has exactly no variance.
    """
    block, lo, hi = bounds(layout, task)
    base, count = first_slab(layout, block), layout.runs1 * layout.runs0
    first, size = slabs_of(slab_of)
    sums = np.zeros((3, size))  # around what, and the slab's sums around it
    for i in range(hi - lo):
        sums[0, slab_of[i] - first] = k[i] + s1[i] / count
    for i in range(hi - lo):
        slab = slab_of[i] - first
        apart = (k[i] - sums[0, slab]) + s1[i] / count
        sums[1, slab] += count * apart
        sums[2, slab] += s2[i] - s1[i] * s1[i] / count + count * apart * apart
    for i in range(hi - lo):
        slab = slab_of[i] - first
        around, one, two = sums[0, slab], sums[1, slab], sums[2, slab]
        finish(stats, base + first + slab, layout.count, around, one, two, call)


@serial
def _write_pieces(code, each, layout, task, first, last, tensors, of, buffer, past):
    block, lo, hi = bounds(layout, task)
    n, space, tile = hi - lo, data(buffer, 0), layout.tile
    affine = Affine(data(of, 0), data(of, tile), data(of, 2 * tile))
    # From the last piece to the first: what was summed last is still in the caches.
    for piece in range(last - 1, first - 1, -1):
        start, end = runs_of(layout, piece)
        run = run_of(layout, start)
        for _ in range(start, end):
            weight, bias = one(each, tensors, start_of(layout.affine, block, run), affine.shift)
            here = forward_ahead(layout, tensors, block, run, lo, weight, bias)
            held = loops.forward(code, n, here, space, past, 0, affine)
            stream(ahead(here.out, n - held), space, held)
            run = next_run(layout, run)


@serial
def _write(code, each, fast, layout, task, first, last, tensors, of, is_narrow, past):
    """Write the output of some pieces of a task."""
    buffer = room(tensors.out, BLOCK)
    if fast is not None and is_narrow:
        of32 = narrowed(of, layout.tile)
        _write_pieces(code, each, layout, task, first, last, tensors, of32, buffer, past)
    else:
        _write_pieces(code, each, layout, task, first, last, tensors, of, buffer, past)
    fence()


@serial
def prepare(each, fast, layout, task, place, tensors, stats, of):
    """Write the coefficients of a task; return whether they are for float32."""
    is_narrow = fast is not None and all_narrow(layout, task, place[0], stats)
    write_affine(each, layout, task, place, tensors, stats, is_narrow, of)
    return is_narrow


@inlined
def _forward_task(code, each, fast, call, layout, task, tensors, stats):
    place, tile = places(group(call), *bounds(layout, task)[1:]), layout.tile
    if call.own:
        column, sums = np.zeros((5, tile)), zeros(fast, 3 * tile).reshape((3, tile))
        shift(fast, layout, task, tensors.x, column[0])
        sum_task(fast, layout, task, tensors.x, column, sums, call.again)
        _merge(call, layout, task, column[0], column[1], column[2], place[0], stats)
    if call.write:
        of, last = np.zeros((3, tile)), pieces(layout)
        is_narrow = prepare(each, fast, layout, task, place, tensors, stats, of)
        _write(code, each, fast, layout, task, 0, last, tensors, of, is_narrow, call.past)


@serial
def _share_sum(fast, layout, i, sweep, todo, x, sums, careful, parts):
    """Sum one piece: in float32 at first, then in float64."""
    task, piece = i // pieces(layout), i % pieces(layout)
    if todo[task] and sweep == 0:
        share_piece(fast, layout, task, piece, x, sums[task, 0], parts[task, piece])
    elif todo[task]:
        share_piece_carefully(layout, task, piece, x, careful[task, 0], parts[task, piece])


@serial
def _share_merge(layout, sweep, todo, parts, sums, careful):
    """Add the pieces of every task up, and set the shifts of the next sweep."""
    for task in range(len(todo)):
        if todo[task]:
            to = sums[task] if sweep == 0 else careful[task]
            add_pieces(parts[task], to[1], to[2])
        if sweep == 0:
            todo[task] = any_doubtful(layout, task, sums[task, 1], sums[task, 2])
        if sweep < 2:
            around(layout, sweep + 1, sums[task], careful[task])


@serial
def _share_start(fast, layout, again, x, todo, sums, careful):
    for task in range(len(todo)):
        todo[task] = 1.0
        shift(fast, layout, task, x, sums[task, 0])
        if again:
            around(layout, 1, sums[task], careful[task])


@serial
def _share_finish(each, fast, call, layout, tensors, stats, todo, sums, careful, of):
    """Write statistics, and what every task is normalised with; `todo` says whether in float32."""
    for task in range(len(todo)):
        place = places(group(call), *bounds(layout, task)[1:])
        if call.own:
            if todo[task]:
                replace(fast, layout, task, sums[task], careful[task], call.again)
            _merge(call, layout, task, sums[task, 0], sums[task, 1], sums[task, 2], place[0], stats)
        todo[task] = prepare(each, fast, layout, task, place, tensors, stats, of[task])


def forward_kernel(shared, dtype, affine_dtype, code, each, fast, fused):
    """Return the forward of a columns layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual.
    """

    def columns_forward(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_forward(call, dtype, affine_dtype, fused), statistics(call)
        _forward_task(code, each, fast, call, layout, i, tensors, stats)

    def columns_forward_shared(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_forward(call, dtype, affine_dtype, fused), statistics(call)
        tasks, between, tile = layout.blocks1 * layout.blocks0 * tiles(layout), pieces(layout), layout.tile
        size = tasks * tile
        todo, sums = work(call, 0, (tasks,)), work(call, tasks, (tasks, 5, tile))
        careful = work(call, tasks + 5 * size, (tasks, 3, tile))
        of = work(call, tasks + 8 * size, (tasks, 3, tile))
        parts = work(call, tasks + 11 * size, (tasks, between, 2, tile))
        if phase == START:
            _share_start(fast, layout, call.again, tensors.x, todo, sums, careful)
        elif phase < MERGE:
            _share_sum(fast, layout, i, phase - SUM, todo, tensors.x, sums, careful, parts)
        elif phase < FINISH:
            _share_merge(layout, phase - MERGE, todo, parts, sums, careful)
        elif phase == FINISH:
            _share_finish(each, fast, call, layout, tensors, stats, todo, sums, careful, of)
        else:
            task, piece, past = i // between, i % between, call.past
            is_narrow = todo[task] != 0
            _write(code, each, fast, layout, task, piece, piece + 1, tensors, of[task], is_narrow, past)

    return columns_forward_shared if shared else columns_forward


# Backward: reduce, merge and apply a gradient.
#
# With dp the gradient at the pre-activation, z = (x - mean) * rstd, and means over the slab,
#
#     dx = rstd * (weight * dp - c1 - c2 * z)     c1 = mean(weight * dp)     c2 = mean(weight * dp * z)

FLUSH_BACKWARD = 16  # runs added up in float32


@serial
def _sum_piece_backward(code, each, layout, task, piece, tensors, of, sums, s1, s2, cells):
    """Write the sums of dp and of dp * (x - shift) over the runs of a piece; weighted where `each` is 1."""
    (block, lo, hi), (first, last), tile = bounds(layout, task), runs_of(layout, piece), layout.tile
    n, run, p, q = hi - lo, run_of(layout, first), data(sums, 0), data(sums, tile)
    affine = Affine(data(of, 0), data(of, tile), data(of, 2 * tile))
    clear(s1)
    clear(s2)
    clear(sums)
    for number in range(first, last):
        weight, bias = one(each, tensors, start_of(layout.affine, block, run), affine.shift)
        here = backward_ahead(layout, tensors, block, run, lo, weight, bias)
        if each is None:
            loops.back_columns(code, n, here, affine, p, q)
        else:
            cells[0, number], cells[1, number] = loops.back_columns_weighted(code, n, here, affine, p, q)
        run = next_run(layout, run)
        if (number - first) % FLUSH_BACKWARD == FLUSH_BACKWARD - 1 or number == last - 1:
            add(s1, sums[:tile])
            add(s2, sums[tile:])
            clear(sums)


@serial
def _reduce(code, each, fast, layout, task, first, last, tensors, of, is_narrow, sums, cells):
    """Add the sums of some pieces of a task to `sums`."""
    tile = layout.tile
    s1, s2 = np.empty(tile), np.empty(tile)
    of32, sums32, wide = narrowed(of, tile), zeros(fast, 2 * tile), np.empty(2 * tile)
    for piece in range(first, last):
        if fast is not None and is_narrow:
            _sum_piece_backward(code, each, layout, task, piece, tensors, of32, sums32, s1, s2, cells)
        else:
            _sum_piece_backward(code, each, layout, task, piece, tensors, of, wide, s1, s2, cells)
        add(sums[0], s1)
        add(sums[1], s2)


@serial
def _around_mean(layout, task, slab_of, stats, is_narrow, s1, s2):
    """Turn the sums of dp * (x - shift) into those of dp * z."""
    base = first_slab(layout, bounds(layout, task)[0])
    for i in range(slab_of.size):
        slab = base + slab_of[i]
        _, low = shift_of(stats, slab, is_narrow)
        s2[i] = stats[RSTD, slab] * (s2[i] - low * s1[i])


@serial
def _merge_backward(each, call, layout, task, s1, s2, place, weight, stats, is_narrow, of, cells):
    """Turn the sums of columns into cells, and into the coefficients of the gradient."""
    block, lo, hi = bounds(layout, task)
    base, start, slab_of = first_slab(layout, block), start_of(layout.affine, block, (0, 0)), place[0]
    first, size = slabs_of(slab_of)
    of_dp, of_dpz = np.zeros(size), np.zeros(size)
    _around_mean(layout, task, slab_of, stats, is_narrow, s1, s2)
    for i in range(hi - lo):
        gamma = 1.0
        if each is None:
            gamma = load(weight, start + place[1, i], 0.0)
            cells[0, lo + i] = s1[i]
            cells[1, lo + i] = s2[i]
        of_dp[slab_of[i] - first] += gamma * s1[i]
        of_dpz[slab_of[i] - first] += gamma * s2[i]
    for i in range(hi - lo):
        slab = slab_of[i]
        c1, c2 = constants(layout.count, of_dp[slab - first], of_dpz[slab - first], call)
        _, low = shift_of(stats, base + slab, is_narrow)
        of[3, i], of[4, i] = line_of(stats[RSTD, base + slab], low, c1, c2)


@serial
def _write_pieces_backward(code, each, layout, task, first, last, tensors, of, buffers, past):
    block, lo, hi = bounds(layout, task)
    n, one_room, also, tile = hi - lo, data(buffers[0], 0), data(buffers[1], 0), layout.tile
    shift, scale, offset = data(of, 0), data(of, tile), data(of, 2 * tile)
    gradient = Gradient(Affine(shift, scale, offset), data(of, 3 * tile), data(of, 4 * tile))
    # From the last piece to the first: what was summed last is still in the caches.
    for piece in range(last - 1, first - 1, -1):
        start, end = runs_of(layout, piece)
        run = run_of(layout, start)
        for _ in range(start, end):
            weight, bias = one(each, tensors, start_of(layout.affine, block, run), shift)
            here = backward_ahead(layout, tensors, block, run, lo, weight, bias)
            held = loops.backward(code, n, here, one_room, also, past, 0, gradient)
            stream(ahead(here.dx, n - held), one_room, held)
            stream(ahead(here.dresidual, n - held), also, held)
            run = next_run(layout, run)


@serial
def _write_backward(code, each, fast, layout, task, first, last, tensors, of, is_narrow, past):
    """Write the gradients of some pieces of a task."""
    buffers = room(tensors.dx, BLOCK), room(tensors.dresidual, BLOCK)
    if fast is not None and is_narrow:
        of32 = narrowed(of, layout.tile)
        _write_pieces_backward(code, each, layout, task, first, last, tensors, of32, buffers, past)
    else:
        _write_pieces_backward(code, each, layout, task, first, last, tensors, of, buffers, past)
    fence()


@inlined
def _cells_of(each, layout, cells, task):
    return cells[task // tiles(layout)] if each is None else cells[task]


@inlined
def _backward_task(code, each, fast, call, layout, task, tensors, stats, cells):
    place, own = places(group(call), *bounds(layout, task)[1:]), _cells_of(each, layout, cells, task)
    tile = layout.tile
    of, sums, last = np.zeros((5, tile)), np.zeros((2, tile)), pieces(layout)
    is_narrow = prepare(each, fast, layout, task, place, tensors, stats, of)
    _reduce(code, each, fast, layout, task, 0, last, tensors, of, is_narrow, sums, own)
    s1, s2, weight = sums[0], sums[1], tensors.weight
    _merge_backward(each, call, layout, task, s1, s2, place, weight, stats, is_narrow, of, own)
    if call.write:
        _write_backward(code, each, fast, layout, task, 0, last, tensors, of, is_narrow, call.past)


@serial
def _share_start_backward(each, fast, call, layout, tensors, stats, narrows, of):
    """Write what every task is normalised with, and whether in float32."""
    for task in range(len(of)):
        place = places(group(call), *bounds(layout, task)[1:])
        narrows[task] = prepare(each, fast, layout, task, place, tensors, stats, of[task])


@serial
def _share_sum_backward(code, each, fast, layout, i, tensors, of, narrows, parts, cells):
    """Reduce one piece."""
    task, piece = i // pieces(layout), i % pieces(layout)
    own, is_narrow, part = _cells_of(each, layout, cells, task), narrows[task] != 0, parts[task, piece]
    _reduce(code, each, fast, layout, task, piece, piece + 1, tensors, of[task], is_narrow, part, own)


@serial
def _share_merge_backward(each, call, layout, parts, weight, stats, of, narrows, cells):
    """Add the pieces of every task up, in order, and write the rest of the coefficients."""
    for task in range(len(of)):
        s1, s2, is_narrow = np.empty(layout.tile), np.empty(layout.tile), narrows[task] != 0
        add_pieces(parts[task], s1, s2)
        place, own = places(group(call), *bounds(layout, task)[1:]), _cells_of(each, layout, cells, task)
        _merge_backward(each, call, layout, task, s1, s2, place, weight, stats, is_narrow, of[task], own)


@serial
def _add_up(each, call, layout, cells, dweight, dbias):
    """Add the cells of every block or task up to the gradients of weight and bias, always in one order."""
    place = places(group(call), 0, layout.run if each is None else 0)[1]
    for i in range(len(cells)):
        block = block_of(layout, i if each is None else i // tiles(layout))
        start = start_of(layout.affine, block, (0, 0))
        for j in range(cells.shape[2]):
            to = start + place[j] if each is None else start_of(layout.affine, block, run_of(layout, j))
            dbias[to] += cells[i, 0, j]
            dweight[to] += cells[i, 1, j]


@inlined
def _finish(each, call, layout, cells, affine_dtype):
    dweight, dbias = np.zeros(layout.parameters), np.zeros(layout.parameters)
    _add_up(each, call, layout, cells, dweight, dbias)
    keep(dweight, call.dweight, affine_dtype)
    keep(dbias, call.dbias, affine_dtype)


@inlined
def _cells(each, call, layout):
    blocks = layout.blocks1 * layout.blocks0
    if each is None:
        return addressing.cells(call, (blocks, 2, layout.run))
    return addressing.cells(call, (blocks * tiles(layout), 2, layout.runs1 * layout.runs0))


def backward_kernel(shared, dtype, affine_dtype, code, each, fast, fused, inner, keeps):
    """Return the backward of a columns layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual; `inner`: None or 1,
    whether its gradient is written; `keeps`: None or 1, whether the gradient at the pre-activation is kept.
    """

    def columns_backward(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_backward(call, dtype, affine_dtype, fused, inner, keeps), statistics(call)
        cells = _cells(each, call, layout)
        if phase == TASK:
            _backward_task(code, each, fast, call, layout, i, tensors, stats, cells)
        else:
            _finish(each, call, layout, cells, affine_dtype)

    def columns_backward_shared(phase, i, address):
        call = record(address, CALL)
        layout = record(call.layout, LAYOUT)
        tensors, stats = of_backward(call, dtype, affine_dtype, fused, inner, keeps), statistics(call)
        tasks, between, tile = layout.blocks1 * layout.blocks0 * tiles(layout), pieces(layout), layout.tile
        cells = _cells(each, call, layout)
        narrows, of = work(call, 0, (tasks,)), work(call, tasks, (tasks, 5, tile))
        parts = work(call, tasks + 5 * tasks * tile, (tasks, between, 2, tile))
        if phase == START:
            _share_start_backward(each, fast, call, layout, tensors, stats, narrows, of)
        elif phase == SUM:
            _share_sum_backward(code, each, fast, layout, i, tensors, of, narrows, parts, cells)
        elif phase == FINISH:
            _share_merge_backward(each, call, layout, parts, tensors.weight, stats, of, narrows, cells)
        elif phase == WRITE:
            task, piece, past = i // between, i % between, call.past
            is_narrow, own = narrows[task] != 0, of[task]
            _write_backward(code, each, fast, layout, task, piece, piece + 1, tensors, own, is_narrow, past)
        else:
            _finish(each, call, layout, cells, affine_dtype)

    return columns_backward_shared if shared else columns_backward
