"""Backward on the GPU: whole slabs in one kernel; or reduce, then merge.py, then apply.

With z = (x - mean) * rstd, w the weight, g the gradient before the activation, and means over the slab:

    dx = rstd * (w g - mean(w g) - z * mean(w g z))      dweight = sum(g z)      dbias = sum(g)

x, residual, dy, dx and dresidual are tensors of one shape, all but x of the output's strides; coefficients
float32 [4, slabs] (coefficients.py); cells [2, n]: sums of g and g z, which merge.py adds up to dbias and
dweight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.gpu.activations import passed
from slabnorm.kernels.gpu.addressing import (
    inside,
    load_affine,
    offsets,
    piece_of,
    piece_offsets,
    slab_offsets,
    slabs_of_program,
    tile_of,
)
from slabnorm.kernels.gpu.coefficients import load_coefficients, normalised
from slabnorm.kernels.gpu.moments import total


@triton.jit
def terms(
    x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides, affine_strides,
    affine_of, b, r, c, ROWS: tl.constexpr, MIXED: tl.constexpr, ACTIVATION: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Return z and g of a tile, 0 where it ends, and w."""
    there = inside(sizes, b, r, c, V)
    at = offsets(sizes, out_strides, b, r, c, V)
    z = tl.load(x + offsets(sizes, x_strides, b, r, c, V), mask=there, other=0.0).to(tl.float32)
    z = normalised(z, scaling)
    g = tl.load(dy + at, mask=there, other=0.0).to(tl.float32)
    w = load_affine(weight, 1.0, sizes, affine_strides, affine_of, b, r, c, ROWS, MIXED, V)
    if ACTIVATION != "":
        p = z * w + load_affine(bias, 0.0, sizes, affine_strides, affine_of, b, r, c, ROWS, MIXED, V)
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
    z, g, w, p_mean, q_mean, scaling, dx, dresidual, sizes, out_strides, b, r, c, OWN: tl.constexpr,
    CENTER: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    at, there = offsets(sizes, out_strides, b, r, c, V), inside(sizes, b, r, c, V)
    if dresidual is not None:
        tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=there)
    if dx is not None:
        g = g * w
        if OWN:
            g -= z * q_mean
            if CENTER:
                g -= p_mean
        tl.store(dx + at, (g * scaling[2] * scaling[0]).to(dx.dtype.element_ty), mask=there)


@triton.jit
def _write_cells(
    cells, second, p, q, z, g, sizes, b, r, c, tile, ROWS: tl.constexpr, MIXED: tl.constexpr,
    BY_RUN: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Store the sums of the cells of a tile: of a run or a block (rows), of a place, or of a run (mixed)."""
    if MIXED:
        p, q = total(g, 2), total(g * z, 2)
        tiles = 1 if ROWS else tl.cdiv(sizes[4] * V, C)
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
    x, dy, residual, weight, bias, coefficients, dx, dresidual, cells, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, OWN: tl.constexpr,
    ACTIVATION: tl.constexpr, BY_RUN: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Differentiate I slabs (rows) or I x C slabs (columns) a program, which fit in its tile.

    Rows that are mixed: `tokens`.
    """
    runs, run = sizes[2], sizes[4] * V
    b, start, _ = slabs_of_program(run, ROWS, I, C)
    r, c = tl.arange(0, R)[None, :, None], start + tl.arange(0, C)[None, None, :]
    count = runs * run if ROWS else runs
    scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c, ROWS, V)
    z, g, w = terms(
        x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides, affine_strides, affine_of, b,
        r, c, ROWS, MIXED, ACTIVATION, V,
    )  # fmt: skip
    p = _weighed(g, w, MIXED)
    p, q = _ended(p, p * z, ROWS)
    if cells is not None:
        _write_cells(cells, second, p, q, z, g, sizes, b, r, c, start // C, ROWS, MIXED, BY_RUN, C, V)
    p, q = _of_slabs(p, q, w, ROWS, MIXED)
    p_mean, q_mean = (p / count).to(tl.float32), (q / count).to(tl.float32)
    _write(z, g, w, p_mean, q_mean, scaling, dx, dresidual, sizes, out_strides, b, r, c, OWN, CENTER, V)


@triton.jit(do_not_specialize=["slabs"])
def looped(
    x, dy, residual, weight, bias, coefficients, dx, dresidual, cells, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, OWN: tl.constexpr,
    ACTIVATION: tl.constexpr, BY_RUN: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Do the same with slabs of many tiles, which are read twice, the second time from a cache."""
    runs, run = sizes[2], sizes[4] * V
    b, start, width = slabs_of_program(run, ROWS, I, C)
    in_r, in_c = tl.arange(0, R)[None, :, None], start + tl.arange(0, C)[None, None, :]
    count = runs * run if ROWS else runs
    scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, in_c, ROWS, V)
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
                x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides, affine_strides,
                affine_of, b, r, c0 + in_c, ROWS, MIXED, ACTIVATION, V,
            )  # fmt: skip
            if MIXED and cells is not None:
                _write_cells(
                    cells, second, g, g, z, g, sizes, b, r, in_c, start // C, ROWS, MIXED, BY_RUN, C, V
                )
            g = _weighed(g, w, MIXED)
            sum_p += g
            sum_q += g * z
        if ROWS:
            p, q = _ended(sum_p, sum_q, ROWS)
            if BY_RUN and cells is not None:
                _write_cells(cells, second, p, q, p, q, sizes, b, r, in_c, 0, ROWS, MIXED, BY_RUN, C, V)
            block_p += tl.sum(p, 1, keep_dims=True)
            block_q += tl.sum(q, 1, keep_dims=True)
            w = load_affine(weight, 1.0, sizes, affine_strides, affine_of, b, r, in_c, ROWS, MIXED, V)
            p, q = _of_slabs(p, q, w, ROWS, MIXED)
            slab_p += p
            slab_q += q
    if not ROWS:
        block_p, block_q = _ended(sum_p, sum_q, ROWS)
        w = load_affine(weight, 1.0, sizes, affine_strides, affine_of, b, in_r, in_c, ROWS, MIXED, V)
        slab_p, slab_q = _of_slabs(block_p, block_q, w, ROWS, MIXED)
    if (not MIXED and not (ROWS and BY_RUN)) and cells is not None:
        _write_cells(
            cells, second, block_p, block_q, block_p, block_q, sizes, b, in_r, in_c, start // C, ROWS, MIXED,
            BY_RUN, C, V,
        )  # fmt: skip
    p_mean, q_mean = (slab_p / count).to(tl.float32), (slab_q / count).to(tl.float32)
    for r0 in range(0, runs, R):
        for c0 in range(0, width, C):
            r, c = r0 + in_r, c0 + in_c
            z, g, w = terms(
                x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides, affine_strides,
                affine_of, b, r, c, ROWS, MIXED, ACTIVATION, V,
            )  # fmt: skip
            _write(
                z, g, w, p_mean, q_mean, scaling, dx, dresidual, sizes, out_strides, b, r, c, OWN, CENTER, V
            )


@triton.jit(do_not_specialize=["slabs"])
def tokens(
    x, dy, residual, weight, bias, coefficients, dx, dresidual, cells, second, slab_of, affine_of,
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
        scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c, True, V)
        z, g, w = terms(
            x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides,
            affine_strides, affine_of, b, r, c, True, True, ACTIVATION, V,
        )  # fmt: skip
        if cells is not None:
            db += tl.sum(g, 0, keep_dims=True)
            dw += tl.sum(g * z, 0, keep_dims=True)
        p = g * w
        p, q = _ended(p, p * z, True)
        _write(
            z, g, w, (p / run).to(tl.float32), (q / run).to(tl.float32), scaling, dx, dresidual, sizes,
            out_strides, b, r, c, OWN, CENTER, V,
        )  # fmt: skip
    if cells is not None:
        there = c < run
        tl.store(cells + pid.to(tl.int64) * run + c, db, mask=there)
        tl.store(cells + second + pid.to(tl.int64) * run + c, dw, mask=there)


@triton.jit(do_not_specialize=["slabs", "cells", "pieces", "tiles"])
def reduce(
    x, dy, residual, weight, bias, coefficients, parts, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, cells, pieces, tiles, part_strides,
    ROWS: tl.constexpr, MIXED: tl.constexpr, ACTIVATION: tl.constexpr,
    STEPS: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write sums of g and g z over pieces of cells; mixed: of w g and w g z.

    parts are float64 [2, blocks, cells, pieces].
    """
    b, r0, c0, piece = piece_of(cells, pieces, ROWS, STEPS, I, R, C)
    in_r, in_c = tl.arange(0, R)[None, :, None], tl.arange(0, C)[None, None, :]
    scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c0 + in_c, ROWS, V)
    p = tl.zeros([I, R, C], tl.float32)
    q = p
    for _ in range(0, tl.minimum(STEPS, tiles - piece * STEPS)):
        z, g, w = terms(
            x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides,
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
    at, there = piece_offsets(sizes, b, r0 + in_r, c0 + in_c, cells, pieces, piece, part_strides, ROWS, V)
    tl.store(parts + at, p, mask=there)
    tl.store(parts + second + at, q, mask=there)


@triton.jit(do_not_specialize=["slabs", "run_tiles", "place_tiles"])
def apply(
    x, dy, residual, weight, bias, coefficients, means, dx, dresidual, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, run_tiles, place_tiles,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, OWN: tl.constexpr,
    ACTIVATION: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write dx and dresidual of a tile a program; means float64 [2, slabs]: of w g and w g z."""
    b, r, c = tile_of(run_tiles, place_tiles, I, R, C)
    scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c, ROWS, V)
    z, g, w = terms(
        x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides,
        affine_strides, affine_of, b, r, c, ROWS, MIXED, ACTIVATION, V,
    )  # fmt: skip
    p_mean, q_mean = scaling[0], scaling[0]
    if OWN:
        at, there = slab_offsets(sizes, slab_strides, slab_of, b, c, ROWS, V)
        p_mean = tl.load(means + at, mask=there, other=0.0).to(tl.float32)
        q_mean = tl.load(means + slabs + at, mask=there, other=0.0).to(tl.float32)
    _write(z, g, w, p_mean, q_mean, scaling, dx, dresidual, sizes, out_strides, b, r, c, OWN, CENTER, V)


# Sums for the gradients of weight and bias where they vary within a cell and no kernel has whole slabs.


@triton.jit(do_not_specialize=["slabs"])
def affine_sums(
    x, dy, residual, weight, bias, coefficients, cells, second, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs,
    ROWS: tl.constexpr, ACTIVATION: tl.constexpr, STEPS: tl.constexpr, V: tl.constexpr,
    I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write sums of g and g z: cells [2, chunks, run] (rows), or [2, blocks, runs] (columns).

    A chunk is STEPS x I blocks.
    """
    runs, run = sizes[2], sizes[4] * V
    pid = tl.program_id(0)
    if ROWS:
        tiles = tl.cdiv(run, C)
        c = (pid % tiles) * C + tl.arange(0, C)[None, None, :]
        r, chunk = tl.zeros([1, 1, 1], tl.int32), pid // tiles
        sum_g = tl.zeros([1, 1, C], tl.float32)
        sum_gz = sum_g
        for at in range(0, STEPS):
            b = (chunk * STEPS + at) * I + tl.arange(0, I)[:, None, None]
            scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c, True, V)
            z, g, _ = terms(
                x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides,
                affine_strides, affine_of, b, r, c, True, True, ACTIVATION, V,
            )  # fmt: skip
            sum_g += tl.sum(g, 0, keep_dims=True)
            sum_gz += tl.sum(g * z, 0, keep_dims=True)
        to, there = chunk.to(tl.int64) * run + c, c < run
    else:
        tiles = tl.cdiv(runs, R)
        r = (pid % tiles) * R + tl.arange(0, R)[None, :, None]
        b = (pid // tiles) * I + tl.arange(0, I)[:, None, None]
        sum_g = tl.zeros([I, R, 1], tl.float64)
        sum_gz = sum_g
        for c0 in range(0, run, C):
            c = c0 + tl.arange(0, C)[None, None, :]
            scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c, False, V)
            z, g, _ = terms(
                x, dy, residual, weight, bias, scaling, sizes, x_strides, out_strides,
                affine_strides, affine_of, b, r, c, False, True, ACTIVATION, V,
            )  # fmt: skip
            sum_g += total(g, 2).to(tl.float64)
            sum_gz += total(g * z, 2).to(tl.float64)
        to, there = b.to(tl.int64) * runs + r, (b < sizes[0]) & (r < runs)
    tl.store(cells + to, sum_g, mask=there)
    tl.store(cells + second + to, sum_gz, mask=there)
