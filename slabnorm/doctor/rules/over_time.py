"""What only a training that was watched can show, in the codes of its families."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.rules.findings import (
    dead_finding,
    eval_finding,
    flat_finding,
    half_frozen_finding,
    ranks_finding,
)
from slabnorm.report.check import Finding

if TYPE_CHECKING:
    from slabnorm.doctor.watch import WatchRecord


def forgotten_eval(record: WatchRecord) -> Iterator[Finding]:
    """101: batch-pooling layers in train mode while gradients are off."""
    if record.without_gradients:
        name, times = next(iter(record.without_gradients.items()))
        layers = len(record.without_gradients)
        yield Finding(
            101, "error", name,
            f"in train mode while gradients are off, in {times} forwards" + _others(layers),
            "what is evaluated depends on its batch, and evaluation moves the running statistics",
            "model.eval() before evaluating, model.train() after it",
            (("forwards", times), ("layers", layers)),
        )  # fmt: skip


def trains_in_eval(record: WatchRecord) -> Iterator[Finding]:
    """102: training forwards with a layer in eval mode that was not frozen on purpose."""
    for name, times in record.in_eval.items():
        norm = record.tracks[name].layer.norm
        if norm is not None and norm.learns:
            found = f"in eval mode in {times} training forwards, while its weight learns"
            yield eval_finding(name, found, (("forwards", times),))


def moves_though_frozen(record: WatchRecord) -> Iterator[Finding]:
    """103: weight and bias are frozen, the running statistics are not."""
    for name, times in record.updates.items():
        norm = record.tracks[name].layer.norm
        if norm is not None and norm.learns is False and times > 0:
            yield half_frozen_finding(name, (("updates", times),))


def damaged(record: WatchRecord) -> Iterator[Finding]:
    """201: running statistics became NaN or infinite, and when."""
    for name, step in record.first_bad.items():
        yield Finding(
            201, "error", name,
            f"its running statistics are NaN or infinite since step {step} at the latest",
            "one batch with a NaN poisons them for good, and eval mode gives NaN",
            "find the batch, then sn.recalibrate(model, train_loader)",
            (("step", step),),
        )  # fmt: skip


def updated_often(record: WatchRecord) -> Iterator[Finding]:
    """205: a step that moves running statistics more than once, with one forward of the model."""
    once = 1 in record.passes and set(record.passes) <= {0, 1}
    for name, times in record.updates.items():
        if times > 1 and name not in record.without_gradients and once:
            yield Finding(
                205, "warning", name,
                f"one step updates its running statistics {times} times",
                "they forget faster than momentum says; checkpointing runs a forward again, in the backward",
                'one norm for each place; with checkpointing, sn.convert(model, "batch"), which counts once',
                (("updates", times),),
            )  # fmt: skip


def not_synchronised(record: WatchRecord) -> Iterator[Finding]:
    """207: several processes train on small batches, each with its own statistics."""
    alone = [
        name for name, track in record.tracks.items()
        if track.layer.norm and track.layer.norm.pools_samples and track.layer.kind != "SyncBatchNorm"
    ]  # fmt: skip
    if alone and record.ranks > 1 and 0 < record.samples < 2 * t.FEW_SAMPLES:
        yield ranks_finding(alone[0], record.ranks, record.samples, _others(len(alone)))


def accumulates(record: WatchRecord) -> Iterator[Finding]:
    """307: gradients of several forwards make one step, and batch-pooling layers see each alone."""
    steps = sum(record.passes.values())
    several = {passes: times for passes, times in record.passes.items() if passes > 1}
    pools = [n for n, track in record.tracks.items() if track.layer.norm and track.layer.norm.pools_samples]
    if pools and steps and sum(several.values()) > steps / 2:
        usual = max(several, key=lambda passes: several[passes])
        # Two views of a batch, or real and generated images, are two forwards as well, and large ones.
        few = 0 < record.samples < 2 * t.FEW_SAMPLES
        yield Finding(
            307, "warning" if few else "note", pools[0],
            f"{usual} forwards of {record.samples} samples make one step, and the layer sees each alone"
            + _others(len(pools)),
            "accumulated gradients are not those of the whole batch, and statistics move at each forward",
            "sn.virtual_batch(model, parts, loss), which is exact",
            (("forwards", usual), ("samples", record.samples), ("layers", len(pools))),
        )  # fmt: skip


def lasting(record: WatchRecord) -> Iterator[Finding]:
    """403, 404: activations that are flat or dead in the last quarter of what was looked at."""
    for track in record.tracks.values():
        flat, dead = _late(track.flat), _late(track.dead)
        if flat > t.FLAT_SHARE:
            yield flat_finding(track.layer, flat, ", at the end")
        if dead > t.DEAD_SHARE:
            yield dead_finding(track.layer, dead, "for whole batches, at the end")


def drifts(record: WatchRecord) -> Iterator[Finding]:
    """407: a layer's input moves so fast that running statistics lag behind."""
    for name, track in record.tracks.items():
        norm = track.layer.norm
        late = _late(track.stale)
        if norm is not None and norm.pools_samples and late > t.LAG and len(track.stale) >= t.LOOKS:
            yield Finding(
                407, "warning", name,
                f"its batches are {late:.1f} running standard deviations away from its running statistics",
                "its input moves faster than they follow: eval mode is always late",
                "a smaller learning rate, or a larger momentum",
                (("lag", late),),
            )  # fmt: skip


def _others(layers: int) -> str:
    """Return how many other layers a finding is about."""
    return "" if layers == 1 else f"; so it is for {layers - 1} more"


def _late(values: Sequence[float]) -> float:
    """Return the mean of the last quarter of the numbers that are there; 0 if there are none."""
    known = [value for value in values if math.isfinite(value)]
    some = known[-max(1, len(known) // 4) :] if known else []
    return sum(some) / len(some) if some else 0.0


RULES = (
    damaged, forgotten_eval, trains_in_eval, moves_though_frozen, updated_often, not_synchronised,
    accumulates, lasting, drifts,
)  # fmt: skip
