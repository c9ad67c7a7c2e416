"""Statistics in exact rationals: what every fitted number is held against."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def mean_var(values: np.ndarray, ddof: int = 0) -> tuple[Fraction, Fraction]:
    """Return mean and variance of all values, exactly."""
    ratios = [value.as_integer_ratio() for value in np.asarray(values, dtype=np.float64).ravel().tolist()]
    scale = max(below for _, below in ratios)  # a power of two, as all are
    whole = [
        above * (scale // below) for above, below in ratios
    ]  # integers: twenty times as fast as fractions
    count, total = len(whole), sum(whole)
    squares = (
        count * sum(value * value for value in whole) - total * total
    )  # count times the squared deviations
    return Fraction(total, count * scale), Fraction(squares, count * (count - ddof) * scale * scale)


def relative(found: float, exact: Fraction) -> float:
    """Return the relative error of a number."""
    return float(abs(Fraction(float(found)) - exact) / abs(exact)) if exact else float(found != 0)


def zscore(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the z-scores of data in twice the precision, over these axes."""
    wide = x.astype(np.longdouble)
    # Shifted first: sums of large numbers would spoil even the longdouble mean.
    wide = wide - wide[(0,) * wide.ndim]
    wide = wide - wide.mean(axes, keepdims=True)
    wide = wide - wide.mean(axes, keepdims=True)
    return wide / np.sqrt(np.square(wide).mean(axes, keepdims=True))
