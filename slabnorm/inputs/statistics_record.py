"""An InputNorm as a plain record, for reports."""

from __future__ import annotations

from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.schemes import nearly_constant
from slabnorm.report.statistics import FeatureRecord, StatisticsRecord


def describe(norm: InputNorm) -> StatisticsRecord:
    """Return what was fitted, and the statistics of every feature."""
    m = norm.moments
    record = norm.record
    places = record.names or ([""] if m.mean.dim() == 0 else _places(m.shape))
    counts = m.count, norm.nan_count, norm.null_count
    columns = *counts, m.mean, m.std(), m.min, m.max, norm.shift, norm.scale
    quantiles = map(tuple, norm.quantiles.reshape(len(norm.quantiles), m.mean.numel()).T.tolist())
    rows = zip(places, *(column.reshape(-1).tolist() for column in columns), quantiles, strict=True)
    features = tuple(FeatureRecord(*row) for row in rows)
    fitted = str(norm.scheme), record.pattern, record.split, record.samples, record.dtype, record.leak
    scheme = norm.scheme.ranks, norm.rank_error, norm.scheme.clip
    return StatisticsRecord(
        *fitted,
        features,
        *scheme,
        record.reader,
        record.skipped,
        record.weights,
        norm.scheme.near_constant,
        _nearly_constant(norm),
    )


def _nearly_constant(norm: InputNorm) -> tuple[str, ...]:
    """Return the names of the features that the scheme's policy has changed."""
    if norm.scheme.near_constant == "warn":
        return ()
    scale = norm.scheme.affine(norm.moments, norm.quantiles).scale
    near = nearly_constant(scale, norm.moments, norm.quantiles).reshape(-1).tolist()
    return tuple(name for name, is_near in zip(feature_names(norm), near, strict=True) if is_near)


def feature_names(norm: InputNorm) -> list[str]:
    """Return what features are called: by the data, else by their place, such as "(2, 1)", or "all"."""
    if norm.record.names:
        return list(norm.record.names)
    shape = norm.moments.shape
    places = _places(shape) if shape else ["all"]
    return [f"({place})" for place in places] if len(shape) > 1 else places


def _places(shape: tuple[int, ...]) -> list[str]:
    places = [""]
    for size in shape:
        places = [f"{place}, {i}" if place else str(i) for place in places for i in range(size)]
    return places
