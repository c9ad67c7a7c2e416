"""A slab's statistics, from sums; what it is normalised with, as coefficients of the loops; and the sums of
cells, which the gradients of weight and bias are made of."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba import types

from slabnorm.kernels.cpu.addressing import LOW, M2, MEAN, RSTD, SHIFT, block_of, inlined, serial, start_of
from slabnorm.kernels.cpu.elements import load, real
from slabnorm.kernels.cpu.llvm import ahead, overload

# Statistics.


@serial
def total(values):
    """Return a sum, added in order."""
    s = 0.0
    for i in range(values.size):
        s += values[i]
    return s


@inlined
def doubtful(count, s1, s2):
    """Return whether float32 sums around a shift are not to be trusted.

    They are not where there are few, where they overflowed or nearly vanished, where the shift was far from
    the mean, which costs digits of the variance, and where something is not finite. All zeros are a
    constant, and exact.
    """
    one = 1.0 / count
    apart = s1 * one
    var = s2 * one - apart * apart
    if count < 64:
        return True
    return not ((s1 == 0.0 and s2 == 0.0) or (apart * apart <= 4.0 * var and var > 1e-30 and s2 < 1e37))


@inlined
def finish(stats, slab, count, k, s1, s2, call):
    """Turn sums around k into a slab's statistics, and what it is normalised with."""
    one = 1.0 / count
    apart = s1 * one
    mean, m2 = k + apart, s2 - s1 * apart
    if m2 < 0:  # by rounding; NaN stays NaN
        m2 = 0.0
    # The mean in two halves: what float64 cannot hold of it counts, too.
    var, shift, low = m2 * one, k, apart
    if not call.center:
        # mean(x^2) = var + mean^2; both terms are positive, so nothing cancels.
        var, shift, low = var + mean * mean, 0.0, 0.0
    stats[MEAN, slab] = mean
    stats[M2, slab] = m2
    stats[SHIFT, slab] = shift
    stats[RSTD, slab] = 1.0 / np.sqrt(var + call.eps)
    stats[LOW, slab] = low


@inlined
def narrow(stats, slab):
    """Return whether a slab can be normalised in float32: not if its values are of extreme size."""
    shift, rstd = abs(stats[SHIFT, slab]), stats[RSTD, slab]
    # rstd * rstd is a coefficient of the gradient. NaN is narrow: a fault changes no bit of a neighbour.
    return not (shift > 1e37 or rstd > 1e15 or rstd < 1e-15)


# What a slab is normalised with, as the coefficients of the loops. With dp the gradient at the pre-activation
# p,
#
#     z = scale * (x - shift) + offset        p = weight * z + bias
#     dx = weight * scale * dp + slope * (x - shift) + intercept
#
# shift is the mean, in float32 rounded, and offset what that has lost, times -scale. Where weight and bias
# are constant (`each` is None) they go into scale and offset: p = scale * (x - shift) + offset.

Affine = namedtuple("Affine", "shift scale offset")
Gradient = namedtuple("Gradient", "affine slope intercept")


@inlined
def shift_of(stats, slab, rounded):
    """Return the mean, rounded to float32 or not, and what it has lost."""
    shift, rest = stats[SHIFT, slab], stats[LOW, slab]
    k = np.float64(np.float32(shift + rest)) if rounded else shift
    return k, (shift - k) + rest


def folded(each: Any, tensors: Any, j: Any, rstd: Any, low: Any) -> Any:
    """Return scale and offset; with element j of weight and bias in them where `each` is None."""


def beside(each: Any, tensors: Any, j: Any) -> Any:
    """Return weight and bias from element j on; None where `each` is None: the coefficients hold them."""


def one(each: Any, tensors: Any, j: Any, like: Any) -> Any:
    """Return element j of weight and bias in the arithmetic of `like`; None where `each` is None."""


@overload(folded)
def _folded(each, tensors, j, rstd, low):
    if isinstance(each, types.NoneType):

        def both(each, tensors, j, rstd, low):
            scale = rstd * load(tensors.weight, j, 0.0)
            return scale, load(tensors.bias, j, 0.0) - low * scale

        return both
    return lambda each, tensors, j, rstd, low: (rstd, -low * rstd)


@overload(beside)
def _beside(each, tensors, j):
    if isinstance(each, types.NoneType):
        return lambda each, tensors, j: (None, None)
    return lambda each, tensors, j: (ahead(tensors.weight, j), ahead(tensors.bias, j))


@overload(one)
def _one(each, tensors, j, like):
    if isinstance(each, types.NoneType):
        return lambda each, tensors, j, like: (None, None)
    return lambda each, tensors, j, like: (load(tensors.weight, j, like), load(tensors.bias, j, like))


@inlined
def affine(fast, each, tensors, j, stats, slab):
    """Return the coefficients of a run: in float32, or in float64 where `fast` is None."""
    shift, low = shift_of(stats, slab, fast is not None)
    scale, offset = folded(each, tensors, j, stats[RSTD, slab], low)
    return Affine(real(fast, shift), real(fast, scale), real(fast, offset))


@inlined
def line_of(rstd, low, c1, c2):
    """Return slope and intercept: dx = rstd * (weight * dp - c1 - c2 * z), but for the term in dp."""
    slope = -rstd * rstd * c2
    return slope, -rstd * c1 - low * slope


@inlined
def gradient(fast, each, tensors, j, stats, slab, c1, c2):
    """Return the coefficients of a run's gradient: in float32, or in float64 where `fast` is None."""
    _, low = shift_of(stats, slab, fast is not None)
    d, e = line_of(stats[RSTD, slab], low, c1, c2)
    return Gradient(affine(fast, each, tensors, j, stats, slab), real(fast, d), real(fast, e))


@inlined
def constants(count, s1, s2, call):
    """Return the means of weight * dp and of weight * dp * z that leave dx; given statistics pass none on."""
    return (s1 / count if call.own and call.center else 0.0), (s2 / count if call.own else 0.0)


# Cells: what shares a slab and an element of weight and bias. Their sums make the gradients of these.


@inlined
def cell_of(layout, run):
    """Return the number of a run among the runs of its block that differ in weight and bias."""
    outer, inner = run[0] * (layout.affine.runs1 != 0), run[1] * (layout.affine.runs0 != 0)
    return outer * layout.runs0 + inner if layout.affine.runs0 != 0 else outer


@serial
def cells_of_block(layout):
    """Return how many runs of a block differ in weight and bias."""
    return cell_of(layout, (layout.runs1 - 1, layout.runs0 - 1)) + 1


@inlined
def add_sums(layout, lane, block, run, p, q, weight, cells, work, column):
    """Add the sums of a chunk to its cell, and weighted to those of its slab, a column of `work`."""
    cell, gamma = cell_of(layout, run), load(weight, start_of(layout.affine, block, run), 0.0)
    cells[0, lane, cell] += p
    cells[1, lane, cell] += q
    work[0, column] += gamma * p
    work[1, column] += gamma * q


@serial
def flush(sums, cells):
    """Add sums to the cells, and set them to 0."""
    for i in range(sums.size):
        cells[i] += sums[i]
        sums[i] = 0


@serial
def add_up(layout, cells, dweight, dbias):
    """Add the cells of every lane up to the gradients of weight and bias, always in one order."""
    for lane in range(layout.blocks1 * layout.blocks0):
        block = block_of(layout, lane)
        for r1 in range(layout.runs1 if layout.affine.runs1 != 0 else 1):
            for r0 in range(layout.runs0 if layout.affine.runs0 != 0 else 1):
                j, cell = start_of(layout.affine, block, (r1, r0)), cell_of(layout, (r1, r0))
                dbias[j] += cells[0, lane, cell]
                dweight[j] += cells[1, lane, cell]


@serial
def add_up_each(layout, cells, dweight, dbias):
    """Add the cells of every task up to the gradients of weight and bias, always in one order."""
    for task in range(len(cells)):
        for i in range(layout.run):
            dbias[i] += cells[task, i]
            dweight[i] += cells[task, layout.run + i]
