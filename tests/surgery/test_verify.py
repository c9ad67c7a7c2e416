"""verify=: what it lets pass, what it stops, and that it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.errors import ModelError, VerificationError
from slabnorm.surgery import norms
from tests.surgery.nets import build


@pytest.mark.parametrize("name", ["resnet", "unet", "encoder"])
def test_leaves_no_trace(name: str) -> None:
    model, x = build(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    seed = torch.get_rng_state()
    report = sn.accelerate(model, verify=x, always=True)
    assert report.verified
    assert "verified" in str(report)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(p.grad is None for p in model.parameters())
    assert x.grad is None
    assert [module.training for module in model.modules()] == modes


class Wrong:
    """Ways in which a norm could be wrong."""

    @staticmethod
    def output(self, input, residual=None, fused=False):
        return 1.01 * self.plain.forward(self, input)

    @staticmethod
    def gradient(self, input, residual=None, fused=False):
        return self.plain.forward(self, input.detach()) + 0 * input

    @staticmethod
    def statistics(self, input, residual=None, fused=False):
        y = self.plain.forward(self, input)
        self.running_mean = self.running_mean + 1
        return y

    @staticmethod
    def not_a_number(self, input, residual=None, fused=False):
        return self.plain.forward(self, input) * float("nan")

    @staticmethod
    def shape(self, input, residual=None, fused=False):
        return self.plain.forward(self, input)[:, :, :1]


@pytest.mark.parametrize(
    ("fault", "what"),
    [("output", "output 0"), ("gradient", "gradient"), ("statistics", "buffer"), ("not_a_number", "output 0"),
     ("shape", "shape")],
)  # fmt: skip
def test_stops_what_differs(fault: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    classes = [type(module) for module in model.modules()]
    monkeypatch.setattr(norms.Accelerated, "forward", vars(Wrong)[fault].__func__)
    with pytest.raises(VerificationError, match=what):
        sn.accelerate(model, verify=torch.randn(4, 3, 5, 5), always=True)
    assert [type(module) for module in model.modules()] == classes


class Arguments(nn.Module):
    """Takes and gives more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)

    def forward(self, ids: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> dict[str, Tensor]:
        y = scale * self.norm(self.embed(ids))
        return {"y": y if shift is None else y + shift, "ids": ids}


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor([[1, 2]]),
        (torch.tensor([[1, 2]]), 3.0),
        {"ids": torch.tensor([[1, 2]]), "shift": torch.ones(4)},
    ],
    ids=["tensor", "tuple", "dict"],
)
def test_batches(batch: object) -> None:
    assert sn.accelerate(Arguments(), verify=batch, always=True).verified


def test_models_of_every_dtype() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.SiLU()).to(dtype)
        assert sn.accelerate(model, verify=torch.randn(8, 4, dtype=dtype), always=True).verified


def test_a_model_that_insists_on_float32() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return self.norm(x)

    assert sn.accelerate(Insists(), verify=torch.randn(8, 4), always=True).verified


def test_randomness_is_the_same_on_both_sides() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4))
    assert sn.accelerate(model, verify=torch.randn(8, 4), always=True).verified


def test_a_batch_that_does_not_run() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ModelError, match="runs on the batch"):
        sn.accelerate(model, verify=torch.randn(8, 5), always=True)
    assert type(model[1]) is nn.LayerNorm
