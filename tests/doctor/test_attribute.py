"""attribute() names the layers whose statistics are wrong, and only these."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import slabnorm as sn
from slabnorm.errors import ModelError, OptionError

LAYERS = ("1", "4", "7", "10", "13")


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[Any], list[Any]]:
    """A network of five batch norms, trained on digits, and batches for training and validation."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((1, 8, 16, 16, 16, 16)):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for at in torch.randperm(1200).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
    train = list(zip(x[:1200].split(100), y[:1200].split(100), strict=True))
    validation = list(zip(x[1200:].split(100), y[1200:].split(100), strict=True))
    sn.recalibrate(model, train)
    return model.eval(), train, validation


def right(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).argmax(1) == batch[1]


def spoil(norm: Any, how: str) -> None:
    if how == "factor":
        norm.running_var.mul_(400)
    elif how == "stale":
        norm.running_mean.fill_(-2)
        norm.running_var.fill_(1)
    else:
        norm.running_mean[0] = float("nan")


@pytest.mark.parametrize("how", ["factor", "stale", "nan"])
@pytest.mark.parametrize("layer", LAYERS[:4])
def test_a_spoiled_layer_comes_first(trained: Any, layer: str, how: str) -> None:
    model, train, validation = copy.deepcopy(trained)
    spoil(model.get_submodule(layer), how)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = sn.attribute(model, train, validation, right)
    assert [cost.layers for cost in found.costs] == [(layer,)], found
    assert found.costs[0].share == pytest.approx(1, abs=0.02)
    assert found.exact > 0.9 > found.as_is
    assert set(found.innocent) == set(LAYERS) - {layer}
    assert all(torch.equal(v, before[k]) or v.isnan().any() for k, v in model.state_dict().items())


@pytest.mark.parametrize("layers", [("1", "7", "13"), ("4", "7", "10")])
def test_three_spoiled_layers_are_the_first_three(trained: Any, layers: tuple[str, ...]) -> None:
    model, train, validation = copy.deepcopy(trained)
    for layer, how in zip(layers, ("factor", "stale", "nan"), strict=True):
        spoil(model.get_submodule(layer), how)
    found = sn.attribute(model, train, validation, right)
    assert {cost.layers for cost in found.costs[:3]} == {(layer,) for layer in layers}, found
    assert found.evaluations <= 12


def test_a_healthy_model_has_no_costs(trained: Any) -> None:
    model, train, validation = trained
    found = sn.attribute(model, train, validation, right)
    assert found.costs == ()
    assert found.gap == 0
    assert found.evaluations == 2
    assert "no difference" in found.verdict


def test_fifty_layers_take_at_most_twelve_evaluations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(50) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8))))
    x = torch.randn(512, 8)
    sn.recalibrate(model, x.split(128), sequential=False)
    sn.recalibrate(model, x.split(512))
    target = model.eval()(x).detach()
    model[41].running_var.mul_(9)
    pairs = list(zip(x.split(128), target.split(128), strict=True))

    def near(model: nn.Module, batch: Any) -> Tensor:
        return -(model(batch[0]) - batch[1]).abs().mean(1)

    found = sn.attribute(model, x.split(512), pairs, near)
    assert found.costs[0].layers == ("41",)
    assert found.costs[0].share > 0.9
    assert found.evaluations <= 12


def test_what_cannot_be_attributed(trained: Any) -> None:
    model, train, validation = trained
    with pytest.raises(ModelError, match="no layers with running statistics"):
        sn.attribute(nn.Linear(2, 2), train, validation, right)
    with pytest.raises(OptionError, match="evaluations must be 4"):
        sn.attribute(model, train, validation, right, evaluations=3)
    with pytest.raises(OptionError, match="one number for each sample"):
        sn.attribute(model, train, validation, lambda model, batch: right(model, batch).float().mean())
    with pytest.raises(OptionError, match="validation loader is empty"):
        sn.attribute(model, train, [], right)


def test_a_loss_that_is_nan_counts_as_the_worst(trained: Any) -> None:
    model, train, validation = copy.deepcopy(trained)
    spoil(model.get_submodule("7"), "nan")

    def minus_loss(model: nn.Module, batch: Any) -> Tensor:
        return -F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    found = sn.attribute(model, train, validation, minus_loss)
    assert [cost.layers for cost in found.costs] == [("7",)]
    assert found.as_is < found.exact
    assert found.costs[0].share == pytest.approx(1)


@pytest.mark.parametrize("most", [4, 5, 6, 7])
def test_no_more_evaluations_than_allowed(trained: Any, most: int) -> None:
    model, train, validation = copy.deepcopy(trained)
    for layer in LAYERS:
        spoil(model.get_submodule(layer), "factor")
    found = sn.attribute(model, train, validation, right, evaluations=most)
    assert found.evaluations <= most
    assert {name for cost in found.costs for name in cost.layers} | set(found.innocent) == set(LAYERS)
