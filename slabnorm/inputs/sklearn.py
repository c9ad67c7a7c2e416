"""SlabScaler: fitted statistics as an estimator of scikit-learn, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from slabnorm.errors import DataError, DtypeError, OptionError, ShapeError, StatisticsError
from slabnorm.inputs.accumulator import check_left
from slabnorm.inputs.array_scaling import Scaling, column
from slabnorm.inputs.column_moments import Sums
from slabnorm.inputs.data_warnings import warn_of
from slabnorm.inputs.exports.checks import check_numbers
from slabnorm.inputs.normalizer import MOMENTS, InputNorm
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.record import Record
from slabnorm.inputs.schemes import Scheme, first_features, resolve
from slabnorm.inputs.split import Hint, guard
from slabnorm.inputs.weighted_moments import check_weights, weighted, whole
from slabnorm.mergeable_moments import Moments

Array = np.ndarray[Any, np.dtype[Any]]
_FLOATS = [np.float64, np.float32]  # dtypes that are kept; all others become the first


class SlabScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Scale features with exact statistics: an estimator for scikit-learn's pipelines.

        transform:          y = ((x - shift) - shift_low) / scale_ * span + low, ended at the scheme's `clip`
        inverse_transform:  x = (y - low) / span * scale_ + shift_low + shift

    The statistics are `Moments`, merged in twice the precision: `partial_fit` in chunks of any size gives the
    variance of `fit` to 1e-13, for data as far as 1e12 standard deviations from 0.

    float32 comes out as float32, rounded once from float64; everything else as float64. NaN is left out of
    the statistics, feature by feature, and stays NaN; infinity is refused. A feature without any value is
    NaN in every attribute and comes out as NaN.

    A constant feature gets scale 1, without a warning: cross-validation fits the same data many times, and
    a fold in which a rare feature is constant says nothing of the data. `to_norm` warns, as `slabnorm.fit`.

    A row of weight w counts as w equal rows, in counts, mean and variance alike; a row of weight 0 is not
    there. Weights may be real numbers; whole ones keep every count an integer.

    Args:
        scheme: "zscore", "minmax", or an object that reads no quantiles: MinMax(out=(-1, 1)), ZScore(ddof=1),
            FixedScale(0, 16).
        clip: end outputs at the output range, of a scheme that has one.
        copy: False lets `transform` and `inverse_transform` write into the array that they are given.

    Attributes:
        moments_: the `Moments`, one per feature. Real weights make its count float64.
        nan_count_: NaN left out, per feature.
        scheme_: the scheme object.
        mean_, var_, data_min_, data_max_: of each feature; `var_` is the population variance at any ddof.
        scale_: what each feature is divided by, under every scheme (in MinMaxScaler it is a factor).
        n_samples_seen_: values of a feature; one number, or one per feature where NaN makes them differ.
        n_features_in_, feature_names_in_: as in all of scikit-learn.

    Raises:
        OptionError: a parameter out of its range, a scheme that reads quantiles, `clip` without a range.
        DtypeError: sparse data. Other data that scikit-learn refuses: its own ValueError or TypeError.
        DataError: weights that are negative, or all zero.
        ShapeError: not one weight per row; in `inverse_transform`, not one column per feature.
        StatisticsError: a feature's mean or scale leaves the range of float64, or has too few values for the
            ddof; these come out as NaN while `partial_fit` goes on.
        NotFittedError: nothing has been fitted.

    What raises an error changes nothing that was fitted before.

    >>> import numpy as np
    >>> from slabnorm import SlabScaler
    >>> scaler = SlabScaler().fit([[1.0, 10.0], [3.0, np.nan], [5.0, 30.0]])
    >>> scaler.mean_, scaler.n_samples_seen_
    (array([ 3., 20.]), array([3, 2]))
    >>> scaler.transform([[3.0, 40.0]])
    array([[0., 2.]])
    >>> far = 1e15 + np.arange(7.0).repeat(64)[:, None]
    >>> scaler = SlabScaler("minmax")
    >>> for chunk in np.split(far, 7):
    ...     scaler = scaler.partial_fit(chunk)
    >>> scaler.var_, scaler.scale_
    (array([4.]), array([6.]))
    """

    _hints: tuple[Hint, ...] = ()  # what speaks against a split's name in `to_norm`

    def __init__(self, scheme: str | Scheme = "zscore", *, clip: bool = False, copy: bool = True) -> None:
        self.scheme = scheme
        self.clip = clip
        self.copy = copy

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SlabScaler:
        """Take the statistics of a table, and of nothing before; `sample_weight` has one number per row."""
        return self._learn(X, sample_weight, fresh=True, more=False)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> SlabScaler:
        """Merge the statistics of further rows into those so far."""
        return self._learn(X, sample_weight, fresh=not hasattr(self, "moments_"), more=True)

    def transform(self, X: Any) -> Any:
        """Return the rows scaled."""
        check_is_fitted(self)
        X = self._table(X, fresh=False, write=not self.copy)
        out = np.empty_like(X) if self.copy else X
        self._scaling.forward(X, out)
        return out

    def inverse_transform(self, X: Any) -> Any:
        """Return the rows that `transform` scales to X, in the units of the data."""
        check_is_fitted(self)
        _refuse_sparse(X)
        X = check_array(X, dtype=_FLOATS, force_writeable=not self.copy, ensure_all_finite="allow-nan")
        if X.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"this SlabScaler was fitted on {self.n_features_in_} features", f"{X.shape[1]} columns"
            )
        out = np.empty_like(X) if self.copy else X
        self._scaling.inverse(X, out)
        return out

    def to_norm(self, split: str = "train", *, leak: bool = False) -> InputNorm:
        """Return the statistics as an InputNorm, which `slabnorm.save` writes to a file.

        It has no sketch of the samples, which only `slabnorm.fit` takes.

        Args:
            split: the name of the split that the rows came from.
            leak: True takes statistics of held-out data all the same, with a warning.

        Raises:
            LeakageError: the split is a held-out one, or `from_norm` took statistics of one.
            DataError: a feature had no value.
            OptionError: rows had real weights: an artifact counts samples.

        Warns:
            DataWarning: constant features; values outside a FixedScale's range; held-out data.

        >>> import slabnorm as sn
        >>> sn.SlabScaler().fit([[1.0, 10.0], [3.0, 30.0]]).to_norm()
        InputNorm(ZScore(ddof=0, eps=0.0), 'n c -> c', split='train', samples=2, mean=2..20, std=1..10)
        """
        check_is_fitted(self)
        split = guard(split, self._hints, leak)
        names = tuple(map(str, getattr(self, "feature_names_in_", ())))
        check_left(self.moments_, "SlabScaler", names)
        if self.moments_.weighted:
            raise OptionError(
                "an artifact says how many samples there were, which SlabScaler does not know",
                "statistics of rows with real weights",
                'use slabnorm.fit(X, weights=..., split="train")',
            )
        samples = int(self.moments_.count[0]) + int(self.nan_count_[0])
        with plain_tensors():
            record = Record(
                self.scheme_, "n c -> c", (self.n_features_in_,), self._dtype, split, samples, "omit", leak,
                names=names,
            )  # fmt: skip
            norm = InputNorm(record, self.moments_, torch.from_numpy(self.nan_count_))
        warn_of(norm)
        return norm

    @classmethod
    def from_norm(cls, norm: InputNorm) -> SlabScaler:
        """Return the fitted SlabScaler of statistics that were fitted on a table, to apply or to go on from.

        Raises:
            OptionError: not one statistic per column of a table, or a scheme that reads quantiles.
            StatisticsError: statistics without values, on the meta device.

        >>> import slabnorm as sn
        >>> norm = sn.fit(np.array([[1.0, 10.0], [3.0, 30.0]]), "minmax", split="train")
        >>> sn.SlabScaler.from_norm(norm).transform([[5.0, 20.0]])
        array([[2. , 0.5]])
        """
        check_numbers(norm)
        record = norm.record
        if len(record.sample) != 1 or norm.scale.dim() == 0 or norm.scale.numel() != record.sample[0]:
            raise OptionError(
                "a SlabScaler has one statistic per column of a table",
                f'"{norm.pattern}" for samples of shape {record.sample}',
                'fit a table with "n c -> c"',
            )
        scaler = cls(norm.scheme)
        with plain_tensors():
            spread = record.features().spread
            moments = (spread(getattr(norm.moments, name).cpu(), 2)[0].clone() for name in MOMENTS)
            found = Moments(*moments, weighted=norm.moments.weighted)
            missing = spread((norm.nan_count + norm.null_count).cpu(), 2)[0].clone()
            scaler._settle(scaler._scheme(), found, missing.numpy(), record.dtype, more=False)
        scaler.n_features_in_ = record.sample[0]
        if record.names:
            scaler.feature_names_in_ = np.asarray(record.names, dtype=object)
        if record.leak:
            scaler._hints = (Hint(f"the statistics of split={record.split!r}", record.split),)
        return scaler

    def _learn(self, X: Any, sample_weight: Any, fresh: bool, more: bool) -> SlabScaler:
        before = dict(self.__dict__)
        try:
            scheme = self._scheme()
            X = self._table(X, fresh)
            with torch.inference_mode(False):  # tensors that are used later, wherever
                found, missing = table_moments(X, sample_weight)
                dtype = X.dtype.name
                if fresh:
                    self._hints = ()
                else:
                    found, missing = self.moments_.merge(found), self.nan_count_ + missing
                    dtype = dtype if dtype == self._dtype else "float64"
                self._settle(scheme, found, missing, dtype, more)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def _scheme(self) -> Scheme:
        """Return the scheme that the parameters say."""
        for name in ("clip", "copy"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise OptionError(f"{name} is True or False", repr(getattr(self, name)))
        scheme = resolve(self.scheme, "float64")
        if scheme.ranks:
            raise OptionError(
                "SlabScaler takes schemes that need count, mean, variance, minimum and maximum",
                f"{scheme}, which reads quantiles",
                'fit it as a layer: slabnorm.fit(x, "robust", split="train")',
            )
        out = getattr(scheme, "out", None)
        if self.clip and out is None:
            raise OptionError(
                "clip=True ends outputs at the scheme's output range",
                f"{scheme}, which has none",
                f"say where: scheme=slabnorm.{type(scheme).__name__}(clip=(-5, 5))",
            )
        return replace(scheme, clip=scheme.clip or out) if self.clip else scheme

    def _table(self, X: Any, fresh: bool, write: bool = False) -> Array:
        _refuse_sparse(X)
        table: Array = validate_data(
            self, X, reset=fresh, dtype=_FLOATS, force_writeable=write, ensure_all_finite="allow-nan"
        )
        return table

    def _settle(self, scheme: Scheme, found: Moments, missing: Array, dtype: str, more: bool) -> None:
        """Take over statistics, and what follows from them; all or, on an error, nothing."""
        if not bool(torch.isfinite(found.mean).all()):
            raise StatisticsError(
                "sums of values are finite in float64",
                f"means of {first_features(~torch.isfinite(found.mean))} that are not",
                "bring the data nearer to 1 first, as by a change of units",
            )
        scaling, some = Scaling.of(scheme, found, more), found.count > 0
        self.moments_, self.nan_count_, self.scheme_, self._dtype = found, missing, scheme, dtype
        self._scaling, self.scale_ = scaling, scaling.scale
        self.mean_, self.var_ = column(found.mean, some), column(found.var(), some)
        self.data_min_, self.data_max_ = column(found.min, some), column(found.max, some)
        counts = found.count.numpy().copy()
        self.n_samples_seen_ = counts[0] if (counts == counts[0]).all() else counts

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _refuse_sparse(X: Any) -> None:
    if sparse.issparse(X):
        raise DtypeError(
            "SlabScaler takes dense tables: subtracting a mean leaves no zeros",
            f"a sparse {type(X).__name__}",
            "X.toarray(), or sklearn.preprocessing.MaxAbsScaler, which keeps zeros",
        )


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
