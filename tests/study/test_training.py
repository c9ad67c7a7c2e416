"""One run: pairing, order, what is measured, and what must stay as it is."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from slabnorm.errors import OptionError
from slabnorm.study.data import from_arrays
from slabnorm.study.models import NORMS, NormFactory, check_norm, group_count
from slabnorm.study.networks import conv, mlp
from slabnorm.study.scaling import fit_inputs
from slabnorm.study.train import (
    Bench,
    Rules,
    Run,
    accuracy,
    batches,
    fingerprint,
    orders,
    run_once,
    start,
    train_eval_gap,
)
from tests.study.small import few_digits, greedy, table, tiny

# Kernels would be compiled for nothing that these tests are about.
pytestmark = pytest.mark.usefixtures("in_plain_torch")


def bench(build=tiny, data=None, **rules):
    data = data or from_arrays(*table())
    return Bench(build, data, {"zscore": fit_inputs(data, "zscore")[0]}, Rules(**{"epochs": 2, **rules}))


def nothing():
    pass


@pytest.mark.parametrize(
    "build", [partial(conv, channels=1, classes=4), partial(mlp, features=64, classes=4)]
)
def test_initial_weights_are_those_of_the_seed_whatever_the_norm(build):
    def plain(norm, seed):
        model, factory = start(build, norm, seed)
        inside = {id(p) for layer in factory.made for p in layer.parameters()}
        return [p for p in model.parameters() if id(p) not in inside], fingerprint(model, factory)

    for seed in (0, 1):
        reference, mark = plain("none", seed)
        assert len(reference) > 4
        for norm in (*NORMS, "n c ... -> c"):
            weights, same = plain(norm, seed)
            assert same == mark
            assert all(torch.equal(a, b) for a, b in zip(reference, weights, strict=True))
    assert plain("none", 0)[1] != plain("none", 1)[1]


def test_the_stream_after_building_is_the_same_whatever_the_norm():
    drawn = set()
    for norm in NORMS:
        start(greedy, norm, 3)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 1


def test_order_depends_on_the_seed_alone():
    samples = torch.arange(100, 150)
    first = list(orders(0, samples, 3))
    torch.manual_seed(99)
    again = list(orders(0, samples, 3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(sorted(order.tolist()) == samples.tolist() for order in first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], next(orders(1, samples, 1)))


def test_every_norm_sees_the_same_samples_in_the_same_order():
    seen = {}

    class Spy(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.body = tiny(norm)
            self.name = norm.name

        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                seen.setdefault(self.name, []).append(x.detach().clone())
            return self.body(x)

    spied = bench(Spy)
    for norm in ("none", "batch", "layer"):
        run_once(spied, Run("zscore", norm, 8, 1), nothing)
    assert len(seen["none"]) > 8
    for norm in ("batch", "layer"):
        assert all(torch.equal(a, b) for a, b in zip(seen["none"], seen[norm], strict=True))


@pytest.mark.parametrize(
    ("count", "size", "lengths"), [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (3, 1, [1, 1, 1]), (1, 4, [1])]
)
def test_a_last_batch_of_one_sample_is_left_out(count, size, lengths):
    assert [len(part) for part in batches(torch.arange(count), size)] == lengths


def test_rate_follows_the_linear_rule_and_ends_near_zero():
    rules = Rules(learning_rate=0.2)
    assert rules.rate(0, 100, 128) == pytest.approx(0.2)
    assert rules.rate(0, 100, 2) == pytest.approx(0.2 / 64)
    assert rules.rate(50, 100, 128) == pytest.approx(0.1)
    assert 0 < rules.rate(99, 100, 128) < 1e-4


def test_a_run_learns_and_records_what_it_did():
    data = few_digits()
    record = run_once(
        bench(partial(conv, channels=1, classes=4), data, epochs=4, target=0.7),
        Run("zscore", "batch", 16, 0),
        nothing,
    )
    assert record.status == "done"
    assert record.test_accuracy > 0.8
    assert record.steps == 4 * 6
    assert [p.step for p in record.curve] == [2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 22, 24]
    assert record.curve[-1].epoch == 4
    first = next(p.step for p in record.curve if p.accuracy >= 0.7)
    assert record.steps_to_target == first
    assert record.seconds_per_step > 0


def test_a_run_leaves_random_stream_and_threads_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    run_once(bench(), Run("zscore", "batch", 8, 0), nothing)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_a_run_repeats_bit_for_bit():
    records = [run_once(bench(), Run("zscore", "group", 8, 0), nothing) for _ in range(2)]
    assert records[0].curve == records[1].curve
    assert records[0].test_accuracy == records[1].test_accuracy


def test_batch_norm_on_single_samples_fails_with_the_reason():
    record = run_once(bench(), Run("zscore", "batch", 1, 0), nothing)
    assert record.status == "failed"
    assert record.reason
    assert record.test_accuracy is None


def test_a_diverging_run_is_measured_as_it_is():
    record = run_once(bench(learning_rate=1e20), Run("zscore", "none", 8, 0), nothing)
    assert record.status == "diverged"
    assert "not finite at step" in record.reason
    assert 0 <= record.test_accuracy <= 1
    assert record.steps < 2 * 5


def test_a_model_that_raises_costs_its_run_only():
    class Moody(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.body = tiny(norm)

        def forward(self, x):
            if len(x) == 7:
                raise RuntimeError("no sevens")
            return self.body(x)

    record = run_once(bench(Moody), Run("zscore", "batch", 7, 0), nothing)
    assert (record.status, record.reason) == ("failed", "RuntimeError: no sevens")


def test_gap_is_train_minus_eval_and_disturbs_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), NormFactory("batch")(4), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[1].running_mean.fill_(3.0)
    x, y = torch.randn(41, 3), torch.arange(41) % 2
    before = copy.deepcopy(model.state_dict())
    parts = batches(torch.arange(41), 8)
    gap = train_eval_gap(model, x, y, parts)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not model.training
    # By hand, in plain torch: batch statistics in train mode, over the 40 samples in whole batches.
    hidden = model[0](x)
    right = 0
    for part in parts:
        h = hidden[part]
        z = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
        right += int((model[2](z).argmax(1) == y[part]).sum())
    assert gap == pytest.approx(right / 40 - accuracy(model, x[:40], y[:40]))
    assert gap != 0


def test_gap_of_a_norm_with_one_mode_is_zero():
    record = run_once(bench(), Run("zscore", "layer", 8, 0), nothing)
    assert record.gap == 0


@pytest.mark.parametrize(
    ("channels", "groups"), [(16, 8), (32, 8), (12, 6), (7, 7), (13, 1), (1, 1), (20, 5)]
)
def test_groups_divide_the_channels(channels, groups):
    assert group_count(channels) == groups


@pytest.mark.parametrize("name", ["batchnorm", "", "Batch", "n c -> "[:3]])
def test_unknown_norms_are_refused(name):
    with pytest.raises(OptionError, match="a norm is none, batch"):
        check_norm(name)
