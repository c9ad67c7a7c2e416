"""Moments in plain code, by two passes: of samples with weights, and of those that no kernel takes.

A sample of weight w counts as w equal ones.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch

from slabnorm.errors import DataError, ShapeError
from slabnorm.mergeable_moments import FIELDS, Moments, two_sum
from slabnorm.slab import Slab

Array = np.ndarray[Any, np.dtype[Any]]
_ROWS = 1 << 12  # at most so many values are added up one by one
_BLOCK = 1 << 18  # values worked on at once: merging what they give takes 0.5 ms
_EXACT = 2.0**53  # up to here float64 adds whole numbers exactly


def check_weights(given: Any, rows: int | None = None, name: str = "weights") -> Array:
    """Return weights as float64, one per sample.

    Raises:
        ShapeError: they are not one number per sample.
        DataError: they are no numbers, or one is negative, NaN or infinite.
    """
    try:
        plain = np.asarray(given)
        if plain.dtype.kind not in "buifO":  # complex numbers would lose a part, and text be read as numbers
            raise TypeError(f"dtype {plain.dtype!s:.200}")
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError("a masked array, which hides some")
        found: Array = plain.astype(np.float64, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: tensors that are no plain arrays
        raise DataError(
            f"{name} must be numbers, one per sample", f"{type(given).__name__}: {error}"
        ) from error
    if found.ndim != 1 or rows not in (None, len(found)):
        samples = "" if rows is None else f" for {rows} samples"
        raise ShapeError(f"{name} must be one number per sample", f"weights of shape {found.shape}{samples}")
    bad = np.flatnonzero(~((found >= 0) & (found < np.inf)))
    if len(bad):
        raise DataError(
            f"{name} must be finite numbers, 0 or more",
            f"{found[bad[0]]:g} at row {bad[0]}; {len(bad)} such",
            "a sample of weight 0 does not count",
        )
    with np.errstate(over="ignore"):
        if found.sum() == np.inf:
            fix = "divide all of them by a large number, which changes no mean or variance"
            raise DataError(f"The sum of {name} overflows float64", "", fix)
    return found


def whole(weights: Array) -> Array:
    """Return weights as int64 where all are whole, so that counts stay exact; else as they are."""
    exact = bool((weights == np.floor(weights)).all()) and float(weights.sum()) <= _EXACT
    return weights.astype(np.int64) if exact else weights


def table_moments(X: Array, weights: Array) -> tuple[Moments, Array]:
    """Return the Moments of each column of a table with NaN, and the weight of the NaN.

    count = sum(w)      mean = sum(w x) / count      m2 = sum(w (x - mean)^2)
    """
    step = min(_ROWS, max(1, _BLOCK // X.shape[1]))
    total = Moments.empty((X.shape[1],), device="cpu")
    missing = np.zeros(X.shape[1], weights.dtype)
    for start in range(0, len(X), step):
        x, w = X[start : start + step], weights[start : start + step]
        if not w.all():
            x, w = x[w > 0], w[w > 0]
        left, gone = _of_rows(x.astype(np.float64), w)
        total, missing = total.merge(left), missing + gone
    return total, missing


def _of_rows(x: Array, weights: Array) -> tuple[Moments, Array]:
    nan = np.isnan(x)
    some = bool(nan.any())
    every = np.broadcast_to(weights[:, None], x.shape)
    # Not the one from the other: sums of real weights are rounded, and no value left must count 0.
    if some:
        count, missing = np.where(nan, 0, every).sum(0), np.where(nan, every, 0).sum(0)
    else:
        count, missing = np.full(x.shape[1], weights.sum()), np.zeros(x.shape[1], weights.dtype)
    w = weights.astype(np.float64)

    def add_up(z: Array) -> Array:
        found: Array = np.einsum("n,nc->c", w, z)
        return found[None]

    found = _two_pass(x, nan if some else None, count[None], (0,), add_up)
    shift, low, m2, least, most = (torch.from_numpy(values[0]) for values in found)
    mean, mean_low = two_sum(shift, low)
    real = weights.dtype == np.float64
    return Moments(torch.from_numpy(count), mean, m2, least, most, mean_low, weighted=real), missing


def weighted_moments(values: Array, weights: Array, slab: Slab) -> tuple[Moments, torch.Tensor]:
    """Return the Moments of each feature of some samples with weights, and how many NaN they leave out."""
    split = values.reshape(slab.split)
    kept = slab.kept.dims
    table = split.transpose(*slab.pooled, *kept).reshape(-1, prod(split.shape[dim] for dim in kept))
    # The samples are the first of the pooled axes.
    found, _ = table_moments(table, np.repeat(whole(weights), len(table) // len(values)))
    nan = torch.from_numpy(np.isnan(table).sum(0)) if table.dtype.kind == "f" else torch.zeros(table.shape[1])
    shape = slab.kept.shape
    fields = (getattr(found, name).reshape(shape) for name in FIELDS)
    return Moments(*fields, weighted=found.weighted), nan.to(torch.int64).reshape(shape)


def block_moments(values: Array, slab: Slab) -> tuple[Moments, torch.Tensor]:
    """Return the Moments of each feature of some samples without weights, and how many NaN they leave out.

    For any pattern, where `kernels/column_moments.py` takes those whose features are runs in memory.
    """
    x, pooled, gather = values.astype(np.float64).reshape(slab.split), slab.pooled, slab.kept.gather
    nan = np.isnan(x)
    missing: Array = nan.sum(pooled, keepdims=True)

    def add_up(z: Array) -> Array:  # several times as fast as by NumPy, where memory is strided
        found: Array = torch.from_numpy(z).sum(pooled, keepdim=True).numpy()
        return found

    found = _two_pass(x, nan if missing.any() else None, slab.count - missing, pooled, add_up)
    count = gather(torch.from_numpy(slab.count - missing))
    mean, mean_low, m2, least, most = (gather(torch.from_numpy(values)) for values in found)
    return Moments(count, mean, m2, least, most, mean_low=mean_low), gather(torch.from_numpy(missing))


def _two_pass(
    x: Array, nan: Array | None, count: Array, axes: tuple[int, ...], add_up: Callable[[Array], Array]
) -> tuple[Array, ...]:
    """Return mean, what it has lost to rounding, m2, minimum and maximum; of no values 0, 0, 0, inf and -inf.

    Args:
        x: float64 values, which are written over.
        nan: which are left out; None for none.
        count: of the values that stay, or the sum of their weights.
        axes: that are pooled; in results they have one element.
        add_up: sums over these axes, each value times its weight.
    """
    lesser, greater = (np.minimum, np.maximum) if nan is None else (np.fmin, np.fmax)
    least = lesser.reduce(x, axes, initial=np.inf, keepdims=True)
    most = greater.reduce(x, axes, initial=-np.inf, keepdims=True)
    divisor = np.where(count > 0, count, 1)

    def total(z: Array) -> Array:
        if nan is not None:
            z[nan] = 0
        return add_up(z)

    # As in kernels/eager.py: shifted by an element, then by the mean found.
    with np.errstate(over="ignore", invalid="ignore"):
        shift = np.where(count > 0, least, 0.0)
        shift = shift + total(x - shift) / divisor
        x -= shift
        low = total(x) / divisor
        x -= low
        x *= x
        return shift, low, total(x), least, most
