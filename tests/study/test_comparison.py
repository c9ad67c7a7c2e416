"""compare() as a whole, on little data."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from slabnorm.errors import DataError, LedgerError, ModelError, OptionError, PatternError, SlabError
from slabnorm.study import compare
from slabnorm.study.data import from_arrays
from slabnorm.study.rates import RATES, setting_of
from slabnorm.study.scaling import fit_inputs
from slabnorm.study.train import Rules
from slabnorm.study.workers import portable
from tests.study.small import few_digits, greedy, in_place, lazy, table, tiny

QUICK = {"norms": ["none", "batch"], "batch_sizes": [4, 16], "seeds": 2, "epochs": 1}


def measured(study):
    """What must not depend on the machine's mood: all but the times."""
    return [replace(run, seconds_per_step=None) for run in study.runs]


@pytest.fixture(scope="module")
def study():
    return compare(tiny, table(), **QUICK)


def test_every_run_is_there_once_and_cells_follow(study):
    # Norms x sizes and three schemes, one of which is among the former; each of two seeds at one rate, after
    # one seed at each rate.
    settings = {setting_of(run) for run in study.runs}
    assert len(settings) == len(study.searches) == 2 * 2 + 3 - 1
    assert sum(run.seed in study.seeds for run in study.runs) == 2 * len(settings)
    tried = [run for run in study.runs if run.seed in study.search_seeds]
    assert len(RATES) * len(settings) <= len(tried) <= (len(RATES) + 1) * len(settings)
    assert len(study.runs) == len(set(study.runs)) == 2 * len(settings) + len(tried)
    assert [(c.norm, c.batch_size) for c in study.cells] == [
        ("none", 4),
        ("none", 16),
        ("batch", 4),
        ("batch", 16),
    ]
    assert [c.scheme for c in study.inputs] == ["raw", "minmax", "zscore"]
    assert {c.norm for c in study.inputs} == {"none"}
    assert {c.batch_size for c in study.inputs} == {16}
    assert "at batch size 4" in study.verdict.lower()
    assert "with no norm at batch size 16" in study.inputs_verdict.lower()


def test_one_network_has_one_number_in_both_tables(study):
    (among_norms,) = (c for c in study.cells if (c.norm, c.batch_size) == ("none", 16))
    (among_inputs,) = (c for c in study.inputs if c.scheme == "zscore")
    assert among_norms == among_inputs


def test_a_scheme_that_does_not_fit_is_left_out_and_said(study):
    assert any("Inputs, fixed: left out" in note for note in study.notes)
    with pytest.raises(OptionError, match="fixed"):
        compare(tiny, table(), **QUICK, scheme="fixed")


def test_records_are_plain_json(study):
    text = json.dumps(study.as_dict(), allow_nan=False)
    assert json.loads(text)["cells"][0]["norm"] == "none"


def test_two_workers_measure_what_one_does(study):
    both = compare(tiny, table(), **QUICK, workers=2)
    assert measured(both) == measured(study)
    assert both.verdict == study.verdict
    assert "Processes at a time: 2" in dict(both.method)["Time per step"]


def test_progress_counts_to_the_end():
    calls = []
    compare(tiny, table(), **QUICK, progress=lambda done, total: calls.append((done, total)))
    assert sum(done for done, _ in calls) == calls[-1][1]


def test_what_cannot_travel_runs_here():
    data = from_arrays(*table())
    local = compare(lambda norm: tiny(norm), data, **QUICK, workers=2, schemes=())
    assert "Processes at a time: 1" in dict(local.method)["Time per step"]
    assert sum(run.seed in local.seeds for run in local.runs) == 8


def test_a_function_of_main_is_not_sent_to_workers(monkeypatch):
    from slabnorm.study.train import Bench

    def build(norm):
        return tiny(norm)

    build.__module__ = "__main__"
    build.__qualname__ = "build"
    monkeypatch.setattr(sys.modules["__main__"], "build", build, raising=False)
    assert portable(Bench(build, from_arrays(*table()), {}, Rules())) is None
    assert portable(Bench(tiny, from_arrays(*table()), {}, Rules())) is not None


def killer(norm):
    import multiprocessing
    import os

    if multiprocessing.parent_process() is not None:
        os._exit(3)
    return tiny(norm)


def test_a_worker_that_dies_is_an_error_and_not_a_hang():
    with pytest.raises(SlabError, match="A worker process died"):
        compare(killer, table(), **QUICK, workers=2)


class Interrupt:
    """A progress callback that stops the study after some steps, as Ctrl-C does."""

    def __init__(self, after=3):
        self.steps, self.after = 0, after

    def __call__(self, done, total):
        self.steps += done
        if self.steps > self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_the_study_and_its_workers(workers):
    import multiprocessing

    with pytest.raises(KeyboardInterrupt):
        compare(tiny, table(), **{**QUICK, "epochs": 400}, workers=workers, progress=Interrupt())
    assert multiprocessing.active_children() == []


def counted(monkeypatch):
    """Count the runs that are trained."""
    from slabnorm.study import train

    trained, real = [], train.run_once

    def watched(bench, run, tick):
        trained.append(run)
        return real(bench, run, tick)

    monkeypatch.setattr(train, "run_once", watched)
    return trained


def test_a_study_goes_on_where_it_was_interrupted(study, tmp_path, monkeypatch):
    ledger, trained = tmp_path / "r.html.ledger", counted(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        compare(tiny, table(), **QUICK, ledger=ledger, progress=Interrupt(after=150))
    before = list(trained)
    assert 5 < len(before) < len(study.runs)
    with pytest.raises(LedgerError, match=r"An interrupted study(.|\n)*resume=True"):
        compare(tiny, table(), **QUICK, ledger=ledger)
    calls = []
    again = compare(
        tiny, table(), **QUICK, ledger=ledger, resume=True, progress=lambda *call: calls.append(call)
    )
    assert measured(again) == measured(study)
    assert set(trained[len(before) :]) == {*trained} - {*before[:-1]}  # the last was cut short
    assert len(trained) == len(study.runs) + 1
    assert sum(done for done, _ in calls) == calls[-1][1]


def test_runs_of_other_data_rules_or_models_are_not_taken(tmp_path, monkeypatch):
    ledger, trained = tmp_path / "ledger", counted(monkeypatch)
    quick = {**QUICK, "norms": ["none"], "batch_sizes": [16], "schemes": ()}
    x, y = table()
    compare(tiny, (x, y), **quick, ledger=ledger)
    runs = len(trained)
    for model, data, more in (
        (tiny, (x + 1, y), {}),
        (tiny, (x, y), {"learning_rate": 0.2}),
        (lazy, (x, y), {}),
    ):
        trained.clear()
        compare(model, data, **quick, **more, ledger=ledger, resume=True)
        assert len(trained) >= runs - 1
    trained.clear()
    compare(tiny, (x, y), **{**quick, "seeds": 3}, ledger=ledger, resume=True)
    assert {run.seed for run in trained} == {2}  # the others were there


def test_a_study_that_failed_leaves_no_ledger(tmp_path):
    ledger = tmp_path / "ledger"
    alone = {"norms": ["batch"], "batch_sizes": [1], "seeds": 2, "epochs": 1, "schemes": ()}
    with pytest.raises(ModelError, match="All 2 runs failed"):
        compare(tiny, table(), **alone, ledger=ledger)
    assert not ledger.exists()


def test_logs_for_tensorboard_hold_what_was_measured(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    study = compare(
        tiny, table(), norms=["n c -> n"], batch_sizes=16, seeds=1, epochs=1, schemes=(), log_dir=tmp_path
    )
    folders = sorted(path.parent for path in tmp_path.rglob("events.*"))
    assert len(folders) == len(study.runs)
    (run,) = (run for run in study.runs if run.seed == 0)
    (folder,) = (folder for folder in folders if folder.name == "seed-0")
    log = reader.EventAccumulator(str(folder)).Reload()
    looked = [(event.step, pytest.approx(event.value)) for event in log.Scalars("accuracy/validation")]
    assert [(point.step, point.accuracy) for point in run.curve] == looked
    assert len(log.Scalars("loss/training")) == len(run.curve)
    assert log.Scalars("accuracy/test")[0].value == pytest.approx(run.test_accuracy)
    assert b"n c -> n" in log.Tensors("run/text_summary")[0].tensor_proto.string_val[0]
    assert folder.relative_to(tmp_path).parts[:3] == ("zscore", "n_c_-_n", "batch-16")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="log_dir must be a folder"):
        compare(tiny, table(), log_dir=tmp_path / "file")


def test_statistics_come_from_the_training_split_alone():
    x, y = table()
    data = from_arrays(x, y)
    layer, _ = fit_inputs(data, "zscore")
    train = x[data.split.train].astype(np.float64)
    assert np.allclose(layer.moments.mean, train.mean(0), rtol=1e-12)
    changed = x.copy()
    changed[np.concatenate([data.split.validation, data.split.test])] += 1000
    other, _ = fit_inputs(from_arrays(changed, y), "zscore")
    probe = torch.randn(4, 3)
    assert torch.equal(layer(probe), other(probe))


def test_digits_know_their_range_and_uint8_has_one():
    data = few_digits()
    assert (
        fit_inputs(replace(data, value_range=(0.0, 16.0)), "fixed")[0](torch.full((1, 1, 8, 8), 16.0)).max()
        == 1
    )
    pixels = from_arrays(np.arange(120, dtype=np.uint8).reshape(60, 2), np.arange(60) % 2)
    assert fit_inputs(pixels, "fixed")[0](torch.full((1, 2), 255.0)).max() == 1


def test_pairing_that_does_not_hold_is_said(study):
    assert not any("Initial weights differ" in note for note in study.notes)
    unpaired = compare(greedy, table(), **QUICK, schemes=())
    assert any("Initial weights differ" in note for note in unpaired.notes)


def test_batch_norm_on_single_samples_fails_its_cell_and_not_the_study():
    study = compare(
        tiny, table(), norms=["batch", "layer"], batch_sizes=[1, 8], seeds=2, epochs=1, schemes=()
    )
    cells = {(c.norm, c.batch_size): c for c in study.cells}
    assert cells["batch", 1].failed == 2
    assert cells["batch", 1].reason
    assert cells["batch", 8].accuracy is not None
    assert "batch norm failed or diverged" in study.verdict
    with pytest.raises(ModelError, match="All 2 runs failed"):
        compare(tiny, table(), norms=["batch"], batch_sizes=[1], seeds=2, epochs=1, schemes=())


def test_a_pattern_is_a_norm():
    study = compare(
        tiny, table(), norms=["n c -> n", "layer"], batch_sizes=[8], seeds=1, epochs=1, schemes=()
    )
    ours, named = (run for run in study.runs if run.seed == 0)
    assert ours.curve == named.curve
    assert "“n c -> n”" in study.verdict


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"norms": []}, "norms must not be empty"),
        ({"norms": ["batch", "batch"]}, "batch twice"),
        ({"norms": "bath"}, "no norm bath(.|\n)*did you mean 'batch'"),
        ({"batch_sizes": []}, "batch_sizes must not be empty"),
        ({"batch_sizes": [0]}, "1 or more"),
        ({"batch_sizes": [2.0]}, "must be integers"),
        ({"batch_sizes": [True]}, "must be integers"),
        ({"batch_sizes": [37]}, r"larger than the training split(.|\n)*batch_sizes=\[9\]"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": 1001}, "seeds must be at most 1000"),
        ({"epochs": 0}, "epochs must be"),
        ({"workers": 0}, "workers must be"),
        ({"engine": "spark"}, '"local" or "ray"'),
        ({"address": "auto"}, "without a Ray cluster"),
        ({"scheme": "z"}, "scheme must be raw"),
        ({"schemes": ["raw", "raw"]}, "raw twice"),
        ({"target": 0.0}, "target must be above 0"),
        ({"target": float("nan")}, "target must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"learning_rate": float("inf")}, "learning_rate must be"),
    ],
)
def test_options_out_of_range_are_refused(option, says):
    with pytest.raises(OptionError, match=says):
        compare(tiny, table(), **{**QUICK, **option})


def test_what_cannot_be_read_or_parsed_is_refused():
    with pytest.raises(DataError):
        compare(tiny, "nosuchfile.npz")
    with pytest.raises(PatternError):
        compare(tiny, table(), norms=["n c -> (c"])


def test_lazy_layers_are_paired_like_others():
    study = compare(lazy, table(), **QUICK, schemes=())
    assert all(run.status == "done" for run in study.runs)
    for seed in range(2):
        assert len({run.weights for run in study.runs if run.seed == seed}) == 1
    assert len({run.weights for run in study.runs}) == 3  # two seeds, and one that chose the learning rate


def test_a_network_that_changes_its_input_changes_no_data():
    x, y = table()
    studies = [compare(in_place, (x, y), **QUICK, schemes=()) for _ in range(2)]
    assert measured(studies[0]) == measured(studies[1])
    alone = compare(in_place, (x, y), **{**QUICK, "norms": ["batch"]}, schemes=())
    assert measured(alone) == [run for run in measured(studies[0]) if run.norm == "batch"]


def test_a_constant_layer_is_said():
    study = compare(tiny, table(), norms=["instance"], batch_sizes=16, seeds=1, epochs=1, schemes=())
    assert any("Instance norm: every slab is a single value" in note for note in study.notes)


def test_gradients_may_be_off_around_it(study):
    with torch.no_grad():
        assert measured(compare(tiny, table(), **QUICK)) == measured(study)
