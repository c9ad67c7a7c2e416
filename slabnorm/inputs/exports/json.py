"""Fitted statistics as JSON, for programs without slabnorm and PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slabnorm.inputs.exports.checks import check_numbers, feature_names, plain_json
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.statistics_record import describe

FORMAT, VERSION = "slabnorm.inputs.json", 1


def to_json(norm: InputNorm, names: Sequence[str] | None = None) -> str:
    """Return one line of JSON that says how the statistics were fitted, with the numbers of every feature.

        y = ((x - shift) - shift_low) / scale * span + low, between the ends of clip

    `features` are in the order of the pattern's right side, the last axis fastest. Each has name, count, nan,
    mean, std (ddof 0), min, max, shift, shift_low and scale. The same statistics give the same text: ASCII,
    sorted keys, and enough digits to read every number back. A standard deviation that is too large for
    float64 is null.

    Args:
        norm: the statistics, from `slabnorm.fit`.
        names: the names of the features; by default their places, such as "2, 1".

    Raises:
        OptionError: there is not one name for each feature, or a name is given twice.
        StatisticsError: the statistics have no values, because they are on the meta device.

    >>> import json, torch, slabnorm as sn
    >>> norm = sn.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), "zscore", split="train")
    >>> found = json.loads(to_json(norm, names=["width", "height"]))
    >>> found["pattern"], found["features"][1]["name"], found["features"][1]["mean"]
    ('n c -> c', 'height', 20.0)
    """
    check_numbers(norm)
    plain = norm.record.to_plain()
    features = describe(norm).features
    named = feature_names(names, [feature.name for feature in features])
    low = norm.shift_low.reshape(-1).tolist()
    span, base = norm.scheme.target
    return plain_json(
        {
            **plain,
            "format": FORMAT,
            "version": VERSION,
            "formula": "y = ((x - shift) - shift_low) / scale * span + low, between the ends of clip",
            "span": span,
            "low": base,
            "clip": norm.scheme.clip,
            "features": [
                {**vars(feature), "name": name, "shift_low": rest, "std": _finite(feature.std)}
                for feature, name, rest in zip(features, named, low, strict=True)
            ],
        }
    )


def _finite(std: float) -> float | None:
    # Only a standard deviation can be infinite, where squares are too large for float64.
    return std if math.isfinite(std) else None
