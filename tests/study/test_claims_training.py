"""The claims about training: what is looked at, and that each verdict turns when its effect is taken away.

The trainings themselves are made up here, so that what they should show is known.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from slabnorm.report.claims import FAILS, HOLDS
from slabnorm.report.study import CurvePoint
from slabnorm.study.claims import flow, init, layer, learn, shift, small, sweep, verdict, windows
from slabnorm.study.claims.claim import Material, best_rates
from slabnorm.study.data import Dataset, digits
from slabnorm.study.text import english
from slabnorm.study.train import Rules, Training, start
from slabnorm.study.trials import Trial, TrialRecord, Trials
from slabnorm.study.watch import STEPS, WATCHERS
from tests.study.small import few_digits

pytestmark = pytest.mark.usefixtures("in_plain_torch")

DATA = few_digits()
TEXT = windows(english(2000))


def tick():
    pass


def made_up(of_trial, data: Dataset = DATA) -> Material:
    """A material whose trainings end as a function says: it returns accuracy, and what was seen."""

    def train(trials):
        records = []
        for trial in trials:
            accuracy, seen = of_trial(trial)
            # A little of chance by seed, so that no interval is without width.
            accuracy -= 0.001 * (trial.seed % 3)
            curve = tuple(CurvePoint(10 * i, i, accuracy * i / 8, 1 / i) for i in range(1, 9))
            records.append(TrialRecord("done", accuracy, 0.0, curve, seen, 0.0))
        return records

    return Material(data, data, TEXT, (0, 1, 2), False, train)


def training(norm="batch", network=None):
    """A small network before its first step."""
    x = torch.as_tensor(DATA.x).float() / 16

    def build(make):
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 5),
            make(5),
            nn.ReLU(),
            nn.Linear(5, 4),
            make(4),
            nn.ReLU(),
            nn.Linear(4, 4),
        )

    model, _ = start(network or build, norm, 3)
    return Training(model, x, torch.as_tensor(DATA.y), DATA.split, Rules(1), Trial(batch_size=16, rate=0.1))


def probed(now):
    seen = torch.as_tensor(now.split.validation[:256])
    return now.x[seen], now.y[seen]


def test_drift_is_that_computed_by_hand():
    now = training("none")
    watcher = WATCHERS["drift"]()
    assert watcher(now) == [0.0] * 4
    x, _ = probed(now)
    first = now.model[1]
    before = (x.flatten(1) @ first.weight.T + first.bias).detach().numpy().astype(float)
    with torch.no_grad():
        first.bias += torch.arange(5.0)
        first.weight *= 2
    after = (x.flatten(1) @ first.weight.T + first.bias).detach().numpy().astype(float)
    moved = np.abs(after.mean(0) - before.mean(0)) / before.std(0, ddof=1)
    spread = np.log2(after.std(0, ddof=1) / before.std(0, ddof=1))
    seen = watcher(now)
    np.testing.assert_allclose([seen[0], seen[2]], [moved.mean(), spread.mean()], rtol=1e-5)


def test_a_look_leaves_the_network_as_it_was():
    now = training()
    kept = {name: value.clone() for name, value in now.model.state_dict().items()}
    drawn = torch.get_rng_state()
    for make in WATCHERS.values():
        make()(now)
    assert all(torch.equal(kept[name], value) for name, value in now.model.state_dict().items())
    assert all(p.grad is None for p in now.model.parameters())
    assert torch.equal(drawn, torch.get_rng_state())


def test_the_landscape_is_the_loss_along_the_gradient():
    now = training()
    seen = WATCHERS["landscape"]()(now)
    assert len(seen) == 1 + 2 * len(STEPS)
    x, y = probed(now)
    now.model.train()
    loss = nn.functional.cross_entropy(now.model(x), y)
    ways = torch.autograd.grad(loss, list(now.model.parameters()))
    with torch.no_grad():
        for weight, way in zip(now.model.parameters(), ways, strict=True):
            weight -= STEPS[4] * way
    there = nn.functional.cross_entropy(now.model(x), y)
    turned = torch.autograd.grad(there, list(now.model.parameters()))
    change = sum((a - b).square().sum() for a, b in zip(turned, ways, strict=True)).sqrt()
    change /= sum(way.square().sum() for way in ways).sqrt()
    expected = [loss.item(), there.item(), change.item()]
    np.testing.assert_allclose([seen[0], seen[5], seen[5 + len(STEPS)]], expected, rtol=1e-4)


def test_weights_and_biases_of_norm_layers_are_read_and_put_back():
    now = training()
    with torch.no_grad():
        now.model[2].weight.copy_(torch.arange(5.0))
        now.model[5].bias.fill_(7)
    assert WATCHERS["affine"]()(now) == [0, 1, 2, 3, 4, 1, 1, 1, 1, 0, 0, 0, 0, 0, 7, 7, 7, 7]
    as_it_is, _, _, both = WATCHERS["erased"]()(now)
    x, y = probed(now)

    def loss():
        return nn.functional.cross_entropy(now.model.train()(x), y).item()

    assert as_it_is == pytest.approx(loss())
    with torch.no_grad():
        now.model[2].weight.fill_(1)
        now.model[5].bias.zero_()
    assert both == pytest.approx(loss())


def test_a_unit_uses_both_sides_unless_it_is_dead_or_always_open():
    now = training("none")
    with torch.no_grad():
        now.model[1].bias[0], now.model[1].bias[1] = -1e6, 1e6
        now.model[1].bias[2:] = -(now.model[1].weight @ probed(now)[0].flatten(1).T).mean(1)[2:]
    assert WATCHERS["useful"]()(now)[0] == 3 / 5


def test_looks_are_spread_over_the_training():
    assert Rules(2).looks_after(8) == {2, 4, 6, 8, 10, 12, 14, 16}
    assert Rules(3, looks=2).looks_after(8) == {12, 24}
    record = Trials(DATA, TEXT).do(Trial(batch_size=16, epochs=3, looks=2), tick)
    assert len(record.curve) == 2


def test_a_trial_takes_fewer_samples_and_keeps_the_affine_part():
    work = Trials(DATA, TEXT)
    few = Trial(norm="batch", batch_size=8, samples=16, watch=("affine",), epochs=2)
    assert work.steps(few) == 4
    assert work.do(few, tick).seen["affine"][-1] != [1.0] * 128 + [0.0] * 128
    assert work.do(replace(few, affine=False), tick).seen["affine"][-1] == [1.0] * 128 + [0.0] * 128


def test_one_value_per_slab_is_refused_and_said_so():
    record = Trials(DATA, TEXT).do(Trial(norm="batch", batch_size=1, samples=4), tick)
    assert record.status == "refused"
    assert record.validation == 0
    assert small.alone()


def test_the_rate_is_chosen_on_validation_alone():
    def train(trials):
        # On validation the rate 0.1 is best, on test 0.2 is.
        found = {0.1: (0.9, 0.1), 0.2: (0.5, 1.0), 0.4: (0.4, 0.9)}
        ends = [found[trial.rate] for trial in trials]
        return [
            TrialRecord("done", test, 0.0, (CurvePoint(1, 1, seen, 1.0),), {}, 0.0) for seen, test in ends
        ]

    material = replace(made_up(lambda _: None), train=train)
    trials = [Trial(batch_size=32), Trial(batch_size=64)]
    assert [t.rate for t in best_rates(material, trials[:1], (0.1, 0.2, 0.4))] == [0.1]
    assert best_rates(material, trials, (0.1, 0.2), reference_batch=32)[1].rate == 0.2


def drifting(none, batch):
    """Trainings in which drift by layer is a function of the norm."""

    def of(trial):
        by_layer = none if trial.norm == "none" else batch
        looks = [
            [by_layer(i) * look * (1 + 0.01 * trial.seed) for i in range(20)] + [0.0] * 20
            for look in range(9)
        ]
        return 0.8, {"drift": looks, "gradient": [[1.0] * 20] * 9}

    return made_up(of)


def test_shift_holds_if_drift_grows_with_depth_and_norm_stops_it():
    found = shift.measure(drifting(lambda i: 0.1 * (i + 1), lambda i: 0.01))
    assert [test.verdict for test in found.tests] == [HOLDS, HOLDS]
    # Layers 16 to 20 against 1 to 5: 18 / 3.
    assert found.tests[0].value.mean == pytest.approx(np.log2(6))
    none = shift.measure(drifting(lambda i: 0.1, lambda i: 0.2 + 0.01 * i))
    assert none.tests[1].verdict == FAILS


def test_drift_is_compared_at_equal_accuracy():
    found = drifting(lambda i: 1.0, lambda i: 1.0).train([Trial(depth=20)])[0]
    assert shift.moved(found, 0.35) == [4.0] * 20  # the fourth look is the first with 0.4
    assert shift.moved(found, 2.0) == [8.0] * 20


def test_init_holds_if_the_norm_trains_over_more_scales():
    def of(wide, trial):
        off = abs(np.log10(trial.gain / sweep.FITTING))
        return 0.9 - (0.0 if trial.norm == wide else 0.5 * off), {}

    assert verdict(init.measure(made_up(lambda t: of("batch", t))).tests) == HOLDS
    assert verdict(init.measure(made_up(lambda t: of("none", t))).tests) == FAILS


def test_the_width_in_decades_is_interpolated():
    assert init.decades((0.1, 1, 10, 100), (0.5, 0.9, 0.9, 0.8), 0.85) == pytest.approx(0.125 + 1 + 0.5)
    assert init.decades((1, 10), (0.9, 0.9), 0.85) == 1
    assert init.decades((1, 10, 100, 1000), (0.1, 0.1, 0.1, 0.9), 0.85) == pytest.approx(0.05 / 0.8)


def flowing(by):
    """Trainings whose accuracy falls with the gradient's spread, or with drift; the other is unrelated."""

    def of(trial):
        draw = np.random.default_rng(int(trial.depth * 100 + trial.gain * 10 + len(trial.norm)))
        spread, drift = draw.uniform(0.1, 3, 2)
        if trial.depth == 20:
            spread = 5.0 if trial.norm == "none" else 0.2
        accuracy = 0.9 - 0.1 * (spread if by == "flow" else drift)
        lower = 8 if trial.norm == "batch" else 4
        losses = [0.5] * lower + [2.0] * (len(STEPS) - lower)
        seen = {
            "gradient": [[1.0, 10**spread]] * 9,
            "drift": [[drift] * trial.depth + [0.0] * trial.depth] * 9,
            "landscape": [[1.0, *losses, *losses]] * 9,
            "useful": [[0.5]] * 9,
        }
        return accuracy, seen

    return made_up(of)


def test_flow_says_which_explanation_the_data_favour():
    found = flow.measure(flowing("flow"))
    assert "favour gradient flow" in found.measured
    assert found.tests[1].verdict == HOLDS
    assert found.tests[0].value.mean == pytest.approx(2)  # four half decades
    rival = flow.measure(flowing("drift"))
    assert "favour drift" in rival.measured
    assert rival.tests[1].verdict == FAILS


def test_small_holds_if_batch_norm_alone_suffers():
    def of(sufferer, trial):
        return 0.9 - (0.6 / trial.batch_size if trial.norm == sufferer else 0.0), {}

    found = small.measure(made_up(lambda t: of("batch", t), digits()))
    assert [test.verdict for test in found.tests[1:]] == [HOLDS, HOLDS, HOLDS]
    assert found.tests[0].value.mean == pytest.approx(0.6 / 2 - 0.6 / 32)
    cares = small.measure(made_up(lambda t: of("group", t), digits()))
    assert [test.verdict for test in cares.tests[1:3]] == [FAILS, FAILS]
    assert "does not train" not in found.measured


def test_small_leaves_out_what_batch_norm_refuses_to_train():
    def train(trials):
        records = made_up(lambda t: (0.9 - 0.3 / t.batch_size * (t.norm == "batch"), {})).train(trials)
        alone = [t.norm == "batch" and t.batch_size == 1 for t in trials]
        return [
            replace(record, status="refused", accuracy=0.0) if refused else record
            for record, refused in zip(records, alone, strict=True)
        ]

    found = small.measure(replace(made_up(lambda t: (0.9, {})), train=train, quick=False))
    assert "does not train" in found.measured
    (picture,) = found.pictures
    assert [series.x for series in picture.series] == [small.SIZES[1:], small.SIZES]
    assert max(picture.series[0].y) < 0.3
    assert not any(number.what[-25:] == "batch norm, batches of 1" for number in found.numbers)


def test_learn_holds_if_weights_have_moved_and_matter():
    def of(moved, trial):
        weights = [1 + moved * (1 + 0.01 * trial.seed)] * 10
        worse = 0.2 + moved * (1 + 0.01 * trial.seed)
        return 0.9, {"affine": [weights + [0.0] * 10] * 9, "erased": [[0.2, worse, 0.2, worse]] * 9}

    assert verdict(learn.measure(made_up(lambda t: of(0.3, t))).tests) == HOLDS
    assert verdict(learn.measure(made_up(lambda t: of(0.0, t))).tests) == FAILS


def test_a_token_is_normalised_by_itself():
    material = made_up(lambda _: (0.5, {}))
    mates, padded = layer.changed(material, layer.TOKEN)
    assert max(mates, padded) < 1e-5
    assert min(layer.changed(material, "batch")) > 0.1
    norm = Trials(DATA, TEXT)._build(Trial("recurrent", layer.TOKEN))
    _, factory = start(norm, layer.TOKEN, 0)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(factory.made[0](x), nn.functional.layer_norm(x, (96,)))


def test_layer_holds_if_it_is_the_more_accurate():
    def of(better, trial):
        return 0.6 if trial.norm == better else 0.4, {}

    assert verdict(layer.measure(made_up(lambda t: of(layer.TOKEN, t))).tests) != FAILS
    assert verdict(layer.measure(made_up(lambda t: of("batch", t))).tests) == FAILS


def test_the_sweep_is_small_and_free_of_nan():
    def of(trial):
        seen = {
            "drift": [[1 / 3] * trial.depth + [0.0] * trial.depth] * 9,
            "gradient": [[float("nan"), *[2 / 3] * (trial.depth - 1)]] * 9,
        }
        return 2 / 3, seen

    records = sweep.sweep(made_up(of))
    assert len(records) == 4 * 3 * 5 * 3 * 3
    written = json.dumps([asdict(record) for record in records], allow_nan=False)
    assert len(written) < 500_000
    assert records[0].drift == (0.3333,) * 2
    assert records[0].gradient == (None, 0.6667)
