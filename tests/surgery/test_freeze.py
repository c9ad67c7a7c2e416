"""Norms whose statistics stay still: in every mode, copy, wrapper and order with the other surgeries."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, update_bn

import slabnorm as sn
from slabnorm.errors import ModelError, ModeWarning
from slabnorm.surgery.derived import Derived, derived
from tests.surgery.nets import build
from tests.surgery.test_convert import drawn, learned
from tests.surgery.traces import state


class Own(nn.BatchNorm2d):
    """Somebody's own batch norm."""


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, own": lambda: Own(4),
    "batch, sync": lambda: nn.SyncBatchNorm(4),
    "batch, averaging": lambda: nn.BatchNorm2d(4, momentum=None),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "ours": lambda: sn.BatchNorm(4),
    "our instance": lambda: sn.InstanceNorm(4, affine=True, track_running_stats=True),
    "pattern": lambda: sn.SlabNorm("n c h w -> c", c=4),
}
X = drawn(6, 4, 5, 5)


def still(norm: nn.Module, x: Tensor = X) -> Tensor:
    """Return what a norm computes with its running statistics, in float64."""
    mean, var, weight, bias = (
        t.detach().double()[:, None, None]
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x.double() - mean) / (var + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize("name", NORMS)
def test_statistics_stay_whatever_is_said(name: str) -> None:
    norm = learned(NORMS[name]())
    kind, kept = type(norm), {key: value.clone() for key, value in norm.state_dict().items()}
    model = nn.Sequential(norm, nn.ReLU())
    report = sn.freeze(model)
    assert [c.names for c in report.changed] == [("0",)]
    for say in (model.train, norm.train, lambda: setattr(norm, "training", True), norm.reset_running_stats):
        say()
        torch.testing.assert_close(norm(X).double(), still(norm), rtol=1e-5, atol=1e-5)
        assert not norm.training
        assert model[1].training
    assert all(torch.equal(norm.state_dict()[key], value) for key, value in kept.items())
    assert list(norm.state_dict()) == list(kept)
    assert isinstance(norm, kind)
    assert type(norm).__name__ == kind.__name__
    assert repr(norm).endswith(", frozen)")
    norm(X).square().sum().backward()
    assert norm.weight.grad is not None
    sn.unfreeze(model)
    assert type(norm) is kind
    assert norm.training
    norm(X)
    assert not torch.equal(norm.running_mean, kept["running_mean"])


def test_update_bn_leaves_a_frozen_norm_alone() -> None:
    model = nn.Sequential(learned(nn.BatchNorm2d(4)), learned(nn.BatchNorm2d(4)))
    sn.freeze(model, where=lambda name, _: name == "0")
    kept = [model[i].running_mean.clone() for i in (0, 1)]
    update_bn([X, X + 1], model)
    assert torch.equal(model[0].running_mean, kept[0])
    assert not torch.equal(model[1].running_mean, kept[1])
    assert model[0].momentum == 0.1


def test_unfreeze_gives_back_all_that_was() -> None:
    """Class, mode and what each parameter asked for; also of parameters that norms share."""
    model = nn.Sequential(learned(nn.BatchNorm2d(4)), nn.BatchNorm2d(4).eval(), nn.GroupNorm(2, 4), Own(4))
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    before = state(model)
    for affine in (True, False):
        sn.freeze(model, affine=affine)
        sn.unfreeze(model)
        assert state(model) == before
    assert not sn.unfreeze(model).changed
    sn.freeze(model)
    model.eval()
    sn.unfreeze(model)
    assert not model[0].training  # as the model says meanwhile


def test_affine() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), learned(nn.BatchNorm2d(4)), nn.LayerNorm(5))
    model(X).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    report = sn.freeze(model, affine=True)
    assert [c.became for c in report.changed] == [
        "statistics, weight and bias frozen",
        "weight and bias frozen",
    ]
    kept = [p.detach().clone() for norm in model[1:] for p in norm.parameters()]
    optimizer.step()
    optimizer.zero_grad()
    model.train()(X).sum().backward()
    optimizer.step()
    assert all(
        torch.equal(a, b) for a, b in zip(kept, (p for n in model[1:] for p in n.parameters()), strict=True)
    )
    assert model[0].weight.grad is not None
    assert all(p.grad is None for norm in model[1:] for p in norm.parameters())


def test_a_second_call_freezes_what_is_not_frozen_yet() -> None:
    model = nn.Sequential(learned(nn.BatchNorm2d(4)), nn.ReLU())
    sn.freeze(model)
    assert sn.freeze(model).left[0].reason == "frozen already"
    assert sn.freeze(model, affine=True).changed
    assert sn.freeze(model, affine=True).left[0].reason == "frozen already"
    sn.unfreeze(model)
    assert type(model[0]) is nn.BatchNorm2d
    assert model[0].weight.requires_grad


def test_the_model_itself_and_shared_norms() -> None:
    norm = learned(nn.BatchNorm2d(4))
    sn.freeze(norm)
    torch.testing.assert_close(norm.train()(X).double(), still(norm), rtol=1e-5, atol=1e-5)
    shared = learned(nn.BatchNorm2d(4))
    report = sn.freeze(nn.Sequential(shared, nn.Sequential(shared)), batch=X)
    assert report.changed[0].names == ("0", "1.0")
    assert (report.difference, report.changed[0].difference) == (0, 0)


def _saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": _saved}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", ["batch", "batch, own", "pattern"])
def test_copies_are_frozen(name: str, way: str) -> None:
    model = nn.Sequential(learned(NORMS[name]()), nn.ReLU())
    sn.freeze(model, affine=True)
    twin = COPIES[way](model)
    assert type(twin[0]) is type(model[0])
    assert torch.equal(twin.train()[0](X), model[0](X))
    sn.unfreeze(twin)
    assert type(twin[0]) is type(NORMS[name]())
    assert (twin[0].training, twin[0].weight.requires_grad) == (True, True)
    assert not model[0].training


def test_checkpoints_both_ways() -> None:
    frozen, plain = (nn.Sequential(learned(nn.BatchNorm2d(4), seed)) for seed in (1, 2))
    sn.freeze(frozen)
    frozen.load_state_dict(plain.state_dict())
    torch.testing.assert_close(frozen.train()[0](X), plain.eval()[0](X))
    plain.load_state_dict(frozen.state_dict())
    averaged = AveragedModel(frozen)
    torch.testing.assert_close(averaged.train()(X), plain(X))


def test_data_parallel(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Conv2d(4, 4, 1), learned(nn.BatchNorm2d(4)), nn.ReLU())
        sn.freeze(model, affine=True)
        wrapped = nn.parallel.DistributedDataParallel(model).train()
        for _ in range(2):
            y = wrapped(X)
            y.square().sum().backward()
        torch.testing.assert_close(y.double(), still(model[1], model[0](X)).relu(), rtol=1e-4, atol=1e-5)
        assert sn.unfreeze(wrapped).changed[0].names == ("module.1",)
        assert sn.freeze(wrapped).changed
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("order", ["freeze first", "accelerate first"])
@pytest.mark.parametrize("back", ["restore first", "unfreeze first"])
def test_with_accelerate_in_every_order(order: str, back: str) -> None:
    model, x = build("resnet")
    model(x)
    plain, before = copy.deepcopy(model).eval(), state(model)
    steps: list[Callable[[], Any]] = [
        lambda: sn.freeze(model),
        lambda: sn.accelerate(model, verify=x, always=True),
    ]
    for step in steps if order == "freeze first" else steps[::-1]:
        step()
    want = plain(x)
    twins = model.train(), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
    for twin in twins:
        assert all(isinstance(n, nn.BatchNorm2d) and not n.training for n in norms_of(twin))
        assert all(".surgery.norms" in type(n).__module__ for n in norms_of(twin))
        assert (twin(x) - want).abs().max() <= 5e-5 * want.abs().max()
    assert sn.accelerate(model, always=True).already == 6
    assert "frozen" in repr(model.bn1)
    steps = [lambda: sn.restore(model), lambda: sn.unfreeze(model)]
    for step in steps if back == "restore first" else steps[::-1]:
        step()
    assert type(model.bn1) is nn.BatchNorm2d
    assert state(model) == before


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_restored_while_frozen_it_stays_frozen() -> None:
    model, x = build("resnet")
    model(x)
    sn.accelerate(model, always=True)
    sn.freeze(model)
    sn.restore(model)
    assert not model.train().bn1.training
    assert not any(".surgery.norms" in type(n).__module__ for n in norms_of(model))


def test_compiled_and_traced() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), learned(nn.BatchNorm2d(4)))
    sn.freeze(model)
    want, kept = still(model[1], model[0](X)), model[1].running_mean.clone()
    compiled = torch.compile(model.train(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X).double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(model[1].running_mean, kept)


class Louder(Derived):
    """Another derived class, under the frozen one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_above_another_derived_class() -> None:
    model = nn.Sequential(learned(nn.BatchNorm2d(4)))
    object.__setattr__(model[0], "__class__", derived(Louder, nn.BatchNorm2d))
    kind = type(model[0])
    sn.freeze(model)
    for twin in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(twin.train()(X).double(), 2 * still(twin[0]), rtol=1e-5, atol=1e-5)
    assert "frozen" in sn.accelerate(model).left[0].reason
    sn.unfreeze(model)
    assert type(model[0]) is kind


@pytest.mark.parametrize(
    ("norm", "affine", "why"),
    [
        (nn.GroupNorm(2, 4), False, "affine=True freezes weight and bias"),
        (nn.BatchNorm2d(4, track_running_stats=False), False, "affine=True freezes weight and bias"),
        (nn.LayerNorm(5, elementwise_affine=False), True, "no running statistics, and no weight and bias"),
        (nn.LazyBatchNorm2d(), True, "not initialised"),
        (nn.LocalResponseNorm(2), True, "no running statistics"),
    ],
    ids=repr,
)
def test_left_with_the_reason(norm: nn.Module, affine: bool, why: str) -> None:
    model = nn.Sequential(norm)
    before = state(model)
    report = sn.freeze(model, affine=affine)
    assert not report.changed
    assert why in report.left[0].reason
    assert state(model) == before


def test_what_has_learned_nothing_yet_is_noted() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), learned(nn.BatchNorm2d(4)))
    notes = [c.note for c in sn.freeze(model).changed]
    assert "still mean 0 and variance 1" in notes[0]
    assert notes[1] == ""


@pytest.mark.parametrize("function", [sn.freeze, sn.unfreeze])
def test_not_a_module(function: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="Module"):
        function(X)


def test_a_batch_that_does_not_fit() -> None:
    model = nn.Sequential(learned(nn.BatchNorm2d(4)))
    before = state(model)
    with pytest.raises(ModelError, match="given as batch="):
        sn.freeze(model, batch=drawn(2, 3, 5, 5))
    assert state(model) == before


# ---- the warning that names freeze


def half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), sn.BatchNorm(4), nn.ReLU(), sn.BatchNorm(4), sn.GroupNorm(2, 4))
    for layer in model[1:]:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    return model


def test_statistics_that_move_under_constant_weights_are_warned_of_once() -> None:
    model = half_frozen()
    with pytest.warns(
        ModeWarning, match=r"1 \(BatchNorm\): weight and bias of a layer are constants"
    ) as caught:
        model(X)
    assert len(caught) == 1
    assert "slabnorm.freeze(model)" in str(caught[0].message)
    model(X)  # a second one would be an error


def test_no_such_warning_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = half_frozen()
        for norm in (model[1], model[3]):
            learned(norm)
        sn.freeze(model)
        model.train()(X)
        half_frozen()[1:].requires_grad_(True)(X)
        plain = nn.Sequential(sn.BatchNorm(4), sn.BatchNorm(4, affine=False), sn.BatchNorm(4, bias=False))
        plain(X)
        functional_call(plain, {key: value.detach() for key, value in plain.named_parameters()}, X)
        plain[0].weight.requires_grad_(False)  # the bias still learns
        plain(X)
