"""Sums of a table's columns: values around a shift, integers as they are, values that may be NaN."""

from __future__ import annotations

from slabnorm.kernels.jit import njit
from slabnorm.kernels.pointers import INNER, ahead, read

_loop = njit(**INNER, fastmath={"reassoc", "contract"})


@_loop
def sum(p, rows, step, width, k, s1, s2, lo, hi):
    """Add v - k and its square to s1 and s2, column by column; keep the extremes."""
    # Eight rows at once: sums are loaded and stored an eighth as often. NaN is never less and never more.
    for r in range(0, rows - 7, 8):
        x0 = ahead(p, r * step)
        x1, x2, x3 = ahead(x0, step), ahead(x0, 2 * step), ahead(x0, 3 * step)
        x4, x5 = ahead(x0, 4 * step), ahead(x0, 5 * step)
        x6, x7 = ahead(x0, 6 * step), ahead(x0, 7 * step)
        for j in range(width):
            a, b, c, d = read(x0, j), read(x1, j), read(x2, j), read(x3, j)
            e, f, g, h = read(x4, j), read(x5, j), read(x6, j), read(x7, j)
            t, u, v, w = a - k[j], b - k[j], c - k[j], d - k[j]
            t2, u2, v2, w2 = e - k[j], f - k[j], g - k[j], h - k[j]
            s1[j] += ((t + u) + (v + w)) + ((t2 + u2) + (v2 + w2))
            s2[j] += ((t * t + u * u) + (v * v + w * w)) + ((t2 * t2 + u2 * u2) + (v2 * v2 + w2 * w2))
            least, most = lo[j], hi[j]
            least = a if a < least else least
            most = a if a > most else most
            least = b if b < least else least
            most = b if b > most else most
            least = c if c < least else least
            most = c if c > most else most
            least = d if d < least else least
            most = d if d > most else most
            least = e if e < least else least
            most = e if e > most else most
            least = f if f < least else least
            most = f if f > most else most
            least = g if g < least else least
            most = g if g > most else most
            lo[j] = h if h < least else least
            hi[j] = h if h > most else most
    for r in range(rows // 8 * 8, rows):
        x0 = ahead(p, r * step)
        for j in range(width):
            a = read(x0, j)
            t = a - k[j]
            s1[j] += t
            s2[j] += t * t
            lo[j] = a if a < lo[j] else lo[j]
            hi[j] = a if a > hi[j] else hi[j]


@_loop
def _less(a, b):
    return a if a < b else b


@_loop
def _more(a, b):
    return a if a > b else b


@_loop
def sum_exact(p, rows, step, width, s1, s2, lo, hi):
    """As `sum`, of integers, around 0."""
    # Two loops, each as wide as its values: bytes, ns a value: 0.09, and 0.23 as one loop.
    for r in range(0, rows - 7, 8):
        x0 = ahead(p, r * step)
        x1, x2, x3 = ahead(x0, step), ahead(x0, 2 * step), ahead(x0, 3 * step)
        x4, x5 = ahead(x0, 4 * step), ahead(x0, 5 * step)
        x6, x7 = ahead(x0, 6 * step), ahead(x0, 7 * step)
        for j in range(width):
            a, b, c, d = read(x0, j), read(x1, j), read(x2, j), read(x3, j)
            e, f, g, h = read(x4, j), read(x5, j), read(x6, j), read(x7, j)
            s1[j] += ((a + b) + (c + d)) + ((e + f) + (g + h))
            s2[j] += ((a * a + b * b) + (c * c + d * d)) + ((e * e + f * f) + (g * g + h * h))
        for j in range(width):
            a, b, c, d = read(x0, j), read(x1, j), read(x2, j), read(x3, j)
            e, f, g, h = read(x4, j), read(x5, j), read(x6, j), read(x7, j)
            lo[j] = _less(_less(_less(a, b), _less(c, d)), _less(_less(_less(e, f), _less(g, h)), lo[j]))
            hi[j] = _more(_more(_more(a, b), _more(c, d)), _more(_more(_more(e, f), _more(g, h)), hi[j]))
    for r in range(rows // 8 * 8, rows):
        x0 = ahead(p, r * step)
        for j in range(width):
            a = read(x0, j)
            s1[j] += a
            s2[j] += a * a
            lo[j] = a if a < lo[j] else lo[j]
            hi[j] = a if a > hi[j] else hi[j]


@_loop
def sum_present(p, rows, step, width, k, s1, s2, lo, hi, missing):
    """As `sum`, leaving NaN out and counting it."""
    for r in range(rows):
        x0 = ahead(p, r * step)
        for j in range(width):
            a = read(x0, j)
            t = a - k[j]
            t = t if t == t else 0.0
            s1[j] += t
            s2[j] += t * t
            missing[j] += 1.0 if a != a else 0.0
            lo[j] = a if a < lo[j] else lo[j]
            hi[j] = a if a > hi[j] else hi[j]
