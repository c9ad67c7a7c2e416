"""Mean and squared deviations of a tile in registers, or of many in memory: shifted; in float32, then 64."""

from __future__ import annotations

import triton
import triton.language as tl

from slabnorm.kernels.gpu.addressing import inside, offsets


@triton.jit
def total(values, AXES: tl.constexpr):
    """Return sums over the runs (AXES = 1), the places in a run (2), or both (12)."""
    if AXES != 1:
        values = tl.sum(values, 2, keep_dims=True)
    if AXES != 2:
        values = tl.sum(values, 1, keep_dims=True)
    return values


@triton.jit
def guess(
    x, sizes, strides, b, r0, r1, c0, c1, AXES: tl.constexpr, V: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Return the mean of eight elements spread along AXES of runs r0 to r1 and places c0 to c1.

    It is counted from the first of them, so that it is exact where all are equal.
    """
    if AXES == 2:
        among = tl.arange(0, 8)[None, None, :]
        r = r0 + tl.arange(0, R)[None, :, None]
    else:
        among = tl.arange(0, 8)[None, :, None]
        r = r0 + (among * (r1 - r0)) // 8
    if AXES == 1:
        c = c0 + tl.arange(0, C)[None, None, :]
    else:
        c = c0 + (among * (c1 - c0)) // 8
    there = inside(sizes, b, r, c, V)
    values = tl.load(x + offsets(sizes, strides, b, r, c, V), mask=there, other=0.0).to(tl.float32)
    leading = tl.where(among == 0, values, 0.0)
    axis: tl.constexpr = 2 if AXES == 2 else 1
    first = tl.sum(leading, axis, keep_dims=True)
    mean = first + tl.sum(tl.where(there, values - first, 0.0), axis, keep_dims=True) * 0.125
    return tl.where(tl.abs(mean) < 1e37, mean, first)  # differences of large numbers overflow


@triton.jit
def power_below(size):
    """Return 1 / 2^e where 2^e <= size < 2^(e+1): exact, and size times it is below 2."""
    exponent = (size.to(tl.int32, bitcast=True) >> 23) & 255
    return (tl.minimum(tl.maximum(254 - exponent, 1), 254) << 23).to(tl.float32, bitcast=True)


@triton.jit
def largest(size, AXES: tl.constexpr):
    """Return the largest of sizes along AXES."""
    if AXES != 1:
        size = tl.max(size, 2, keep_dims=True)
    if AXES != 2:
        size = tl.max(size, 1, keep_dims=True)
    return size


@triton.jit
def around(shift, deviation, squares, count):
    """Return mean and sum of squared deviations in float64, from the sums of x - shift and of its square."""
    rest = deviation.to(tl.float64) / count
    return shift.to(tl.float64) + rest, squares.to(tl.float64) - deviation.to(tl.float64) * rest


@triton.jit
def doubtful(deviation, squares, count, FAR: tl.constexpr):
    """Return where sums are not exact enough.

    Squares leave the range of float32 beyond 1e18 and below 1e-15; and beyond FAR standard deviations from
    the mean, too much of them cancels.
    """
    outside = ((squares < 1e-30) & ((squares != 0.0) | (deviation != 0.0))) | (squares > 1e37)
    far = deviation / count * deviation > squares * (1.0 - 1.0 / (1.0 + FAR * FAR))
    return outside | far | (squares != squares)


@triton.jit
def somewhere(there):
    """Return whether anything of a tile is true: a scalar."""
    return tl.max(tl.max(tl.max(there.to(tl.int32), 2), 1), 0) > 0


@triton.jit
def _twice(x, there, first, count, AXES: tl.constexpr):
    # Around the mean as a float32, which the first element leads to: x - mean then is exact near the mean,
    # and what rounding the mean has lost comes back as the sum of deviations. A constant slab gives its
    # value.
    shift = first + total(tl.where(there, x - first, 0.0), AXES) / count
    d = tl.where(there, x - shift, 0.0)
    return shift, total(d, AXES), total(d * d, AXES)


@triton.jit
def moments(x, there, first, count, AXES: tl.constexpr):
    """Return mean and squared deviations, in float64, of `count` elements along AXES of a tile."""
    shift, deviation, squares = _twice(x, there, first, count, AXES)
    mean, m2 = around(shift, deviation, squares, count)
    doubt = doubtful(deviation, squares, count, 4.0)
    if somewhere(doubt):
        # Slab by slab, so that what one holds changes no bit of another.
        unit = power_below(largest(tl.where(there, tl.abs(x), 0.0), AXES))
        shift, deviation, squares = _twice(x * unit, there, first * unit, count, AXES)
        other, other_m2 = around(shift, deviation, squares, count)
        wide = unit.to(tl.float64)
        mean = tl.where(doubt, other / wide, mean)
        m2 = tl.where(doubt, other_m2 / (wide * wide), m2)
    return mean, m2


@triton.jit
def _sweep(
    x, unit, shift, sizes, strides, b, r0, r1, c0, c1, SIZE: tl.constexpr, AXES: tl.constexpr,
    V: tl.constexpr, I: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return the sums of d = x * unit - shift and of its square along AXES; SIZE: the largest of |x|, and 0.

    Each place of a tile adds up its own, 16 numbers or so, and they come together at the end, in float64.
    """
    sums = tl.zeros([I, R, C], tl.float32)
    squares = sums
    for r_at in range(r0, r1, R):
        for c_at in range(c0, c1, C):
            r = r_at + tl.arange(0, R)[None, :, None]
            c = c_at + tl.arange(0, C)[None, None, :]
            there = inside(sizes, b, r, c, V)
            values = tl.load(x + offsets(sizes, strides, b, r, c, V), mask=there, other=0.0).to(tl.float32)
            if SIZE:
                sums = tl.maximum(sums, tl.abs(values))
            else:
                d = tl.where(there, values * unit - shift, 0.0)
                sums += d
                squares += d * d
    if SIZE:
        one, two = largest(sums, AXES), largest(squares, AXES)
    else:
        one, two = total(sums.to(tl.float64), AXES), total(squares.to(tl.float64), AXES)
    return one, two


@triton.jit
def moments_of(
    x, count, sizes, strides, b, r0, r1, c0, c1, AXES: tl.constexpr, V: tl.constexpr, I: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return mean and sum of squared deviations, in float64, along AXES of runs r0 to r1 and places c0 to c1.

    Memory is read once, around a guess of the mean. What is more than 1.5 standard deviations from it loses
    too much to cancellation, and is read again.
    """
    first = guess(x, sizes, strides, b, r0, r1, c0, c1, AXES, V, R, C)
    unit = first * 0.0 + 1.0
    deviation, squares = _sweep(x, unit, first, sizes, strides, b, r0, r1, c0, c1, False, AXES, V, I, R, C)
    mean, m2 = around(first, deviation, squares, count)
    doubt = doubtful(deviation, squares, count, 1.5)
    if somewhere(doubt):
        size, _ = _sweep(x, unit, first, sizes, strides, b, r0, r1, c0, c1, True, AXES, V, I, R, C)
        unit = power_below(size)
        shift = first * unit
        deviation, _ = _sweep(x, unit, shift, sizes, strides, b, r0, r1, c0, c1, False, AXES, V, I, R, C)
        shift += (deviation / count).to(tl.float32)
        deviation, squares = _sweep(
            x, unit, shift, sizes, strides, b, r0, r1, c0, c1, False, AXES, V, I, R, C
        )
        other, other_m2 = around(shift, deviation, squares, count)
        wide = unit.to(tl.float64)
        mean = tl.where(doubt, other / wide, mean)
        m2 = tl.where(doubt, other_m2 / (wide * wide), m2)
    return mean, m2
