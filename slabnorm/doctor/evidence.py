"""What a page shows beside the findings of one look: a few numbers of a layer, and of some each channel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.record import Layer, ModelRecord, Spread
from slabnorm.report.check import Finding

MOST = 256  # channels of a layer that are kept
BY_CHANNEL = (201, 203, 208, 406, 503)  # codes of findings about channels
THRESHOLDS = {
    "gap": t.GAP, "flat": t.FLAT_SHARE, "dead": t.DEAD_SHARE, "mates": t.MATES, "momentum": t.MOMENTUM,
    "shift": t.SHIFT, "ratio": t.RATIO, "gamma_dead": t.GAMMA_DEAD, "gamma_huge": t.GAMMA_HUGE, "updates": 1,
}  # fmt: skip


def evidence(record: ModelRecord, findings: Iterable[Finding]) -> dict[str, Any]:
    """Return what a page shows of a model, in JSON's own types; a number that is not finite is None.

    Returns:
        `layers`: those that ran, in the order of the forward, with `name`, `kind`, `role`, `before`, the
        `mean` and `spread` of the input, its root mean square as `rms`, that of the output as `out`, and what
        rules compare with thresholds: `flat`, `dead`, `gap`, `elements`, `updates`, `momentum`, `damaged`.
        `inputs`: the same three numbers, and the ends, of each input of the model.
        `mates`: as in ModelRecord. `thresholds`: where findings begin.
        `channels`: by layer, of those with a finding about channels, their `batch_mean`, `batch_var`,
        `running_mean`, `running_var`, `weight` and `eps`; at most 256, evenly chosen.
    """
    about = {finding.layer for finding in findings if finding.code in BY_CHANNEL}
    ran = [layer for layer in record.layers if layer.order is not None]
    inputs = [_finite({**_scale(seen), "min": seen.min, "max": seen.max}) for seen in record.inputs]
    return {
        "layers": [_finite(_of_layer(layer)) for layer in ran],
        "inputs": inputs,
        "mates": _finite(record.mates),
        "channels": {layer.name: _channels(layer) for layer in record.norms if layer.name in about},
        "thresholds": dict(THRESHOLDS),
    }


def _of_layer(layer: Layer) -> dict[str, Any]:
    plain: dict[str, Any] = {
        key: getattr(layer, key) for key in ("name", "kind", "role", "before", "flat", "dead")
    }
    plain.update(_scale(layer.input), out=_scale(layer.output)["rms"])
    norm = layer.norm
    if norm is not None:
        plain.update(gap=norm.gap, elements=norm.elements, updates=norm.updates, momentum=norm.momentum)
        plain["damaged"] = sum(not math.isfinite(v) for v in (*norm.running_mean, *norm.running_var))
    return plain


def _scale(seen: Spread | None) -> dict[str, float | None]:
    """Return the mean over channels, the spread within them, and the root mean square of all values."""
    if seen is None or not seen.mean:
        return {"mean": None, "spread": None, "rms": None}
    channels = len(seen.mean)
    var = sum(seen.var) / channels
    square = sum(mean * mean for mean in seen.mean) / channels
    return {
        "mean": sum(seen.mean) / channels,
        "spread": math.sqrt(max(0.0, var)),
        "rms": math.sqrt(var + square),
    }


def _channels(layer: Layer) -> dict[str, Any]:
    norm = layer.norm
    assert norm is not None
    seen = asdict(layer.input) if layer.input is not None else {"mean": [], "var": []}
    columns = {
        "batch_mean": seen["mean"], "batch_var": seen["var"],
        "running_mean": norm.running_mean, "running_var": norm.running_var, "weight": norm.weight,
    }  # fmt: skip
    count = max(map(len, columns.values()))
    at = [round(i * (count - 1) / (MOST - 1)) for i in range(MOST)] if count > MOST else list(range(count))
    kept = {key: [_number(values[i]) for i in at if i < len(values)] for key, values in columns.items()}
    return {"number": at, "eps": norm.eps, **kept}


def _finite(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: _number(value) if isinstance(value, float) else value for key, value in plain.items()}


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
