"""SlabScaler: fitted statistics as an estimator of scikit-learn, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from slabnorm.errors import DataError, DtypeError, ExtraError, OptionError, ShapeError, StatisticsError
from slabnorm.inputs.accumulator import check_values_left
from slabnorm.inputs.data_warnings import warn_of
from slabnorm.inputs.exports.checks import check_numbers
from slabnorm.inputs.normalizer import AFFINE, InputNorm, denormalise, normalise
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.record import Record
from slabnorm.inputs.schemes import Scheme, first_features, resolve, shift_and_scale
from slabnorm.inputs.split import Hint, guard
from slabnorm.inputs.weighted_moments import check_weights, whole
from slabnorm.inputs.weighted_moments import table_moments as weighted_table_moments
from slabnorm.mergeable_moments import FIELDS, Moments

try:
    from scipy import sparse
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:  # not installed, or older than 1.6, which has no validate_data
    raise ExtraError(
        "SlabScaler needs scikit-learn 1.6 or later", str(error), "pip install 'scikit-learn>=1.6'"
    ) from error

Array = np.ndarray[Any, np.dtype[Any]]
# Values that are worked on at once, in float64. 10^6 rows of 10 doubles, one core, in ms: 2^11 23, 2^13 14.2,
# 2^15 11.8, 2^17 12.9.
BLOCK = 1 << 15
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
            ZScore(near_constant="keep"), FixedScale(0, 16).
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
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite
            for rows, z, shift, low, scale in _blocks(X, out, self._affine):
                normalise(np.subtract(rows, shift, out=z), low, scale, self.scheme_.target)
                if self.scheme_.clip is not None:
                    np.clip(z, *self.scheme_.clip, out=z)
        return out

    def inverse_transform(self, X: Any) -> Any:
        """Return the rows that `transform` scales to X, in the units of the data."""
        check_is_fitted(self)
        _refuse_sparse(X)
        X = check_array(X, dtype=_FLOATS, force_writeable=not self.copy, ensure_all_finite="allow-nan")
        if X.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"A table of {X.shape[1]} columns, for a SlabScaler of {self.n_features_in_} features"
            )
        out = np.empty_like(X) if self.copy else X
        target = self.scheme_.target
        with np.errstate(over="ignore"):
            for rows, z, shift, low, scale in _blocks(X, out, self._affine):
                difference = np.subtract(rows, target[1], out=z, dtype=np.float64)
                denormalise(difference, shift, low, scale, target)
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
        check_values_left(self.moments_, "SlabScaler", names)
        if self.moments_.weighted:
            raise OptionError(
                "Statistics of rows with real weights do not say how many samples there were",
                "",
                'use slabnorm.fit(X, weights=..., split="train")',
            )
        samples = int(self.moments_.count[0]) + int(self.nan_count_[0])
        with plain_tensors():
            what = self.scheme_, "n c -> c", (self.n_features_in_,), self._dtype
            record = Record(*what, split, samples, "omit", leak, names=names)
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
                "SlabScaler needs one statistic per column of a table",
                f'"{norm.pattern}" for samples of shape {record.sample}',
                'fit a table with "n c -> c"',
            )
        scaler = cls(norm.scheme)
        with plain_tensors():
            spread = record.features().spread
            moments = (spread(getattr(norm.moments, name).cpu(), 2)[0].clone() for name in FIELDS)
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
                raise OptionError(f"{name} must be True or False", repr(getattr(self, name)))
        scheme = resolve(self.scheme, "float64")
        if scheme.ranks:
            raise OptionError(
                "SlabScaler does not take a scheme that reads quantiles",
                str(scheme),
                f'fit it as a layer: slabnorm.fit(x, "{scheme.name}", split="train")',
            )
        out = getattr(scheme, "out", None)
        if self.clip and out is None:
            raise OptionError(
                "clip=True needs a scheme with an output range",
                str(scheme),
                f"say where outputs end: scheme=slabnorm.{type(scheme).__name__}(clip=(-5, 5))",
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
                "The sum of values overflows float64",
                first_features(~torch.isfinite(found.mean)),
                "bring the data nearer to 1 first, as by a change of units",
            )
        affine, some = _affine(scheme, found, more), found.count > 0
        self.moments_, self.nan_count_, self.scheme_, self._dtype = found, missing, scheme, dtype
        self._affine, self.scale_ = affine, affine[2]
        self.mean_, self.var_ = _where(found.mean, some), _where(found.var(), some)
        self.data_min_, self.data_max_ = _where(found.min, some), _where(found.max, some)
        counts = found.count.numpy().copy()
        self.n_samples_seen_ = counts[0] if (counts == counts[0]).all() else counts

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _affine(scheme: Scheme, found: Moments, more: bool) -> tuple[Array, Array, Array]:
    """Return shift, shift_low and scale of each feature, NaN for those that have none yet.

    Args:
        scheme: one that reads no quantiles.
        found: the statistics.
        more: whether a feature with too few values for the scheme's ddof may be left open, as more come.

    Raises:
        StatisticsError: a feature's scale is not a positive float64, or has too few values.
    """
    least = getattr(scheme, "ddof", 0) if more else 0
    enough = found.count > least if scheme.per_feature else torch.ones_like(found.count, dtype=torch.bool)
    # In the place of what is open, one constant value.
    known = found
    if not bool(enough.all()):
        filled = {name: torch.where(enough, getattr(found, name), 0) for name in FIELDS}
        filled["count"] = torch.where(enough, found.count, least + 1)
        known = replace(found, **filled)
    affine = shift_and_scale(scheme, known, known.mean.new_empty((0, *known.shape)))
    shift, shift_low, scale = (_where(getattr(affine, name), enough) for name in AFFINE)
    return shift, shift_low, scale


def _where(values: torch.Tensor, mask: torch.Tensor) -> Array:
    """Return float64 values as an array, NaN where a mask is false."""
    found: Array = torch.where(mask, values, torch.nan).numpy()
    return found


def _blocks(table: Array, out: Array, affine: tuple[Array, Array, Array]) -> Iterator[tuple[Array, ...]]:
    """Yield some rows of a table, where to work on them in float64, and shift, shift_low and scale.

    What was worked out is rounded once, to the dtype of `out`, which may be the table itself.
    """
    step = min(len(table), max(1, BLOCK // table.shape[1]))
    # Rows of 10 numbers are short loops; a block of repeated shifts is one long loop: 10^6 rows of 10
    # doubles take 12 ms on one core, before 28. In Fortran's order loops go along the columns anyway.
    copies = step if table.flags.c_contiguous and table.size >= BLOCK else 1
    shift, low, scale = (np.tile(values, (copies, 1)) for values in affine)
    wide = None if out.dtype == np.float64 else np.empty_like(table[:step], dtype=np.float64)
    for start in range(0, len(table), step):
        into = out[start : start + step]
        n = len(into)
        z = into if wide is None else wide[:n]
        yield table[start : start + step], z, shift[:n], low[:n], scale[:n]
        if wide is not None:
            into[...] = z


def _refuse_sparse(X: Any) -> None:
    if sparse.issparse(X):
        raise DtypeError(
            "SlabScaler does not take sparse tables: subtracting a mean leaves no zeros",
            f"a sparse {type(X).__name__}",
            "convert it with X.toarray(), or use sklearn.preprocessing.MaxAbsScaler, which keeps zeros",
        )


def table_moments(table: Array, sample_weight: Any = None) -> tuple[Moments, Array]:
    """Return the Moments of each column of a float32 or float64 table, and the weight of NaN they leave out.

    Raises:
        ShapeError, DataError, ValueError: weights that cannot be.
    """
    if sample_weight is not None:
        return weighted_table_moments(table, _weights(sample_weight, len(table)))
    from slabnorm.inputs.kernels.column_moments import ColumnMoments  # loads Numba

    sums = ColumnMoments(table.dtype, table.shape[1])
    if table.flags.f_contiguous:
        sums.add(table.T.reshape(-1), run=len(table))  # a column is a run
    else:
        sums.add(np.ascontiguousarray(table).reshape(-1))
    return sums.moments(), sums.nan.copy()


def _weights(given: Any, rows: int) -> Array:
    given = check_array(given, dtype=np.float64, ensure_2d=False, input_name="sample_weight")
    weights = check_weights(given, rows, "sample_weight")
    if not weights.any():
        raise DataError(
            "All weights in sample_weight are zero",
            "",
            "leave out rows that shall not count, and keep some that do",
        )
    return whole(weights)
