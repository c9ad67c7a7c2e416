"""Columns, backward: reduce, merge and apply a gradient. The words are those of columns.py.

With g the gradient at the pre-activation, z = (x - mean) * rstd, and means over the slab,

    dx = rstd * (w * g - c1 - c2 * z)       c1 = mean(w * g)       c2 = mean(w * g * z)
"""

from __future__ import annotations

import numpy as np

from slabnorm.kernels import loops
from slabnorm.kernels.arguments import (
    CENTER,
    DBIAS,
    DWEIGHT,
    FINISH,
    OWN,
    PAST,
    START,
    SUM,
    TASK,
    WRITE,
    WRITES,
    arguments,
    group,
    numbers,
    of_backward,
    statistics,
    work,
)
from slabnorm.kernels.arguments import cells as cells_of
from slabnorm.kernels.coefficients import gradient, one, shift_of
from slabnorm.kernels.column_sums import add_pieces
from slabnorm.kernels.columns import prepare
from slabnorm.kernels.elements import load, zeros
from slabnorm.kernels.loops import BLOCK
from slabnorm.kernels.memory import (
    AFFINE,
    BLOCKS0,
    BLOCKS1,
    COUNT,
    RUN,
    RUNS0,
    RUNS1,
    TILE,
    block_of,
    constants,
    in_affine,
    in_out,
    in_slabs,
    in_x,
    inlined,
    keep,
    next_run,
    run_of,
    serial,
)  # fmt: skip
from slabnorm.kernels.pointers import ahead, data, fence, room, stream
from slabnorm.kernels.tiles import (
    add,
    bounds,
    clear,
    narrowed,
    pieces,
    places,
    runs_of,
    slabs_of,
    tiles,
)  # fmt: skip

FLUSH = 16  # runs added up in float32


@serial
def _sum_piece(code, each, g, task, piece, t, of, sums, s1, s2, cells):
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
        if (run - first) % FLUSH == FLUSH - 1 or run == last - 1:
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
            _sum_piece(code, each, g, task, piece, t, of32, sums32, s1, s2, cells)
        else:
            _sum_piece(code, each, g, task, piece, t, of, wide, s1, s2, cells)
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
def _merge(each, g, task, s1, s2, place, w, stats, is_narrow, own, center, of, cells):
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
def _write_pieces(code, each, g, task, first, last, t, of, buffers, past):
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
def _write(code, each, fast, g, task, first, last, t, of, is_narrow, past):
    """Write the gradients of some pieces of a task."""
    buffers = room(t.dx, BLOCK), room(t.dresidual, BLOCK)
    if fast is not None and is_narrow:
        _write_pieces(code, each, g, task, first, last, t, narrowed(of, g[TILE]), buffers, past)
    else:
        _write_pieces(code, each, g, task, first, last, t, of, buffers, past)
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
    _merge(
        each, g, task, sums[0], sums[1], place, t.w, stats, is_narrow, own, center, of, own_cells
    )  # fmt: skip
    if write:
        _write(code, each, fast, g, task, 0, pieces(g), t, of, is_narrow, past)


@serial
def _share_sum(code, each, fast, g, i, t, coefs, narrows, parts, cells):
    """Reduce one piece."""
    task, piece = i // pieces(g), i % pieces(g)
    of, is_narrow, own_cells = coefs[task], narrows[task] != 0, _cells_of(each, g, cells, task)
    _reduce(code, each, fast, g, task, piece, piece + 1, t, of, is_narrow, parts[task, piece], own_cells)


@serial
def _share_merge(each, g, parts, axes, w, stats, own, center, coefs, narrows, cells):
    """Add the pieces of every task up, in order, and write the rest of the coefficients."""
    for task in range(len(coefs)):
        sums = np.empty((2, g[TILE]))
        add_pieces(parts[task], sums[0], sums[1])
        _merge(
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
            _share_sum(code, each, fast, g, i, t, of, narrows, parts, cells)
        elif phase == FINISH:
            _share_merge(
                each, g, parts, group(a), t.w, stats, a[OWN], a[CENTER], of, narrows, cells
            )  # fmt: skip
        elif phase == WRITE:
            task, piece = i // between, i % between
            _write(code, each, fast, g, task, piece, piece + 1, t, of[task], narrows[task] != 0, a[PAST])
        else:
            _finish(each, g, cells, a, affine_dtype)

    return columns_backward_shared if shared else columns_backward
