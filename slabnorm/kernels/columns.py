"""Columns: every element of a run is a column, and a slab is made of whole columns.

A *task* is a tile of columns of one block, and holds whole slabs. Its runs are taken in *pieces*; the sums of
a piece are one number per column, and pieces are added up in order. Where there are many tasks, each thread
takes some; where there are few, all threads share the pieces of each: the same sums, the same bits.

Arrays are those of rows.py; `place` says which slab, and which element of weight and bias, each column of a
task has. `each` is None where weight and bias vary from column to column, 1 where from run to run.
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
    WRITES,
    arguments,
    group,
    numbers,
    of_forward,
    statistics,
    work,
)
from slabnorm.kernels.coefficients import one
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
from slabnorm.kernels.elements import zeros
from slabnorm.kernels.loops import BLOCK
from slabnorm.kernels.memory import (
    BLOCKS0,
    BLOCKS1,
    COUNT,
    RUNS0,
    RUNS1,
    TILE,
    finish,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    inlined,
    next_run,
    run_of,
    serial,
)  # fmt: skip
from slabnorm.kernels.pointers import ahead, data, fence, room, stream
from slabnorm.kernels.tiles import (
    all_narrow,
    bounds,
    coefficients,
    narrowed,
    pieces,
    places,
    runs_of,
    slabs_of,
    tiles,
)  # fmt: skip


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
