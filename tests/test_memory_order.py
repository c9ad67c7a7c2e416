"""Copies in another memory order: the same numbers as torch's, wherever they lie."""

from __future__ import annotations

import itertools

import pytest
import torch

import slabnorm as sn
from slabnorm.kernels import using
from slabnorm.kernels.cpu import memory_order
from slabnorm.kernels.cpu.memory_order import copy

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def turned(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether the kernel takes a copy."""
    return memory_order._matrices(x, out) is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_last_and_back(dtype: torch.dtype) -> None:
    for shape in ((3, 40, 31, 33), (2, 8, 5, 37, 41), (1, 70, 300, 4), (33, 300, 7, 7), (2, 64, 64, 64)):
        order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        x = torch.randn(shape).to(dtype)
        last = x.contiguous(memory_format=order)
        for a, b in ((x, last), (last, x)):
            out = torch.full_like(b, float("nan"))
            assert turned(a, out)
            assert copy(a, out) is out
            assert torch.equal(out, a)


def test_any_order_of_any_axes() -> None:
    """Every permutation of both; those with more than two axes beside the matrices are left to torch."""
    sizes, taken = (9, 3, 16, 17, 11), 0
    memory = torch.arange(9 * 3 * 16 * 17 * 11, dtype=torch.float32)
    for order in itertools.islice(itertools.permutations(range(5)), 0, None, 7):
        shape = [sizes[axis] for axis in order]
        x = memory.view(shape).permute(*map(order.index, range(5)))
        for other in itertools.islice(itertools.permutations(range(5)), 0, None, 11):
            out = torch.empty([sizes[axis] for axis in other]).permute(*map(other.index, range(5)))
            taken += turned(x, out)
            assert torch.equal(copy(x, out), x), (order, other)
    assert taken > 50


def test_what_is_no_matrix() -> None:
    thin, repeated = torch.randn(100000, 3), torch.randn(300, 1).expand(300, 400)
    for x in (thin, repeated, torch.randn(300, 800)[:, ::2]):
        out = torch.empty(x.shape[::-1]).permute(*range(x.dim())[::-1])
        assert not turned(x, out)
        assert torch.equal(copy(x, out), x)
    gaps = torch.randn(64, 80, 40)[:, ::2].transpose(1, 2)  # between rows, which are whole
    out = torch.empty(64, 40, 40)
    assert turned(gaps, out)
    assert torch.equal(copy(gaps, out), gaps)


def test_off_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that begins at any element, past the caches or not; nothing beside the output changes."""
    x = torch.randn(50, 2000).t()
    for past in (1 << 40, 0):
        monkeypatch.setattr(memory_order, "STREAM", past)
        for first in (0, 1, 7, 15):
            memory = torch.full((100100,), float("nan"))
            out = memory[first : first + 100000].view(2000, 50)
            assert torch.equal(copy(x, out), x)
            assert int(memory.isnan().sum()) == 100
            shifted = torch.randn(100100)[first : first + 100000].view(50, 2000).t()
            assert torch.equal(copy(shifted, out), shifted)


def test_misaligned() -> None:
    raw = torch.zeros(400001, dtype=torch.uint8)
    x = torch.frombuffer(raw.numpy(), dtype=torch.float32, offset=1).view(50, 2000).t()
    assert torch.equal(copy(x, torch.empty(2000, 50)), x)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads(threads: int) -> None:
    x = torch.randn(4, 33, 60, 61)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(copy(x, torch.empty_like(x, memory_format=torch.channels_last)), x)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_layers_of_channels_last(backend: str) -> None:
    """Instance norm returns contiguous memory; its gradients, also of gradients, are torch's."""
    x = torch.randn(4, 16, 48, 50).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = sn.InstanceNorm(16, affine=True), torch.nn.InstanceNorm2d(16, affine=True)
    dy = torch.randn(4, 16, 48, 50)
    results = []
    for layer in (ours, theirs):
        with using(backend):
            y = layer(x)
            (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
            (ddx,) = torch.autograd.grad(dx.square().sum(), x)
        results.append((y, dx, ddx))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert [t.stride() for t in results[0][:2]] == [t.stride() for t in results[1][:2]]
    with torch.no_grad(), using(backend):
        assert torch.equal(ours(x), results[0][0])
