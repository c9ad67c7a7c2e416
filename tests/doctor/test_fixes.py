"""fixes(): what it changes, that it changes nothing else, and that it changes all of it or nothing."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import slabnorm as sn
from slabnorm.errors import ModelError, OptionError, SlabError, StatisticsError
from slabnorm.report.fixes import Fix, FixRecord, Unfixed

pytestmark = pytest.mark.usefixtures("in_plain_torch")


OUTPUTS = "the model's outputs may not stay: something else reads it, or rounding matters"


def x(samples: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 + torch.randn(samples, 4, generator=generator, dtype=torch.float64).to(dtype)


def network(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Sequential:
    """Return a network with a redundant bias that has run in train mode."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, **options)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).to(dtype)
    with torch.no_grad():
        for _ in range(30):
            model(x(dtype=dtype))
    return model


def codes(record: FixRecord) -> list[int | None]:
    return [fix.code for fix in record.fixed]


def left(record: FixRecord) -> dict[int, str]:
    return {one.code: one.reason for one in record.left}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return copies of all that a model has."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "classes": [type(module) for module in model.modules()],
        "modes": [module.training for module in model.modules()],
        "attributes": [
            (m.momentum, m.eps) if isinstance(m, nn.BatchNorm1d) else None for m in model.modules()
        ],
        "parameters": [id(p) for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    }


def same(a: Any, b: Any) -> bool:
    """Whether two snapshots are the same, bit for bit; NaN is NaN."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(99), b.nan_to_num(99))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# Each change.


def test_a_redundant_bias_goes_and_outputs_stay_in_both_modes() -> None:
    model = network(torch.float64)
    model[0].bias.data *= 1000
    model(x(dtype=torch.float64))
    weight, bias, gamma, beta = (
        t.detach().numpy().copy() for t in (model[0].weight, model[0].bias, model[1].weight, model[1].bias)
    )
    mean, var = model[1].running_mean.numpy().copy(), model[1].running_var.numpy().copy()
    record = sn.fixes(model, x(dtype=torch.float64), codes=(301,)).apply()
    assert codes(record) == [301]
    assert record.difference < 1e-12
    assert model[0].bias is None
    assert "0.bias" not in model.state_dict()
    # The formula with the bias, in float64: by the batch's statistics, and by the running ones.
    given = x(16, dtype=torch.float64)
    before = given.numpy() @ weight.T + bias
    by_batch = gamma * (before - before.mean(0)) / np.sqrt(before.var(0) + 1e-5) + beta
    by_running = gamma * (before - mean) / np.sqrt(var + 1e-5) + beta
    np.testing.assert_allclose(model[:2].eval()(given).detach(), by_running, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model[:2].train()(given).detach(), by_batch, rtol=1e-9, atol=1e-9)
    # The running mean goes on as that of the layer's new outputs.
    np.testing.assert_allclose(
        model[1].running_mean, 0.9 * (mean - bias) + 0.1 * (before - bias).mean(0), rtol=1e-9, atol=1e-9
    )


def test_the_optimiser_loses_the_bias_and_keeps_the_rest() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), 0.1, momentum=0.9)
    model(x()).square().sum().backward()
    optimizer.step()
    kept = [p for p in model.parameters() if p is not model[0].bias]
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in kept]
    sn.fixes(model, x(), optimizer).apply()
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in kept]
    assert group["param_names"] == ["0.weight", "1.weight", "1.bias", "4.weight", "4.bias"]
    assert same([optimizer.state[p]["momentum_buffer"] for p in kept], buffers)
    assert len(optimizer.state) == len(kept)
    optimizer.step()


class Features(nn.Module):
    """Returns what comes before the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return self.norm(y), y.detach()


class Twice(nn.Module):
    """Calls its first layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.linear(x).relu()))


class Own(nn.Linear):
    """Adds its bias by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class LlamaRMSNorm(nn.Module):
    """Calls its eps by another name, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(4)), 1e-9

    def forward(self, x: Tensor) -> Tensor:
        size = x.float().square().mean(-1, keepdim=True) + self.variance_epsilon
        return self.weight * (x.float() / size.sqrt()).to(x.dtype)


class Reads(Features):
    """Reads the bias of its layer, in train mode."""

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.linear(x))
        return (y, self.linear.bias.square().sum()) if self.training else y


class Around(Features):
    """Adds what comes before the norm to what comes after it; the graph does not show it."""

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return self.norm(y) + y.detach()


class Classes(Features):
    """Returns nothing that could be compared to rounding."""

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.linear(x)).argmax(1)


class Damaged(Around):
    """Returns NaN in eval mode, whatever its bias is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.running_var.fill_(torch.nan)


def _hooked() -> nn.Module:
    model = network()
    model[0].register_forward_hook(lambda module, given, output: None)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Features, OUTPUTS),
        (Reads, OUTPUTS),
        (Around, OUTPUTS),
        (Damaged, OUTPUTS),
        (Classes, OUTPUTS),
        (Twice, "a forward calls it, or the norm, more than once"),
        (lambda: nn.Sequential(Own(4, 8), nn.BatchNorm1d(8)), "Own may use its bias in another way"),
        (_hooked, "a hook reads what would change"),
    ],
    ids=["features", "reads", "around", "damaged", "classes", "twice", "own", "hooked"],
)
def test_a_bias_that_may_have_an_effect_stays(build: Any, reason: str) -> None:
    torch.manual_seed(0)
    model = build()
    before = snapshot(model)
    record = sn.fixes(model, x(), codes=(301,)).apply()
    assert not record.done
    assert left(record) == {301: reason}
    assert same(snapshot(model), before)


def test_a_bias_that_has_an_effect_does_not_keep_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Around(), nn.Linear(8, 8), nn.BatchNorm1d(8)).double()
    data = x(dtype=torch.float64)
    twin = copy.deepcopy(model)
    record = sn.fixes(model, data).apply()
    assert [fix.layer for fix in record.fixed] == ["1"]
    assert [(one.layer, one.reason) for one in record.left] == [("0.linear", OUTPUTS)]
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(data), twin.train(mode)(data), rtol=1e-10, atol=1e-10)


def test_a_deep_network_that_multiplies_rounding_loses_all_its_biases() -> None:
    torch.manual_seed(0)
    layers = [(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(60)]
    model = nn.Sequential(*(layer for block in layers for layer in block))
    data = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    nudged = copy.deepcopy(model)(data * (1 + 1e-7))
    assert (nudged - copy.deepcopy(model)(data)).norm() > 3e-4 * nudged.norm()  # what float32 would not prove
    twin = copy.deepcopy(model)
    record = sn.fixes(model, data, codes=(301,)).apply()
    assert codes(record) == [301] * 60
    assert record.left == ()
    for mode in (False, True):
        torch.testing.assert_close(
            model.double().train(mode)(data.double()), twin.double().train(mode)(data.double()),
            rtol=1e-6, atol=1e-6,
        )  # fmt: skip


def test_a_model_that_insists_on_its_dtype_is_proven_in_it() -> None:
    class Narrow(Features):
        def forward(self, x: Tensor) -> Any:
            if x.dtype != torch.float32:
                raise TypeError("float32, please")
            return self.norm(self.linear(x))

    assert codes(sn.fixes(Narrow(), x(), codes=(301,)).record) == [301]


def test_random_numbers_of_a_forward_are_no_change_of_outputs() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random() + np.random.rand() + torch.rand(())

    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), Noisy())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    record = sn.fixes(model, x(), codes=(301,)).apply()
    assert codes(record) == [301]
    assert record.difference < 1e-6
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_the_one_state_of_lbfgs_keeps_its_bias() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(x()).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    record = sn.fixes(model, x(), optimizer, codes=(301,)).apply()
    assert "LBFGS keeps one state for all parameters" in left(record)[301]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(loss)
    assert not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)),
        (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.Conv2d(3, 4, 3), sn.BatchNorm(4)),
        (nn.Conv2d(3, 4, 3), sn.InstanceNorm(4)),
    ],
    ids=["instance", "no statistics", "slabnorm", "slabnorm's instance"],
)
def test_outputs_stay_with_every_norm_that_keeps_channels_apart(layer: nn.Module, norm: nn.Module) -> None:
    model = nn.Sequential(layer, norm, nn.ReLU()).double()
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model(images)
    twin = copy.deepcopy(model)
    record = sn.fixes(model, images, codes=(301,)).apply()
    assert codes(record) == [301]
    for mode in (False, True):
        torch.testing.assert_close(
            model.train(mode)(images), twin.train(mode)(images), rtol=1e-10, atol=1e-10
        )


def test_a_model_that_is_wrapped_for_several_processes_keeps_its_bias() -> None:
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        record = sn.fixes(model, x(), codes=(301,)).record
    finally:
        distributed.destroy_process_group()
    assert "fix the model before it is wrapped" in left(record)[301]
    assert codes(record) == []


def test_a_bias_that_two_layers_share_stays_in_the_other_and_in_the_optimiser() -> None:
    model = network()
    other = nn.Linear(8, 8)
    other.bias = model[0].bias
    model = nn.Sequential(*model[:4], other)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sn.fixes(model, x(), optimizer, codes=(301,)).apply()
    assert model[0].bias is None
    assert any(p is other.bias for p in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_norms_get_groups_without_decay_and_keep_their_state(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.Linear(8, 2))
    groups = [{"params": [*model[:2].parameters()], "lr": 0.3}, {"params": [*model[2:].parameters()]}]
    optimizer = kind(groups, lr=0.1, weight_decay=0.5)
    model(x()).square().sum().backward()
    optimizer.step()
    twin = copy.deepcopy(model)
    theirs = kind([{"params": [*twin.parameters()]}], lr=0.1, weight_decay=0.5)
    theirs.load_state_dict(
        {"state": optimizer.state_dict()["state"],
         "param_groups": [{**theirs.state_dict()["param_groups"][0]}]}
    )  # fmt: skip
    record = sn.fixes(model, x(), optimizer, codes=(302,)).apply()
    assert [(fix.was, fix.becomes) for fix in record.fixed] == [("weight_decay=0.5", "weight_decay=0")]
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (g["lr"], g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in optimizer.param_groups
    ]
    assert found == [
        (0.3, 0.5, ["0.weight"]), (0.1, 0.5, ["3.weight", "3.bias"]),
        (0.3, 0.0, ["1.weight", "1.bias"]), (0.1, 0.0, ["2.weight", "2.bias"]),
    ]  # fmt: skip
    # The state of each parameter is what an optimiser in one group has of it.
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert same(dict(optimizer.state[mine]), dict(theirs.state[other]))
    # Without gradients only decay moves weights, by SGD's and AdamW's p (1 - lr decay).
    if kind is torch.optim.AdamW:
        return
    weights = [(p, p.detach().double().clone()) for p in model.parameters()]
    optimizer.state.clear()
    for p, _ in weights:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    rates = {"0.weight": 1 - 0.3 * 0.5, "3.weight": 1 - 0.1 * 0.5, "3.bias": 1 - 0.1 * 0.5}
    for p, was in weights:
        torch.testing.assert_close(p.double(), was * rates.get(names[id(p)], 1.0), rtol=1e-6, atol=1e-9)


def test_a_group_of_norms_alone_stays_one() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8))
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[1].parameters()]}]
    optimizer = torch.optim.SGD(groups, 0.1, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sn.fixes(model, x(), optimizer, codes=(302,)).apply()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    optimizer.step(), schedule.step()


def test_groups_that_a_schedule_counts_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    record = sn.fixes(model, x(), optimizer, codes=(302,)).apply()
    assert "schedule of learning rates" in left(record)[302]
    assert len(optimizer.param_groups) == 1


def test_damaged_statistics_become_those_of_the_loader() -> None:
    model = network(torch.float64)
    model[1].running_var[2] = torch.nan
    data = x(300, torch.float64)
    model.eval()
    record = sn.fixes(
        model, data, loader=data.split(128), metric=lambda m: m(data).isfinite().double().mean()
    ).apply()
    assert set(codes(record)) == {201, 301}
    assert (record.before, record.after) == (0.0, 1.0)
    assert math.isinf(record.difference)
    features = data.numpy() @ model[0].weight.detach().numpy().T  # the bias is gone
    np.testing.assert_allclose(model[1].running_mean, features.mean(0), rtol=1e-10)
    np.testing.assert_allclose(model[1].running_var, features.var(0, ddof=1), rtol=1e-10)
    assert "statistics of 300 values in 3 batches" in str(record)


def test_statistics_that_no_batch_has_entered_and_stale_ones() -> None:
    data = x(256)
    fresh, stale = nn.Sequential(nn.BatchNorm1d(4)).eval(), network().eval()
    stale[1].running_mean += 100
    for model, code in ((fresh, 202), (stale, 203)):
        without = sn.fixes(model, data, codes=(code,))
        assert left(without.record) == {code: "it takes loader=, the training batches"}
        assert codes(sn.fixes(model, data, loader=data.split(64), codes=(code,)).apply()) == [code]
    np.testing.assert_allclose(fresh[0].running_mean, data.double().mean(0), rtol=1e-6)


def test_a_gap_between_modes_is_not_left_where_statistics_are_taken_anew() -> None:
    data = x(256)
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.99), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    for _ in range(30):
        model(data)
    model[2].running_var *= 25
    without = sn.fixes(model, data)
    assert left(without.record)[105] == ""
    record = sn.fixes(model, data, loader=data.split(64)).apply()
    assert [(fix.code, fix.layer) for fix in record.fixed] == [(204, "0"), (None, "0"), (203, "2")]
    assert record.left == ()
    assert [finding.code for finding in sn.check(model, data).findings] == []


def test_no_statistics_are_taken_of_inputs_that_look_wrong() -> None:
    model = network(momentum=0.99)
    model[1].running_var[2] = torch.nan
    expected = model[1].running_mean - model[0].bias.detach()
    pixels = 255 * torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    record = sn.fixes(model, pixels, loader=pixels.split(32)).apply()
    assert left(record)[201] == "the inputs come first (401): statistics of wrong ones would be wrong too"
    assert left(record)[401] == ""
    assert codes(record) == [301, 204]
    assert torch.equal(model[1].running_mean, expected)


def test_frozen_norms_keep_their_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8))
    for _ in range(30):
        model(x())
    sn.freeze(model, where=lambda name, _: name == "0")
    model[0].running_mean += 50
    model[2].running_var[0] = torch.nan
    kept = model[0].running_mean.clone()
    record = sn.fixes(model, x(), loader=x().split(32)).apply()
    assert torch.equal(model[0].running_mean, kept)
    assert model[2].running_var.isfinite().all()
    assert left(record)[203] == "it stays in eval mode on purpose"
    assert 102 not in left(record)


def test_momentum_of_the_other_convention_and_its_statistics() -> None:
    model = network(momentum=0.99)
    data = x(256)
    record = sn.fixes(model, data, loader=data.split(64), codes=(204,))
    assert [(f.code, f.becomes) for f in record.record.fixed] == [
        (204, "momentum=0.01"), (None, "statistics of the loader"),
    ]  # fmt: skip
    assert model[1].momentum == 0.99  # not before it is asked for
    record.apply()
    assert model[1].momentum == 0.01
    features = nn.functional.linear(data.double(), model[0].weight.double(), model[0].bias.double())
    torch.testing.assert_close(model[1].running_mean.double(), features.mean(0), rtol=1e-5, atol=1e-6)
    alone = network(momentum=1.0)
    kept = alone[1].running_mean.clone()
    sn.fixes(alone, data, codes=(204,)).apply()
    assert alone[1].momentum == 0.1
    assert torch.equal(alone[1].running_mean, kept)


def test_a_momentum_that_is_no_number_of_the_object_stays() -> None:
    class Scheduled(nn.BatchNorm1d):
        @property
        def momentum(self) -> float:
            return 0.95

        @momentum.setter
        def momentum(self, value: float) -> None:
            pass

    model = nn.Sequential(Scheduled(4), nn.Linear(4, 2))
    record = sn.fixes(model, x(), codes=(204,)).apply()
    assert left(record) == {204: "it keeps momentum in another place, or by another convention"}
    assert "momentum" not in vars(model[0])


def test_eps_that_is_zero_in_half_precision() -> None:
    model = nn.Sequential(nn.LayerNorm(4, eps=1e-9), nn.Linear(4, 2)).half()
    record = sn.fixes(model, x().half()).apply()
    assert model[0].eps == 1e-5
    assert (record.fixed[0].was, record.fixed[0].becomes) == ("eps=1e-09", "eps=1e-05")
    model = nn.Sequential(LlamaRMSNorm(), nn.Linear(4, 2)).half()
    assert sn.fixes(model, x().half()).apply().fixed[0].becomes == "variance_epsilon=1e-05"
    assert model[0].variance_epsilon == 1e-5


def test_statistics_in_half_precision_and_the_state_of_their_weights() -> None:
    model = network().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x().bfloat16()).square().sum().backward()
    optimizer.step()
    norm, state = model[1], optimizer.state[model[1].weight]["momentum_buffer"].clone()
    mean = norm.running_mean.clone()
    sn.fixes(model, x().bfloat16(), optimizer, codes=(502,)).apply()
    assert {t.dtype for t in (norm.weight, norm.weight.grad, norm.bias, norm.running_mean)} == {torch.float32}
    assert norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(norm.running_mean, mean.float())
    assert torch.equal(optimizer.state[norm.weight]["momentum_buffer"], state.float())
    model(x().bfloat16()).sum().backward()
    optimizer.step()


def test_a_weight_that_another_layer_shares_keeps_its_dtype() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.LayerNorm(8))
    model[2].weight = model[1].weight
    model.bfloat16()
    record = sn.fixes(model, x().bfloat16(), codes=(502,)).apply()
    assert left(record) == {502: "another layer shares its weight or bias"}
    assert model[1].weight is model[2].weight
    assert model[1].weight.dtype == torch.bfloat16


def test_a_norm_that_the_loader_does_not_reach_is_left() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(4, momentum=0.99), nn.BatchNorm1d(4)

        def forward(self, x: Tensor, both: bool = True) -> Tensor:
            return self.a(x) + (self.b(x) if both else 0)

    model = Branches()
    kept = model.b.running_mean.clone()
    record = sn.fixes(model, x(), loader=[{"x": x(), "both": False}]).apply()
    assert torch.equal(model.b.running_mean, kept)
    np.testing.assert_allclose(model.a.running_mean, x().double().mean(0), rtol=1e-6)
    (one,) = record.left
    assert (one.code, one.layer) == (None, "b")
    assert "it did not run" in one.reason
    assert record.as_dict()["left"][0]["code"] is None


def test_a_layer_that_was_left_in_eval_mode() -> None:
    model = network()
    model[1].eval()
    record = sn.fixes(model, x(), codes=(102,)).apply()
    assert codes(record) == [102]
    assert [module.training for module in model.modules()] == [True] * 6


def test_statistics_that_move_although_weights_are_frozen() -> None:
    model = network()
    model[1].requires_grad_(False)
    kept = model[1].running_mean.clone()
    sn.fixes(model, x(), loader=x().split(32), codes=(103,)).apply()
    model.train()(x())
    assert torch.equal(model[1].running_mean, kept)
    assert "frozen" in repr(model[1])


def test_a_shared_norm_is_changed_once() -> None:
    norm = nn.BatchNorm1d(4, momentum=0.99)
    model = nn.Sequential(norm, nn.Linear(4, 4, bias=False), norm)
    record = sn.fixes(model, x()).apply()
    assert [(f.code, f.layer) for f in record.fixed] == [(204, "0")]
    assert model[2].momentum == 0.01
    assert 205 in left(record)


# Nothing else changes.


def test_modes_and_random_numbers_stay() -> None:
    model = network(momentum=0.99)
    model[3].eval()
    before = [module.training for module in model.modules()]

    def metric(model: nn.Module) -> float:
        model.train()
        model(x())
        return float(torch.rand(()) + np.random.rand() + random.random())

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x()), 32, shuffle=True)
    sn.fixes(model, x(), loader=loader, metric=metric).apply()
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == expected
    assert [module.training for module in model.modules()] == before


def test_a_metric_may_be_a_loss_with_its_graph() -> None:
    model = network(momentum=0.99)
    record = sn.fixes(model, x(), codes=(204,), metric=lambda m: m(x()).square().mean()).apply()
    expected = copy.deepcopy(model).eval().double()(x().double()).square().mean()
    assert record.before == record.after == pytest.approx(float(expected.detach()), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_a_healthy_model_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = snapshot(model)

    def loader() -> Any:
        raise AssertionError("read although nothing is to be fixed")
        yield

    found = sn.fixes(model, x(), loader=loader())
    assert str(found) == "Sequential: no changes to make, 0 left to you"
    record = found.apply()
    assert not record.done
    assert same(snapshot(model), before)


@pytest.mark.parametrize("where", ["loader", "metric", "interrupt"])
def test_an_error_in_the_middle_leaves_model_and_optimiser_as_they_were(where: str) -> None:
    model = network(momentum=0.99)
    model[1].weight.requires_grad_(False), model[1].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p is not model[4].bias], 0.1, momentum=0.9, weight_decay=0.5
    )
    model(x()).square().sum().backward()
    optimizer.step()
    model[1].running_var[0] = torch.nan
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    groups = [(id(g), [id(p) for p in g["params"]]) for g in optimizer.param_groups]
    error = KeyboardInterrupt if where == "interrupt" else RuntimeError
    asked = []

    def loader() -> Any:
        yield x()
        if where != "metric":
            raise error

    def metric(model: nn.Module) -> float:
        asked.append(model[1].momentum)
        if len(asked) == 2 and where == "metric":
            raise error
        return 0.0

    found = sn.fixes(model, x(), optimizer, loader=loader(), metric=metric)
    assert {301, 302, 204, 201, 103} <= set(codes(found.record))
    with pytest.raises(error):
        found.apply()
    assert asked == ([0.99, 0.01] if where == "metric" else [0.99])  # it was changed, and changed back
    assert same(snapshot(model), before)
    assert same(optimizer.state_dict(), state)
    assert [(id(g), [id(p) for p in g["params"]]) for g in optimizer.param_groups] == groups
    assert not found.record.done


def test_values_that_are_not_finite_leave_the_model_as_it_was() -> None:
    model = network(momentum=0.99)
    before = snapshot(model)
    with pytest.raises(StatisticsError, match="not finite"):
        sn.fixes(model, x(), loader=[x(), x() * math.inf]).apply()
    assert same(snapshot(model), before)


# Mistakes, and what is printed.


class Trains(Features):
    """Runs in train mode alone."""

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            raise RuntimeError("no labels")
        return self.norm(self.linear(x))


def test_mistakes_are_typed() -> None:
    model = network()
    mistakes: list[tuple[Any, type[SlabError], str]] = [
        (lambda: sn.fixes(3, x()), ModelError, r"fixes\(\) needs a torch.nn.Module"),
        (lambda: sn.fixes(model, x(), 3), OptionError, "optimizer must be"),
        (lambda: sn.fixes(model, x(), codes=301), OptionError, "collection of codes"),
        (lambda: sn.fixes(model, x(), codes=(999,)), OptionError, "codes of findings"),
        (lambda: sn.fixes(model, x(), codes="301"), OptionError, "codes of findings"),
        (lambda: sn.fixes(model, torch.randn(4, 5)), ModelError, "does not run on the batch"),
        (lambda: sn.fixes(Trains(), x()), ModelError, "does not run in eval mode on the batch"),
        (lambda: sn.fixes(model, x(), loader=3), OptionError, "loader must give batches\n"),
        (lambda: sn.fixes(model, x(), loader=x()), OptionError, "a tensor gives samples"),
        (lambda: sn.fixes(model, x(), metric=0.5), OptionError, "metric must be a function"),
        (lambda: sn.fixes(model, x(), metric=lambda m: torch.ones(2)).apply(), OptionError, "one number"),
        (lambda: sn.fixes(model, x(), metric=lambda m: torch.tensor(1j)).apply(), OptionError, "one number"),
        (lambda: sn.fixes(model, x(), metric=lambda m: "good").apply(), OptionError, "return one number"),
    ]
    for call, kind, says in mistakes:
        with pytest.raises(kind, match=says):
            call()
    found = sn.fixes(model, x())
    found.apply()
    with pytest.raises(OptionError, match="applied already"):
        found.apply()


def test_names_from_outside_are_safe_to_print() -> None:
    model = nn.Sequential()
    model.add_module("a\x1b[31m[bold]\n</script>", nn.BatchNorm1d(4, momentum=0.99))
    record = sn.fixes(model, x()).apply()
    assert "\x1b" not in str(record)
    assert len(str(record).split("\n")) == 2
    assert model[0].momentum == 0.01


def test_the_record_is_plain_data() -> None:
    fixed, kept = (
        Fix(None, "1", "its running statistics", "statistics of the loader"),
        Unfixed(401, "", "scale"),
    )
    record = FixRecord("Net", (fixed,), (kept,), True, math.inf, math.nan, 0.5)
    assert record.as_dict() == {
        "model": "Net", "done": True, "difference": None, "before": None, "after": 0.5,
        "fixed": [{"code": None, "layer": "1", "was": "its running statistics",
                   "becomes": "statistics of the loader", "note": ""}],
        "left": [{"code": 401, "layer": "", "advice": "scale", "reason": ""}],
    }  # fmt: skip
    assert str(record).startswith(
        "Net: 1 change, 1 left to you; which outputs are finite has changed; metric nan before, 0.5 after\n"
    )


def test_a_block_that_is_in_eval_mode_as_a_whole_is_left():
    block = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).eval()
    model = nn.Sequential(block, nn.Linear(8, 2))
    block[1].running_mean.fill_(0.1)
    block.eval()
    found = sn.fixes(model, torch.randn(32, 4), codes=(102,))
    assert found.record.fixed == ()
    assert [(one.code, one.layer) for one in found.record.left] == [(102, "0.1")]
    assert "0 is in eval mode as a whole" in found.record.left[0].reason
    found.apply()
    assert not block[1].training
