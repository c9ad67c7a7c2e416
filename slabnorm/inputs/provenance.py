"""Which data fitted statistics come from: the training split, the new data too, or others.

Statistics match data by count, mean and squared deviations, each within 1e-9: another order of the samples
rounds otherwise. The sum of the samples' hashes says the same of every single value.
"""

from __future__ import annotations

import torch

from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.mergeable_moments import Moments
from slabnorm.report.audit import Finding

CLOSE = 1e-9  # relative; Moments of the same samples in another order differ by 1e-13 at most


def find_leak(norm: InputNorm, new: Tally, train: Tally | None, name: str) -> tuple[list[Finding], list[str]]:
    """Return statistics that have seen the new data, or not the training split; and notes."""
    advice = "fit again on the training split alone, and train again: what was measured saw the answers"
    if comes_from(norm, new):
        text = f"the statistics are those of {name} itself"
        return [Finding("leak", "error", text, advice)], []
    if train is None:
        return [], []
    if comes_from(norm, train):
        return [], ["the statistics are those of the training split alone"]
    if comes_from(norm, train.merge(new)):
        text = f"the statistics are those of the training split and {name} together"
        return [Finding("leak", "error", text, advice)], []
    counts = (("fitted", norm.samples), ("train", train.samples), ("both", train.samples + new.samples))
    text = (
        f"the statistics, of {norm.samples:,} samples, are neither those of the training split given, of "
        f"{train.samples:,}, nor those of both"
    )
    return [
        Finding("source", "warning", text, "give the split that was fitted, as it was then", (), counts)
    ], []


def comes_from(norm: InputNorm, tally: Tally) -> bool:
    """Whether statistics are those of what was counted."""
    if norm.samples != tally.samples:
        return False
    content = norm.record.content
    if content and content == f"{tally.content:016x}":
        return True
    return match(norm.moments, tally.moments)


def match(a: Moments, b: Moments) -> bool:
    """Whether two Moments are those of the same values."""
    if a.shape != b.shape or not torch.equal(a.count, b.count):
        return False
    size = torch.maximum(a.mean.abs(), a.std())
    means = (a.mean - b.mean).abs() <= CLOSE * size
    spreads = (a.m2 - b.m2).abs() <= CLOSE * a.m2
    return bool((means & spreads).all())
