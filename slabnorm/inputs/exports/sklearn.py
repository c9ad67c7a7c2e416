"""An InputNorm of a table as a fitted scaler of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slabnorm.errors import OptionError
from slabnorm.extras import extra
from slabnorm.inputs.exports.checks import check_numbers, feature_names
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.schemes import FixedScale, MinMax, QuantileRange, Robust

Array = np.ndarray[Any, np.dtype[Any]]


def to_sklearn(norm: InputNorm, names: Sequence[str] | None = None) -> Any:
    """Return a fitted scaler: Standard, MinMax for `minmax` and `fixed`, Robust for `robust` and `quantile`.

        StandardScaler:  y = (x - mean_) / scale_                 RobustScaler: center_ for mean_
        MinMaxScaler:    y = x * scale_ + min_        scale_ = span / scale,  min_ = low - shift * scale_

    In float64 it is within 1e-12 * max(1, abs(y)) of the InputNorm, for data that lie within 1000 times their
    scale of 0. Farther away it loses digits, because it subtracts one float64 number: 1e-10 at 1e6 +- 1.

    `var_` is the population variance, from which `partial_fit` continues; `scale_` includes the scheme's ddof
    and eps. For `fixed`, `data_min_` and `data_max_` are the given range. For `quantile`, `center_`
    is the value that becomes 0; a RobustScaler that is fitted again takes the median.

    Args:
        norm: the statistics of a table, with the pattern "n c -> c".
        names: the names of the columns, for `feature_names_in_`; by default those of the fitted table.

    Raises:
        OptionError: there is not one statistic, or not one name, for each column of a table; a scale is out
            of the range of float64; or the scheme clips, but not at the output range of `minmax` or `fixed`.
        StatisticsError: the statistics have no values, because they are on the meta device.
        ExtraError: scikit-learn is not installed.

    >>> import torch, slabnorm as sn
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]], dtype=torch.float64)
    >>> scaler = to_sklearn(sn.fit(x, "zscore", split="train"))
    >>> scaler
    StandardScaler()
    >>> scaler.transform(x.numpy()).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    extra("sklearn", "this export", "scikit-learn")
    check_numbers(norm)
    if len(norm.record.sample) != 1 or norm.scale.numel() != norm.record.sample[0] or norm.scale.dim() == 0:
        raise OptionError(
            "A scaler of scikit-learn needs one statistic for each column of a table",
            f'"{norm.pattern}" for samples of shape {norm.record.sample}',
            'fit a table with "n c -> c", or export to JSON or ONNX',
        )
    scheme = norm.scheme
    ends = scheme.out if isinstance(scheme, MinMax | FixedScale) else None
    if scheme.clip not in (None, ends):
        problem = "A scaler of scikit-learn cannot clip, except a MinMaxScaler at its feature_range"
        raise OptionError(problem, f"clip={scheme.clip}", "fit without clip, or export to ONNX")
    with np.errstate(all="ignore"):  # what is out of the range of float64 is refused below
        if isinstance(scheme, MinMax | FixedScale):
            scaler = _minmax(norm, scheme)
        elif isinstance(scheme, Robust | QuantileRange):
            scaler = _robust(norm, scheme)
        else:
            scaler = _standard(norm)
    scaler.n_features_in_ = norm.record.sample[0]
    names = names if names is not None else norm.record.names or None
    if names is not None:
        places = [str(place) for place in range(scaler.n_features_in_)]
        scaler.feature_names_in_ = np.asarray(feature_names(names, places), dtype=object)
    return scaler


def _standard(norm: InputNorm) -> Any:
    from sklearn.preprocessing import StandardScaler

    m = norm.moments
    counts = _column(norm, m.count)
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_ = _centre_and_scale(norm)
    scaler.var_ = _column(norm, m.var())
    # As in scikit-learn, this is one number unless columns have different numbers of NaN.
    scaler.n_samples_seen_ = counts[0] if (counts == counts[0]).all() else counts
    return scaler


def _robust(norm: InputNorm, scheme: Robust | QuantileRange) -> Any:
    from sklearn.preprocessing import RobustScaler

    ends = (100 * scheme.low, 100 * scheme.high)
    scaler = RobustScaler(quantile_range=ends, unit_variance=isinstance(scheme, Robust) and scheme.unit)
    scaler.center_, scaler.scale_ = _centre_and_scale(norm)
    return scaler


def _centre_and_scale(norm: InputNorm) -> tuple[Array, Array]:
    """Return the value of each column that becomes 0, and what is divided by: y = (x - centre) / scale."""
    span, low = norm.scheme.target
    scale = _finite(_column(norm, norm.scale) / span)
    return _finite(_column(norm, norm.shift) - (low * scale - _column(norm, norm.shift_low))), scale


def _minmax(norm: InputNorm, scheme: MinMax | FixedScale) -> Any:
    from sklearn.preprocessing import MinMaxScaler

    span, low = scheme.target
    scaler = MinMaxScaler(feature_range=scheme.out, clip=scheme.clip is not None)
    scaler.data_min_, scaler.data_max_ = _column(norm, norm.moments.min), _column(norm, norm.moments.max)
    if isinstance(scheme, FixedScale):
        scaler.data_min_ = np.full_like(scaler.data_min_, scheme.low)
        scaler.data_max_ = np.full_like(scaler.data_min_, scheme.high)
    scaler.data_range_ = scaler.data_max_ - scaler.data_min_
    scaler.scale_ = _finite(span / _column(norm, norm.scale))
    scaler.min_ = _finite(low - _column(norm, norm.shift) * scaler.scale_)
    scaler.n_samples_seen_ = norm.samples
    return scaler


def _column(norm: InputNorm, values: Any) -> Array:
    """Return a copy of values in the order of the table's columns."""
    return np.array(norm.record.features().spread(values.cpu(), 2).reshape(-1).numpy())


def _finite(values: Array) -> Array:
    if not np.isfinite(values).all():
        raise OptionError(
            "The scale of the data is out of the range of float64", "", "bring the data nearer to 1"
        )
    return values
