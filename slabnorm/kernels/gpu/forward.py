"""Forward on the GPU: whole slabs in one kernel; or reduce, then merge.py, then apply.

In all kernels: x, residual and y are tensors of one shape, residual lying in memory as y does; weight and
bias [affine]; stats float64 [2, slabs] and coefficients float32 [4, slabs]: coefficients.py. None stands for
what a call does not have.
"""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.gpu.activations import activate
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
from slabnorm.kernels.gpu.coefficients import load_coefficients, normalised, store_statistics
from slabnorm.kernels.gpu.moments import guess, moments, moments_of


@triton.jit
def _write(
    x, scaling, residual, y, weight, bias, sizes, out_strides, affine_strides, affine_of,
    b, r, c, there, ROWS: tl.constexpr, MIXED: tl.constexpr, ACTIVATION: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    w = load_affine(weight, 1.0, sizes, affine_strides, affine_of, b, r, c, ROWS, MIXED, V)
    p = normalised(x, scaling) * w
    p += load_affine(bias, 0.0, sizes, affine_strides, affine_of, b, r, c, ROWS, MIXED, V)
    at = offsets(sizes, out_strides, b, r, c, V)
    if residual is not None:
        p += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at, activate(p, ACTIVATION).to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["slabs"])
def whole(
    x, residual, y, weight, bias, stats, coefficients, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, eps: tl.float64,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Normalise I slabs (rows) or I x C slabs (columns) a program; they fit in its tile and are read once."""
    AXES: tl.constexpr = 12 if ROWS else 1
    runs, run = sizes[2], sizes[4] * V
    b, start, width = slabs_of_program(run, ROWS, I, C)
    r, c = tl.arange(0, R)[None, :, None], start + tl.arange(0, C)[None, None, :]
    count = runs * run if ROWS else runs
    there = inside(sizes, b, r, c, V)
    values = tl.load(x + offsets(sizes, x_strides, b, r, c, V), mask=there, other=0.0).to(tl.float32)
    first = guess(x, sizes, x_strides, b, 0, runs, start, start + width, AXES, V, R, C)
    mean, m2 = moments(values, there, first, count, AXES)
    at, own = slab_offsets(sizes, slab_strides, slab_of, b, c, ROWS, V)
    scaling = store_statistics(stats, coefficients, slabs, at, own, mean, m2, count, eps, CENTER)
    _write(
        values, scaling, residual, y, weight, bias, sizes, out_strides, affine_strides, affine_of, b, r, c,
        there, ROWS, MIXED, ACTIVATION, V,
    )  # fmt: skip


@triton.jit(do_not_specialize=["slabs"])
def looped(
    x, residual, y, weight, bias, stats, coefficients, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, eps: tl.float64,
    ROWS: tl.constexpr, MIXED: tl.constexpr, CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Do the same with slabs of many tiles, which are read twice, the second time from a cache."""
    AXES: tl.constexpr = 12 if ROWS else 1
    runs, run = sizes[2], sizes[4] * V
    b, start, width = slabs_of_program(run, ROWS, I, C)
    in_r, in_c = tl.arange(0, R)[None, :, None], start + tl.arange(0, C)[None, None, :]
    count = runs * run if ROWS else runs
    mean, m2 = moments_of(x, count, sizes, x_strides, b, 0, runs, start, start + width, AXES, V, I, R, C)
    at, own = slab_offsets(sizes, slab_strides, slab_of, b, in_c, ROWS, V)
    scaling = store_statistics(stats, coefficients, slabs, at, own, mean, m2, count, eps, CENTER)
    for r0 in range(0, runs, R):
        for c0 in range(0, width, C):
            r, c = r0 + in_r, c0 + in_c
            there = inside(sizes, b, r, c, V)
            values = tl.load(x + offsets(sizes, x_strides, b, r, c, V), mask=there, other=0.0)
            _write(
                values.to(tl.float32), scaling, residual, y, weight, bias, sizes, out_strides, affine_strides,
                affine_of, b, r, c, there, ROWS, MIXED, ACTIVATION, V,
            )  # fmt: skip


@triton.jit(do_not_specialize=["cells", "pieces"])
def reduce(
    x, parts, second, sizes, x_strides, cells, pieces, part_strides,
    ROWS: tl.constexpr, STEPS: tl.constexpr, V: tl.constexpr, I: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Write mean and squared deviations of pieces of cells: parts float64 [2, blocks, cells, pieces].

    A cell is a run of a block (rows), or a place in its runs (columns); a piece of it is STEPS tiles.
    part_strides are along cells and pieces; `second` is where the second half begins.
    """
    AXES: tl.constexpr = 2 if ROWS else 1
    runs, run = sizes[2], sizes[4] * V
    b, r0, c0, piece = piece_of(cells, pieces, ROWS, STEPS, I, R, C)
    in_r, in_c = tl.arange(0, R)[None, :, None], tl.arange(0, C)[None, None, :]
    if ROWS:
        r1, c1 = r0 + R, tl.minimum(c0 + STEPS * C, run)
        count = c1 - c0
    else:
        r1, c1 = tl.minimum(r0 + STEPS * R, runs), c0 + C
        count = r1 - r0
    mean, m2 = moments_of(x, count, sizes, x_strides, b, r0, r1, c0, c1, AXES, V, I, R, C)
    at, there = piece_offsets(sizes, b, r0 + in_r, c0 + in_c, cells, pieces, piece, part_strides, ROWS, V)
    tl.store(parts + at, mean, mask=there)
    tl.store(parts + second + at, m2, mask=there)


@triton.jit(do_not_specialize=["slabs", "run_tiles", "place_tiles"])
def apply(
    x, residual, y, weight, bias, coefficients, slab_of, affine_of,
    sizes, x_strides, out_strides, affine_strides, slab_strides, slabs, run_tiles, place_tiles,
    ROWS: tl.constexpr, MIXED: tl.constexpr, ACTIVATION: tl.constexpr,
    V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Normalise a tile a program with statistics that there are."""
    b, r, c = tile_of(run_tiles, place_tiles, I, R, C)
    there = inside(sizes, b, r, c, V)
    values = tl.load(x + offsets(sizes, x_strides, b, r, c, V), mask=there, other=0.0).to(tl.float32)
    scaling = load_coefficients(coefficients, slabs, sizes, slab_strides, slab_of, b, c, ROWS, V)
    _write(
        values, scaling, residual, y, weight, bias, sizes, out_strides, affine_strides,
        affine_of, b, r, c, there, ROWS, MIXED, ACTIVATION, V,
    )  # fmt: skip
