"""verify=: what it lets pass, what it stops, and that it leaves no trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    with pytest.raises(ModelError, match="did not run on the batch"):
        sn.accelerate(model, verify=torch.randn(8, 5), always=True)
    assert type(model[1]) is nn.LayerNorm


class Kink(nn.Module):
    """A ReLU that float32 brings to one side of its kink or the other."""

    def __init__(self, kinks: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("kinks", kinks)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x) - self.kinks)


def test_a_relu_that_flips_is_no_error() -> None:
    """As in 1 of 61 ResNets: both results are right to the last digit but one, a gradient is not the same."""
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    plain, ours, exact = nn.BatchNorm1d(8)(x), sn.BatchNorm(8)(x), nn.BatchNorm1d(8).double()(x.double())
    one = tuple(((plain > ours) & (exact > ours)).nonzero()[0])  # by half a digit and one
    kinks = torch.full_like(x, -10.0)
    kinks[one] = ours[one].detach()
    model, fast = Kink(kinks), Kink(kinks)
    sn.accelerate(fast, always=True)
    grads = [torch.autograd.grad(m(x).sum(), m.norm.bias)[0] for m in (model, fast)]
    assert int((grads[0] - grads[1]).abs().round().sum()) == 1
    assert sn.accelerate(model, verify=x, always=True).verified


def _scaled(self, name: str, by: Tensor | float, run: Callable[[], Tensor]) -> Tensor:
    table = self._parameters
    kept = table[name]
    table[name] = kept + by if name == "bias" else kept * by
    try:
        return run()
    finally:
        table[name] = kept


PLANTED: dict[str, Callable[[norms.Accelerated, Callable[[], Tensor]], Tensor]] = {
    "weight": lambda self, run: _scaled(self, "weight", 1.001, run),
    "bias": lambda self, run: _scaled(self, "bias", 1e-3, run),
    "one channel's weight": lambda self, run: _scaled(
        self, "weight", 1 + 1e-3 * (torch.arange(self.weight.numel()) == 3), run
    ),
    "gradient": lambda self, run: (lambda y: y.detach() + 1.001 * (y - y.detach()))(run()),
}


@pytest.mark.parametrize("name", ["resnet", "unet", "encoder"])
@pytest.mark.parametrize("fault", PLANTED)
def test_an_error_of_a_thousandth_in_one_norm_is_found(
    fault: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = build(name)
    key = {"resnet": "layer1.bn1", "unet": "middle.norm1", "encoder": "layers.0.norm1"}[name]
    right = norms.Accelerated.forward

    def forward(self, input, residual=None, fused=False):
        run = functools.partial(right, self, input, residual, fused)
        return PLANTED[fault](self, run) if self.__dict__.get("wrong") else run()

    monkeypatch.setattr(norms.Accelerated, "forward", forward)
    model.get_submodule(key).wrong = True
    with pytest.raises(VerificationError, match="is off"):
        sn.accelerate(model, verify=x, always=True)


class Speech(nn.Module):
    """As wav2vec2: it asks for the gradient of its input, and its weights are parametrised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 4, 3, padding=1))
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        if self.training:
            x.requires_grad = True
        return F.gelu(self.norm(self.conv(x)))


def test_models_that_ask_for_the_gradient_of_their_input() -> None:
    assert sn.accelerate(Speech(), verify=torch.randn(2, 9), always=True).verified


class Masked(nn.Module):
    """Marks an output as many models do, so that a softmax leaves it out."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.norm, self.mark = nn.LayerNorm(8), mark

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).index_fill(1, torch.tensor([0]), self.mark)


@pytest.mark.parametrize("mark", [float("-inf"), float("inf"), float("nan")])
def test_infinities_and_nan_hide_nothing(mark: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(self: norms.Accelerated, input: Tensor, residual: None = None, fused: bool = False) -> Tensor:
        return self.plain.forward(self, input) + 3

    x = torch.randn(4, 8)
    assert sn.accelerate(Masked(mark), verify=x, always=True).verified
    monkeypatch.setattr(norms.Accelerated, "forward", off)
    with pytest.raises(VerificationError, match="output 0"):
        sn.accelerate(Masked(mark), verify=x, always=True)


class OneNaN(torch.autograd.Function):
    """One element of a gradient is not a number, in float32 alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        dx = dy.clone()
        if dx.dtype == torch.float32:
            dx.view(-1)[3] = torch.nan
        return dx


def test_nan_in_a_gradient_is_no_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(self: norms.Accelerated, input: Tensor, residual: None = None, fused: bool = False) -> Tensor:
        return self.plain.forward(self, OneNaN.apply(input))

    monkeypatch.setattr(norms.Accelerated, "forward", off)
    with pytest.raises(VerificationError, match="gradient of input 0"):
        sn.accelerate(nn.Sequential(nn.LayerNorm(64)), verify=torch.randn(16, 64), always=True)
