"""The innermost loops, over n elements of contiguous memory each.

    z = r * (u - k) + l      p = w * z + b + residual      y = activation(p)

Each of k, r, l, w and b is a number for all of them or memory with one for every element; w and b are None
where r and l hold them already. That, the dtype, the activation and whether there is a residual is settled
when a loop is compiled: one source for all. So is the arithmetic, which is that of k: float32, or float64.

In float32, k is the mean rounded, and l what that has lost, times -r: u - k is exact wherever u is near the
mean, and what float32 costs is a few units in the last place of z, whatever the offset. Sums are taken
in float32 over at most BLOCK elements, and added up in float64.
"""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu.activations import activate, passes, widely
from slabnorm.kernels.cpu.elements import add_to, added, at, load, plus, store, times, type_of
from slabnorm.kernels.cpu.llvm import INNER, ahead, njit, stream, to_line

BLOCK = 1024

# Reassociation lets a sum use all SIMD lanes, contraction a fused multiply-add. NaN and inf keep
# their meaning: the flags that assume there are none stay off.
_loop = njit(**INNER, fastmath={"reassoc", "contract"})


@_loop
def _sum_block(n, u, k):
    s1, s2 = type_of(k, 0.0), type_of(k, 0.0)
    for i in range(n):
        t = load(u, i, k) - k
        s1 += t
        s2 += t * t
    return s1, s2


@_loop
def sum_row(n, u, k):
    """Return the sums of u - k and of its square."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        p, q = _sum_block(min(n - lo, BLOCK), ahead(u, lo), k)
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def sum_columns(n, u, k, s1, s2):
    """Add u - k and its square to s1 and s2, element by element."""
    for i in range(n):
        t = load(u, i, k) - at(k, i)
        add_to(s1, i, t)
        add_to(s2, i, t * t)


@_loop
def _before(residual, i, t, r, l, w, b):  # noqa: E741
    # The pre-activation, from t = u - k.
    return added(residual, i, plus(b, i, times(w, i, at(r, i) * t + at(l, i))))


@_loop
def _forward_block(code, n, u, residual, out, k, r, l, w, b):  # noqa: E741
    widely(code)
    for i in range(n):
        p = _before(residual, i, load(u, i, k) - at(k, i), r, l, w, b)
        store(out, i, activate(code, p))


@_loop
def forward(code, n, u, residual, out, room, past, held, k, r, l, w, b):  # noqa: E741
    """Write out = activation(w * z + b + residual); return how many of its last elements `room` holds back.

    With `past`, past the caches: a block is computed in `room`, and written from there by whole lines. What
    does not fill one is held back for the next call, whose `out` follows on, or for `stream`; so does `room`
    hold the last `held` elements before this `out`.
    """
    lo = 0
    while lo < n:
        full = to_line(ahead(out, lo - held), BLOCK) if past else n
        hi = min(n, lo + full - held)
        v, to = ahead(residual, lo), ahead(room, held) if past else ahead(out, lo)
        _forward_block(
            code, hi - lo, ahead(u, lo), v, to, ahead(k, lo), ahead(r, lo), ahead(l, lo), ahead(w, lo),
            ahead(b, lo),
        )  # fmt: skip
        if past:
            held += hi - lo
            if held == full:
                stream(ahead(out, hi - held), room, held)
                held = 0
        lo = hi
    return held


@_loop
def _back_block(code, n, dy, u, residual, k, r, l):  # noqa: E741
    widely(code)
    s1, s2 = type_of(k, 0.0), type_of(k, 0.0)
    for i in range(n):
        t = load(u, i, k) - k
        g = load(dy, i, k) * passes(code, _before(residual, i, t, r, l, None, None))
        s1 += g
        s2 += g * t
    return s1, s2


@_loop
def back_row(code, n, dy, u, residual, k, r, l):  # noqa: E741
    """Return the sums of g and of g * (u - k), with g the gradient at the pre-activation."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        p, q = _back_block(
            code, min(n - lo, BLOCK), ahead(dy, lo), ahead(u, lo), ahead(residual, lo), k, r, l
        )  # fmt: skip
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def _back_block_each(code, n, dy, u, residual, k, r, l, w, b, dbias, dweight):  # noqa: E741
    widely(code)
    s1, s2 = type_of(k, 0.0), type_of(k, 0.0)
    for i in range(n):
        t = load(u, i, k) - at(k, i)
        z = at(r, i) * t + at(l, i)
        g = load(dy, i, k) * passes(code, _before(residual, i, t, r, l, w, b))
        s1 += at(w, i) * g
        s2 += at(w, i) * g * z
        add_to(dbias, i, g)
        add_to(dweight, i, g * z)
    return s1, s2


@_loop
def back_row_each(code, n, dy, u, residual, k, r, l, w, b, dbias, dweight):  # noqa: E741
    """Return the sums of w * g and of w * g * z; add g to dbias and g * z to dweight, each for itself."""
    s1, s2 = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        p, q = _back_block_each(
            code, min(n - lo, BLOCK), ahead(dy, lo), ahead(u, lo), ahead(residual, lo), k, r, l, ahead(w, lo),
            ahead(b, lo), ahead(dbias, lo), ahead(dweight, lo),
        )  # fmt: skip
        s1 += np.float64(p)
        s2 += np.float64(q)
    return s1, s2


@_loop
def back_columns(code, n, dy, u, residual, k, r, l, s1, s2):  # noqa: E741
    """Add g to s1 and g * (u - k) to s2, element by element."""
    widely(code)
    for i in range(n):
        t = load(u, i, k) - at(k, i)
        g = load(dy, i, k) * passes(code, _before(residual, i, t, r, l, None, None))
        add_to(s1, i, g)
        add_to(s2, i, g * t)


@_loop
def _back_columns_block(code, n, dy, u, residual, k, r, l, w, b, s1, s2):  # noqa: E741
    widely(code)
    dbias, dweight = type_of(k, 0.0), type_of(k, 0.0)
    for i in range(n):
        t = load(u, i, k) - at(k, i)
        g = load(dy, i, k) * passes(code, _before(residual, i, t, r, l, w, b))
        add_to(s1, i, w * g)
        add_to(s2, i, w * g * t)
        dbias += g
        dweight += g * (at(r, i) * t + at(l, i))
    return dbias, dweight


@_loop
def back_columns_weighted(code, n, dy, u, residual, k, r, l, w, b, s1, s2):  # noqa: E741
    """Add w * g to s1 and w * g * (u - k) to s2, element by element; return the sums of g and of g * z."""
    dbias, dweight = 0.0, 0.0
    for lo in range(0, n, BLOCK):
        p, q = _back_columns_block(
            code, min(n - lo, BLOCK), ahead(dy, lo), ahead(u, lo), ahead(residual, lo), ahead(k, lo),
            ahead(r, lo), ahead(l, lo), w, b, ahead(s1, lo), ahead(s2, lo),
        )  # fmt: skip
        dbias += np.float64(p)
        dweight += np.float64(q)
    return dbias, dweight


@_loop
def _backward_block(code, n, dy, u, residual, dx, dresidual, k, r, l, w, b, d, e):  # noqa: E741
    widely(code)
    for i in range(n):
        t = load(u, i, k) - at(k, i)
        g = load(dy, i, k) * passes(code, _before(residual, i, t, r, l, w, b))
        store(dresidual, i, g)
        store(dx, i, times(w, i, at(r, i) * g) + (at(d, i) * t + at(e, i)))


@_loop
def backward(code, n, dy, u, residual, dx, dresidual, room, also, past, held, k, r, l, w, b, d, e):  # noqa: E741
    """Write dx = w * r * g + d * (u - k) + e, and g as the gradient of the residual, which may be None.

    `past`, `held` and what is returned: as in forward, with room for both.
    """
    lo = 0
    while lo < n:
        full = to_line(ahead(dx, lo - held), BLOCK) if past else n
        hi = min(n, lo + full - held)
        if past:
            to, to_also = ahead(room, held), ahead(also, held)
        else:
            to, to_also = ahead(dx, lo), ahead(dresidual, lo)
        _backward_block(
            code, hi - lo, ahead(dy, lo), ahead(u, lo), ahead(residual, lo), to, to_also, ahead(k, lo),
            ahead(r, lo), ahead(l, lo), ahead(w, lo), ahead(b, lo), ahead(d, lo), ahead(e, lo),
        )  # fmt: skip
        if past:
            held += hi - lo
            if held == full:
                stream(ahead(dx, hi - held), room, held)
                stream(ahead(dresidual, hi - held), also, held)
                held = 0
        lo = hi
    return held
