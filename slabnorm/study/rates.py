"""The learning rate of each input scheme, chosen on the validation split.

Scaling an input by k scales the first layer's gradient by k, too: at one learning rate the schemes would be
ranked by the size of their steps. So each trains at several rates, and the best of those stands for it.
"""

from __future__ import annotations

from statistics import fmean

from slabnorm.report.labels import scheme_label
from slabnorm.report.records import RunRecord

RATES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)  # multiples of the study's learning rate


def best_rates(runs: list[RunRecord]) -> dict[str, float]:
    """Return, for every scheme, the rate with the highest mean validation accuracy at the end.

    A run that diverged or failed counts as 0; of equal rates the first is taken. The test split has no say.

    Args:
        runs: every scheme at every rate, over the seeds.
    """
    found: dict[str, float] = {}
    for scheme in dict.fromkeys(run.scheme for run in runs):
        means: dict[float, float] = {}
        for rate in dict.fromkeys(run.rate for run in runs):
            ends = [last_accuracy(run) for run in runs if run.scheme == scheme and run.rate == rate]
            means[rate] = fmean(ends)
        found[scheme] = max(means, key=means.__getitem__)
    return found


def last_accuracy(run: RunRecord) -> float:
    """Return the validation accuracy at the end of a run, 0 unless it was done."""
    return run.curve[-1].accuracy if run.status == "done" and run.curve else 0.0


def edge_notes(rates: dict[str, float]) -> list[str]:
    """Return what to say of schemes whose best rate is the lowest or highest tried."""
    ends = {min(RATES): "lowest", max(RATES): "highest"}
    return [
        f"inputs, {scheme_label(scheme)}: best at the {ends[rate]} learning rate tried; beyond may be better"
        for scheme, rate in rates.items()
        if rate in ends
    ]
