"""The Moments of a table that scikit-learn has checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

from slabnorm.errors import DataError
from slabnorm.inputs.sums import Sums
from slabnorm.inputs.weights import check_weights, weighted, whole
from slabnorm.mergeable_moments import Moments

Array = np.ndarray[Any, np.dtype[Any]]


def table_moments(table: Array, sample_weight: Any = None) -> tuple[Moments, Array]:
    """Return the Moments of each column of a float32 or float64 table, and the weight of NaN they leave out.

    Raises:
        ShapeError, DataError, ValueError: weights that cannot be.
    """
    if sample_weight is not None:
        return weighted(table, _weights(sample_weight, len(table)))
    sums = Sums(table.dtype, table.shape[1])
    if table.flags.f_contiguous:
        sums.add(table.T.reshape(-1), run=len(table))  # a column is a run
    else:
        sums.add(np.ascontiguousarray(table).reshape(-1))
    return sums.moments(), sums.nan.copy()


def _weights(given: Any, rows: int) -> Array:
    weights = check_weights(check_array(given, dtype=np.float64, ensure_2d=False, input_name="sample_weight"),
                            rows, "sample_weight")  # fmt: skip
    if not weights.any():
        raise DataError(
            "some sample has a weight", "sample_weight of zeros", "leave out rows that shall not count"
        )
    return whole(weights)
