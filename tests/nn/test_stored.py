"""Running statistics through casts, devices, copies and checkpoints."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import slabnorm as sn
from slabnorm.errors import StatisticsError, StatisticsWarning
from tests.cases import draw
from tests.nn.trained import same, state, trained


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_statistics_stay_float32(cast: str) -> None:
    layer = trained()
    before = state(layer)
    getattr(layer, cast)()
    assert layer.weight.dtype in (torch.float16, torch.bfloat16)
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
    assert torch.equal(layer.running_var, before["running_var"])  # no round trip through half
    y = layer(draw((8, 4, 5), dtype=layer.weight.dtype))
    assert y.dtype == layer.weight.dtype
    layer.to(torch.float64)
    assert layer.running_mean.dtype == torch.float64
    assert sn.BatchNorm(4, dtype=layer.weight.dtype).running_mean.dtype == torch.float64
    assert sn.BatchNorm(4, dtype=torch.float16).running_mean.dtype == torch.float32
    lowered = {k: v.half() if v.is_floating_point() else v for k, v in state(trained()).items()}
    assigned = sn.BatchNorm(4)
    assigned.load_state_dict(lowered, assign=True)
    assert assigned.running_var.dtype == torch.float32


def test_old_checkpoint_without_counter() -> None:
    old = state(trained())
    del old["num_batches_tracked"]
    layer = sn.BatchNorm(4)
    with pytest.warns(StatisticsWarning, match="old checkpoint"):
        layer.load_state_dict(old)
    assert torch.equal(layer.running_mean, old["running_mean"])
    assert layer.num_batches_tracked == 0
    layer.eval()(draw((8, 4, 5)))  # and does not claim that it was never trained


@pytest.mark.parametrize(
    ("name", "value"),
    [("running_var", -1.0), ("running_var", float("nan")), ("running_mean", float("inf"))],
)
def test_damaged_checkpoint(name: str, value: float) -> None:
    damaged = {f"body.{key}": tensor for key, tensor in state(trained()).items()}
    damaged[f"body.{name}"][2] = value
    model = nn.ModuleDict({"body": sn.BatchNorm(4)})
    with pytest.raises(StatisticsError, match=rf"body\.{name}"):
        model.load_state_dict(damaged)


def test_reset() -> None:
    layer = trained()
    layer.reset_parameters()
    assert same(state(layer), state(sn.BatchNorm(4)))
    assert layer.num_elements_tracked == 0


@pytest.mark.usefixtures("in_plain_torch")
def test_copies_are_whole_and_apart() -> None:
    layer = trained(momentum=None, activation="relu")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same(state(layer), state(twin))
        assert torch.equal(layer.num_elements_tracked, twin.num_elements_tracked)
        before = state(layer)
        twin(draw((8, 4, 5)))
        assert same(before, state(layer))


def test_from_the_meta_device() -> None:
    stored = state(trained(momentum=None))
    with torch.device("meta"):
        layer = sn.BatchNorm(4, momentum=None)
    layer.state_dict()
    layer.load_state_dict(stored, assign=True)
    layer.to("cpu")(draw((8, 4, 5)))
    assert layer.num_batches_tracked == 4
    emptied = sn.BatchNorm(4, device="meta").to_empty(device="cpu")
    emptied.load_state_dict(stored)
    assert emptied.num_batches_skipped == 0


def test_an_old_checkpoint_into_a_trained_layer_counts_anew() -> None:
    old = state(trained())
    del old["num_batches_tracked"]
    layer = trained()
    with pytest.warns(StatisticsWarning, match="counts? of batches starts anew"):
        layer.load_state_dict(old)
    assert layer.num_batches_tracked == 0


def test_running_statistics_follow_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert sn.BatchNorm(4).running_mean.dtype == nn.BatchNorm1d(4).running_mean.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_statistics_of_a_wrong_shape_are_refused_not_written_past() -> None:
    """Kernels write to addresses."""
    layer = sn.BatchNorm(64)
    layer.running_mean = torch.full((3,), 0.5)
    with pytest.raises((RuntimeError, sn.SlabError)):
        layer(torch.randn(8, 64))
    layer.running_var = torch.ones(3)
    with pytest.raises(sn.SlabError, match="one value for each of the 64 slabs"):
        layer.eval()(torch.randn(8, 64))
