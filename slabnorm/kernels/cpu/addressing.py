"""What a kernel is given: the numbers of a layout, addresses as arrays, and indices to offsets."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import carray

from slabnorm.kernels.cpu.elements import store
from slabnorm.kernels.cpu.layout import NUMBERS
from slabnorm.kernels.cpu.llvm import INNER, memory, njit, pointer

# Where things are: the numbers of a Layout by name, addresses as arrays, and indices to offsets.

serial = njit(**INNER)
# A call costs as much as summing a short run, so what finds places is inlined. Inlining everything doubled
# the time of compiling.
inlined = njit(**INNER, forceinline=True)

(
    BLOCKS1, BLOCKS0, RUNS1, RUNS0, RUN,
    XB1, XB0, XR1, XR0, OB1, OB0, OR1, OR0, AB1, AB0, AR1, AR0, SB1, SB0,
    COUNT, AFFINE, LANES, TOGETHER, TILE, PIECE, SAMPLE_RUNS, SAMPLE_RUN_STEP, SAMPLES, SAMPLE_STEP,
) = range(len(NUMBERS))  # fmt: skip


# A block and a run are each two numbers, along the outer and the inner of their two axes: dividing to find
# them costs more than summing a short run (batch norm of 14x14 images: 1.15 ns an element, not 0.68).


@inlined
def block_of(g, block):
    """Return a block's steps along its two axes."""
    return block // g[BLOCKS0], block % g[BLOCKS0]


@inlined
def run_of(g, run):
    """Return a run's steps along its two axes."""
    return run // g[RUNS0], run % g[RUNS0]


@inlined
def next_run(g, r):
    """Return the run after r."""
    return (r[0], r[1] + 1) if r[1] + 1 < g[RUNS0] else (r[0] + 1, 0)


@inlined
def run_before(g, r):
    """Return the run before r."""
    return (r[0], r[1] - 1) if r[1] > 0 else (r[0] - 1, g[RUNS0] - 1)


@inlined
def next_block(g, b):
    """Return the block after b."""
    return (b[0], b[1] + 1) if b[1] + 1 < g[BLOCKS0] else (b[0] + 1, 0)


@inlined
def in_x(g, b, r):
    """Return where a run starts in x."""
    return b[0] * g[XB1] + b[1] * g[XB0] + r[0] * g[XR1] + r[1] * g[XR0]


@inlined
def in_out(g, b, r):
    """Return where a run starts in the output, and in all that lies as it does."""
    return b[0] * g[OB1] + b[1] * g[OB0] + r[0] * g[OR1] + r[1] * g[OR0]


@inlined
def in_affine(g, b, r):
    """Return where a run starts in weight and bias."""
    return b[0] * g[AB1] + b[1] * g[AB0] + r[0] * g[AR1] + r[1] * g[AR0]


@inlined
def in_slabs(g, b):
    """Return the slab of a block, or of its first column."""
    return b[0] * g[SB1] + b[1] * g[SB0]


@serial
def keep(values, address, dtype):
    """Round an array of float64 to a dtype and write it to an address; nothing if there is none."""
    if address != 0:
        out = pointer(address, dtype)
        for i in range(values.size):
            store(out, i, values[i])


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
def narrow(stats, slab):
    """Return whether a slab can be normalised in float32: not if its values are of extreme size."""
    shift, rstd = abs(stats[2, slab]), stats[3, slab]
    # rstd * rstd is a coefficient of the gradient. NaN is narrow: a fault changes no bit of a neighbour.
    return not (shift > 1e37 or rstd > 1e15 or rstd < 1e-15)


@inlined
def finish(stats, slab, count, k, s1, s2, eps, center):
    """Turn sums around k into a slab's statistics, and what it is normalised with."""
    one = 1.0 / count
    apart = s1 * one
    mean, m2 = k + apart, s2 - s1 * apart
    if m2 < 0:  # by rounding; NaN stays NaN
        m2 = 0.0
    # The mean in two halves: what float64 cannot hold of it counts, too.
    var, shift, low = m2 * one, k, apart
    if not center:
        # mean(x^2) = var + mean^2; both terms are positive, so nothing cancels.
        var, shift, low = var + mean * mean, 0.0, 0.0
    stats[0, slab] = mean
    stats[1, slab] = m2
    stats[2, slab] = shift
    stats[3, slab] = 1.0 / np.sqrt(var + eps)
    stats[4, slab] = low


@inlined
def constants(count, s1, s2, own, center):
    """Return the means of w * g and of w * g * z that leave the gradient; given statistics pass none on."""
    return (s1 / count if own and center else 0.0), (s2 / count if own else 0.0)


# What a kernel is given: one array of numbers and addresses, the same for every kernel.
#
# A kernel is a function of a *phase* and an index. Within a phase the indices may run in any order and on any
# thread; phases run one after another (launch.py).

# Of the layout; the tensors; the statistics and how many; flags; room that phases share; for the backward
# the gradients, the sums that make dweight and dbias, and where these go.
NAMES = (
    "numbers", "group", "axes", "x", "residual", "out", "w", "bias", "stats", "slabs",
    "own", "write", "center", "again", "past", "work", "dy", "dx", "dresidual", "cells", "dweight", "dbias",
)  # fmt: skip
(
    _NUMBERS, _GROUP, _AXES, X, RESIDUAL, OUT, W, BIAS, STATS, _SLABS,
    OWN, WRITES, CENTER, AGAIN, PAST, WORK, DY, DX, DRESIDUAL, CELLS, DWEIGHT, DBIAS,
) = range(len(NAMES))  # fmt: skip

# Whole tasks; or, where all threads share every task: find shifts, sum and merge in up to three sweeps,
# finish, write. ADD_UP ends a backward.
TASK, START, SUM, MERGE, FINISH, WRITE, ADD_UP = 0, 1, 2, 5, 8, 9, 10

Forward = namedtuple("Forward", "x residual out w bias")
Backward = namedtuple("Backward", "dy x residual dx dresidual w bias")


@inlined
def arguments(address):
    """Return the array of arguments."""
    return carray(pointer(address, np.int64), (len(NAMES),))


@inlined
def numbers(a):
    """Return the numbers of the layout."""
    return carray(pointer(a[_NUMBERS], np.int64), (len(NUMBERS),))


@inlined
def group(a):
    """Return the axes within a run: sizes, and strides in statistics, and in weight and bias."""
    return carray(pointer(a[_GROUP], np.int64), (a[_AXES], 3))


@inlined
def statistics(a):
    """Return the statistics, [5, slabs]: mean, sum of squared deviations, shift, rstd, rest of the shift."""
    return carray(pointer(a[STATS], np.float64), (5, a[_SLABS]))


@inlined
def of_forward(a, dtype, affine_dtype, fused):
    """Return the tensors of a forward; `fused`: None or 1, a residual."""
    w, bias = pointer(a[W], affine_dtype), pointer(a[BIAS], affine_dtype)
    return Forward(pointer(a[X], dtype), memory(fused, a[RESIDUAL], dtype), pointer(a[OUT], dtype), w, bias)


@inlined
def of_backward(a, dtype, affine_dtype, fused, inner):
    """Return the tensors of a backward; `inner`: None or 1, whether the residual's gradient is written."""
    w, bias = pointer(a[W], affine_dtype), pointer(a[BIAS], affine_dtype)
    dy, x, dx = pointer(a[DY], dtype), pointer(a[X], dtype), pointer(a[DX], dtype)
    return Backward(dy, x, memory(fused, a[RESIDUAL], dtype), dx, memory(inner, a[DRESIDUAL], dtype), w, bias)


@inlined
def work(a, start, shape):
    """Return a part of the room that phases share, as an array."""
    return carray(pointer(a[WORK] + 8 * start, np.float64), shape)


@inlined
def cells(a, shape):
    """Return the sums that make dweight and dbias, as an array."""
    return carray(pointer(a[CELLS], np.float64), shape)
