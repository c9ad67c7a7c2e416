"""One pass over a table of values: count, NaN, mean, squared deviations and extremes of every feature."""

from __future__ import annotations

import numpy as np

from slabnorm.kernels.cpu.llvm import INNER, ahead, data, njit, read

# Sums of a table's columns: values around a shift, integers as they are, values that may be NaN.

_loop = njit(**INNER, fastmath={"reassoc", "contract"})


@_loop
def sum_columns(p, rows, step, width, k, s1, s2, lo, hi):
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


# One pass over a table of values: count, NaN, mean, squared deviations and extremes of every feature.
#
# Memory is rows of `features` times `run` values: a table has runs of one value, an image in NCHW a run of
# pixels for every channel. Floats are summed in float64 around a shift, in pieces of at most 2^18 values of
# a feature; the pieces are merged in twice the precision. Integers of 8 and 16 bits are summed exactly, in
# int64.

ROWS = 1024  # rows of a piece
# Columns, float32, ns an element on one core: 128 wide 0.62, 256 0.50, 512 0.35, 1024 0.26.
STRIP = (
    1024  # columns that are summed together: their sums take 32 KiB, and narrower ones start loops more often
)
LONG = 8192  # a run of so many values is a table of its own, FOLD columns wide
FOLD = 1024
WIDE = 1024  # narrow rows are joined to at least so many columns
DOUBTFUL = 64  # (mean - shift)^2 / variance, from which a piece is summed again around its mean

_serial = njit(**INNER)


@_serial
def _start(place, width, g, shift, work, ends, extremes):
    """Clear the sums of a strip of columns, the first of which has this place in a row."""
    feature, at = place // g[2] % g[1], place % g[2]
    for j in range(width):
        work[0, j] = shift[feature]
        work[1, j] = 0
        work[2, j] = 0
        work[3, j] = 0
        ends[0, j] = extremes[0, feature]
        ends[1, j] = extremes[1, feature]
        feature, at = _next(feature, at, g)


@_serial
def _next(feature, at, g):
    """Return the feature of the next column, and its place in the run; divisions cost more than sums."""
    if at + 1 < g[2]:
        return feature, at + 1
    return (feature + 1 if feature + 1 < g[1] else 0), 0


@_serial
def _take(p, rows, step, width, work, ends, present):
    """Sum a table into a strip's columns; `present` is whether NaN may be in it, None for integers."""
    k, s1, s2, missing, lo, hi = work[0], work[1], work[2], work[3], ends[0], ends[1]
    if present is None:
        sum_exact(p, rows, step, width, s1, s2, lo, hi)
    elif present:
        sum_present(p, rows, step, width, k, s1, s2, lo, hi, missing)
    else:
        sum_columns(p, rows, step, width, k, s1, s2, lo, hi)


@_serial
def _end(place, width, g, work, ends, sums, extremes):
    """Add the sums of a strip to those of its features."""
    feature, at = place // g[2] % g[1], place % g[2]
    for j in range(width):
        sums[0, feature] += work[1, j]
        sums[1, feature] += work[2, j]
        sums[2, feature] += work[3, j]
        extremes[0, feature] = min(extremes[0, feature], ends[0, j])
        extremes[1, feature] = max(extremes[1, feature], ends[1, j])
        feature, at = _next(feature, at, g)


@_serial
def _short_runs(p, first, last, g, shift, work, ends, present, sums, extremes):
    """Sum rows, joined where they are narrow, in strips of columns."""
    width = g[1] * g[2]
    joined = max(1, WIDE // width)
    rows, rest = (last - first) // joined, (last - first) % joined
    for place in range(0, width * joined, STRIP):
        strip = min(STRIP, width * joined - place)
        _start(place, strip, g, shift, work, ends, extremes)
        # Rows that are left over are joined to none; then all columns are one strip.
        for left in range(2 if rest else 1):
            at = (last - rest) * width if left else first * width + place
            n, columns, step = (rest, width, width) if left else (rows, strip, width * joined)
            _take(ahead(p, at), n, step, columns, work, ends, present)
        _end(place, strip, g, work, ends, sums, extremes)


@_serial
def _long_runs(p, first, last, g, shift, work, ends, present, sums, extremes):
    """Sum rows run by run, each a table of its own."""
    run = g[2]
    fold = min(FOLD, run)  # FOLD: but functions are compiled anew for a constant
    for feature in range(g[1]):
        _start(feature * run, fold, g, shift, work, ends, extremes)
        for row in range(first, last):
            start = (row * g[1] + feature) * run
            for left in range(2):
                at = start + left * (run - run % FOLD)
                n, columns = (1, run % FOLD) if left else (run // FOLD, fold)
                _take(ahead(p, at), n, fold, columns, work, ends, present)
        _end(feature * run, fold, g, work, ends, sums, extremes)


@_serial
def _piece(p, first, last, g, shift, work, ends, present, sums, extremes):
    for f in range(g[1]):
        for i in range(3):
            sums[i, f] = 0
    if g[2] >= LONG:
        _long_runs(p, first, last, g, shift, work, ends, present, sums, extremes)
    else:
        _short_runs(p, first, last, g, shift, work, ends, present, sums, extremes)


@_serial
def _piece_rows(g):
    """Return how many rows are a piece."""
    if g[2] >= LONG:
        return max(1, ROWS * FOLD // g[2])
    return ROWS * max(1, WIDE // (g[1] * g[2]))


@_serial
def _shift(p, first, last, g, shift):
    """Write a value of each feature: the first, or the first few's that is finite, else 0."""
    width = g[1] * g[2]
    for feature in range(g[1]):
        shift[feature] = 0.0
        for row in range(first, min(first + 8, last)):
            value = np.float64(read(p, row * width + feature * g[2]))
            if np.isfinite(value):
                shift[feature] = value
                break


@_serial
def _again(n, shift, sums):
    """Return whether sums are doubtful, by features whose mean is far from the shift; move that there."""
    doubtful = False
    for feature in range(len(shift)):
        count = n - sums[2, feature]
        if count > 0:
            away = sums[0, feature] / count
            rest = sums[1, feature] - away * sums[0, feature]
            if away * sums[0, feature] > DOUBTFUL * rest and np.isfinite(shift[feature] + away):
                shift[feature] += away
                doubtful = doubtful or away != 0.0
    return doubtful


@_serial
def _any_nan(sums):
    found = False
    for f in range(sums.shape[1]):
        found = found or sums[0, f] != sums[0, f]
    return found


@_serial
def _two_sum(a, b):
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return total, error if np.isfinite(error) else 0.0


@_serial
def _merge(n, shift, sums, counts, state):
    """Merge a piece into what came before it, as `Moments.merge` does."""
    for f in range(len(shift)):
        nb = n - sums[2, f]
        counts[1, f] += np.int64(sums[2, f])
        if nb == 0:
            continue
        na = np.float64(counts[0, f])
        away = sums[0, f] / nb
        squares = max(sums[1, f] - away * sums[0, f], 0.0) if sums[1, f] < np.inf else sums[1, f]
        mean, low = _two_sum(shift[f], away)
        counts[0, f] += np.int64(nb)
        if na == 0:
            state[0, f], state[1, f], state[2, f], state[3, f] = mean, low, squares, 0.0
            continue
        share = nb / (na + nb)
        high, error = _two_sum(mean, -state[0, f])
        delta = high + (error + (low - state[1, f]))
        mean, low = _two_sum(state[0, f], delta * share)
        state[0, f], state[1, f] = _two_sum(mean, low + state[1, f])
        m2, m2_low = _two_sum(state[2, f], squares)
        m2, extra = _two_sum(m2, delta * delta * na * share)
        state[2, f], state[3, f] = _two_sum(m2, m2_low + extra + state[3, f])


def add_kernel(exact):
    """Return a function that adds a table to what is known of its features; exact: integers, without shift.

    x: the values, in order. g: rows, features, run. state: mean, mean_low, m2 and m2_low of each feature; if
    exact, its sum and its sum of squares. counts: values and NaN. extremes: least and most, in x's dtype.
    Room: shift (features), work (4, STRIP), ends (2, STRIP), sums (3, features).
    """

    def add(x, g, state, counts, extremes, shift, work, ends, sums):
        p = data(x, 0)
        first, last, no = 0 * g[0], g[0], g[0] < 0  # Numba compiles what is called once more for constants
        if exact is not None:
            _piece(p, first, last, g, shift, work, ends, None, sums, extremes)
            for f in range(g[1]):
                state[0, f] += sums[0, f]
                state[1, f] += sums[1, f]
                counts[0, f] += g[0] * g[2]
            return x[0]  # which holds the array
        step = _piece_rows(g)
        for first in range(0, g[0], step):
            last = min(first + step, g[0])
            n = np.float64((last - first) * g[2])
            _shift(p, first, last, g, shift)
            present = moved = no
            while True:
                _piece(p, first, last, g, shift, work, ends, present, sums, extremes)
                if not present and _any_nan(sums):
                    present = not no
                elif not moved and _again(n, shift, sums):
                    moved = not no
                else:
                    break
            _merge(n, shift, sums, counts, state)
        return x[0]

    return add
