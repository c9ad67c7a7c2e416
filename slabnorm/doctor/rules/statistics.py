"""2xx, statistics: running statistics that are damaged, missing, stale or too noisy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.record import Layer, ModelRecord, Norm
from slabnorm.doctor.rules.findings import fewer_groups, ranks_finding
from slabnorm.report.check import Finding


def not_finite(record: ModelRecord) -> Iterator[Finding]:
    """201: running statistics contain NaN or infinity."""
    for layer, norm in _tracking(record):
        bad = sum(not math.isfinite(v) for v in (*norm.running_mean, *norm.running_var))
        if bad:
            yield Finding(
                201, "error", layer.name,
                f"{bad} of its {2 * len(norm.running_mean)} running statistics are NaN or infinite",
                "one batch with a NaN, as under mixed precision, poisons them for good: eval mode gives NaN",
                "sn.recalibrate(model, train_loader) after you have found the batch",
                (("damaged", bad),),
            )  # fmt: skip


def never_updated(record: ModelRecord) -> Iterator[Finding]:
    """202: a model that evaluates has a layer whose running statistics are the initial ones."""
    for layer, norm in _tracking(record):
        initial = all(v == 0 for v in norm.running_mean) and all(v == 1 for v in norm.running_var)
        if initial and not record.training and not norm.tracked:
            yield Finding(
                202, "error", layer.name,
                "its running statistics are still mean 0 and variance 1: no batch has entered them",
                "in eval mode it does not normalise at all",
                "load the buffers of the checkpoint too, or sn.recalibrate(model, train_loader)",
            )  # fmt: skip


def stale(record: ModelRecord) -> Iterator[Finding]:
    """203: running statistics are far from the batch's, and not by chance."""
    for layer, norm in _tracking(record):
        seen = layer.input
        usable = seen is not None and len(seen.mean) == len(norm.running_mean) and not seen.nonfinite
        if not usable or not norm.tracked or seen is None or seen.samples < 2:
            continue
        if record.training and norm.tracked < t.SETTLING:
            continue  # a training that begins
        mean, var, here, spread = (
            np.asarray(v) for v in (norm.running_mean, norm.running_var, seen.mean, seen.var)
        )
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            continue
        # One independent value for each sample: the values of an image are alike.
        with np.errstate(all="ignore"):
            deviation = np.sqrt(np.maximum(var, norm.eps))
            shift = np.abs(here - mean) / deviation
            error = np.sqrt(np.maximum(spread, var) / seen.samples) / deviation
            ratio = (spread + norm.eps) / (var + norm.eps)
            away = np.maximum(ratio, 1 / ratio)
            noise = t.Z_ERRORS * math.sqrt(2 / max(1, seen.samples - 1))
        moved = (shift > t.SHIFT) & (shift > t.Z_ERRORS * error)
        other = (away > t.RATIO) & (np.log(away) > noise)
        share = float((moved | other).mean())
        if share > 0.5 or (share > 0.05 and (moved | other).sum() >= 4):
            kept = layer.frozen or (record.training and not layer.training and not norm.learns)
            yield Finding(
                203, "note" if kept else "warning", layer.name,
                f"in {share:.0%} of its channels the running statistics are far from this batch's: "
                f"the mean by up to {shift.max():.1f} standard deviations, the variance {away.max():.1f}x"
                + _initial(norm),
                "eval mode normalises by statistics of other data, or of weights that have moved since",
                "sn.recalibrate(model, train_loader), if this batch is like the training data",
                (("share", share), ("shift", float(shift.max())), ("ratio", float(away.max()))),
            )  # fmt: skip


def _initial(norm: Norm) -> str:
    """Return how much of running statistics is still their initial 0 and 1, if it is much."""
    part = (1 - (norm.momentum or 0.0)) ** (norm.tracked or 0) if norm.momentum is not None else 0.0
    return (
        f"; after {norm.tracked} batches {part:.0%} of them is still the initial 0 and 1"
        if part > 0.1
        else ""
    )


def other_momentum(record: ModelRecord) -> Iterator[Finding]:
    """204: the momentum looks like the other convention's."""
    for layer, norm in _tracking(record):
        if norm.momentum is not None and t.MOMENTUM <= norm.momentum <= 1:
            theirs = 1 - norm.momentum
            yield Finding(
                204, "warning", layer.name,
                f"momentum is {norm.momentum:g}: in PyTorch that is the weight of the new batch",
                "its running statistics are those of the last batches; Keras and Flax call 1 - m momentum",
                f"momentum={theirs:.3g}" if theirs else "momentum=0.1",
                (("momentum", norm.momentum),),
            )  # fmt: skip


def updated_twice(record: ModelRecord) -> Iterator[Finding]:
    """205: one step updates running statistics more than once."""
    for layer, norm in _tracking(record):
        if norm.updates is not None and norm.updates > 1:
            shared = (
                f"the forward calls it {layer.calls} times"
                if layer.calls > 1
                else "it runs again in backward"
            )
            yield Finding(
                205, "warning", layer.name,
                f"one step updates its running statistics {norm.updates} times: {shared}",
                "they forget faster than momentum says, and mix inputs of different places",
                'one norm for each place; with checkpointing, sn.convert(model, "batch"), which counts once',
                (("updates", norm.updates),),
            )  # fmt: skip


def small_slab(record: ModelRecord) -> Iterator[Finding]:
    """206: too few values stand behind a statistic."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        if layer.order is None or not norm.elements:
            continue
        if norm.elements < t.ERASED and norm.centers and (record.training or not norm.tracks):
            yield Finding(
                206, "error", layer.name,
                "one value stands behind each of its statistics: x - mean is 0, whatever x is",
                "the layer erases its input and returns its bias",
                _instead_of_one_value(norm),
                (("elements", norm.elements),),
            )  # fmt: skip
            continue
        noise = 1 / math.sqrt(record.samples) if record.samples else 0.0
        if norm.pools_samples and record.training and layer.training and 1 < record.samples < t.FEW_SAMPLES:
            # Without axes beside the features, a group of them has few values, and a layer all of them.
            kind = "group" if norm.elements > record.samples else "layer"
            yield Finding(
                206, "warning", layer.name,
                f"batches of {record.samples} samples: its mean is off by about {noise:.0%} of a standard "
                "deviation, another one in each step",
                "small batches cost accuracy that group norm and larger batches do not lose",
                f'larger batches, sn.virtual_batch, or sn.convert(model, to="{kind}")',
                (("samples", record.samples), ("noise", noise)),
            )  # fmt: skip
        elif not norm.pools_samples and norm.elements < t.FEW_ELEMENTS and norm.centers:
            yield Finding(
                206, "warning", layer.name,
                f"{norm.elements} values stand behind each of its statistics",
                "a mean and a variance of so few values say little else than these values",
                "fewer groups or more features",
                (("elements", norm.elements),),
            )  # fmt: skip


def _instead_of_one_value(norm: Norm) -> str:
    """Return what to do about a norm that erases its input."""
    if norm.family == "group" and norm.groups > 1:
        return f"fewer groups, such as {fewer_groups(norm.channels)}"
    if norm.pools_samples:
        return "larger batches, or a norm before the spatial axes are pooled"
    return "nn.Identity() in its place, or a norm before the spatial axes are pooled"


def not_synchronised(record: ModelRecord) -> Iterator[Finding]:
    """207: several processes train on small batches, each with its own statistics."""
    for layer, norm in _tracking(record):
        small = 0 < record.samples < 2 * t.FEW_SAMPLES
        if record.ranks > 1 and small and norm.pools_samples and layer.kind != "SyncBatchNorm":
            yield ranks_finding(layer.name, record.ranks, record.samples)


def constant_channel(record: ModelRecord) -> Iterator[Finding]:
    """208: channels whose variance is below eps."""
    for layer in record.norms:
        norm, seen = layer.norm, layer.input
        assert norm is not None
        if seen is None or not norm.per_channel or not norm.centers or seen.count < 2:
            continue
        var = np.asarray(seen.var)
        share = float((var < norm.eps).mean())
        if share > 0:
            yield Finding(
                208, "warning" if share > 0.1 else "note", layer.name,
                f"{share:.0%} of its input channels have a variance below eps={norm.eps:g}",
                "they are constant, and eps alone decides how they are scaled",
                "look for dead units or constant features before it, or for inputs on a tiny scale",
                (("share", share), ("smallest", float(var.min()))),
            )  # fmt: skip


def _tracking(record: ModelRecord) -> Iterator[tuple[Layer, Norm]]:
    for layer in record.norms:
        if layer.norm is not None and layer.norm.tracks:
            yield layer, layer.norm


RULES = (
    not_finite, never_updated, other_momentum, updated_twice, stale, small_slab, not_synchronised,
    constant_channel,
)  # fmt: skip
