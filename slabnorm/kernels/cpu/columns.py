"""Columns: every element of a run is a column, and a slab is made of whole columns. Forward and backward."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu import loops
from slabnorm.kernels.cpu.addressing import (
    AFFINE,
    AGAIN,
    BLOCKS0,
    BLOCKS1,
    CENTER,
    COUNT,
    DBIAS,
    DWEIGHT,
    FINISH,
    MERGE,
    OWN,
    PAST,
    PIECE,
    RUN,
    RUNS0,
    RUNS1,
    SAMPLE_RUN_STEP,
    SAMPLE_RUNS,
    START,
    SUM,
    TASK,
    TILE,
    WRITE,
    WRITES,
    arguments,
    block_of,
    constants,
    doubtful,
    finish,
    group,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    inlined,
    keep,
    narrow,
    next_run,
    numbers,
    of_backward,
    of_forward,
    run_of,
    serial,
    statistics,
    work,
)  # fmt: skip
from slabnorm.kernels.cpu.addressing import cells as cells_of
from slabnorm.kernels.cpu.coefficients import folded, gradient, one, shift_of
from slabnorm.kernels.cpu.elements import load, zeros
from slabnorm.kernels.cpu.llvm import ahead, data, fence, room, stream
from slabnorm.kernels.cpu.loops import BLOCK

# What columns' forward and backward share: tiles, pieces, and what a column is normalised with.


@serial
def tiles(g):
    """Return the number of tiles of a block."""
    return (g[RUN] + g[TILE] - 1) // g[TILE]


@serial
def bounds(g, task):
    """Return the block of a task, and its columns."""
    block, tile = block_of(g, task // tiles(g)), task % tiles(g)
    return block, tile * g[TILE], min(g[RUN], (tile + 1) * g[TILE])


@serial
def pieces(g):
    """Return the number of pieces of a task."""
    return (g[RUNS1] * g[RUNS0] + g[PIECE] - 1) // g[PIECE]


@serial
def runs_of(g, piece):
    """Return the runs of a piece."""
    return piece * g[PIECE], min(g[RUNS1] * g[RUNS0], (piece + 1) * g[PIECE])


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
def all_narrow(g, task, slab_of, stats):
    """Return whether every slab of a task can be normalised in float32."""
    base = in_slabs(g, bounds(g, task)[0])
    for i in range(slab_of.size):
        if not narrow(stats, base + slab_of[i]):
            return False
    return True


@serial
def coefficients(each, g, task, place, w, bias, stats, rounded, of):
    """Write k, r and l of every column (coefficients.py), in float64; k `rounded` to float32 or not."""
    block = bounds(g, task)[0]
    base, start = in_slabs(g, block), in_affine(g, block, (0, 0))
    for i in range(place.shape[1]):
        slab = base + place[0, i]
        k, low = shift_of(stats, slab, rounded)
        of[0, i] = k
        of[1, i], of[2, i] = folded(each, w, bias, start + place[1, i], stats[3, slab], low)


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
def shift(fast, g, task, x, k):
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
    run, last = runs_of(g, piece)
    n, r, p, q = hi - lo, run_of(g, run), sums[0], sums[1]
    while run < last:
        clear(p)
        clear(q)
        end = min(last, run + FLUSH)
        while run < end:
            # One after the other: four at once take fewer instructions, but are fetched ahead less well.
            loops.sum_columns(n, ahead(x, in_x(g, block, r) + lo), data(k, 0), data(p, 0), data(q, 0))
            r = next_run(g, r)
            run += 1
        add(s1, p)
        add(s2, q)


@serial
def _narrowed(k, k32):
    for i in range(k.size):
        k32[i] = k[i]


@serial
def sum_task(fast, g, task, x, work, sums, again):
    """Write the sums of a task; of doubtful columns, and with `again` of all, around their mean."""
    k, s1, s2 = work[0], work[1], work[2]
    if fast is not None and not again:
        _narrowed(k, sums[2])
        for piece in range(pieces(g)):
            _sum_piece(g, task, piece, x, sums[2], sums, work[3], work[4])
            add(s1, work[3])
            add(s2, work[4])
    if fast is None or again or any_doubtful(g, task, s1, s2):
        _sum_carefully(fast, g, task, x, work, again)


@serial
def any_doubtful(g, task, s1, s2):
    """Return whether the float32 sums of some column are not to be trusted."""
    _, lo, hi = bounds(g, task)
    for i in range(hi - lo):
        if doubtful(g[RUNS1] * g[RUNS0], s1[i], s2[i]):
            return True
    return False


@serial
def _sum_carefully(fast, g, task, x, work, again):
    careful, wide = np.zeros((3, g[TILE])), np.zeros((2, g[TILE]))
    for sweep in range(1, 3):
        around(g, sweep, work, careful)
        clear(careful[1])
        clear(careful[2])
        for piece in range(pieces(g)):
            _sum_piece(g, task, piece, x, careful[0], wide, work[3], work[4])
            add(careful[1], work[3])
            add(careful[2], work[4])
    replace(fast, g, task, work, careful, again)


@serial
def around(g, sweep, work, careful):
    """Set the shift of a careful sweep: first the one there is, then the mean it found."""
    for i in range(g[TILE]):
        if sweep == 1:
            careful[0, i] = work[0, i]
        else:
            careful[0, i] += careful[1, i] / (g[RUNS1] * g[RUNS0])


@serial
def replace(fast, g, task, work, careful, again):
    """Put careful sums in the place of doubtful ones: what one column holds changes no bit of another."""
    _, lo, hi = bounds(g, task)
    for i in range(hi - lo):
        if fast is None or again or doubtful(g[RUNS1] * g[RUNS0], work[1, i], work[2, i]):
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
def share_piece(fast, g, task, piece, x, shift, parts):
    """Sum one piece in float32."""
    sums = zeros(fast, 3 * g[TILE]).reshape((3, g[TILE]))
    _narrowed(shift, sums[2])
    _sum_piece(g, task, piece, x, sums[2], sums, parts[0], parts[1])


@serial
def share_piece_carefully(g, task, piece, x, shift, parts):
    """Sum one piece in float64."""
    _sum_piece(g, task, piece, x, shift, np.zeros((2, g[TILE])), parts[0], parts[1])


# Forward.
#
# A *task* is a tile of columns of one block, and holds whole slabs. Its runs are taken in *pieces*; the
# sums of a piece are one number per column, and pieces are added up in order. Where there are many tasks,
# each thread takes some; where there are few, all threads share the pieces of each: the same sums, the same
# bits.
#
# Arrays are those of rows.py; `place` says which slab, and which element of weight and bias, each column of a
# task has. `each` is None where weight and bias vary from column to column, 1 where from run to run.


@serial
def _merge(g, task, k, s1, s2, slab_of, stats, eps, center):
    """Merge columns into the statistics of their slabs, around the mean of one column of each.

    All columns count as much, so equal ones merge without a rounding,
    and a constant slab has exactly no variance.
    """
    block, lo, hi = bounds(g, task)
    base, count = in_slabs(g, block), g[RUNS1] * g[RUNS0]
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
        finish(stats, base + first + slab, g[COUNT], sums[0, slab], sums[1, slab], sums[2, slab], eps, center)


@serial
def _write_pieces(code, each, g, task, first, last, t, of, buffer, past):
    block, lo, hi = bounds(g, task)
    n, room_at = hi - lo, data(buffer, 0)
    k, p, q = data(of, 0), data(of, g[TILE]), data(of, 2 * g[TILE])
    # From the last piece to the first: what was summed last is still in the caches.
    for piece in range(last - 1, first - 1, -1):
        start, end = runs_of(g, piece)
        r = run_of(g, start)
        for _ in range(start, end):
            at, to, j = in_x(g, block, r) + lo, in_out(g, block, r) + lo, in_affine(g, block, r)
            u, v, y = ahead(t.x, at), ahead(t.residual, to), ahead(t.out, to)
            w, b = one(each, t.w, j, k), one(each, t.bias, j, k)
            held = loops.forward(code, n, u, v, y, room_at, past, 0, k, p, q, w, b)
            stream(ahead(y, n - held), room_at, held)
            r = next_run(g, r)


@serial
def _write(code, each, fast, g, task, first, last, t, of, is_narrow, past):
    """Write the output of some pieces of a task."""
    buffer = room(t.out, BLOCK)
    if fast is not None and is_narrow:
        _write_pieces(code, each, g, task, first, last, t, narrowed(of, g[TILE]), buffer, past)
    else:
        _write_pieces(code, each, g, task, first, last, t, of, buffer, past)
    fence()


@serial
def prepare(each, fast, g, task, place, t, stats, of):
    """Write the coefficients of a task; return whether they are for float32."""
    is_narrow = fast is not None and all_narrow(g, task, place[0], stats)
    coefficients(each, g, task, place, t.w, t.bias, stats, is_narrow, of)
    return is_narrow


@inlined
def _forward_task(code, each, fast, g, task, t, axes, stats, own, write, center, again, eps, past):
    place = places(axes, *bounds(g, task)[1:])
    if own:
        column, sums = np.zeros((5, g[TILE])), zeros(fast, 3 * g[TILE]).reshape((3, g[TILE]))
        shift(fast, g, task, t.x, column[0])
        sum_task(fast, g, task, t.x, column, sums, again)
        _merge(g, task, column[0], column[1], column[2], place[0], stats, eps, center)
    if write:
        of = np.zeros((3, g[TILE]))
        is_narrow = prepare(each, fast, g, task, place, t, stats, of)
        _write(code, each, fast, g, task, 0, pieces(g), t, of, is_narrow, past)


@serial
def _share_sum(fast, g, i, sweep, todo, x, sums, careful, parts):
    """Sum one piece: in float32 at first, then in float64."""
    task, piece = i // pieces(g), i % pieces(g)
    if todo[task] and sweep == 0:
        share_piece(fast, g, task, piece, x, sums[task, 0], parts[task, piece])
    elif todo[task]:
        share_piece_carefully(g, task, piece, x, careful[task, 0], parts[task, piece])


@serial
def _share_merge(g, sweep, todo, parts, sums, careful):
    """Add the pieces of every task up, and set the shifts of the next sweep."""
    for task in range(len(todo)):
        if todo[task]:
            to = sums[task] if sweep == 0 else careful[task]
            add_pieces(parts[task], to[1], to[2])
        if sweep == 0:
            todo[task] = any_doubtful(g, task, sums[task, 1], sums[task, 2])
        if sweep < 2:
            around(g, sweep + 1, sums[task], careful[task])


@serial
def _share_start(fast, g, again, x, todo, sums, careful):
    for task in range(len(todo)):
        todo[task] = 1.0
        shift(fast, g, task, x, sums[task, 0])
        if again:
            around(g, 1, sums[task], careful[task])


@serial
def _share_finish(each, fast, g, own, again, t, axes, stats, eps, center, todo, sums, careful, of):
    """Write statistics, and what every task is normalised with; `todo` says whether in float32."""
    for task in range(len(todo)):
        place = places(axes, *bounds(g, task)[1:])
        if own:
            if todo[task]:
                replace(fast, g, task, sums[task], careful[task], again)
            _merge(g, task, sums[task, 0], sums[task, 1], sums[task, 2], place[0], stats, eps, center)
        todo[task] = prepare(each, fast, g, task, place, t, stats, of[task])


def forward_kernel(shared, dtype, affine_dtype, code, each, fast, fused):
    """Return the forward of a columns layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual.
    """

    def columns_forward(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_forward(a, dtype, affine_dtype, fused), statistics(a)
        _forward_task(
            code, each, fast, g, i, t, group(a), stats, a[OWN], a[WRITES], a[CENTER], a[AGAIN], eps,
            a[PAST]
        )  # fmt: skip

    def columns_forward_shared(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_forward(a, dtype, affine_dtype, fused), statistics(a)
        tasks, between = g[BLOCKS1] * g[BLOCKS0] * tiles(g), pieces(g)
        size = tasks * g[TILE]
        todo, sums = work(a, 0, (tasks,)), work(a, tasks, (tasks, 5, g[TILE]))
        careful = work(a, tasks + 5 * size, (tasks, 3, g[TILE]))
        of = work(a, tasks + 8 * size, (tasks, 3, g[TILE]))
        parts = work(a, tasks + 11 * size, (tasks, between, 2, g[TILE]))
        if phase == START:
            _share_start(fast, g, a[AGAIN], t.x, todo, sums, careful)
        elif phase < MERGE:
            _share_sum(fast, g, i, phase - SUM, todo, t.x, sums, careful, parts)
        elif phase < FINISH:
            _share_merge(g, phase - MERGE, todo, parts, sums, careful)
        elif phase == FINISH:
            _share_finish(
                each, fast, g, a[OWN], a[AGAIN], t, group(a), stats, eps, a[CENTER], todo, sums,
                careful, of
            )  # fmt: skip
        else:
            task, piece = i // between, i % between
            _write(code, each, fast, g, task, piece, piece + 1, t, of[task], todo[task] != 0, a[PAST])

    return columns_forward_shared if shared else columns_forward


# Backward: reduce, merge and apply a gradient.
#
# With g the gradient at the pre-activation, z = (x - mean) * rstd, and means over the slab,
#
#     dx = rstd * (w * g - c1 - c2 * z)       c1 = mean(w * g)       c2 = mean(w * g * z)

FLUSH_BACKWARD = 16  # runs added up in float32


@serial
def _sum_piece_backward(code, each, g, task, piece, t, of, sums, s1, s2, cells):
    """Write the sums of g and of g * (x - k) over the runs of a piece; weighted where w varies by run."""
    (block, lo, hi), (first, last) = bounds(g, task), runs_of(g, piece)
    n, r, p, q = hi - lo, run_of(g, first), data(sums, 0), data(sums, g[TILE])
    k, a, b = data(of, 0), data(of, g[TILE]), data(of, 2 * g[TILE])
    clear(s1)
    clear(s2)
    clear(sums)
    for run in range(first, last):
        at, to = in_x(g, block, r) + lo, in_out(g, block, r) + lo
        dy, u, v = ahead(t.dy, to), ahead(t.x, at), ahead(t.residual, to)
        if each is None:
            loops.back_columns(code, n, dy, u, v, k, a, b, p, q)
        else:
            j = in_affine(g, block, r)
            w, bias = load(t.w, j, k), load(t.bias, j, k)
            cells[0, run], cells[1, run] = loops.back_columns_weighted(
                code, n, dy, u, v, k, a, b, w, bias, p, q
            )  # fmt: skip
        r = next_run(g, r)
        if (run - first) % FLUSH_BACKWARD == FLUSH_BACKWARD - 1 or run == last - 1:
            add(s1, sums[: g[TILE]])
            add(s2, sums[g[TILE] :])
            clear(sums)


@serial
def _reduce(code, each, fast, g, task, first, last, t, of, is_narrow, sums, cells):
    """Add the sums of some pieces of a task to `sums`."""
    s1, s2 = np.empty(g[TILE]), np.empty(g[TILE])
    of32, sums32, wide = narrowed(of, g[TILE]), zeros(fast, 2 * g[TILE]), np.empty(2 * g[TILE])
    for piece in range(first, last):
        if fast is not None and is_narrow:
            _sum_piece_backward(code, each, g, task, piece, t, of32, sums32, s1, s2, cells)
        else:
            _sum_piece_backward(code, each, g, task, piece, t, of, wide, s1, s2, cells)
        add(sums[0], s1)
        add(sums[1], s2)


@serial
def _around_mean(g, task, slab_of, stats, is_narrow, s1, s2):
    """Turn the sums of g * (x - k) into those of g * z."""
    base = in_slabs(g, bounds(g, task)[0])
    for i in range(slab_of.size):
        slab = base + slab_of[i]
        _, low = shift_of(stats, slab, is_narrow)
        s2[i] = stats[3, slab] * (s2[i] - low * s1[i])


@serial
def _merge_backward(each, g, task, s1, s2, place, w, stats, is_narrow, own, center, of, cells):
    """Turn the sums of columns into cells, and into the coefficients of the gradient."""
    block, lo, hi = bounds(g, task)
    base, start, slab_of = in_slabs(g, block), in_affine(g, block, (0, 0)), place[0]
    first, size = slabs_of(slab_of)
    of_g, of_gz = np.zeros(size), np.zeros(size)
    _around_mean(g, task, slab_of, stats, is_narrow, s1, s2)
    for i in range(hi - lo):
        weight = 1.0
        if each is None:
            weight = load(w, start + place[1, i], 0.0)
            cells[0, lo + i] = s1[i]
            cells[1, lo + i] = s2[i]
        of_g[slab_of[i] - first] += weight * s1[i]
        of_gz[slab_of[i] - first] += weight * s2[i]
    for i in range(hi - lo):
        slab = slab_of[i]
        c1, c2 = constants(g[COUNT], of_g[slab - first], of_gz[slab - first], own, center)
        _, low = shift_of(stats, base + slab, is_narrow)
        of[3, i], of[4, i] = gradient(stats[3, base + slab], low, c1, c2)


@serial
def _write_pieces_backward(code, each, g, task, first, last, t, of, buffers, past):
    block, lo, hi = bounds(g, task)
    n, here, also = hi - lo, data(buffers[0], 0), data(buffers[1], 0)
    k, a, b = data(of, 0), data(of, g[TILE]), data(of, 2 * g[TILE])
    d, e = data(of, 3 * g[TILE]), data(of, 4 * g[TILE])
    # From the last piece to the first: what was summed last is still in the caches.
    for piece in range(last - 1, first - 1, -1):
        start, end = runs_of(g, piece)
        r = run_of(g, start)
        for _ in range(start, end):
            at, to, j = in_x(g, block, r) + lo, in_out(g, block, r) + lo, in_affine(g, block, r)
            dy, u, v = ahead(t.dy, to), ahead(t.x, at), ahead(t.residual, to)
            dx, dv = ahead(t.dx, to), ahead(t.dresidual, to)
            held = loops.backward(
                code, n, dy, u, v, dx, dv, here, also, past, 0, k, a, b, one(each, t.w, j, k),
                one(each, t.bias, j, k), d, e,
            )  # fmt: skip
            stream(ahead(dx, n - held), here, held)
            stream(ahead(dv, n - held), also, held)
            r = next_run(g, r)


@serial
def _write_backward(code, each, fast, g, task, first, last, t, of, is_narrow, past):
    """Write the gradients of some pieces of a task."""
    buffers = room(t.dx, BLOCK), room(t.dresidual, BLOCK)
    if fast is not None and is_narrow:
        _write_pieces_backward(code, each, g, task, first, last, t, narrowed(of, g[TILE]), buffers, past)
    else:
        _write_pieces_backward(code, each, g, task, first, last, t, of, buffers, past)
    fence()


@inlined
def _cells_of(each, g, cells, task):
    return cells[task // tiles(g)] if each is None else cells[task]


@inlined
def _backward_task(code, each, fast, g, task, t, axes, stats, cells, own, center, write, past):
    place = places(axes, *bounds(g, task)[1:])
    of, sums, own_cells = np.zeros((5, g[TILE])), np.zeros((2, g[TILE])), _cells_of(each, g, cells, task)
    is_narrow = prepare(each, fast, g, task, place, t, stats, of)
    _reduce(code, each, fast, g, task, 0, pieces(g), t, of, is_narrow, sums, own_cells)
    _merge_backward(
        each, g, task, sums[0], sums[1], place, t.w, stats, is_narrow, own, center, of, own_cells
    )  # fmt: skip
    if write:
        _write_backward(code, each, fast, g, task, 0, pieces(g), t, of, is_narrow, past)


@serial
def _share_sum_backward(code, each, fast, g, i, t, coefs, narrows, parts, cells):
    """Reduce one piece."""
    task, piece = i // pieces(g), i % pieces(g)
    of, is_narrow, own_cells = coefs[task], narrows[task] != 0, _cells_of(each, g, cells, task)
    _reduce(code, each, fast, g, task, piece, piece + 1, t, of, is_narrow, parts[task, piece], own_cells)


@serial
def _share_merge_backward(each, g, parts, axes, w, stats, own, center, coefs, narrows, cells):
    """Add the pieces of every task up, in order, and write the rest of the coefficients."""
    for task in range(len(coefs)):
        sums = np.empty((2, g[TILE]))
        add_pieces(parts[task], sums[0], sums[1])
        _merge_backward(
            each, g, task, sums[0], sums[1], places(axes, *bounds(g, task)[1:]), w, stats, narrows[task] != 0,
            own, center, coefs[task], _cells_of(each, g, cells, task),
        )  # fmt: skip


@serial
def _add_up(each, g, cells, axes, dweight, dbias):
    """Add the cells of every block or task up to the gradients of weight and bias, always in one order."""
    place = places(axes, 0, g[RUN] if each is None else 0)[1]
    for i in range(len(cells)):
        block = block_of(g, i if each is None else i // tiles(g))
        start = in_affine(g, block, (0, 0))
        for j in range(cells.shape[2]):
            to = start + place[j] if each is None else in_affine(g, block, run_of(g, j))
            dbias[to] += cells[i, 0, j]
            dweight[to] += cells[i, 1, j]


@inlined
def _finish(each, g, cells, a, affine_dtype):
    dweight, dbias = np.zeros(g[AFFINE]), np.zeros(g[AFFINE])
    _add_up(each, g, cells, group(a), dweight, dbias)
    keep(dweight, a[DWEIGHT], affine_dtype)
    keep(dbias, a[DBIAS], affine_dtype)


@inlined
def _cells(each, g, a):
    blocks = g[BLOCKS1] * g[BLOCKS0]
    if each is None:
        return cells_of(a, (blocks, 2, g[RUN]))
    return cells_of(a, (blocks * tiles(g), 2, g[RUNS1] * g[RUNS0]))


def backward_kernel(shared, dtype, affine_dtype, code, each, fast, fused, inner):
    """Return the backward of a columns layout as plain Python, to be compiled.

    `shared`: whether all threads share every task; `fused`: None or 1, a residual; `inner`: None or 1,
    whether its gradient is written.
    """

    def columns_backward(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_backward(a, dtype, affine_dtype, fused, inner), statistics(a)
        cells = _cells(each, g, a)
        if phase == TASK:
            _backward_task(
                code, each, fast, g, i, t, group(a), stats, cells, a[OWN], a[CENTER], a[WRITES], a[PAST]
            )  # fmt: skip
        else:
            _finish(each, g, cells, a, affine_dtype)

    def columns_backward_shared(phase, i, address, eps):
        a = arguments(address)
        g, t, stats = numbers(a), of_backward(a, dtype, affine_dtype, fused, inner), statistics(a)
        tasks, between = g[BLOCKS1] * g[BLOCKS0] * tiles(g), pieces(g)
        cells = _cells(each, g, a)
        narrows, of = work(a, 0, (tasks,)), work(a, tasks, (tasks, 5, g[TILE]))
        parts = work(a, tasks + 5 * tasks * g[TILE], (tasks, between, 2, g[TILE]))
        if phase == START:
            for task in range(tasks):
                place = places(group(a), *bounds(g, task)[1:])
                narrows[task] = prepare(each, fast, g, task, place, t, stats, of[task])
        elif phase == SUM:
            _share_sum_backward(code, each, fast, g, i, t, of, narrows, parts, cells)
        elif phase == FINISH:
            _share_merge_backward(
                each, g, parts, group(a), t.w, stats, a[OWN], a[CENTER], of, narrows, cells
            )  # fmt: skip
        elif phase == WRITE:
            task, piece = i // between, i % between
            _write_backward(
                code, each, fast, g, task, piece, piece + 1, t, of[task], narrows[task] != 0, a[PAST]
            )
        else:
            _finish(each, g, cells, a, affine_dtype)

    return columns_backward_shared if shared else columns_backward
