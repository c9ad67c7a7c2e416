"""Where things are: the numbers of a Layout by name, addresses as arrays, and indices to offsets."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.elements import store
from slabnorm.kernels.jit import njit
from slabnorm.kernels.layout import NUMBERS
from slabnorm.kernels.pointers import INNER, pointer

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
