"""What runs say together: means, intervals, medians and paired differences."""

from __future__ import annotations

import math
from statistics import fmean, median, stdev

from slabnorm.errors import OptionError
from slabnorm.report.study import CellRecord, CurveRecord, Interval, RunRecord
from slabnorm.study.train import Rules

CONFIDENCE = 0.95


def interval(values: list[float], resolution: float = 0.0, among: int = 1) -> Interval:
    """Return the mean and its 95% interval by Student's t over `values`.

        mean ± t(0.975, n-1) * s / sqrt(n)

    Args:
        values: one measurement for each seed.
        resolution: the least difference that values can have, which is 1/n for shares counted on n samples.
            The standard deviation is at least that of rounding, resolution / sqrt(12), so that three equal
            counts do not give an interval without width.
        among: of how many intervals this is one. Bonferroni's correction makes each wider, so that all
            hold together with 95%.

    Raises:
        OptionError: there are no values.
    """
    if not values:
        raise OptionError("values must not be empty", "", "give at least one")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    from scipy.stats import t

    spread = max(stdev(values), resolution / math.sqrt(12))
    quantile = float(t.ppf(1 - (1 - CONFIDENCE) / 2 / among, len(values) - 1))
    half = quantile * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def paired(first: list[float], second: list[float], resolution: float, among: int = 1) -> Interval:
    """Return the interval of `first - second`, seed by seed.

    Args:
        first, second: one value for each seed, in the same order of seeds.
        resolution: that of each value; a difference of two rounded values has sqrt(2) times as much.
        among: of how many such intervals this is one.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return interval(differences, math.sqrt(2) * resolution, among)


def is_clear(difference: Interval) -> bool:
    """Return whether an interval leaves out zero. One value has no interval, and is never clear."""
    if difference.low is None or difference.high is None:
        return False
    return difference.low > 0 or difference.high < 0


def accuracies(runs: list[RunRecord]) -> list[float] | None:
    """Return the test accuracies in the order of the seeds, or None where a run failed."""
    values = [run.test_accuracy for run in sorted(runs, key=lambda run: run.seed)]
    return [v for v in values if v is not None] if values and None not in values else None


def cell(runs: list[RunRecord], resolution: float, rules: Rules) -> CellRecord:
    """Return what the runs of one scheme, norm and batch size say together.

    Args:
        runs: one run for each seed.
        resolution: 1 divided by the number of test samples.
        rules: how they were trained.
    """
    first = runs[0]
    values = accuracies(runs)
    gaps = [run.gap for run in runs if run.gap is not None]
    reached = [run.steps_to_target for run in runs if run.steps_to_target is not None]
    steps = median([float(s) for s in reached] + [math.inf] * (len(runs) - len(reached)))
    times = [run.seconds_per_step for run in runs if run.seconds_per_step is not None]
    return CellRecord(
        scheme=first.scheme,
        norm=first.norm,
        batch_size=first.batch_size,
        accuracy=None if values is None else clipped(interval(values, resolution)),
        gap=interval(gaps) if len(gaps) == len(runs) else None,
        steps_to_target=None if math.isinf(steps) else steps,
        reached=len(reached),
        seconds_per_step=median(times) if times else None,
        runs=len(runs),
        diverged=sum(run.status == "diverged" for run in runs),
        failed=sum(run.status == "failed" for run in runs),
        reason=next((run.reason for run in runs if run.reason), ""),
        learning_rate=first.rate * rules.rate(0, 1, first.batch_size),
    )


def clipped(accuracy: Interval) -> Interval:
    """Return the interval of an accuracy, cut off at 0 and 1."""
    if accuracy.low is None or accuracy.high is None:
        return accuracy
    return Interval(accuracy.mean, max(accuracy.low, 0.0), min(accuracy.high, 1.0), accuracy.count)


def curve(runs: list[RunRecord]) -> CurveRecord | None:
    """Return the mean validation curve of a cell with its lowest and highest seed; None if there is none.

    A run that diverged has a shorter curve, and the mean ends with the shortest curve.
    """
    shortest = min(len(run.curve) for run in runs)
    if shortest == 0:
        return None
    looks = [[run.curve[i].accuracy for run in runs] for i in range(shortest)]
    return CurveRecord(
        scheme=runs[0].scheme,
        norm=runs[0].norm,
        batch_size=runs[0].batch_size,
        epochs=tuple(point.epoch for point in runs[0].curve[:shortest]),
        mean=tuple(fmean(values) for values in looks),
        low=tuple(min(values) for values in looks),
        high=tuple(max(values) for values in looks),
    )
