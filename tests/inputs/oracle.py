"""Statistics in exact rationals: what every fitted number is held against."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def mean_var(values: np.ndarray, ddof: int = 0) -> tuple[Fraction, Fraction]:
    """Return mean and variance of all values, exactly."""
    exact = [Fraction(value) for value in np.asarray(values, dtype=np.float64).ravel().tolist()]
    mean = sum(exact) / len(exact)
    return mean, sum((value - mean) ** 2 for value in exact) / (len(exact) - ddof)


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
