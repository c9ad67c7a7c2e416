"""The innermost loops, over n elements of contiguous memory each.

    z = scale * (x - shift) + offset      p = weight * z + bias + residual      y = activation(p)

Tensors and coefficients come in named tuples (addressing.py, coefficients.py). Each coefficient, weight and
bias is a number for all elements or memory with one for each; weight and bias are None where scale and offset
hold them already. That, the dtype, the activation and whether there is a residual is settled when a loop is
compiled: one source for all. So is the arithmetic, which is that of shift: float32, or float64.

In float32, shift is the mean rounded, and offset what that has lost, times -scale: x - shift is exact
wherever x is near the mean, and what float32 costs is a few units in the last place of z, whatever the
offset. Sums are taken in float32 over at most BLOCK elements, and added up in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from slabnorm.kernels.cpu.activations import activate, passes, widely
from slabnorm.kernels.cpu.elements import add_to, added, at, leave, load, plus, store, times, type_of
from slabnorm.kernels.cpu.llvm import INNER, ahead, kept_at, njit, overload, stream, to_line

BLOCK = 1024

# Reassociation lets a sum use all SIMD lanes, contraction a fused multiply-add. NaN and inf keep
# their meaning: the flags that assume there are none stay off.
_loop = njit(**INNER, fastmath={"reassoc", "contract"})


@_loop
def _sum_block(n, x, shift):
    s1, s2 = type_of(shift, 0.0), type_of(shift, 0.0)
    for i in range(n):
        apart = load(x, i, shift) - shift
        s1 += apart
        s2 += apart * apart
    return s1, s2


@_loop
def sum_row(n, x, shift):
    """Return the sums of x - shift and of its square."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        p, q = _sum_block(min(n - lo, BLOCK), ahead(x, lo), shift)
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def sum_columns(n, x, shift, s1, s2):
    """Add x - shift and its square to s1 and s2, element by element."""
    for i in range(n):
        apart = load(x, i, shift) - at(shift, i)
        add_to(s1, i, apart)
        add_to(s2, i, apart * apart)


@_loop
def _apart(tensors, i, affine):
    return load(tensors.x, i, affine.shift) - at(affine.shift, i)


@_loop
def _before(tensors, i, apart, affine):
    # The pre-activation, from apart = x - shift.
    z = at(affine.scale, i) * apart + at(affine.offset, i)
    return added(tensors.residual, i, plus(tensors.bias, i, times(tensors.weight, i, z)))


@_loop
def _forward_block(code, n, tensors, out, affine):
    widely(code)
    for i in range(n):
        store(out, i, activate(code, _before(tensors, i, _apart(tensors, i, affine), affine)))


@_loop
def forward(code, n, tensors, buffer, past, held, affine):
    """Write out = activation(p); return how many of its last elements `buffer` holds back.

    With `past`, past the caches: a block is computed in `buffer`, and written from there by whole lines. What
    does not fill one is held back for the next call, whose `out` follows on, or for `stream`; so does
    `buffer` hold the last `held` elements before this `out`.
    """
    lo = 0
    while lo < n:
        full = to_line(ahead(tensors.out, lo - held), BLOCK) if past else n
        hi = min(n, lo + full - held)
        here = ahead(tensors, lo)
        out = ahead(buffer, held) if past else here.out
        _forward_block(code, hi - lo, here, out, ahead(affine, lo))
        if past:
            held += hi - lo
            if held == full:
                stream(ahead(tensors.out, hi - held), buffer, held)
                held = 0
        lo = hi
    return held


@_loop
def _through(code, tensors, i, apart, affine):
    # The gradient at the pre-activation, left for the second sweep where that takes it from memory.
    dp = load(tensors.dy, i, affine.shift) * passes(code, _before(tensors, i, apart, affine))
    leave(tensors.kept, i, dp)
    return dp


def _kept(code: Any, tensors: Any, i: Any, apart: Any, affine: Any) -> Any:
    """Return the gradient at the pre-activation, as the first sweep has left it or computed once more."""


@overload(_kept)
def _kept_or_not(code, tensors, i, apart, affine):
    if isinstance(tensors.types[tensors.fields.index("kept")], types.NoneType):
        return lambda code, tensors, i, apart, affine: _through(code, tensors, i, apart, affine)
    return lambda code, tensors, i, apart, affine: type_of(affine.shift, kept_at(tensors.kept, i))


@_loop
def _back_block(code, n, tensors, affine):
    widely(code)
    s1, s2 = type_of(affine.shift, 0.0), type_of(affine.shift, 0.0)
    for i in range(n):
        apart = _apart(tensors, i, affine)
        dp = _through(code, tensors, i, apart, affine)
        s1 += dp
        s2 += dp * apart
    return s1, s2


@_loop
def back_row(code, n, tensors, affine):
    """Return the sums of dp and of dp * (x - shift), with dp the gradient at the pre-activation."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        p, q = _back_block(code, min(n - lo, BLOCK), ahead(tensors, lo), affine)
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def _back_block_each(code, n, tensors, affine, dweight, dbias):
    widely(code)
    s1, s2 = type_of(affine.shift, 0.0), type_of(affine.shift, 0.0)
    for i in range(n):
        apart = _apart(tensors, i, affine)
        z = at(affine.scale, i) * apart + at(affine.offset, i)
        dp = _through(code, tensors, i, apart, affine)
        s1 += at(tensors.weight, i) * dp
        s2 += at(tensors.weight, i) * dp * z
        add_to(dbias, i, dp)
        add_to(dweight, i, dp * z)
    return s1, s2


@_loop
def back_row_each(code, n, tensors, affine, dweight, dbias):
    """Return the sums of weight * dp and of weight * dp * z; add dp to dbias and dp * z to dweight."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        here, dw, db = ahead(tensors, lo), ahead(dweight, lo), ahead(dbias, lo)
        p, q = _back_block_each(code, min(n - lo, BLOCK), here, affine, dw, db)
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def back_columns(code, n, tensors, affine, s1, s2):
    """Add dp to s1 and dp * (x - shift) to s2, element by element."""
    widely(code)
    for i in range(n):
        apart = _apart(tensors, i, affine)
        dp = _through(code, tensors, i, apart, affine)
        add_to(s1, i, dp)
        add_to(s2, i, dp * apart)


@_loop
def _back_columns_block(code, n, tensors, affine, s1, s2):
    widely(code)
    dbias, dweight = type_of(affine.shift, 0.0), type_of(affine.shift, 0.0)
    for i in range(n):
        apart = _apart(tensors, i, affine)
        dp = _through(code, tensors, i, apart, affine)
        add_to(s1, i, tensors.weight * dp)
        add_to(s2, i, tensors.weight * dp * apart)
        dbias += dp
        dweight += dp * (at(affine.scale, i) * apart + at(affine.offset, i))
    return dbias, dweight


@_loop
def back_columns_weighted(code, n, tensors, affine, s1, s2):
    """Add weight * dp to s1 and weight * dp * (x - shift) to s2, by element; return the sums of dp, dp * z.

    Weight and bias are numbers.
    """
    dbias, dweight = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        here, coefficients = ahead(tensors, lo), ahead(affine, lo)
        p, q = _back_columns_block(code, min(n - lo, BLOCK), here, coefficients, ahead(s1, lo), ahead(s2, lo))
        dbias += np.float64(p)
        dweight += np.float64(q)
    return dbias, dweight


@_loop
def _backward_block(code, n, tensors, dx, dresidual, gradient):
    widely(code)
    for i in range(n):
        apart = _apart(tensors, i, gradient.affine)
        dp = _kept(code, tensors, i, apart, gradient.affine)
        store(dresidual, i, dp)
        line = at(gradient.slope, i) * apart + at(gradient.intercept, i)
        store(dx, i, times(tensors.weight, i, at(gradient.affine.scale, i) * dp) + line)


@_loop
def backward(code, n, tensors, buffer, also, past, held, gradient):
    """Write dx = weight * scale * dp + slope * (x - shift) + intercept, and dp as the residual's gradient.

    `past`, `held` and what is returned: as in forward, with a buffer for dx and one for the residual's
    gradient, which may be None.
    """
    lo = 0
    while lo < n:
        full = to_line(ahead(tensors.dx, lo - held), BLOCK) if past else n
        hi = min(n, lo + full - held)
        here = ahead(tensors, lo)
        if past:
            dx, dresidual = ahead(buffer, held), ahead(also, held)
        else:
            dx, dresidual = here.dx, here.dresidual
        _backward_block(code, hi - lo, here, dx, dresidual, ahead(gradient, lo))
        if past:
            held += hi - lo
            if held == full:
                stream(ahead(tensors.dx, hi - held), buffer, held)
                stream(ahead(tensors.dresidual, hi - held), also, held)
                held = 0
        lo = hi
    return held
