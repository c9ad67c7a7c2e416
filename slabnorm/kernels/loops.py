"""The innermost loops, over one contiguous piece of memory each.

    z = (u - k - low) * r      p = w * z + b + residual      y = activation(p)

Each of k, low, r, w and b is a number for the whole piece or an array with one for every element. That,
the dtype, the activation and whether there is a residual is settled when a loop is
compiled: one source for all. So is the arithmetic, which is that of k: float32, or float64.

In float32, k and low are the two halves of a float64 mean: u - k is exact wherever u is near the mean, and
what float32 costs is a few units in the last place of z, whatever the offset. Sums are taken in float32
over at most BLOCK elements, and added up in float64.

Loops take slices: an index into a whole array, which may be negative for all Numba knows, is not
vectorised (measured: 0.92 ns an element, against 0.17).
"""

from __future__ import annotations

import numba
import numpy as np

from slabnorm.kernels.curves import activate, passes
from slabnorm.kernels.elements import at, load, part, store, zero

BLOCK = 512

# Reassociation lets a sum use all SIMD lanes, contraction a fused multiply-add. NaN and inf keep
# their meaning: the flags that assume there are none stay off.
_loop = numba.njit(fastmath={"reassoc", "contract"}, error_model="numpy")


@_loop
def _sum_block(u, k):
    s1, s2 = zero(k), zero(k)
    for i in range(u.size):
        t = load(u, i, k) - k
        s1 += t
        s2 += t * t
    return s1, s2


@_loop
def sum_row(u, k):
    """Return the sums of u - k and of its square."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, u.size, BLOCK):
        p, q = _sum_block(u[lo : lo + BLOCK], k)
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def sum_columns(u, k, s1, s2):
    """Add u - k and its square to s1 and s2, element by element."""
    for i in range(u.size):
        t = load(u, i, k) - k[i]
        s1[i] += t
        s2[i] += t * t


@_loop
def sum_four_columns(u0, u1, u2, u3, k, s1, s2):
    """Do the same for four runs at once: a quarter of the sums to fetch and to keep."""
    for i in range(u0.size):
        a, b = load(u0, i, k) - k[i], load(u1, i, k) - k[i]
        c, d = load(u2, i, k) - k[i], load(u3, i, k) - k[i]
        s1[i] += (a + b) + (c + d)
        s2[i] += (a * a + b * b) + (c * c + d * d)


@_loop
def forward(code, u, residual, out, k, low, r, w, b):
    """Write out = activation(w * z + b + residual)."""
    for i in range(u.size):
        t = (load(u, i, k) - at(k, i)) - at(low, i)
        p = (at(r, i) * at(w, i)) * t + (at(b, i) + load(residual, i, k))
        store(out, i, activate(code, p))


@_loop
def _upstream(code, dy, z, residual, i, w, b, k):
    return load(dy, i, k) * passes(code, at(w, i) * z + (at(b, i) + load(residual, i, k)))


@_loop
def _back_block(code, dy, u, residual, k, low, r, w, b):
    s1, s2 = zero(k), zero(k)
    for i in range(u.size):
        z = ((load(u, i, k) - k) - low) * r
        g = _upstream(code, dy, z, residual, i, w, b, k)
        s1 += g
        s2 += g * z
    return s1, s2


@_loop
def back_row(code, dy, u, residual, k, low, r, w, b):
    """Return the sums of g and of g * z, with g the gradient at the pre-activation."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, u.size, BLOCK):
        hi = min(lo + BLOCK, u.size)
        p, q = _back_block(code, dy[lo:hi], u[lo:hi], part(residual, lo, hi), k, low, r, w, b)
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def _back_block_each(code, dy, u, residual, k, low, r, w, b, dbias, dweight):
    s1, s2 = zero(k), zero(k)
    for i in range(u.size):
        z = ((load(u, i, k) - k) - low) * r
        g = _upstream(code, dy, z, residual, i, w, b, k)
        s1 += w[i] * g
        s2 += w[i] * g * z
        dbias[i] += g
        dweight[i] += g * z
    return s1, s2


@_loop
def back_row_each(code, dy, u, residual, k, low, r, w, b, dbias, dweight):
    """Return the sums of w * g and of w * g * z; add g to dbias and g * z to dweight, each for itself."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, u.size, BLOCK):
        hi = min(lo + BLOCK, u.size)
        p, q = _back_block_each(
            code, dy[lo:hi], u[lo:hi], part(residual, lo, hi), k, low, r, w[lo:hi], b[lo:hi], dbias[lo:hi],
            dweight[lo:hi],
        )  # fmt: skip
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def back_columns(code, dy, u, residual, k, low, r, w, b, s1, s2):
    """Add g to s1 and g * z to s2, element by element."""
    for i in range(u.size):
        z = ((load(u, i, k) - k[i]) - low[i]) * r[i]
        g = _upstream(code, dy, z, residual, i, w, b, k)
        s1[i] += g
        s2[i] += g * z


@_loop
def back_columns_weighted(code, dy, u, residual, k, low, r, w, b, s1, s2):
    """Add w * g to s1 and w * g * z to s2, element by element; return the sums of g and of g * z."""
    dbias, dweight = 0.0, 0.0
    for i in range(u.size):
        z = ((load(u, i, k) - k[i]) - low[i]) * r[i]
        g = _upstream(code, dy, z, residual, i, w, b, k)
        s1[i] += w * g
        s2[i] += w * g * z
        dbias += np.float64(g)
        dweight += np.float64(g * z)
    return dbias, dweight


@_loop
def backward(code, dy, u, residual, dx, dresidual, k, low, r, w, b, c1, c2):
    """Write dx = r * (w * g - c1 - c2 * z), and g as the gradient of the residual, which may be None."""
    for i in range(u.size):
        z = ((load(u, i, k) - at(k, i)) - at(low, i)) * at(r, i)
        g = _upstream(code, dy, z, residual, i, w, b, k)
        store(dresidual, i, g)
        store(dx, i, at(r, i) * ((at(w, i) * g - at(c1, i)) - at(c2, i) * z))
