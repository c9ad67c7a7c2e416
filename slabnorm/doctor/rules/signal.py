"""4xx, signal: inputs on a wrong scale, and what becomes of them on their way through the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.record import Drift, ModelRecord, Spread
from slabnorm.doctor.rules.findings import dead_finding, flat_finding
from slabnorm.report.check import Finding


def unlike_training(record: ModelRecord) -> Iterator[Finding]:
    """401, 402, 408: inputs that differ from those of the training, which are known."""
    yield from unlike(record.drift, "the first input")
    for layer in record.layers:
        yield from unlike(layer.drift, f"the input of {layer.name or 'the norm'}", layer.name)


def unlike(drifts: Iterable[Drift], what: str, layer: str = "") -> Iterator[Finding]:
    """Return what an audit says of data, in the doctor's codes.

    Data that were normalised before, or are far smaller than in training, were scaled once too often (402);
    if a change of scale makes them far larger, they were not scaled (401). Data that are otherwise unlike are
    408; statistics of the wrong split are 409.
    """
    for drift in drifts:
        code = 409 if drift.kind == "leak" else 408
        if drift.kind == "normalised" or (drift.kind == "scale" and drift.ratio < 1 / t.RESCALED):
            code = 402
        elif drift.kind == "scale" and drift.ratio > t.RESCALED:
            code = 401
        yield Finding(
            code, drift.severity, layer, f"{what}: {drift.text}", _WHY[code], drift.advice,
            (*drift.numbers.items(), ("spread", drift.ratio)),
        )  # fmt: skip


_WHY = {
    401: "the weights have learned from inputs on a far smaller scale",
    402: "the statistics are those of data on another scale, before it was changed",
    408: "the weights have learned from other inputs than these",
    409: "an evaluation on data that were seen before says nothing about new data",
}


def raw_inputs(record: ModelRecord) -> Iterator[Finding]:
    """401: inputs whose scale is far from 1, in a model that does not normalise them first."""
    if _normalises_first(record):
        return
    known = any(drift.kind == "scale" for drift in record.drift)
    for number, seen in enumerate(record.inputs):
        size, spread = _size(seen), _deviation(seen)
        pixels = seen.min >= 0 and 32 < seen.max <= 255
        if size > t.RAW and not (known and number == 0):
            what = (
                "look like raw 8-bit pixels, 0 to 255" if pixels else f"have a root mean square of {size:.3g}"
            )
            yield Finding(
                401, "error", "",
                f"the values of input {number} {what}",
                "layers are initialised for inputs of about 1; larger ones saturate them",
                'sn.fit(x_train, "zscore", split="train"), and its layer before the model',
                (("rms", size), ("min", seen.min), ("max", seen.max)),
            )  # fmt: skip
        elif 0 < spread < t.FAINT and not 0 <= seen.min <= seen.max < t.TWICE:
            yield Finding(
                401, "error", "",
                f"the values of input {number} vary by no more than {spread:.2g} around {_centre(seen):.3g}",
                "layers are initialised for inputs that vary by about 1: all samples look alike to them",
                'sn.fit(x_train, "zscore", split="train"), and look for values far outside of the rest',
                (("spread", spread), ("min", seen.min), ("max", seen.max)),
            )  # fmt: skip


def scaled_twice(record: ModelRecord) -> Iterator[Finding]:
    """402: inputs that were scaled before they are scaled."""
    if _normalises_first(record):
        return
    for number, seen in enumerate(record.inputs):
        if seen.min >= 0 and 0 < seen.max < t.TWICE:
            yield Finding(
                402, "error", "",
                f"all values of input {number} are between {seen.min:.2g} and {seen.max:.2g}",
                "pixels that are divided by 255 twice end at 0.004: nothing distinguishes them from zeros",
                "scale once: ToTensor() divides by 255 already",
                (("max", seen.max),),
            )  # fmt: skip


def saturated(record: ModelRecord) -> Iterator[Finding]:
    """403: most values of an activation lie where its derivative is next to nothing."""
    for layer in record.layers:
        if layer.flat is not None and layer.flat > t.FLAT_SHARE:
            yield flat_finding(layer, layer.flat)


def dead(record: ModelRecord) -> Iterator[Finding]:
    """404: channels of a ReLU that are 0 for the whole batch."""
    for layer in record.layers:
        if layer.dead is not None and layer.dead > t.DEAD_SHARE and record.samples >= t.FEW_SAMPLES:
            yield dead_finding(layer, layer.dead, f"for all {record.samples} samples")


def grows_with_depth(record: ModelRecord) -> Iterator[Finding]:
    """405: the scale of linear layers' outputs grows or shrinks from layer to layer."""
    chain = [
        layer
        for layer in record.layers
        if layer.role == "linear" and layer.output and layer.order is not None
    ]
    sizes = [_size(layer.output) for layer in chain if layer.output is not None]
    if len(sizes) < t.DEPTH or min(sizes) <= 0 or not all(map(math.isfinite, sizes)):
        return
    logs, depth = np.log(sizes), np.arange(len(sizes))
    trend = float(np.corrcoef(depth, logs)[0, 1]) if logs.std() > 0 else 0.0
    whole = math.exp(abs(float(logs[-1] - logs[0])))
    if abs(trend) > 0.9 and whole > t.GROWTH:
        word = "grows" if trend > 0 else "shrinks"
        yield Finding(
            405, "warning", chain[-1].name,
            f"the scale {word} {whole:.0e} times over {len(sizes)} layers",
            "gradients do the same on their way back: the first layers learn too fast or not at all",
            "a norm after each layer, or an initialisation for this activation",
            (("times", whole), ("trend", trend)),
        )  # fmt: skip


def weights_of_norms(record: ModelRecord) -> Iterator[Finding]:
    """406: weights of a norm that are as good as 0, or huge."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        weight = np.abs(np.asarray(norm.weight))
        if not weight.size:
            continue
        gone, huge = float((weight < t.GAMMA_DEAD).mean()), float(weight.max())
        # Blocks that begin as identities have norms of weight 0, on purpose. They soon learn another.
        begins = huge == 0 and (norm.tracked or 0) < t.SETTLING
        if gone > 0.5 and not begins:
            yield Finding(
                406, "warning", layer.name,
                f"{gone:.0%} of its weights are below {t.GAMMA_DEAD:g}",
                "these channels are switched off, and their inputs get no gradient",
                "less weight decay or penalty on weights of norms, or a narrower layer",
                (("share", gone),),
            )  # fmt: skip
        elif not math.isfinite(huge) or huge > t.GAMMA_HUGE:
            yield Finding(
                406, "warning", layer.name,
                f"its largest weight is {huge:.3g}; they start at 1",
                "one channel outweighs all others in what follows",
                "a smaller learning rate, or clipped gradients",
                (("largest", huge),),
            )  # fmt: skip


def _normalises_first(record: ModelRecord) -> bool:
    """Return whether the first layer that takes the input normalises it."""
    first = next((layer for layer in record.layers if layer.order is not None), None)
    return first is not None and first.role in ("input", "norm")


def _size(seen: Spread) -> float:
    """Return the root mean square over channels."""
    return float(np.sqrt(np.mean(np.square(seen.mean) + np.asarray(seen.var)))) if seen.mean else 0.0


def _centre(seen: Spread) -> float:
    return float(np.mean(seen.mean)) if seen.mean else 0.0


def _deviation(seen: Spread) -> float:
    return float(np.sqrt(np.mean(seen.var))) if seen.var else 0.0


RULES = (unlike_training, scaled_twice, raw_inputs, saturated, dead, grows_with_depth, weights_of_norms)
