"""What normalises: four numbers a slab, from its statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.gpu.addressing import slab_offsets


@triton.jit
def store_statistics(stats, coefficients, slabs, at, there, mean, m2, count, eps, CENTER: tl.constexpr):
    """Store statistics, float64 [2, slabs] (mean, squared deviations), and what normalises [4, slabs].

    They are unit, shift, scale and offset in float32, so that z = (x * unit - shift) * scale + offset. The
    unit is a power of two, 1 but for slabs of extreme size, whose 1 / std or differences float32 cannot hold.
    x - mean is exact near the mean at any offset: the shift is the mean rounded, the offset what that has
    lost.
    """
    tl.store(stats + at, mean, mask=there)
    tl.store(stats + slabs + at, m2, mask=there)
    var = m2 / count
    if not CENTER:
        var, mean = var + mean * mean, mean * 0.0
    rstd = 1.0 / tl.sqrt(var + eps)
    rounded = mean.to(tl.float32)
    tiny = (rstd > 1e30) & (tl.abs(mean) < 1e18)
    unit = tl.where(rstd < 1e-30, 2.0**-64, tl.where(tiny, 2.0**64, 1.0)).to(tl.float32)
    shift, scale = rounded * unit, (rstd / unit.to(tl.float64)).to(tl.float32)
    offset = ((rounded.to(tl.float64) - mean) * rstd).to(tl.float32)
    # One row after another: three times a number of 32 bits may have 33.
    tl.store(coefficients + at, unit, mask=there)
    tl.store(coefficients + slabs + at, shift, mask=there)
    tl.store(coefficients + slabs + slabs + at, scale, mask=there)
    tl.store(coefficients + slabs + slabs + slabs + at, offset, mask=there)
    return unit, shift, scale, offset


@triton.jit
def load_coefficients(
    coefficients, slabs, sizes, slab_strides, slab_of, b, c, ROWS: tl.constexpr, V: tl.constexpr
):
    """Return the unit, shift, scale and offset of a tile's slabs."""
    at, there = slab_offsets(sizes, slab_strides, slab_of, b, c, ROWS, V)
    unit = tl.load(coefficients + at, mask=there, other=1.0)
    shift = tl.load(coefficients + slabs + at, mask=there, other=0.0)
    scale = tl.load(coefficients + slabs + slabs + at, mask=there, other=1.0)
    return unit, shift, scale, tl.load(coefficients + slabs + slabs + slabs + at, mask=there, other=0.0)


@triton.jit
def normalised(x, scaling):
    """Return z = (x - mean) * rstd, by the coefficients of its slab."""
    unit, shift, scale, offset = scaling
    return (x * unit - shift) * scale + offset
