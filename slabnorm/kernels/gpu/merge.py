"""Small kernels between the sweeps: sums of pieces become those of slabs and cells; running statistics.

A tile is S slabs x J cells of each x P pieces. A slab's cells are the runs of a block (rows), or places in
its runs (columns): one, neighbours, or what `members` (addressing.py) says.
Float64 throughout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slabnorm.kernels.gpu import tiling
from slabnorm.kernels.gpu.addressing import digits, load_affine, step
from slabnorm.kernels.gpu.coefficients import store_statistics
from slabnorm.kernels.gpu.tiling import FUSED, below


@triton.jit
def _slabs(sizes, slab_strides, slab_of, members, per_block, cells, S: tl.constexpr, ROWS: tl.constexpr):
    """Return the slabs of a program: blocks, numbers within them, which there are, and where they go."""
    s = tl.program_id(0) * S + tl.arange(0, S)[:, None, None]
    block, number = s // per_block, s % per_block
    there = block < sizes[0]
    at = step(block, sizes[1], slab_strides[0], slab_strides[1])
    if not ROWS:
        first = _cell(members, number, tl.zeros([1, 1, 1], tl.int32), cells)
        if slab_of is not None:
            first = digits(first, slab_of, 0)
        at = at + first
    return block, number, there, at


@triton.jit
def _cell(members, number, j, cells):
    """Return a cell's number in its block."""
    if members is None:
        cell = number * cells + j
    else:
        cell = digits(number, members, 0) + digits(j, members, 8)
    return cell


@triton.jit(do_not_specialize=["cells", "pieces", "in_block", "extent", "size", "slabs"])
def statistics(
    parts, second, stats, coefficients, members, slab_of, sizes, slab_strides, part_strides, per_block,
    cells, pieces, in_block, extent, size, slabs, eps: tl.float64, ROWS: tl.constexpr,
    CENTER: tl.constexpr, S: tl.constexpr, J: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Merge parts [2, blocks, cells, pieces] (mean, squared deviations) to statistics and coefficients.

    A cell has `extent` elements, a piece `size` of them, the last what is left; a block has `in_block` parts.
    """
    block, number, there, slab = _slabs(sizes, slab_strides, slab_of, members, per_block, cells, S, ROWS)
    zero = tl.zeros([1, 1, 1], tl.int32)
    begin = block.to(tl.int64) * in_block
    # Around the first mean: equal means leave no variance.
    first = begin + _cell(members, number, zero, cells).to(tl.int64) * part_strides[0]
    shift = tl.load(parts + first, mask=there, other=0.0)
    seen = tl.zeros([S, 1, 1], tl.float64)
    sums, squares = seen, seen
    for j0 in range(0, cells, J):
        j = j0 + tl.arange(0, J)[None, :, None]
        ours = there & (j < cells)
        from_cell = begin + _cell(members, number, j, cells).to(tl.int64) * part_strides[0]
        for p0 in range(0, pieces, P):
            p = p0 + tl.arange(0, P)[None, None, :]
            known = ours & (p < pieces)
            at = from_cell + p.to(tl.int64) * part_strides[1]
            n = tl.where(known, tl.minimum(size, extent - p * size), 0).to(tl.float64)
            d = tl.where(known, tl.load(parts + at, mask=known, other=0.0) - shift, 0.0)
            m2 = tl.load(parts + second + at, mask=known, other=0.0)
            seen += _all(n)
            sums += _all(n * d)
            squares += _all(m2 + n * d * d)
    rest = sums / seen
    store_statistics(
        stats, coefficients, slabs, slab, there, shift + rest, squares - sums * rest, seen, eps, CENTER
    )


@triton.jit
def _all(values):
    return tl.sum(tl.sum(values, 2, keep_dims=True), 1, keep_dims=True)


@triton.jit(do_not_specialize=["cells", "pieces", "in_block", "slabs", "count"])
def gradients(
    parts, second, weight, means, cells_out, cells_second, members, slab_of, affine_of,
    sizes, affine_strides, slab_strides, part_strides, per_block, cells, pieces, in_block, slabs, count,
    ROWS: tl.constexpr, MIXED: tl.constexpr, BY_CELL: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    J: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Merge parts, sums of g and g z, to slabs' means of w g and w g z [2, slabs], and to cells' sums.

    Cells' sums are [2, blocks, cells of a block]; where weight and bias are a block's, [2, blocks]. Mixed
    parts have their weights in them, and no cells.
    """
    block, number, there, slab = _slabs(sizes, slab_strides, slab_of, members, per_block, cells, S, ROWS)
    begin = block.to(tl.int64) * in_block
    slab_p = tl.zeros([S, 1, 1], tl.float64)
    slab_q, block_p, block_q = slab_p, slab_p, slab_p
    for j0 in range(0, cells, J):
        j = j0 + tl.arange(0, J)[None, :, None]
        ours = there & (j < cells)
        cell = _cell(members, number, j, cells)
        sum_p = tl.zeros([S, J, 1], tl.float64)
        sum_q = sum_p
        for p0 in range(0, pieces, P):
            p = p0 + tl.arange(0, P)[None, None, :]
            at = begin + cell.to(tl.int64) * part_strides[0] + p.to(tl.int64) * part_strides[1]
            known = ours & (p < pieces)
            sum_p += tl.sum(tl.load(parts + at, mask=known, other=0.0), 2, keep_dims=True)
            sum_q += tl.sum(tl.load(parts + second + at, mask=known, other=0.0), 2, keep_dims=True)
        if MIXED:
            w = 1.0
        else:
            if cells_out is not None:
                if BY_CELL:
                    to = block.to(tl.int64) * (per_block * cells) + cell
                    tl.store(cells_out + to, sum_p, mask=ours)
                    tl.store(cells_out + cells_second + to, sum_q, mask=ours)
                else:
                    block_p += tl.sum(sum_p, 1, keep_dims=True)
                    block_q += tl.sum(sum_q, 1, keep_dims=True)
            w = load_affine(weight, 1.0, sizes, affine_strides, affine_of, block, cell, cell, ROWS, False, V)
        slab_p += tl.sum(sum_p * w, 1, keep_dims=True)
        slab_q += tl.sum(sum_q * w, 1, keep_dims=True)
    if (not MIXED and not BY_CELL) and cells_out is not None:
        tl.store(cells_out + block, block_p, mask=there)
        tl.store(cells_out + cells_second + block, block_q, mask=there)
    tl.store(means + slab, slab_p / count, mask=there)
    tl.store(means + slabs + slab, slab_q / count, mask=there)


@triton.jit(do_not_specialize=["outputs", "summed"])
def add_up(
    sums, second, dweight, dbias, outputs, summed, inner, J: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Add up sums [2, outer, summed, inner] of g and g z to gradients of bias and weight [outer, inner]."""
    o = tl.program_id(0) * J + tl.arange(0, J)[None, :]
    begin = (o // inner).to(tl.int64) * summed * inner + o % inner
    sum_g = tl.zeros([P, J], tl.float64)
    sum_gz = sum_g
    for p0 in range(0, summed, P):
        p = p0 + tl.arange(0, P)[:, None]
        at, there = begin + p.to(tl.int64) * inner, (o < outputs) & (p < summed)
        sum_g += tl.load(sums + at, mask=there, other=0.0).to(tl.float64)
        sum_gz += tl.load(sums + second + at, mask=there, other=0.0).to(tl.float64)
    there = o < outputs
    if dbias is not None:
        tl.store(dbias + o, _rounded(tl.sum(sum_g, 0, keep_dims=True), dbias.dtype.element_ty), mask=there)
    if dweight is not None:
        total = tl.sum(sum_gz, 0, keep_dims=True)
        tl.store(dweight + o, _rounded(total, dweight.dtype.element_ty), mask=there)


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    """Return float64 in another dtype: from float32, which the interpreter can."""
    if dtype != tl.float64:
        values = values.to(tl.float32)
    return values.to(dtype)


@triton.jit(do_not_specialize=["slabs"])
def store_given(mean, var, stats, coefficients, slabs, eps: tl.float64, S: tl.constexpr):
    """Keep statistics that come from elsewhere, as they are now: of one element, which has their variance."""
    s = tl.program_id(0) * S + tl.arange(0, S)
    there = s < slabs
    m = tl.load(mean + s, mask=there, other=0.0).to(tl.float64)
    v = tl.load(var + s, mask=there, other=1.0).to(tl.float64)
    store_statistics(stats, coefficients, slabs, s, there, m, v, 1, eps, True)


@triton.jit(do_not_specialize=["slabs", "count"])
def update_running(
    stats, slabs, count, mean, var, momentum: tl.float64, batches, elements, skipped, S: tl.constexpr
):  # fmt: skip
    """Let a batch enter running statistics and counters, unless a statistic is not finite in their dtype.

    One program, without a branch on what it reads: nothing waits for the device.
    """
    bad = tl.zeros([S], tl.int32)
    for s0 in range(0, slabs, S):
        s = s0 + tl.arange(0, S)
        new_mean, new_var = _of_batch(stats, slabs, count, s, mean.dtype.element_ty)
        d = (new_mean - new_mean) + (new_var - new_var)  # 0, or NaN
        bad = tl.where((s < slabs) & (d != d), 1, bad)
    take = tl.max(bad, 0) == 0
    for s0 in range(0, slabs, S):
        s = s0 + tl.arange(0, S)
        new_mean, new_var = _of_batch(stats, slabs, count, s, mean.dtype.element_ty)
        _lerp(mean + s, new_mean, momentum, take, s < slabs)
        _lerp(var + s, new_var, momentum, take, s < slabs)
    if batches is not None:
        tl.store(batches, tl.load(batches) + take.to(tl.int64))
    if elements is not None:
        tl.store(elements, tl.load(elements) + take.to(tl.int64) * count)
    if skipped is not None:
        tl.store(skipped, tl.load(skipped) + 1 - take.to(tl.int64))


@triton.jit
def _of_batch(stats, slabs, count, s, dtype: tl.constexpr):
    """Return means and unbiased variances, rounded as they will be kept."""
    mean = tl.load(stats + s, mask=s < slabs, other=0.0)
    m2 = tl.load(stats + slabs + s, mask=s < slabs, other=0.0)
    return mean.to(dtype).to(tl.float64), (m2 / tl.maximum(count - 1, 1)).to(dtype).to(tl.float64)


@triton.jit
def _lerp(pointer, batch, momentum, take, there):
    old = tl.load(pointer, mask=there, other=0.0)
    new = old.to(tl.float64) + momentum * (batch - old.to(tl.float64))
    tl.store(pointer, tl.where(take, new.to(old.dtype), old), mask=there)


# Sums of cells become the gradients of weight and bias.

Places = list[tuple[int, int]]  # sizes and strides in weight and bias of the axes of sums


def affine_gradients(
    sums: Tensor, places: Places, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Add up sums [2, cells] of g and g z to the gradients of weight and bias, those that are given.

    In float64, by one kernel; where more axes alternate than it has, by torch.
    """
    axes = _three(places)
    if axes is None:
        total = _by_torch(sums, places)
        dweight, dbias = (
            None if of is None else row.to(of.dtype).view_as(of)
            for of, row in ((weight, total[1]), (bias, total[0]))
        )
        return dweight, dbias
    outer, summed, inner = axes
    outputs = outer * inner
    # 8 neighbours in float64 are 64 bytes; more of them where there are enough to fill a GPU.
    j = min(64, max(8, below(outputs // 256))) if outputs >= 256 else 8
    dweight, dbias = (None if of is None else torch.empty_like(of) for of in (weight, bias))
    add_up[(-(-outputs // j),)](
        sums, sums.shape[1], dweight, dbias, outputs, summed, inner, J=j, P=max(1, tiling.SMALL // j), **FUSED
    )
    return dweight, dbias


def _three(places: Places) -> tuple[int, int, int] | None:
    """Return axes as an outer one that is kept, one that is summed over, and an inner one that is kept."""
    found = [1, 1, 1]
    at = 2
    expected = 1
    for size, stride in reversed(places):
        if size == 1:
            continue
        if stride == 0:
            if at == 0:
                return None
            at = 1
        else:
            if stride != expected:
                return None
            at = 0 if at == 1 else at
            expected *= size
        found[at] *= size
    return found[0], found[1], found[2]


def _by_torch(sums: Tensor, places: Places) -> Tensor:
    opened = sums.view(2, *(size for size, _ in places))
    constant = [dim + 1 for dim, (size, stride) in enumerate(places) if stride == 0 and size > 1]
    if constant:
        opened = opened.sum(constant, keepdim=True, dtype=torch.float64)
    order = sorted(range(len(places)), key=lambda dim: -places[dim][1])
    return opened.permute(0, *(dim + 1 for dim in order)).reshape(2, -1)
