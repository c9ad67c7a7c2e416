"""Norms of other kinds in an existing model: what they compute, what stays of the model, and the way back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import prune

import slabnorm as sn
from slabnorm.errors import ModelError, OptionError, PatternError, StatisticsError
from slabnorm.nn.norm_free import Derf, DyT
from slabnorm.surgery.effect import difference
from slabnorm.surgery.kinds import group_count
from tests.surgery.nets import NETS, build
from tests.surgery.traces import state

EPS = 1e-3


def learned(norm: nn.Module, seed: int = 0) -> nn.Module:
    """Give a norm weights and statistics worth telling apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator)
            value.data = (drawn.abs() + 0.5 if "var" in name else drawn + (name == "weight")).to(value.dtype)
        elif name == "num_batches_tracked":
            value.fill_(3)
    return norm


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


SECOND: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(8, EPS),
    "instance": lambda: nn.InstanceNorm2d(8, EPS, affine=True),
    "group": lambda: nn.GroupNorm(2, 8, EPS),
    "sync": lambda: nn.SyncBatchNorm(8, EPS),
    "ours": lambda: sn.BatchNorm(8, EPS),
    "pattern": lambda: sn.SlabNorm("n c h w -> n h", c=8, eps=EPS),
}
LAST: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(8, EPS),
    "rms": lambda: nn.RMSNorm(8, EPS),
    "ours": lambda: sn.LayerNorm(8, EPS),
}


def normalised(x: Tensor, dims: tuple[int, ...], center: bool = True) -> Tensor:
    """Return the formula in float64, without weight and bias."""
    x = x.double()
    mean = x.mean(dims, keepdim=True) if center else torch.zeros((), dtype=torch.float64)
    return (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + EPS).sqrt()


def in_groups(x: Tensor, groups: int, axis: int) -> Tensor:
    """Return the formula of group norm: each sample's groups of channels, or each position's."""
    split = x.double().unflatten(axis, (groups, -1))
    axis = axis % x.dim()
    dims = (2, 3, 4) if axis == 1 else (axis + 1,)
    return normalised(split, dims).flatten(axis, axis + 1)


FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "batch": (lambda x: normalised(x, (0, 2, 3)), lambda x: normalised(x, (0, 1))),
    "instance": (lambda x: normalised(x, (2, 3)), lambda x: normalised(x, (1,))),
    "layer": (lambda x: normalised(x, (1, 2, 3)), lambda x: normalised(x, (-1,))),
    "rms": (lambda x: normalised(x, (1, 2, 3), False), lambda x: normalised(x, (-1,), False)),
    "group": (lambda x: in_groups(x, 4, 1), lambda x: in_groups(x, 4, -1)),
}


@pytest.mark.parametrize("to", FORMULAS)
@pytest.mark.parametrize(
    ("where", "source"), [*(("second", s) for s in SECOND), *(("last", s) for s in LAST)]
)
def test_each_kind_computes_its_formula(to: str, where: str, source: str) -> None:
    """In train mode, with the weight and bias that were learned; beside the formula in float64."""
    second = where == "second"
    norm = learned((SECOND if second else LAST)[source]())
    weight, bias = norm.weight.detach().double(), norm._parameters.get("bias")
    bias = torch.zeros(8) if bias is None or to == "rms" else bias.detach().double()
    x = drawn(3, 8, 4, 5) if second else drawn(3, 5, 8)
    report = sn.convert(norm, to)
    assert not report.left
    spread = (-1, 1, 1) if second else (-1,)
    eps = norm.eps
    assert eps == EPS
    want = FORMULAS[to][0 if second else 1](x) * weight.reshape(spread) + bias.reshape(spread)
    if to == source and not report.changed:
        return
    torch.testing.assert_close(norm(x).double(), want, rtol=1e-5, atol=1e-5)


def test_a_pattern() -> None:
    model = nn.Sequential(learned(nn.BatchNorm2d(8, EPS)), learned(nn.BatchNorm2d(8, EPS), 1))
    weights = [(n.weight, n.bias) for n in model]
    x = drawn(3, 8, 4, 5)
    report = sn.convert(model, "n (g c) h w -> n g h", g=2)
    assert [c.became for c in report.changed] == ['SlabNorm("n (g c) h w -> n g h")'] * 2
    y = x.double()
    for weight, bias in weights:
        y = normalised(y.unflatten(1, (2, 4)), (2, 4)).flatten(1, 2)
        y = y * weight.double()[:, None, None] + bias.double()[:, None, None]
    torch.testing.assert_close(model(x).double(), y, rtol=1e-5, atol=1e-5)
    assert all(
        n.weight is weight and n.bias is bias for n, (weight, bias) in zip(model, weights, strict=True)
    )


def test_a_pattern_that_spells_batch_norm_keeps_its_statistics() -> None:
    norm, x = learned(nn.BatchNorm2d(8)), drawn(3, 8, 4, 5)
    want, mean = copy.deepcopy(norm).eval()(x), norm.running_mean
    report = sn.convert(norm, "n c h w -> c", batch=x)
    assert report.changed[0].note == ""
    assert norm.running_mean is mean
    torch.testing.assert_close(norm.eval()(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_dynamic_tanh(last: bool) -> None:
    norm = learned(nn.LayerNorm(8) if last else nn.BatchNorm2d(8))
    weight, bias = norm.weight, norm.bias
    sn.convert(norm, "dyt")
    x = drawn(3, 5, 8) if last else drawn(3, 8, 4, 5)
    assert norm.weight is weight
    assert norm.bias is bias
    spread = (-1,) if last else (-1, 1, 1)
    want = weight.double().reshape(spread) * torch.tanh(0.5 * x.double()) + bias.double().reshape(spread)
    torch.testing.assert_close(norm(x).double(), want, rtol=1e-5, atol=1e-5)
    over_several = nn.LayerNorm((4, 8))
    sn.convert(over_several, "dyt")
    torch.testing.assert_close(over_several(drawn(3, 4, 8)), torch.tanh(0.5 * drawn(3, 4, 8)))


# ---- there and back


BACK: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(8), "batch", (4, 8)),
    "batch 2d": (lambda: nn.BatchNorm2d(8, EPS, None), "batch", (4, 8, 3, 3)),
    "batch 3d": (lambda: nn.BatchNorm3d(8, affine=False), "batch", (4, 8, 2, 3, 3)),
    "batch, no statistics": (lambda: nn.BatchNorm2d(8, track_running_stats=False), "batch", (4, 8, 3, 3)),
    "batch, bfloat16": (lambda: nn.BatchNorm2d(8).bfloat16(), "batch", (4, 8, 3, 3)),
    "instance": (lambda: nn.InstanceNorm2d(8), "instance", (4, 8, 3, 3)),
    "instance, tracking": (lambda: nn.InstanceNorm1d(8, EPS, 0.3, True, True), "instance", (4, 8, 5)),
    "group": (lambda: nn.GroupNorm(4, 8, EPS), "group", (4, 8, 3, 3)),
    "one group": (lambda: nn.GroupNorm(1, 8, affine=False), "layer", (4, 8, 3, 3)),
    "layer": (lambda: nn.LayerNorm((5, 8), EPS, bias=False), "layer", (4, 5, 8)),
    "rms": (lambda: nn.RMSNorm(8), "rms", (4, 8)),
}


@pytest.mark.parametrize("name", BACK)
def test_there_and_back(name: str) -> None:
    """Bit for bit the same objects, attributes and values; and the same outputs on the way."""
    make, to, shape = BACK[name]
    norm = learned(make())
    norm.mine = "kept"
    norm.register_forward_hook(lambda module, args, y: None)
    x = drawn(*shape).to(norm.weight.dtype if norm._parameters["weight"] is not None else torch.float32)
    before, want = state(norm), copy.deepcopy(norm).eval()(x)
    there = sn.convert(norm, to)
    assert (len(there.changed), there.left, there.changed[0].note) == (1, (), "")
    assert type(norm).__module__.startswith("slabnorm.nn")
    assert norm.mine == "kept"
    bound = 3e-2 if x.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(copy.deepcopy(norm).eval()(x), want, rtol=bound, atol=bound)
    assert not sn.convert(norm, to).changed
    sn.convert(norm, "torch")
    after = state(norm)
    if x.dtype == torch.bfloat16:  # whose statistics are kept in float32 meanwhile: other tensors
        before, after = ([v[1:] for v in s[""][2]["_buffers"].values()] for s in (before, after))
    assert after == before


def test_the_axes_of_a_batch_norm_are_remembered_or_measured() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), sn.BatchNorm(4))
    sn.convert(model, "group")
    sn.convert(model, "batch")
    copied = pickle.loads(pickle.dumps(model))
    report = sn.convert(copied, "torch", batch=drawn(2, 4, 3, 3))
    assert [type(n) for n in copied] == [nn.BatchNorm2d] * 2
    assert not report.left
    report = sn.convert(model, "torch")
    assert type(model[0]) is nn.BatchNorm2d
    assert "give batch=" in report.left[0].reason


@pytest.mark.parametrize("seed", range(6))
def test_random_models(seed: int) -> None:
    """Nested, shared, tied and with norms held elsewhere: the same outputs there, and all as it was back."""
    torch.manual_seed(seed)
    model, x = random_model(seed)
    before, want = state(model), copy.deepcopy(model).eval()(x)
    for norm in "batch", "instance", "group", "layer", "rms":
        sn.convert(model, norm, where=lambda _, module, norm=norm: KIND_OF.get(type(module)) == norm)
    assert not any(type(m) in KIND_OF for m in model.modules())
    got = copy.deepcopy(model).eval()(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    report = sn.convert(model, "torch")
    assert not report.left
    assert state(model) == before


KIND_OF = {
    nn.BatchNorm2d: "batch", nn.InstanceNorm2d: "instance", nn.GroupNorm: "group", nn.LayerNorm: "layer",
    nn.RMSNorm: "rms",
}  # fmt: skip


class Held(nn.Module):
    """Runs one norm from a plain list, and one twice."""

    def __init__(self, inner: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, norm
        self.plain = [norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.plain[0](self.inner(self.norm(x)))


def random_model(seed: int) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def choose(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    def norm() -> nn.Module:
        kinds = (
            nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=bool(choose(2))), nn.GroupNorm(2, 4),
            nn.LayerNorm(5), nn.RMSNorm((5, 5)), nn.BatchNorm2d(4, affine=False),
        )  # fmt: skip
        return learned(kinds[choose(len(kinds))], choose(100))

    model: nn.Module = nn.Sequential(nn.Conv2d(4, 4, 1), norm())
    for _ in range(3):
        model = nn.Sequential(Held(model, norm()), nn.ReLU(), norm()) if choose(2) else Held(model, norm())
    batch_norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    for other in batch_norms[1:]:
        other.weight = batch_norms[0].weight  # tied
    return model, drawn(3, 4, 5, 5, seed=seed)


# ---- what stays


def test_ghost_batches_and_renormalisation_stay_where_they_can() -> None:
    x = drawn(4, 4, 3, 3)
    norm = sn.SlabNorm("n c h w -> c", c=4, eps=EPS, ghost=2)
    assert sn.convert(norm, "batch").changed[0].note == ""
    want = normalised(x.unflatten(0, (2, 2)), (1, 3, 4)).flatten(0, 1)
    torch.testing.assert_close(norm(x).double(), want, rtol=1e-5, atol=1e-5)
    assert "ghost=2" in sn.convert(norm, "torch").left[0].reason
    report = sn.convert(norm, "group", g=2)
    assert report.changed[0].note == "another function; without its ghost batches"
    other = sn.BatchNorm(4, EPS, renorm=(1.0, 0.0))
    assert sn.convert(other, "n c h w -> c").changed[0].note == ""
    assert other.renorm == (1.0, 0.0)
    assert "renorm=(1.0, 0.0)" in sn.convert(other, "torch").left[0].reason
    assert "without its batch renormalisation" in sn.convert(other, "instance").changed[0].note


def test_statistics_of_an_accelerated_norm_in_half_precision_are_not_rounded() -> None:
    norm, exact = nn.BatchNorm2d(4).half(), torch.tensor([0.1, 1.23456, -7.7, 1000.3])
    sn.accelerate(norm, always=True)
    norm.running_mean.copy_(exact)
    norm.running_var.copy_(exact.square())
    sn.convert(norm, "batch")
    assert torch.equal(norm.running_mean, exact)
    assert torch.equal(norm.running_var, exact.square())


def test_parameters_hooks_references_and_attributes_stay() -> None:
    norm = learned(nn.BatchNorm2d(8, EPS).double())
    norm.bias.requires_grad_(False)
    norm.lr_scale = 0.1
    model, held = nn.Sequential(nn.ReLU(), norm).eval(), [norm]
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
    weight, bias = norm.weight, norm.bias
    sn.convert(model, "group", g=2)
    assert model[1] is held[0] is norm
    assert type(norm) is sn.GroupNorm
    assert (norm.weight is weight, norm.bias is bias, norm.bias.requires_grad) == (True, True, False)
    assert (norm.eps, norm.training, norm.lr_scale, norm.num_groups) == (EPS, False, 0.1, 2)
    assert not hasattr(norm, "running_mean") or norm.running_mean is None
    assert not hasattr(norm, "num_features")
    x = drawn(2, 8, 3, 3).double()
    y = model(x)
    assert torch.equal(seen[0], y)
    want = nn.functional.group_norm(x.relu(), 2, weight, bias, EPS)
    torch.testing.assert_close(y, want)
    assert set(model.state_dict()) == {"1.weight", "1.bias"}


def test_a_shared_norm_is_one_norm_at_all_names() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(norm, nn.Sequential(norm), nn.ReLU())
    report = sn.convert(model, "layer")
    assert report.changed[0].names == ("0", "1.0")
    assert model[0] is model[1][0] is norm


def test_new_parameters_ask_for_gradients_as_the_others_do() -> None:
    norm = nn.RMSNorm(8).bfloat16()
    norm.weight.requires_grad_(False)
    report = sn.convert(norm, "layer")
    assert (norm.bias.requires_grad, norm.bias.dtype, float(norm.bias.detach().abs().sum())) == (
        False,
        torch.bfloat16,
        0,
    )
    assert norm.eps == torch.finfo(torch.float32).eps
    assert report.changed[0].note == "another function; with a new bias"
    plain = nn.BatchNorm2d(4, affine=False)
    sn.convert(plain, "dyt")
    assert plain.alpha.requires_grad
    assert plain.weight is None


@pytest.mark.parametrize("name", NETS)
def test_accelerated_models(name: str) -> None:
    """What was fused before runs the new norms, with the activations that follow them."""
    model, x = build(name)
    fast = copy.deepcopy(model)
    sn.accelerate(fast, always=True)
    for one in (model, fast):
        assert sn.convert(one, "layer").changed
    torch.testing.assert_close(fast.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.train()(x), model.train()(x), rtol=1e-5, atol=1e-5)
    sn.restore(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in model.modules()]


def test_the_fast_path_of_a_transformer_does_not_bypass_the_new_norms() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = drawn(3, 5, 8)
    path = layer.activation_relu_or_gelu
    sn.convert(layer, "rms")
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), layer.train()(x))
    sn.convert(layer, "layer")
    assert layer.activation_relu_or_gelu == path
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), layer.train()(x))


def test_where() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(6)))
    report = sn.convert(
        model, "group", where=lambda name, norm: name.startswith("1.") and norm.num_features == 4
    )
    assert [c.names for c in report.changed] == [("1.0",)]
    assert type(model[0]) is nn.BatchNorm2d


# ---- how much it changes, and how many elements a slab has


def test_the_effect_is_measured() -> None:
    model, x = build("vgg")
    first = copy.deepcopy(model).eval()
    report = sn.convert(model, "group", batch=x)
    want, got = (m(x).detach().double() for m in (first, copy.deepcopy(model).eval()))
    assert report.difference == pytest.approx(float((got - want).norm() / want.norm()), rel=1e-4)
    assert all(c.difference > 1e-3 and c.note == "another function" for c in report.changed)
    same, x = build("vgg")
    for norm in (same[1], same[4]):
        learned(norm)
    report = sn.convert(same, "batch", batch=x)
    assert report.difference < 1e-5
    assert all(c.difference < 1e-5 and c.note == "" for c in report.changed)
    assert "the model's outputs differ by" in str(report)


@dataclass
class Answer:
    """What torch does not look into."""

    logits: Tensor


def test_where_nothing_can_be_compared_no_difference_is_named() -> None:
    class Answers(nn.Sequential):
        def forward(self, input: Tensor) -> Any:
            return Answer(super().forward(input))

    model = Answers(nn.Conv2d(3, 4, 1), learned(nn.BatchNorm2d(4)))
    report = sn.convert(model, "group", batch=drawn(2, 3, 4, 4))
    assert report.difference is None
    assert "outputs differ" not in str(report)
    assert report.changed[0].difference > 1e-3


def test_what_became_nan_differs() -> None:
    nan = float("nan")
    one, other = torch.tensor([3.0, nan, 4.0]), torch.tensor([3.0, nan, 5.0])
    assert difference([one], [other]) == pytest.approx(1 / 5)
    assert difference([torch.ones(3)], [torch.full((3,), nan)]) == float("inf")
    assert difference([one], [torch.tensor([3.0, 1.0, 4.0])]) == float("inf")


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 12, 16, 48, 64, 72, 100, 960])
def test_the_number_of_groups(channels: int) -> None:
    fit = [g for g in range(1, 33) if channels % g == 0 and (channels // g >= 2 or g == 1)]
    assert group_count(channels) == max(fit)


def pooled(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(channels))


def test_one_element_a_slab_is_refused_where_it_shows() -> None:
    x = drawn(2, 3, 4, 4)
    report = sn.convert(pooled(4), "instance", batch=x)
    assert not report.changed
    assert "one element" in report.left[0].reason
    report = sn.convert(pooled(4), "group", batch=x, g=4)
    assert "one element" in report.left[0].reason
    report = sn.convert(pooled(4), "group", batch=x)
    assert report.changed[0].became == "GroupNorm(2 groups)"
    assert "one element" in sn.convert(pooled(4), "instance").changed[0].note
    report = sn.convert(nn.Sequential(nn.BatchNorm1d(4)), "n c -> n c")
    assert "one element" in report.left[0].reason


# ---- optimisers


def test_an_optimiser_gets_and_loses_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))
    norms = [p for n in (model[1], model[3]) for p in n.parameters()]
    others = [p for i in (0, 2) for p in model[i].parameters()]
    groups: list[dict[str, Any]] = [{"params": others, "lr": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    x = drawn(6, 4)
    model(x).square().sum().backward()
    optimizer.step()
    moved = {id(p): dict(optimizer.state[p]) for p in norms[:2]}
    gone = model[3].bias
    sn.convert(model, "rms", optimizer=optimizer, where=lambda name, _: name == "3")
    sn.convert(model, "layer", optimizer=optimizer, where=lambda name, _: name == "1")
    lists = [group["params"] for group in optimizer.param_groups]
    assert [id(p) for p in lists[0]] == [id(p) for p in others]
    assert [id(p) for p in lists[1]] == [id(p) for p in (model[1].weight, model[1].bias, model[3].weight)]
    assert gone not in optimizer.state
    assert all(optimizer.state[p] == moved[id(p)] for p in norms[:2])
    optimizer.zero_grad()
    model(x).square().sum().backward()
    before = model[1].bias.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].bias, before)
    other = torch.optim.Adam([{"params": lists[0]}, {"params": lists[1]}])
    other.load_state_dict(optimizer.state_dict())


def test_a_gone_parameter_that_another_layer_holds_stays() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))
    model[1].bias = model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sn.convert(model, "rms", optimizer=optimizer, where=lambda name, _: name == "0")
    assert any(p is model[1].bias for p in optimizer.param_groups[0]["params"])


def test_parameters_outside_the_optimiser_stay_outside() -> None:
    model = nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 2), nn.BatchNorm1d(2, affine=False))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    sn.convert(model, "dyt", optimizer=optimizer)
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(p) for p in (*model[1].parameters(), model[2].alpha)]


class Constant(nn.Module):
    """An RMS norm whose weight is a buffer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", drawn(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * self.weight


class ConstantNorm(Constant):
    pass


def test_a_constant_stays_outside_the_optimiser() -> None:
    model = nn.Sequential(nn.Linear(4, 8), ConstantNorm(8))
    x, held = drawn(3, 4), list(model[0].parameters())
    want = model(x).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert sn.convert(model, "rms", optimizer=optimizer).changed
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in held]
    assert not model[1].weight.requires_grad
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def test_names_of_parameters_in_an_optimiser() -> None:
    model = nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this torch keeps no names")
    sn.convert(model, "layer", optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert group["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_a_wrapped_model_keeps_its_functions(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
        before = state(wrapped)
        with pytest.raises(ModelError, match="before you wrap it"):
            sn.convert(wrapped, "layer")
        assert state(wrapped) == before
        sn.convert(wrapped, "batch")
        x = drawn(6, 4)
        wrapped(x).sum().backward()
        assert wrapped.module[1].weight.grad is not None
    finally:
        dist.destroy_process_group()


# ---- a warm start


class Recorded:
    """Mean and variance per channel of what norms return over batches, in float64, both passes plain."""

    def __init__(self, model: nn.Module, names: list[str], batches: list[Tensor]) -> None:
        outputs: dict[str, list[Tensor]] = {name: [] for name in names}
        twin = copy.deepcopy(model).eval()
        for name in names:
            twin.get_submodule(name).register_forward_hook(
                lambda module, args, y, name=name: outputs[name].append(y.double().transpose(0, 1).flatten(1))
            )
        with torch.no_grad():
            for x in batches:
                twin(x)
        self.mean = {name: torch.cat(ys, 1).mean(1) for name, ys in outputs.items()}
        self.var = {name: torch.cat(ys, 1).var(1, correction=0) for name, ys in outputs.items()}


BATCHES = [drawn(n, 3, 8, 8, seed=n) * n for n in (4, 2, 7)]


@pytest.mark.parametrize("to", ["group", "layer", "instance", "dyt"])
def test_a_warm_start_keeps_mean_and_variance_of_every_channel(to: str) -> None:
    """In the converted model, behind the norms that were converted before; batches of different sizes."""
    model, _ = build("vgg")
    for norm in (model[1], model[4]):
        learned(norm, 3)
        with torch.no_grad():
            norm.weight[0] = -0.7
    want = Recorded(model, ["1", "4"], BATCHES)
    weights = model[1].weight
    torch.manual_seed(5)
    seed = torch.get_rng_state()
    report = sn.convert(model, to, loader=BATCHES)
    got = Recorded(model, ["1", "4"], BATCHES)
    for name in ("1", "4"):
        torch.testing.assert_close(got.mean[name], want.mean[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.var[name], want.var[name], rtol=1e-4, atol=1e-5)
    assert model[1].weight is weights
    assert weights[0] < 0
    assert all(c.note.endswith("fitted to the loader's batches") for c in report.changed)
    assert torch.equal(torch.get_rng_state(), seed)


def test_a_warm_start_of_batch_norm_gives_it_the_statistics_of_the_data() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), learned(nn.GroupNorm(2, 4)), nn.ReLU(), nn.GroupNorm(2, 4, affine=False)
    )
    want = Recorded(model, ["0", "1"], BATCHES)
    sn.convert(model, "batch", loader=[(x, None) for x in BATCHES])
    count = sum(len(x) for x in BATCHES) * 64
    torch.testing.assert_close(model[1].running_mean.double(), want.mean["0"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        model[1].running_var.double(), want.var["0"] * count / (count - 1), rtol=1e-5, atol=0
    )
    got = Recorded(model, ["1", "2"], BATCHES)
    torch.testing.assert_close(got.mean["1"], want.mean["1"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.var["1"], want.var["1"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[3].running_mean.double(), got.mean["2"], rtol=1e-5, atol=1e-5)


def test_a_norm_that_runs_twice_is_fitted_to_both() -> None:
    """Not exactly, as what it does the first time is what it is given the second; but nearer than without."""
    torch.manual_seed(0)
    norm = learned(nn.BatchNorm2d(3))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)
    cold, fitted = copy.deepcopy(model), copy.deepcopy(model)
    far = sn.convert(cold, "layer", batch=BATCHES[2]).difference
    report = sn.convert(fitted, "layer", loader=BATCHES, batch=BATCHES[2])
    assert report.changed[0].note.endswith("not exactly: it runs more than once")
    assert report.difference < far / 2


def test_behind_the_norm_that_is_looked_at_nothing_runs() -> None:
    runs = [0, 0]

    def count(place: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[place] += 1

        return hook

    model, _ = build("vgg")
    model[0].register_forward_hook(count(0))
    model[6].register_forward_hook(count(1))
    sn.convert(model, "group", loader=BATCHES)
    assert runs == [9, 3]  # a look at all three batches, and then up to each of two norms


def test_how_a_batch_is_run() -> None:
    model, x = build("vgg")
    other = copy.deepcopy(model)
    sn.convert(model, "group", loader=[x])
    sn.convert(other, "group", loader=[{"image": x}], call=lambda model, batch: model(batch["image"]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_a_loader_cannot_fit_is_said() -> None:
    ends = sn.BatchNorm(4, activation="relu")
    unused = nn.BatchNorm2d(4)
    tied = [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    tied[1].weight = tied[0].weight
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), learned(ends), *map(learned, tied), nn.BatchNorm2d(4, affine=False)
    )
    learned(model[4])
    model[0].unused = unused
    report = sn.convert(model, "group", loader=BATCHES)
    notes = {c.names[0]: c.note.partition("not fitted to the loader's batches: ")[2] for c in report.changed}
    assert notes == {
        "0.unused": "its batches do not reach the norm",
        "1": "relu follows inside the layer",
        "2": "it shares a parameter",
        "3": "it shares a parameter",
        "4": "it has no weight and bias",
    }


class Padded(nn.Module):
    """A norm of sequences."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.norm(lengths=lengths, x=x)


def test_a_warm_start_does_not_count_padding() -> None:
    lengths = torch.tensor([5, 2, 4, 3])
    loader = [(drawn(4, 3, 5, seed=n).double() + n, lengths) for n in (2, 9)]
    model = Padded(learned(sn.BatchNorm(3, dtype=torch.float64)))

    def moments_now() -> tuple[Tensor, Tensor]:
        twin = copy.deepcopy(model).eval()
        ys = [twin(*batch) for batch in loader]
        valid = torch.cat([y[i, :, :n] for y in ys for i, n in enumerate(lengths.tolist())], 1)
        return valid.mean(1), valid.var(1)

    want = moments_now()
    report = sn.convert(model, "instance", loader=loader, call=lambda m, b: m(*b), batch=loader[0])
    assert report.changed[0].note.endswith("fitted to the loader's batches")
    for got, wanted in zip(moments_now(), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


# ---- what is left, and mistakes


def _pruned() -> nn.Module:
    return prune.l1_unstructured(nn.BatchNorm2d(4), "weight", 2)


def _pruned_ours() -> nn.Module:
    return prune.l1_unstructured(sn.BatchNorm(4), "weight", 2)


def _patched() -> nn.Module:
    norm = sn.BatchNorm(4)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    return norm


def _frozen() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    sn.freeze(norm)
    return norm


def _patched_later() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    sn.accelerate(norm)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    return norm


class Own(nn.BatchNorm2d):
    """Somebody's own batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Twice(sn.BatchNorm):
    """Somebody's own, of slabnorm's."""

    def forward(self, *args: Any, **options: Any) -> Tensor:
        return 2 * super().forward(*args, **options)


class TwiceAny(sn.SlabNorm):
    def forward(self, *args: Any, **options: Any) -> Tensor:
        return 2 * super().forward(*args, **options)


class Llama(nn.Module):
    """An RMS norm as language models have it, whose weight counts from `shift` on."""

    def __init__(self, size: int, shift: float) -> None:
        super().__init__()
        self.weight, self.shift, self.variance_epsilon = nn.Parameter(torch.randn(size)), shift, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (y * (self.shift + self.weight.float())).to(x.dtype)


class LlamaNorm(Llama):
    pass


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("accelerated", [False, True])
def test_norms_of_other_classes(shift: float, accelerated: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LlamaNorm(16, shift), nn.Linear(16, 4))
    x, weight, used = torch.randn(3, 5, 16), model[0].weight, model[0].weight.detach() + shift
    wanted = model(x).detach()
    if accelerated:
        sn.accelerate(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    report = sn.convert(model, "rms", optimizer=optimizer, batch=x)
    assert report.changed[0].was == "LlamaNorm"
    assert "recognised by its results" in report.changed[0].note
    assert type(model[0]) is sn.RMSNorm
    assert (model[0].weight is weight) == (shift == 0)
    assert torch.equal(model[0].weight.detach(), used)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
    sn.convert(model, "layer")
    torch.testing.assert_close(
        model[0](x), nn.functional.layer_norm(x, (16,), used, eps=1e-6), rtol=1e-5, atol=1e-5
    )


class Residual(LlamaNorm):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(x if residual is None else x + residual)


class BiasedNorm(LlamaNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size, 0.0)
        self.bias = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class SizelessNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class ShapedNorm(nn.Module):
    """An instance norm with a weight of three axes, and an attribute of its user."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain, self.tag = nn.Parameter(torch.rand(size, 1, 1) + 0.5), "mine"

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (2, 3), keepdim=True, correction=0)
        return self.gain * (x - mean) * torch.rsqrt(var + 1e-5)


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (Residual(16, 0.0), "more than one argument"),
        (BiasedNorm(16), "no layer with its bias"),
        (SizelessNorm(), "how many channels"),
        (LlamaNorm(16, 1.0).to(torch.bfloat16), "rounded to half precision"),
    ],
    ids=["residual", "biased", "sizeless", "half"],
)
def test_norms_of_other_classes_that_are_left(norm: nn.Module, why: str) -> None:
    report = sn.convert(nn.Sequential(norm, nn.BatchNorm1d(16)), "batch")
    assert [left.names for left in report.left] == [("0",)]
    assert why in report.left[0].reason


def test_a_weight_of_another_shape_is_a_new_parameter() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(ShapedNorm(8)), torch.randn(2, 8, 6, 6)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(x).square().sum().backward()
    optimizer.step()
    wanted = model(x).detach()
    report = sn.convert(model, "instance", optimizer=optimizer)
    assert "gain is now weight" in report.changed[0].note
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    assert model[0].tag == "mine"
    model(x).square().sum().backward()
    optimizer.step()


def test_tied_weights_that_count_from_0() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(LlamaNorm(16, 1.0), LlamaNorm(16, 1.0)), torch.randn(3, 16)
    model[1].weight = model[0].weight
    wanted = model(x).detach()
    sn.convert(model, "rms", where=lambda name, _: name == "0")
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)
    sn.convert(model, "rms")
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)


def test_an_adopted_norm_is_converted_as_it_is_now() -> None:
    model, x = nn.Sequential(LlamaNorm(16, 0.0)), 0.1 * torch.randn(3, 16)
    sn.accelerate(model, always=True)
    model[0].variance_epsilon = 0.5
    wanted = model(x).detach()
    sn.convert(model, "rms")
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Own(4), "differ from every norm"),
        (lambda: Twice(4), "a subclass"),
        (lambda: TwiceAny("n c h w -> c", c=4), "a subclass"),
        (lambda: Derf(4), "a subclass"),
        (lambda: nn.LazyBatchNorm2d(), "not initialised"),
        (lambda: nn.LocalResponseNorm(2), "its outputs differ"),
        (_pruned, "pruning"),
        (_pruned_ours, "pruning"),
        (_patched, "forward was replaced"),
        (_frozen, "unfreeze it first"),
        (lambda: nn.LayerNorm((4, 5)), "last 2 axes"),
        (lambda: sn.SlabNorm("n h c w -> c", c=4), "neither the second nor the last axis"),
        (_patched_later, "forward was replaced"),
        (lambda: sn.SlabNorm("n h w -> n", affine="h", h=4), "do not vary along channels"),
    ],
)
def test_left_with_the_reason(make: Callable[[], nn.Module], why: str) -> None:
    model = nn.Sequential(make(), nn.ReLU())
    before = state(model)
    report = sn.convert(model, "group")
    assert not report.changed
    assert report.left[0].names == ("0",)
    assert why in report.left[0].reason
    assert state(model) == before


@pytest.mark.parametrize(
    ("norm", "to", "sizes", "why"),
    [
        (nn.BatchNorm2d(6), "group", {"g": 4}, "cannot be divided into 4 groups"),
        (nn.BatchNorm2d(6), "n (g c) h w -> n g", {"g": 4}, "cannot be divided into 4 groups"),
        (nn.LayerNorm(6), "n c h w -> c", {}, "its last axis"),
        (nn.BatchNorm2d(6), "n t c -> n t", {}, "its second axis"),
        (nn.BatchNorm3d(6), "n c h w -> n", {}, "names 4 axes, but its input has 5"),
        (sn.SlabNorm("n c ... -> n ...", c=6), "torch", {}, "torch.nn has no layer"),
        (sn.GroupNorm(2, 6, activation="relu"), "torch", {}, "ends with relu"),
        (sn.GroupNorm(2, 6, activation="relu"), "dyt", {}, "ends with relu"),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_left(norm: nn.Module, to: str, sizes: dict[str, int], why: str) -> None:
    report = sn.convert(norm, to, **sizes)
    assert not report.changed
    assert why in report.left[0].reason


def test_the_second_axis_of_two_is_the_last_as_well() -> None:
    norm, x = learned(nn.LayerNorm(6, EPS)), drawn(5, 6)
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()
    assert sn.convert(norm, "n c -> c", batch=x).changed
    torch.testing.assert_close(norm(x).double(), normalised(x, (0,)) * weight + bias, rtol=1e-5, atol=1e-5)


def test_an_eps_that_follows_the_dtype_becomes_a_number() -> None:
    for norm, to in ((nn.RMSNorm(6), "layer"), (sn.SlabNorm("n c ... -> n", c=6, eps=None), "torch")):
        sn.convert(norm, to)
        assert norm.eps == torch.finfo(torch.float32).eps
    kept = nn.RMSNorm(6)
    sn.convert(kept, "rms")
    assert kept.eps is None


def test_an_unbatched_instance_norm_is_left() -> None:
    report = sn.convert(nn.InstanceNorm2d(4), "instance", batch=drawn(4, 5, 5))
    assert "no axis of samples" in report.left[0].reason


MODEL = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": drawn(3), "to": "group"}, ModelError, "torch.nn.Module"),
        ({"to": "bath"}, OptionError, r"There is no norm 'bath'(.|\n)*did you mean 'batch'"),
        ({"to": nn.GroupNorm}, OptionError, "There is no norm"),
        ({"to": "n c -> q"}, PatternError, "'q'"),
        ({"to": "n h w -> n"}, PatternError, "names no channels"),
        ({"to": "n (g c) -> n g"}, PatternError, "size of 'g' is missing"),
        ({"to": "n c -> c", "c": 4}, PatternError, "follows from each norm's channels"),
        ({"to": "n c -> c", "optimiser": 1}, PatternError, "optimiser=1 names no axis"),
        ({"to": "batch", "g": 4}, OptionError, "no axis whose size"),
        ({"to": "rms", "optimizer": 3}, OptionError, "torch.optim.Optimizer"),
        ({"to": "rms", "optimizer": torch.optim.SGD([drawn(2)])}, OptionError, "no parameter of the model"),
        ({"to": "group", "loader": iter([drawn(4, 3)])}, OptionError, "gone through again"),
        ({"to": "group", "loader": []}, OptionError, "no batch"),
        ({"to": "group", "loader": [drawn(4, 5)]}, ModelError, "a batch of the loader(.|\n)*call="),
        ({"to": "group", "batch": drawn(4, 5)}, ModelError, "given as batch="),
        ({"to": "group", "loader": [drawn(4, 3) * float("nan")]}, StatisticsError, "not finite"),
    ],
)
def test_mistakes(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    given = {"model": MODEL, **arguments}
    before = state(MODEL)
    with pytest.raises(error, match=says):
        sn.convert(given.pop("model"), given.pop("to"), **given)
    assert state(MODEL) == before


def test_dyt_is_one_class() -> None:
    from slabnorm.study.models import NormFactory

    assert type(NormFactory("dyt")(4)) is DyT
