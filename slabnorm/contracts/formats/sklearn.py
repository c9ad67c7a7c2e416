"""scikit-learn: fitted scalers, one alone or a dict of them by key.

    StandardScaler   slabnorm.ZScore(): mean_, var_, n_samples_seen_
    MinMaxScaler     slabnorm.MinMax(out=feature_range): data_min_, data_max_, n_samples_seen_

Other scalers are refused, as no scheme says exactly what they do, or as they do not keep what a scheme reads:
a StandardScaler without centring or without scaling, a MaxAbsScaler, and a RobustScaler, which keeps the
range between two quantiles but not the quantiles. A Pipeline or a ColumnTransformer computes more than its
scalers: give these.

Only objects are read. A file of joblib or pickle is a program, and would have to be run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from slabnorm.contracts.formats.found import Found, last_axes
from slabnorm.contracts.formats.objects import (
    attribute,
    class_of,
    numbers,
    root,
    statistics,
    unusable,
)
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance, Statistics
from slabnorm.errors import OptionError, SlabError
from slabnorm.inputs.schemes import MinMax, Scheme, ZScore, first_features

TITLE = "a scaler of scikit-learn"
KEY = "x"
MODULE = "sklearn.preprocessing._data"
STANDARD, MIN_MAX = f"{MODULE}.StandardScaler", f"{MODULE}.MinMaxScaler"
SEVERAL = "give its scalers by key, as {name: scaler}"
REFUSED = {  # with the reason, and the fix
    f"{MODULE}.MaxAbsScaler": ("it divides without centring, which no scheme does", ""),
    f"{MODULE}.RobustScaler": (
        "it keeps the range between two quantiles, but not the quantiles, which a scheme reads",
        'fit the data: slabnorm.fit(x, "robust", split="train")',
    ),
    "sklearn.pipeline.Pipeline": ("a pipeline computes more than its scalers", SEVERAL),
    "sklearn.compose._column_transformer.ColumnTransformer": (
        "it computes more than its scalers", SEVERAL,
    ),
}  # fmt: skip
CLOSE = 1e-6  # of a scale: what scikit-learn divides by may have been computed in float32


def recognises(source: Any) -> bool:
    """Whether an object is a scaler, or a dict of scalers."""
    known = (STANDARD, MIN_MAX, *REFUSED)
    if type(source) is dict and source:
        return all(type(key) is str and class_of(each) in known for key, each in source.items())
    return class_of(source) in known


def read(source: Any) -> dict[str, Found]:
    """Return the keys of a dict of scalers, or the one key "x" of a scaler.

    Raises:
        DataError: a scaler is not fitted, or does what no scheme says.
    """
    if not recognises(source):
        raise unusable(KEY, f"a {class_of(source)}", "give a fitted StandardScaler or MinMaxScaler")
    scalers = source if isinstance(source, dict) else {KEY: source}
    return {key: _found(key, scaler) for key, scaler in scalers.items()}


def _found(key: str, scaler: Any) -> Found:
    kind = class_of(scaler)
    if kind in REFUSED:
        why, fix = REFUSED[kind]
        raise unusable(key, f"{type(scaler).__name__}: {why}", fix)
    scheme, found, divisor, samples = _standard(key, scaler) if kind == STANDARD else _min_max(key, scaler)
    _check(key, scheme, found, divisor)
    names = tuple(map(str, getattr(scaler, "feature_names_in_", ())))
    pattern, sample = last_axes(found.shape)
    return Found(
        Key(pattern, scheme, names=names), found, sample, Provenance("scikit-learn", samples=samples)
    )


def _standard(key: str, scaler: Any) -> tuple[Scheme, Statistics, Tensor, int | None]:
    """Return scheme, statistics, divisor and samples of a StandardScaler."""
    for name, what in (("with_mean", "it divides without centring"), ("with_std", "it only centres")):
        if getattr(scaler, name, None) is not True:
            raise unusable(key, f"{name}=False: {what}, which no scheme does", f"fit it with {name}=True")
    mean, divisor = _fitted(key, scaler, "mean_"), _fitted(key, scaler, "scale_")
    spread = root(_fitted(key, scaler, "var_"), key)
    if spread.shape == divisor.shape:
        # A spread within rounding is taken as none, and divided by 1, as slabnorm does for one of 0.
        tiny = (divisor == 1) & (spread != 1) & (spread < CLOSE * mean.abs().clamp(min=1))
        spread = torch.where(tiny, 0, spread)
    seen = _fitted(key, scaler, "n_samples_seen_")
    whole = bool((seen == seen.round()).all())  # rows with weights are counted by these
    counts = {"count": seen.expand(mean.shape).long()} if whole and seen.numel() in (1, mean.numel()) else {}
    return (
        ZScore(),
        statistics(key, mean=mean, std=spread, **counts),
        divisor,
        int(seen) if counts and seen.dim() == 0 else None,
    )


def _min_max(key: str, scaler: Any) -> tuple[Scheme, Statistics, Tensor, int | None]:
    """Return scheme, statistics, divisor and samples of a MinMaxScaler."""
    found = statistics(key, min=_fitted(key, scaler, "data_min_"), max=_fitted(key, scaler, "data_max_"))
    try:
        low, high = map(float, attribute(scaler, "feature_range", key))
        scheme = MinMax((low, high), clip=(low, high) if scaler.clip else None)
    except (OptionError, TypeError, ValueError) as error:
        raise unusable(key, f"its feature_range: {error}") from error
    seen = _fitted(key, scaler, "n_samples_seen_")  # rows, with those whose value was missing
    samples = int(seen) if seen.dim() == 0 and math.isclose(seen, round(float(seen))) else None
    return scheme, found, scheme.target[0] / _fitted(key, scaler, "scale_"), samples


def _check(key: str, scheme: Scheme, found: Statistics, divisor: Tensor) -> None:
    """Raise DataError unless a scaler divides by what the scheme makes of its statistics."""
    try:
        scale = found.affine(scheme).scale
    except SlabError as error:
        raise unusable(key, f"{error.problem}: {error.got}") from error
    if scale.shape != divisor.shape:
        raise unusable(key, f"its scale_ has shape {tuple(divisor.shape)}, not {tuple(scale.shape)}")
    off = ~torch.isclose(scale, divisor, rtol=CLOSE, atol=0)
    if bool(off.any()):
        raise unusable(
            key,
            f"it divides by {divisor[off][0].item():g} at {first_features(off)}, "
            f"and {scheme} by {scale[off][0].item():g}",
            "fit it again, and leave scale_ as it is",
        )


def _fitted(key: str, scaler: Any, name: str) -> Tensor:
    return numbers(attribute(scaler, name, key, f"fit the {type(scaler).__name__} first"), name, key)
