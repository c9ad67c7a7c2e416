"""The learning rate of a setting: chosen on validation, never on the test split."""

from dataclasses import replace

import pytest
import torch

from slabnorm.report.study import CurvePoint, RunRecord
from slabnorm.study import compare
from slabnorm.study.models import find_build
from slabnorm.study.rates import RATES, Setting, best_rates, describe, edge_notes, search, setting_of
from slabnorm.study.scaling import fit_inputs
from slabnorm.study.train import Bench, Rules, Run, begin, run_once
from slabnorm.study.verdict import rates_verdict
from tests.study.small import few_digits, table, tiny

RAW, ZSCORE = Setting("raw", "none", 16), Setting("zscore", "none", 16)


def run(scheme: str, rate: float, validation: float, **other: object) -> RunRecord:
    curve = (CurvePoint(5, 0.5, 0.99, 0.1), CurvePoint(10, 1.0, validation, 0.1))
    return RunRecord(scheme, "none", 16, 0, **{"status": "done", "curve": curve, "rate": rate, **other})


def test_the_best_at_the_end_on_validation_is_chosen():
    runs = [run("raw", 1.0, 0.9), run("raw", 4.0, 0.8), run("zscore", 1.0, 0.7), run("zscore", 4.0, 0.95)]
    assert best_rates(runs) == {RAW: 1.0, ZSCORE: 4.0}


def test_of_equal_rates_the_nearest_to_the_base_is_chosen():
    assert best_rates([run("raw", rate, 0.9) for rate in (1 / 16, 1 / 4, 4.0, 16.0)]) == {RAW: 4.0}


def test_seeds_are_averaged_and_a_diverged_run_counts_as_nothing():
    runs = [run("raw", 1.0, 0.6), replace(run("raw", 1.0, 0.6), seed=1)]
    runs += [run("raw", 4.0, 0.99), replace(run("raw", 4.0, 0.99, status="diverged"), seed=1)]
    assert best_rates(runs) == {RAW: 1.0}


def test_a_study_takes_the_best_rate_on_validation_where_the_test_split_prefers_another(in_plain_torch):
    """And its results are those of runs with other seeds, at that rate."""
    study = compare(tiny, table(90), norms=["none", "batch"], batch_sizes=[4, 8], seeds=2, schemes=())
    tried = [run for run in study.runs if run.seed in study.search_seeds]
    best = best_rates(tried)
    preferred = {}
    for setting in best:
        accuracy = {r.rate: r.test_accuracy for r in tried if setting_of(r) == setting}
        preferred[setting] = accuracy[best[setting]] < max(accuracy.values())
    assert any(preferred.values())
    assert not set(study.seeds) & set(study.search_seeds)
    for cell in study.cells:
        setting = Setting(cell.scheme, cell.norm, cell.batch_size)
        final = [r for r in study.runs if r.seed in study.seeds and setting_of(r) == setting]
        assert {r.rate for r in final} == {best[setting]}
        assert cell.learning_rate == pytest.approx(0.1 * best[setting] * cell.batch_size / 128)


def landscape(best):
    """Train in no time: the accuracy falls off around a rate."""

    def do(runs):
        return {r: run(r.scheme, r.rate, 1 / (1 + abs(r.rate - best) / best)) for r in runs}

    return do


@pytest.mark.parametrize(("best", "tried"), [(64.0, 64.0), (1 / 16, 1 / 16), (4.0, None)])
def test_a_best_rate_at_an_edge_extends_the_grid_once(best, tried):
    records = search([RAW], (7,), landscape(best))
    rates = sorted({record.rate for record in records})
    assert rates == sorted([*RATES, *([tried] if tried else [])])
    assert best_rates(records) == {RAW: best}


def test_a_best_rate_at_the_end_of_the_longer_grid_is_said():
    (found,) = describe(search([RAW], (7,), landscape(1000.0)), Rules(), 0.1)
    assert found.at_edge
    assert found.chosen == found.rates[-1] == pytest.approx(64 * 0.1 * 16 / 128)
    (note,) = edge_notes([found], "zscore")
    assert note == (
        "No norm on raw inputs, batch size 16: best at the highest learning rate tried, 0.8; a higher one "
        "may be better still."
    )


def test_where_nothing_learns_the_grid_is_not_extended():
    records = search([RAW], (7,), lambda runs: {r: run("raw", r.rate, 0.9, status="failed") for r in runs})
    assert {record.rate for record in records} == set(RATES)
    assert best_rates(records) == {RAW: 1.0}
    assert not describe(records, Rules(), 0.1)[0].learns


def test_the_good_range_is_what_lies_within_two_points_around_the_best():
    values = {1 / 4: 0.95, 1.0: 0.90, 4.0: 0.955, 16.0: 0.97}
    (found,) = describe([run("raw", rate, value) for rate, value in values.items()], Rules(), 0.1)
    base = 0.1 * 16 / 128
    assert found.good == pytest.approx((4 * base, 16 * base))
    assert (found.open_below, found.open_above, found.width) == (False, True, 4.0)
    assert rates_verdict([found]) == (
        "At batch size 16, the network without a norm learns well over a factor of 4 or more of learning "
        "rates."
    )


def test_the_widest_and_the_narrowest_ranges_are_named():
    wide, narrow = (describe(search([RAW], (7,), landscape(4.0)), Rules(), 0.1)[0] for _ in range(2))
    wide = replace(wide, norm="batch", good=(0.1, 1.6))
    assert rates_verdict([narrow, wide]) == (
        "At batch size 16, batch norm learns well over a factor of 16 of learning rates, the network without "
        "a norm at one of the 4 learning rates tried."
    )
    still = replace(wide, norm="instance", validation=(0.1,) * 4)
    assert not still.learns
    assert rates_verdict([narrow, still, wide]).endswith("; instance norm does not learn at any of them.")
    assert rates_verdict([still]) == ""


def test_a_rate_multiplies_every_step():
    data = few_digits()
    bench = Bench(
        find_build("mlp", data)[1], data, {"zscore": fit_inputs(data, "zscore")[0]}, Rules(epochs=1)
    )
    rates = []
    for rate in (1.0, 4.0):
        training = begin(bench, Run("zscore", "none", 16, 0, rate))[0]
        training.step(torch.as_tensor(data.split.train[:16]), 10)
        rates.append(training.optimiser.param_groups[0]["lr"])
    assert rates[1] == 4 * rates[0]
    assert run_once(bench, Run("zscore", "none", 16, 0, 4.0), lambda: None).rate == 4.0
