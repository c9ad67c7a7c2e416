"""Sums for the gradients of weight and bias where they vary within a cell and no kernel has whole slabs."""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.gpu.backward import terms
from slabnorm.kernels.gpu.factors import known
from slabnorm.kernels.gpu.moments import total


@triton.jit(do_not_specialize=["slabs"])
def sweep(
    x, dy, residual, weight, bias, factors, cells, second, slab_of, affine_of,
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
            unit, shift, scale, offset = known(factors, slabs, sizes, slab_strides, slab_of, b, c, True, V)
            z, g, _ = terms(
                x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
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
            unit, shift, scale, offset = known(factors, slabs, sizes, slab_strides, slab_of, b, c, False, V)
            z, g, _ = terms(
                x, dy, residual, weight, bias, unit, shift, scale, offset, sizes, x_strides, out_strides,
                affine_strides, affine_of, b, r, c, False, True, ACTIVATION, V,
            )  # fmt: skip
            sum_g += total(g, 2).to(tl.float64)
            sum_gz += total(g * z, 2).to(tl.float64)
        to, there = b.to(tl.int64) * runs + r, (b < sizes[0]) & (r < runs)
    tl.store(cells + to, sum_g, mask=there)
    tl.store(cells + second + to, sum_gz, mask=there)
