"""A model changed wholly or not at all: an exception before every line of a surgery leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.errors import ModelError
from slabnorm.surgery.transaction import transaction
from tests.surgery.test_convert import drawn, learned
from tests.surgery.traces import Injected, each, fails_at, lines_of, state


class Block(nn.Module):
    """A nested block whose second norm is shared with another place, and one that is tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.body = nn.Sequential(self.norm, nn.LayerNorm(5), nn.InstanceNorm2d(4, affine=True))
        self.tied = nn.BatchNorm2d(4)
        self.tied.weight = self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.body(self.norm(self.conv(x))))


X = drawn(4, 4, 5, 5)


def subject(accelerated: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model with hooks, gradients and modes of all kinds, and an optimiser with state."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.ReLU(), sn.BatchNorm(4), nn.RMSNorm(5))
    for module in model.modules():
        if type(module).__name__.endswith("Norm") or isinstance(module, nn.BatchNorm2d):
            learned(module)
    if accelerated:
        sn.accelerate(model, always=True)
    model[0].body[1].register_forward_hook(lambda module, args, y: None)
    model[2].eval()
    model[0].tied.bias.requires_grad_(False)
    groups = [{"params": list(model[0].parameters()), "lr": 0.1}, {"params": list(model[2:].parameters())}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    model(X).square().sum().backward()
    optimizer.step()
    return model, optimizer


def convert_with_a_loader(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sn.convert(model, "group", optimizer=optimizer, loader=[X, X[:2]], batch=X)


def convert_with_other_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sn.convert(model, "dyt", optimizer=optimizer)


def convert_to_rms(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sn.convert(model, "rms", optimizer=optimizer)


def freeze_all(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sn.freeze(model, affine=True, batch=X)


def unfreeze_all(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    sn.unfreeze(model)


# fmt: off
CHANGES = frozenset((
    "convert", "_commit", "take_place", "_take_statistics", "_fast_paths", "exchange", "_insert", "revert",
    "freeze", "unfreeze", "_freeze", "start", "_track", "look", "note", "_look", "_change", "layer_of",
    "after",
))
# fmt: on


@pytest.mark.parametrize(
    ("work", "accelerated"),
    [
        (convert_with_a_loader, False),
        (convert_with_other_parameters, False),
        (convert_to_rms, True),
        (freeze_all, True),
        (unfreeze_all, False),
    ],
)
def test_an_exception_before_any_line_leaves_no_trace(work: Callable[..., None], accelerated: bool) -> None:
    model, optimizer = subject(accelerated)
    if work is unfreeze_all:
        sn.freeze(model, affine=True)
    before = state(model, optimizer)
    spare, other = subject(accelerated)
    if work is unfreeze_all:
        sn.freeze(spare, affine=True)
    lines = lines_of(lambda: work(spare, other), CHANGES)
    assert lines > 30
    for line in each(lines, 10 if work is convert_with_a_loader else 25):
        fails_at(line, lambda: work(model, optimizer), CHANGES)
        assert state(model, optimizer) == before, line
    work(model, optimizer)
    assert state(model, optimizer) != before


class Loader:
    """Batches in random order, of which the k-th that is asked for fails."""

    def __init__(self, fails: int, error: type[BaseException]) -> None:
        self.left, self.error = fails, error

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(3):
            random.random(), np.random.rand()
            self.left -= 1
            if self.left < 0:
                raise self.error
            yield X[torch.randperm(4)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("fails", [0, 1, 4, 10])
def test_a_loader_that_fails_leaves_no_trace(fails: int, error: type[BaseException]) -> None:
    model, optimizer = subject()
    before = state(model, optimizer)
    with pytest.raises(error):
        sn.convert(model, "group", loader=Loader(fails, error), optimizer=optimizer)
    assert state(model, optimizer) == before


def test_a_call_that_fails_leaves_no_trace() -> None:
    model, optimizer = subject()
    before = state(model, optimizer)
    calls = 0

    def call(model: nn.Module, batch: Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of memory")
        return model(batch)

    with pytest.raises(ModelError, match="out of memory"):
        sn.convert(model, "instance", loader=[X, X], call=call, optimizer=optimizer)
    assert calls == 4
    assert state(model, optimizer) == before


class Fails(nn.Module):
    """Runs until it is behind a norm of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm.running_mean is not None
        return self.norm(x)


def test_a_model_that_does_not_run_with_the_new_norm_keeps_the_old() -> None:
    model = Fails()
    before = state(model)
    with pytest.raises(ModelError, match="given as batch="):
        sn.convert(model, "group", batch=X)
    assert state(model) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Injected])
def test_whatever_a_block_does_to_a_model_is_undone(error: type[BaseException]) -> None:
    model, _ = subject()
    before = state(model)
    with pytest.raises(error):
        change(model, error)
    assert state(model) == before


def change(model: nn.Module, error: type[BaseException]) -> None:
    """Change all that a transaction puts back, and raise."""
    with transaction(model):
        model.train()
        for module in list(model.modules()):
            module.register_forward_hook(lambda module, args, y: None)
            module.mine = "new"
            for value in module.buffers(recurse=False):
                value.zero_()
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter)
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.grad = None
        model[0].norm = nn.Identity()
        del model[3]
        object.__setattr__(model[1], "__class__", nn.Tanh)
        random.random(), np.random.rand(), torch.rand(3)
        raise error
