"""What is kept for the calls to come: little, however large the tensors and however many their kinds."""

from __future__ import annotations

import gc
import tracemalloc

import torch

import slabnorm as sn
from slabnorm.kernels import using
from slabnorm.kernels.cpu.plans import Plan
from slabnorm.notation import parse
from slabnorm.prepare import bind, forget


def of_float64(x: torch.Tensor, dim: int) -> torch.Tensor:
    wide = x.double()
    var, mean = torch.var_mean(wide, dim, correction=0, keepdim=True)
    return ((wide - mean) * (var + 1e-5).rsqrt()).float()


def test_bound_once() -> None:
    x, y, pattern = torch.randn(4, 3), torch.randn(4, 3), parse("n c -> n")
    bound = bind(pattern, (), (), x)
    assert bind(pattern, (), (), y) is bound
    assert bind(pattern, (), (), y.double()) is not bound
    with using("eager"):
        assert bind(pattern, (), (), x).backend is not bound.backend
    forget()
    assert bind(pattern, (), (), x) is not bound


def test_plans_do_not_grow_with_the_tensor() -> None:
    """Tables of 120 lengths would take 240 KB each."""
    sn.normalize(torch.randn(2, 99), "n t -> t")
    tracemalloc.start()
    for i in range(120):
        x = torch.randn(2, 15000 + i)
        y = sn.normalize(x, "n t -> t")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert torch.allclose(y, of_float64(x, 0), atol=1e-6)
    assert kept < 2e6


def test_large_default_weights_are_not_kept() -> None:
    lengths = range(5000, 5010)
    for length in lengths:
        x, bias = torch.randn(2, length), torch.full((length,), 3.0)
        y = sn.normalize(x, "n t -> n", bias=bias, affine="t")
        assert torch.allclose(y, of_float64(x, 1) + 3, atol=1e-6)
    del x, bias, y
    gc.collect()
    assert not [t for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() in lengths]


def test_windows_of_any_stride_leave_a_few_plans_and_the_right_gradients() -> None:
    """A backward finds its plan again, whatever was forgotten since its forward."""

    def step(wide: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(4, wide)[:, :64].requires_grad_()
        return x, sn.normalize(x, "n t -> n")

    first, y = step(100)
    gc.collect()
    before = sum(type(one) is Plan for one in gc.get_objects())
    for wide in range(101, 301):
        window, out = step(wide)
        assert torch.allclose(out, of_float64(window.detach(), 1), atol=1e-6)
    g = torch.randn(4, 64)
    (found,) = torch.autograd.grad(y, first, g)
    leaf = first.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(torch.nn.functional.layer_norm(leaf, (64,), eps=1e-5), leaf, g.double())
    assert torch.allclose(found, wanted.float(), atol=1e-5)
    gc.collect()
    assert sum(type(one) is Plan for one in gc.get_objects()) < before + 70
