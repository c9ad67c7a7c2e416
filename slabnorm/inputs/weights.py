"""The Moments of rows with weights: a row of weight w counts as w equal rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_array

from slabnorm.errors import DataError, ShapeError
from slabnorm.inputs.scaling import BLOCK
from slabnorm.moments import Moments

Array = np.ndarray[Any, np.dtype[Any]]
_ROWS = 1 << 12  # at most so many values are added up one by one
_EXACT = 2.0**53  # up to here float64 adds whole numbers exactly


def weights_of(given: Any, rows: int) -> Array:
    """Return sample weights: int64 where all are whole, else float64.

    Raises:
        ShapeError: not one weight per row.
        DataError: weights that are negative, or all zero.
        ValueError: what scikit-learn refuses in any array: NaN, infinity, text.
    """
    weights: Array = check_array(given, dtype=np.float64, ensure_2d=False, input_name="sample_weight")
    if weights.shape != (rows,):
        raise ShapeError("sample_weight has one number per row", f"shape {weights.shape} for {rows} rows")
    if (weights < 0).any() or not weights.any():
        raise DataError(
            "sample weights are 0 or more, and not all zero",
            f"weights from {weights.min():g} to {weights.max():g}",
            "leave out rows that shall not count",
        )
    whole = bool((weights == np.floor(weights)).all()) and float(weights.sum()) <= _EXACT
    return weights.astype(np.int64) if whole else weights


def weighted(X: Array, weights: Array) -> tuple[Moments, Array]:
    """Return the Moments of each column of a table with NaN, and the weight of the NaN.

    count = sum(w)      mean = sum(w x) / count      m2 = sum(w (x - mean)^2)
    """
    step = min(_ROWS, max(1, BLOCK // X.shape[1]))
    total = Moments.empty((X.shape[1],), device="cpu")
    missing = np.zeros(X.shape[1], weights.dtype)
    for start in range(0, len(X), step):
        x, w = X[start : start + step], weights[start : start + step]
        if not w.all():
            x, w = x[w > 0], w[w > 0]
        left, gone = _of_block(x.astype(np.float64), w)
        total, missing = total.merge(left), missing + gone
    return total, missing


def _of_block(x: Array, weights: Array) -> tuple[Moments, Array]:
    nan = np.isnan(x)
    some = bool(nan.any())
    every = np.broadcast_to(weights[:, None], x.shape)
    # Not the one from the other: sums of real weights are rounded, and no value left must count 0.
    count, missing = np.where(nan, 0, every).sum(0), np.where(nan, every, 0).sum(0)
    w, divisor = weights.astype(np.float64), np.where(count > 0, count, 1)
    least = np.fmin.reduce(x, 0, initial=np.inf)
    most = np.fmax.reduce(x, 0, initial=-np.inf)

    def weigh(z: Array) -> Array:
        if some:
            z[nan] = 0
        found: Array = np.einsum("n,nc->c", w, z)
        return found

    # As in kernels/eager.py: shifted by an element, then by the mean found.
    with np.errstate(over="ignore", invalid="ignore"):
        shift = np.where(count > 0, least, 0.0)
        shift = shift + weigh(x - shift) / divisor
        x -= shift
        low = weigh(x) / divisor
        x -= low
        x *= x
        parts = (count, shift, weigh(x), least, most, low, np.zeros_like(low))
    return Moments(*map(torch.from_numpy, parts), weighted=weights.dtype == np.float64), missing
