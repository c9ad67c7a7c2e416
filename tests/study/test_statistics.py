"""Intervals against scipy, and cells."""

import math

import pytest
from scipy import stats

from slabnorm.errors import OptionError
from slabnorm.report.study import CurvePoint, Interval, RunRecord
from slabnorm.study.statistics import cell, clipped, curve, interval, is_clear, paired
from slabnorm.study.train import Rules


def run(seed=0, accuracy=0.9, **more):
    fields = {"status": "done", "test_accuracy": accuracy, "gap": 0.0, "seconds_per_step": 0.001}
    return RunRecord("zscore", "batch", 2, seed, **{**fields, **more})


@pytest.mark.parametrize("values", [[0.91, 0.95, 0.93], [0.5, 0.9], [0.1, 0.2, 0.3, 0.9, 0.4]])
def test_interval_is_scipys(values):
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values)
    )
    got = interval(values)
    assert got.low == pytest.approx(low, rel=1e-12)
    assert got.high == pytest.approx(high, rel=1e-12)
    assert got.mean == pytest.approx(sum(values) / len(values))


def test_equal_counts_have_the_width_of_the_rounding():
    got = interval([0.9, 0.9, 0.9], resolution=0.01)
    assert (got.high - got.low) / 2 == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(12 * 3))


def test_one_value_has_no_interval_and_is_never_clear():
    assert interval([0.5]) == Interval(0.5, None, None, 1)
    assert not is_clear(interval([0.5]))
    with pytest.raises(OptionError):
        interval([])


def test_paired_differences_see_what_means_hide():
    first, second = [0.70, 0.80, 0.90], [0.69, 0.79, 0.89]
    assert is_clear(paired(first, second, 1e-6))
    assert not is_clear(paired(first, [0.79, 0.89, 0.69], 1e-6))


def test_one_sample_of_difference_in_every_seed_is_not_clear_and_two_are():
    assert not is_clear(paired([0.91] * 3, [0.90] * 3, 0.01))
    assert is_clear(paired([0.92] * 3, [0.90] * 3, 0.01))


def test_clipping_keeps_an_accuracy_an_accuracy():
    assert clipped(interval([0.5, 1.0, 1.0])).high == 1.0
    assert clipped(interval([0.0, 0.0, 0.4])).low == 0.0


def test_steps_take_never_as_infinite():
    runs = [run(0, steps_to_target=10), run(1, steps_to_target=30), run(2)]
    assert cell(runs, 0.01, Rules()).steps_to_target == 30
    assert cell(runs, 0.01, Rules()).reached == 2
    runs = [run(0, steps_to_target=10), run(1), run(2)]
    assert cell(runs, 0.01, Rules()).steps_to_target is None
    assert cell(runs, 0.01, Rules()).reached == 1


def test_a_failed_run_leaves_its_cell_without_accuracy():
    failed = RunRecord("zscore", "batch", 2, 1, "failed", "why")
    got = cell([run(0), failed], 0.01, Rules())
    assert (got.accuracy, got.gap, got.failed, got.reason) == (None, None, 1, "why")


def test_curve_is_mean_and_range_as_far_as_all_seeds_go():
    def points(*accuracies):
        return tuple(CurvePoint(i, i / 4, a, 1.0) for i, a in enumerate(accuracies))

    got = curve([run(0, curve=points(0.2, 0.4, 0.6)), run(1, curve=points(0.4, 0.8))])
    assert got.mean == pytest.approx((0.3, 0.6))
    assert (got.low, got.high, got.epochs) == ((0.2, 0.4), (0.4, 0.8), (0.0, 0.25))
    assert curve([run(0), run(1, curve=points(0.1))]) is None


def test_one_of_many_intervals_is_wider_by_bonferroni():
    values = [1.0, 2.0, 4.0, 3.0]
    alone, among = interval(values), interval(values, among=10)
    half = stats.t.ppf(1 - 0.025 / 10, 3) * stats.tstd(values) / 2
    assert (among.low, among.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert among.low < alone.low
