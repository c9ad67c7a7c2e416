"""From cells to slabs and back: the sums of loops.py merged, and coefficients for it to apply.

Arrays that are not flat memory are small and float64: mean, shift and rstd one per slab, weight and bias one
per element of the affine axes; slab_of and affine_of say which of them a cell has.
"""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.loops import apply_piece, apply_pieces, cut, reduce_piece, reduce_pieces, serial

# One piece is not worth waking threads for. Its number is passed as `pieces - 1`: Numba would compile the
# loops anew for a literal (that, and prange's unsigned numbers, took 8 of 25 s of compiling).


@serial
def _reduce(u, v, shift, loops):  # type: ignore[no-untyped-def]
    outer, pooled, cells, inner = loops
    pieces, block, chunks = cut(loops)
    between = pooled if inner > 1 else (pooled + block - 1) // block
    parts = np.zeros((2, outer * between * cells * chunks))
    if pieces == 1:
        reduce_piece(pieces - 1, u, v, shift, loops, parts)
    else:
        reduce_pieces(pieces, u, v, shift, loops, parts)
    s1 = np.zeros(outer * cells)
    s2 = np.zeros(outer * cells)
    i = 0
    for a in range(outer):
        for _ in range(between):
            for cell in range(a * cells, (a + 1) * cells):
                for _ in range(chunks):
                    s1[cell] += parts[0, i]
                    s2[cell] += parts[1, i]
                    i += 1
    return s1, s2


@serial
def _apply(u, v, out, loops, scale, slope, shift, offset):  # type: ignore[no-untyped-def]
    pieces = cut(loops)[0]
    if pieces == 1:
        apply_piece(pieces - 1, u, v, out, loops, scale, slope, shift, offset)
    else:
        apply_pieces(pieces, u, v, out, loops, scale, slope, shift, offset)


@serial
def statistics(x, loops, slab_of, slabs, again):  # type: ignore[no-untyped-def]
    """Return mean and sum of squared deviations of every slab.

    Shifted by a cell's first element, the variance of n elements loses n * 1e-16 at worst, where that
    element is an outlier. With `again`, the sums are taken once more around the mean, and lose nothing.
    """
    outer, pooled, cells, inner = loops
    count = pooled * inner
    shift = np.empty(outer * cells)
    for a in range(outer):
        for c in range(cells):
            shift[a * cells + c] = x[(a * pooled * cells + c) * inner]  # the cell's first element
    s1, s2 = _reduce(x, None, shift, loops)
    if again:
        shift = shift + s1 / count
        s1, s2 = _reduce(x, None, shift, loops)
    # Cells of equal count merge around the mean of one of them, so that equal cells merge without
    # a rounding, and a constant slab has exactly no variance.
    around = np.empty(slabs)
    for cell in range(slab_of.size):
        around[slab_of[cell]] = shift[cell] + s1[cell] / count
    low = np.zeros(slabs)
    for cell in range(slab_of.size):
        low[slab_of[cell]] += (shift[cell] - around[slab_of[cell]]) + s1[cell] / count
    low /= slab_of.size // slabs
    mean = around + low
    m2 = np.zeros(slabs)
    for cell in range(slab_of.size):
        slab = slab_of[cell]
        apart = (shift[cell] - mean[slab]) + s1[cell] / count
        m2[slab] += s2[cell] - s1[cell] * s1[cell] / count + count * apart * apart
    for slab in range(slabs):
        if m2[slab] < 0:  # by rounding; NaN stays NaN
            m2[slab] = 0.0
    return mean, m2


@serial
def apply(x, out, loops, slab_of, affine_of, shift, rstd, weight, bias):  # type: ignore[no-untyped-def]
    """Write out = (x - shift) * rstd * weight + bias."""
    scale = rstd[slab_of] * weight[affine_of]
    _apply(x, None, out, loops, scale, scale, shift[slab_of], bias[affine_of])


@serial
def forward(x, out, loops, slab_of, affine_of, slabs, weight, bias, eps, center, again):  # type: ignore[no-untyped-def]
    """Write out, normalised; return mean and m2 of every slab, and the shift and rstd used."""
    mean, m2 = statistics(x, loops, slab_of, slabs, again)
    var = m2 / (x.size // slabs)
    shift = mean
    if not center:
        # mean(x^2) = var + mean^2; both terms are positive, so nothing cancels.
        var, shift = var + mean * mean, np.zeros(slabs)
    rstd = 1.0 / np.sqrt(var + eps)
    apply(x, out, loops, slab_of, affine_of, shift, rstd, weight, bias)
    return mean, m2, shift, rstd


@serial
def sums(dy, x, loops, slab_of, affine_of, shift, rstd, weight):  # type: ignore[no-untyped-def]
    """Return sum(weight * dy) and sum(weight * dy * z) per slab, sum(dy * z) and sum(dy) per weight."""
    p, q = _reduce(dy, x, shift[slab_of], loops)
    s1, s2 = np.zeros(shift.size), np.zeros(shift.size)
    dweight, dbias = np.zeros(weight.size), np.zeros(weight.size)
    for cell in range(slab_of.size):
        slab, j = slab_of[cell], affine_of[cell]
        z = q[cell] * rstd[slab]
        s1[slab] += weight[j] * p[cell]
        s2[slab] += weight[j] * z
        dweight[j] += z
        dbias[j] += p[cell]
    return s1, s2, dweight, dbias


@serial
def gradient(dy, x, out, loops, slab_of, affine_of, shift, rstd, weight, c1, c2):  # type: ignore[no-untyped-def]
    """Write out = rstd * (weight * dy - c1 - z * c2), with z = (x - shift) * rstd."""
    scale = rstd[slab_of] * weight[affine_of]
    slope, offset = (-rstd * rstd * c2)[slab_of], (-rstd * c1)[slab_of]
    _apply(dy, x, out, loops, scale, slope, shift[slab_of], offset)


@serial
def backward(dy, x, out, loops, slab_of, affine_of, shift, rstd, weight, own, center, need_x):  # type: ignore[no-untyped-def]
    """Write out, the gradient of x, if it is needed; return those of weight and bias.

    `own`: the statistics are the slab's own, and gradient flows through them; `center`: the mean is one.
    """
    s1, s2, dweight, dbias = sums(dy, x, loops, slab_of, affine_of, shift, rstd, weight)
    if need_x and own:
        count = x.size // shift.size
        c1 = s1 / count if center else np.zeros(s1.size)
        gradient(dy, x, out, loops, slab_of, affine_of, shift, rstd, weight, c1, s2 / count)
    elif need_x:  # rstd * weight * dy: apply, around nothing; x is not read
        apply(dy, out, loops, slab_of, affine_of, np.zeros(shift.size), rstd, weight, np.zeros(weight.size))
    return dweight, dbias
