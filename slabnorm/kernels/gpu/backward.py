"""Backward on the GPU: whole slabs in one kernel; or reduce, then merge.py, then apply.

With z = (x - mean) * rstd, w the weight, g the gradient before the activation, and means over the slab:

    dx = rstd * (w g - mean(w g) - z * mean(w g z))      dweight = sum(g z)      dbias = sum(g)

x, residual, dy, dx and dresidual are tensors of one shape, all but x of the output's strides; factors float32
[4, slabs] (factors.py); cells [2, n]: sums of g and g z, which affine_sums.py adds up to dbias and dweight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.gpu.curves import passed
from slabnorm.kernels.gpu.factors import known, normal
from slabnorm.kernels.gpu.moments import total
from slabnorm.kernels.gpu.place import affine, inside, part, part_place, place, slab_place, tile_of


@triton.jit
def terms(
    x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides, affine_strides,
    affine_of, b, r, c, ROWS: tl.constexpr, MIXED: tl.constexpr, ACTIVATION: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Return z and g of a tile, 0 where it ends, and w."""
    there = inside(sizes, b, r, c, V)
    at = place(sizes, out_strides, b, r, c, V)
    z = tl.load(x + place(sizes, x_strides, b, r, c, V), mask=there, other=0.0).to(tl.float32)
    z = normal(z, unit, shift, scale, offset)
    g = tl.load(dy + at, mask=there, other=0.0).to(tl.float32)
    w = affine(weight, 1.0, sizes, affine_strides, affine_of, b, r, c, ROWS, MIXED, V)
    if ACTIVATION != "":
        p = z * w + affine(bias, 0.0, sizes, affine_strides, affine_of, b, r, c, ROWS, MIXED, V)
        if residual is not None:
            p += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
        g = passed(g, p, ACTIVATION)
    return tl.where(there, z, 0.0), tl.where(there, g, 0.0), w


@triton.jit
def _weighed(g, w, MIXED: tl.constexpr):
    """Return what is summed for slabs: w g where a cell's elements have weights of their own, else g."""
    if MIXED:
        g = g * w
    return g


@triton.jit
def _ended(p, q, ROWS: tl.constexpr):
    """Return sums over cells, in float64, of what the places of a tile have added up."""
    AXES: tl.constexpr = 2 if ROWS else 1
    return total(p, AXES).to(tl.float64), total(q, AXES).to(tl.float64)


@triton.jit
def _of_slabs(p, q, w, ROWS: tl.constexpr, MIXED: tl.constexpr):
    """Return the sums of slabs from those of cells."""
    if not MIXED:
        p, q = p * w, q * w
    if ROWS:
        p, q = tl.sum(p, 1, keep_dims=True), tl.sum(q, 1, keep_dims=True)
    return p, q


@triton.jit
def _write(
    z, g, w, p_mean, q_mean, unit, scale, dx, dresidual, sizes, out_strides, b, r, c, OWN: tl.constexpr,
    CENTER: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    at, there = place(sizes, out_strides, b, r, c, V), inside(sizes, b, r, c, V)
    if dresidual is not None:
        tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=there)
    if dx is not None:
        g = g * w
        if OWN:
            g -= z * q_mean
            if CENTER:
                g -= p_mean
        tl.store(dx + at, (g * scale * unit).to(dx.dtype.element_ty), mask=there)


@triton.jit
def _write_cells(
    cells, second, p, q, z, g, sizes, b, r, c, tile, tiles, ROWS: tl.constexpr, MIXED: tl.constexpr,
    BY_RUN: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Store the sums of the cells of a tile: of a run or a block (rows), of a place, or of a run (mixed)."""
    if MIXED:
        p, q = total(g, 2), total(g * z, 2)
        at = (b * tiles + tile).to(tl.int64) * sizes[2] + r
        there = (b < sizes[0]) & (r < sizes[2])
    elif not ROWS:
        at = b.to(tl.int64) * (sizes[4] * V) + c
        there = (b < sizes[0]) & (c < sizes[4] * V)
    elif BY_RUN:
        at = b.to(tl.int64) * sizes[2] + r
        there = (b < sizes[0]) & (r < sizes[2])
    else:
        p, q = tl.sum(p, 1, keep_dims=True), tl.sum(q, 1, keep_dims=True)
        at, there = b, b < sizes[0]
    tl.store(cells + at, p, mask=there)
    tl.store(cells + second + at, q, mask=there)


@triton.jit(do_not_specialize=["slabs"])
def whole(
    x, dy, residual, weight, bias, factors, dx, dresidual, cells, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, OWN: tl.constexpr,
    ACTIVATION: tl.constexpr, BY_RUN: tl.constexpr, ONE: tl.constexpr, V: tl.constexpr, I: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Differentiate I slabs (rows) or I x C slabs (columns) a program; rows that are mixed: `tokens`."""
    runs, run = sizes[2], sizes[4] * V
    pid = tl.program_id(0)
    if ROWS:
        tile, tiles, width = 0, 1, run
    else:
        tiles, width = tl.cdiv(run, C), C
        tile = pid % tiles
        pid = pid // tiles
    start = tile * C
    b = pid * I + tl.arange(0, I)[:, None, None]
    in_r, in_c = tl.arange(0, R)[None, :, None], tl.arange(0, C)[None, None, :]
    count = runs * run if ROWS else runs
    unit, shift, scale, offset = known(factors, slabs, sizes, slab_strides, slab_of, b, start + in_c, ROWS, V)
    if ONE:
        z, g, w = terms(
            x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
            affine_strides, affine_of, b, in_r, start + in_c, ROWS, MIXED, ACTIVATION, V,
        )  # fmt: skip
        p = _weighed(g, w, MIXED)
        p, q = _ended(p, p * z, ROWS)
        if cells is not None:
            _write_cells(
                cells, second, p, q, z, g, sizes, b, in_r, start + in_c, tile, tiles, ROWS, MIXED, BY_RUN, V
            )
        p, q = _of_slabs(p, q, w, ROWS, MIXED)
        _write(
            z, g, w, (p / count).to(tl.float32), (q / count).to(tl.float32), unit, scale, dx, dresidual,
            sizes, out_strides, b, in_r, start + in_c, OWN, CENTER, V,
        )  # fmt: skip
    else:
        # Each place of a tile adds up its own, 16 numbers or so, and they come together at the end.
        slab_p = tl.zeros([I, 1, 1] if ROWS else [I, 1, C], tl.float64)
        slab_q, block_p, block_q = slab_p, slab_p, slab_p
        sum_p = tl.zeros([I, R, C], tl.float32)
        sum_q = sum_p
        for r0 in range(0, runs, R):
            r = r0 + in_r
            if ROWS:
                sum_p = tl.zeros([I, R, C], tl.float32)
                sum_q = sum_p
            for c0 in range(0, width, C):
                z, g, w = terms(
                    x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
                    affine_strides, affine_of, b, r, start + c0 + in_c, ROWS, MIXED, ACTIVATION, V,
                )  # fmt: skip
                if MIXED and cells is not None:
                    _write_cells(
                        cells, second, g, g, z, g, sizes, b, r, in_c, tile, tiles, ROWS, MIXED, BY_RUN, V
                    )
                g = _weighed(g, w, MIXED)
                sum_p += g
                sum_q += g * z
            if ROWS:
                p, q = _ended(sum_p, sum_q, ROWS)
                if BY_RUN and cells is not None:
                    _write_cells(
                        cells, second, p, q, p, q, sizes, b, r, in_c, tile, tiles, ROWS, MIXED, BY_RUN, V
                    )
                block_p += tl.sum(p, 1, keep_dims=True)
                block_q += tl.sum(q, 1, keep_dims=True)
                w = affine(weight, 1.0, sizes, affine_strides, affine_of, b, r, in_c, ROWS, MIXED, V)
                p, q = _of_slabs(p, q, w, ROWS, MIXED)
                slab_p += p
                slab_q += q
        if not ROWS:
            block_p, block_q = _ended(sum_p, sum_q, ROWS)
            w = affine(weight, 1.0, sizes, affine_strides, affine_of, b, in_r, start + in_c, ROWS, MIXED, V)
            slab_p, slab_q = _of_slabs(block_p, block_q, w, ROWS, MIXED)
        if (not MIXED and not (ROWS and BY_RUN)) and cells is not None:
            _write_cells(
                cells, second, block_p, block_q, block_p, block_q, sizes, b, in_r, start + in_c, tile, tiles,
                ROWS, MIXED, BY_RUN, V,
            )  # fmt: skip
        p_mean, q_mean = (slab_p / count).to(tl.float32), (slab_q / count).to(tl.float32)
        for r0 in range(0, runs, R):
            for c0 in range(0, width, C):
                r, c = r0 + in_r, start + c0 + in_c
                z, g, w = terms(
                    x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
                    affine_strides, affine_of, b, r, c, ROWS, MIXED, ACTIVATION, V,
                )  # fmt: skip
                _write(
                    z, g, w, p_mean, q_mean, unit, scale, dx, dresidual, sizes, out_strides, b, r, c, OWN,
                    CENTER, V,
                )  # fmt: skip


@triton.jit(do_not_specialize=["slabs"])
def tokens(
    x, dy, residual, weight, bias, factors, dx, dresidual, cells, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs,
    CENTER: tl.constexpr, OWN: tl.constexpr, ACTIVATION: tl.constexpr, STEPS: tl.constexpr, V: tl.constexpr,
    I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Differentiate STEPS x I rows a program, whose weight and bias lie along them.

    cells are float32 [2, programs, run]. Sums over at most 64 steps stay in float32; more programs, not more
    steps, take more rows.
    """
    pid = tl.program_id(0)
    run = sizes[4] * V
    r, c = tl.zeros([1, 1, 1], tl.int32), tl.arange(0, C)[None, None, :]
    db = tl.zeros([1, 1, C], tl.float32)
    dw = db
    for at in range(0, STEPS):
        b = (pid * STEPS + at) * I + tl.arange(0, I)[:, None, None]
        unit, shift, scale, offset = known(factors, slabs, sizes, slab_strides, slab_of, b, c, True, V)
        z, g, w = terms(
            x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
            affine_strides, affine_of, b, r, c, True, True, ACTIVATION, V,
        )  # fmt: skip
        if cells is not None:
            db += tl.sum(g, 0, keep_dims=True)
            dw += tl.sum(g * z, 0, keep_dims=True)
        p = g * w
        p, q = _ended(p, p * z, True)
        _write(
            z, g, w, (p / run).to(tl.float32), (q / run).to(tl.float32), unit, scale, dx, dresidual, sizes,
            out_strides, b, r, c, OWN, CENTER, V,
        )  # fmt: skip
    if cells is not None:
        there = c < run
        tl.store(cells + pid.to(tl.int64) * run + c, db, mask=there)
        tl.store(cells + second + pid.to(tl.int64) * run + c, dw, mask=there)


@triton.jit(do_not_specialize=["slabs", "cells", "pieces", "tiles"])
def reduce(
    x, dy, residual, weight, bias, factors, parts, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, cells, pieces, tiles, part_strides,
    ROWS: tl.constexpr, MIXED: tl.constexpr, ACTIVATION: tl.constexpr,
    STEPS: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write sums of g and g z over pieces of cells; mixed: of w g and w g z.

    parts are float64 [2, blocks, cells, pieces].
    """
    b, r0, c0, piece = part(cells, pieces, ROWS, STEPS, I, R, C)
    in_r, in_c = tl.arange(0, R)[None, :, None], tl.arange(0, C)[None, None, :]
    unit, shift, scale, offset = known(factors, slabs, sizes, slab_strides, slab_of, b, c0 + in_c, ROWS, V)
    p = tl.zeros([I, R, C], tl.float32)
    q = p
    for _ in range(0, tl.minimum(STEPS, tiles - piece * STEPS)):
        z, g, w = terms(
            x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
            affine_strides, affine_of, b, r0 + in_r, c0 + in_c, ROWS, MIXED, ACTIVATION, V,
        )  # fmt: skip
        g = _weighed(g, w, MIXED)
        p += g
        q += g * z
        if ROWS:
            c0 += C
        else:
            r0 += R
    p, q = _ended(p, q, ROWS)
    at, there = part_place(sizes, b, r0 + in_r, c0 + in_c, cells, pieces, piece, part_strides, ROWS, V)
    tl.store(parts + at, p, mask=there)
    tl.store(parts + second + at, q, mask=there)


@triton.jit(do_not_specialize=["slabs", "run_tiles", "place_tiles"])
def apply(
    x, dy, residual, weight, bias, factors, means, dx, dresidual, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, run_tiles, place_tiles,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, OWN: tl.constexpr,
    ACTIVATION: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write dx and dresidual of a tile a program; means float64 [2, slabs]: of w g and w g z."""
    b, r, c = tile_of(run_tiles, place_tiles, I, R, C)
    unit, shift, scale, offset = known(factors, slabs, sizes, slab_strides, slab_of, b, c, ROWS, V)
    z, g, w = terms(
        x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
        affine_strides, affine_of, b, r, c, ROWS, MIXED, ACTIVATION, V,
    )  # fmt: skip
    p_mean, q_mean = unit, unit
    if OWN:
        at, there = slab_place(sizes, slab_strides, slab_of, b, c, ROWS, V)
        p_mean = tl.load(means + at, mask=there, other=0.0).to(tl.float32)
        q_mean = tl.load(means + slabs + at, mask=there, other=0.0).to(tl.float32)
    _write(z, g, w, p_mean, q_mean, unit, scale, dx, dresidual, sizes, out_strides, b, r, c, OWN, CENTER, V)
