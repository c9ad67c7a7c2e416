"""Which kernels an accelerated model uses: those that take less time, or always slabnorm's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.surgery.crossover import pays


def _conv(norm: nn.Module, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), norm, activation)


def _backward(y: Tensor) -> list[str]:
    """Return the names of the last two steps of a graph."""
    assert y.grad_fn is not None
    below = y.grad_fn.next_functions[0][0]
    return [type(node).__name__ for node in (y.grad_fn, below) if node is not None]


def test_small_inputs_stay_with_pytorch(in_plain_torch: None) -> None:
    model = _conv(nn.BatchNorm2d(32), nn.ReLU())
    fast = copy.deepcopy(model)
    report = sn.accelerate(fast, verify=torch.randn(2, 3, 8, 8))
    assert report.fused
    assert report.verified
    assert "always=True" in str(report)
    x = torch.randn(2, 3, 8, 8)
    y = fast(x)
    assert torch.equal(y, model(x))
    assert _backward(y) == ["ReluBackward0", "NativeBatchNormBackward0"]
    for key, value in model.state_dict().items():
        assert torch.equal(fast.state_dict()[key], value)


def test_large_inputs_go_to_slabnorm() -> None:
    model = _conv(nn.BatchNorm2d(32), nn.ReLU())
    sn.accelerate(model)
    assert _backward(model(torch.randn(8, 3, 64, 64)))[0] == "_NormalizeBackward"
    last = torch.randn(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    assert _backward(model.to(memory_format=torch.channels_last)(last))[0] == "_NormalizeBackward"


def test_always() -> None:
    model = _conv(nn.GroupNorm(4, 32), nn.SiLU())
    x = torch.randn(1, 3, 4, 4)
    sn.accelerate(model)
    assert _backward(model(x))[0] == "SiluBackward0"
    report = sn.accelerate(model, always=True)
    assert report.already == 1
    assert "always=True" not in str(report)
    assert _backward(model(x))[0] == "_NormalizeBackward"
    sn.restore(model)
    assert "always" not in model[1].__dict__  # type: ignore[operator]


def test_half_precision_with_statistics_in_float32() -> None:
    """PyTorch's forward refuses a bfloat16 weight beside float32 statistics, which slabnorm keeps."""
    model = _conv(nn.BatchNorm2d(32), nn.ReLU()).bfloat16()
    sn.accelerate(model)
    for x in (torch.randn(2, 3, 8, 8), torch.randn(8, 3, 64, 64)):
        assert _backward(model(x.bfloat16()))[0] == "_NormalizeBackward"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_that_only_pytorch_computes(dtype: torch.dtype) -> None:
    model = nn.BatchNorm2d(6, momentum=None).to(dtype)
    fast, x = copy.deepcopy(model), torch.randn(4, 6, 5, 5).to(dtype)
    sn.accelerate(fast)
    for _ in range(2):
        assert torch.equal(fast(x), model(x))
    assert fast.running_mean.dtype == torch.float32
    assert torch.equal(fast.running_var.to(dtype), model.running_var)


def test_compiled_models_are_the_compilers() -> None:
    model = _conv(nn.BatchNorm2d(32), nn.ReLU())
    fast = copy.deepcopy(model)
    sn.accelerate(fast)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    x = torch.randn(8, 3, 64, 64)
    assert torch.equal(compiled(x), model(x))


def test_instance_norm_of_one_sample_is_right_for_gradients_in_any_order() -> None:
    """PyTorch's own takes a channels_last gradient for a contiguous one, and is wrong by all of it."""
    norm = nn.InstanceNorm2d(4)
    sn.accelerate(norm)
    x, dy = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 4, 8, 8)
    y = norm(x)
    gradients = [
        torch.autograd.grad(y, x, dy.contiguous(memory_format=order), retain_graph=True)[0]
        for order in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*gradients)
    wide = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(nn.InstanceNorm2d(4)(wide), wide, dy.double())
    assert (gradients[0] - want).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("layer", "shape", "fused", "wanted"),
    [
        ("BatchNorm", (8, 64, 32, 32), True, True),
        ("BatchNorm", (2, 64, 8, 8), True, False),
        ("InstanceNorm", (8, 64, 32, 32), True, True),
        ("InstanceNorm", (2, 8, 8, 8), False, False),
        ("LayerNorm", (8192, 768), False, True),
        ("LayerNorm", (65536, 192), False, False),
        ("RMSNorm", (1024, 768), False, True),
    ],
)
def test_the_table(layer: str, shape: tuple[int, ...], fused: bool, wanted: bool) -> None:
    assert pays(layer, torch.empty(shape), fused) is wanted
    assert not pays(layer, torch.empty(shape, device="meta"), fused)
