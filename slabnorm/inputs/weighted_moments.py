"""The Moments of samples with weights: a sample of weight w counts as w equal ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from slabnorm.errors import DataError, ShapeError
from slabnorm.inputs.features import Features
from slabnorm.mergeable_moments import Moments, two_sum
from slabnorm.slab import plan

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
        raise DataError(f"{name} are numbers, one per sample", f"{type(given).__name__}: {error}") from error
    if found.ndim != 1 or rows not in (None, len(found)):
        samples = "" if rows is None else f" for {rows} samples"
        raise ShapeError(f"{name} are one number per sample", f"weights of shape {found.shape}{samples}")
    bad = np.flatnonzero(~((found >= 0) & (found < np.inf)))
    if len(bad):
        raise DataError(
            f"{name} are finite numbers of 0 or more",
            f"{found[bad[0]]:g} at row {bad[0]}; {len(bad)} such",
            "a sample of weight 0 does not count",
        )
    with np.errstate(over="ignore"):
        if found.sum() == np.inf:
            raise DataError(f"the sum of {name} is finite in float64", "numbers near its end", "divide them")
    return found


def whole(weights: Array) -> Array:
    """Return weights as int64 where all are whole, so that counts stay exact; else as they are."""
    exact = bool((weights == np.floor(weights)).all()) and float(weights.sum()) <= _EXACT
    return weights.astype(np.int64) if exact else weights


def weighted(X: Array, weights: Array) -> tuple[Moments, Array]:
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
        left, gone = _of_block(x.astype(np.float64), w)
        total, missing = total.merge(left), missing + gone
    return total, missing


def _of_block(x: Array, weights: Array) -> tuple[Moments, Array]:
    nan = np.isnan(x)
    some = bool(nan.any())
    every = np.broadcast_to(weights[:, None], x.shape)
    # Not the one from the other: sums of real weights are rounded, and no value left must count 0.
    if some:
        count, missing = np.where(nan, 0, every).sum(0), np.where(nan, every, 0).sum(0)
    else:
        count, missing = np.full(x.shape[1], weights.sum()), np.zeros(x.shape[1], weights.dtype)
    w, divisor = weights.astype(np.float64), np.where(count > 0, count, 1)
    least = (np.fmin if some else np.minimum).reduce(x, 0, initial=np.inf)
    most = (np.fmax if some else np.maximum).reduce(x, 0, initial=-np.inf)

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
        mean, mean_low = two_sum(torch.from_numpy(shift), torch.from_numpy(low))
        m2, start, end = map(torch.from_numpy, (weigh(x), least, most))
    real = weights.dtype == np.float64
    return Moments(torch.from_numpy(count), mean, m2, start, end, mean_low, weighted=real), missing


def weighted_features(
    values: Array, weights: Array, features: Features, sizes: tuple[tuple[str, int], ...]
) -> tuple[Moments, torch.Tensor]:
    """Return the Moments of each feature of a block of samples, and how many NaN they leave out."""
    slab = plan(features.pattern, (), values.shape, sizes)
    split = values.reshape(slab.split)
    pooled, kept = list(slab.pooled), list(slab.kept.dims)
    table = split.transpose(*pooled, *kept).reshape(-1, int(np.prod([split.shape[dim] for dim in kept])))
    # The samples are the first of the pooled axes.
    found, _ = weighted(table, np.repeat(whole(weights), len(table) // len(values)))
    nan = torch.from_numpy(np.isnan(table).sum(0)) if table.dtype.kind == "f" else torch.zeros(table.shape[1])
    fields = (found.count, found.mean, found.m2, found.min, found.max, found.mean_low, found.m2_low)
    shape = features.shape
    moments = Moments(*(field.reshape(shape) for field in fields), weighted=found.weighted)
    return moments, nan.to(torch.int64).reshape(shape)
