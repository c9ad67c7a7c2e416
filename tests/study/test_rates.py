"""The learning rate of an input scheme: chosen on validation, never on the test split."""

from dataclasses import replace

import torch

from slabnorm.report.study import CurvePoint, RunRecord
from slabnorm.study.options import RATES
from slabnorm.study.statistics import best_rates, edge_notes
from slabnorm.study.train import Bench, Rules, Run, begin, run_once
from tests.study.small import few_digits


def run(scheme: str, rate: float, validation: float, **other: object) -> RunRecord:
    curve = (CurvePoint(5, 0.5, 0.99, 0.1), CurvePoint(10, 1.0, validation, 0.1))
    return RunRecord(scheme, "none", 16, 0, **{"status": "done", "curve": curve, "rate": rate, **other})


def test_the_best_at_the_end_on_validation_is_chosen():
    runs = [run("raw", 1.0, 0.9), run("raw", 4.0, 0.8), run("zscore", 1.0, 0.7), run("zscore", 4.0, 0.95)]
    assert best_rates(runs) == {"raw": 1.0, "zscore": 4.0}


def test_the_test_split_has_no_say():
    runs = [run("raw", 1.0, 0.9, test_accuracy=0.1), run("raw", 4.0, 0.8, test_accuracy=1.0)]
    assert best_rates(runs) == {"raw": 1.0}


def test_seeds_are_averaged_and_a_diverged_run_counts_as_nothing():
    runs = [run("raw", 1.0, 0.6), replace(run("raw", 1.0, 0.6), seed=1)]
    runs += [run("raw", 4.0, 0.99), replace(run("raw", 4.0, 0.99, status="diverged"), seed=1)]
    assert best_rates(runs) == {"raw": 1.0}


def test_a_rate_multiplies_every_step():
    from slabnorm.study.models import find_build
    from slabnorm.study.scaling import fit_inputs

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
    record = run_once(bench, Run("zscore", "none", 16, 0, 4.0), lambda: None)
    assert record.rate == 4.0


def test_a_rate_at_the_edge_is_said():
    (note,) = edge_notes({"raw": min(RATES), "zscore": 1.0})
    assert "raw: best at the lowest learning rate tried" in note
