"""The output in the memory of the input, where the caller allows it and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.errors import StatisticsError
from tests.cases import LAYOUTS, NORMS, Case, draw

X = draw((4, 6, 5, 7))


def _weights(case: Case) -> dict[str, torch.Tensor]:
    return {"weight": draw(case.weight_shape, seed=1), "bias": draw(case.weight_shape, seed=2)}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_same_bits_as_in_new_memory(case: Case, layout: str) -> None:
    # Kernels that other tests have compiled.
    for dtype, activation in ((torch.float32, "silu"), (torch.bfloat16, None), (torch.float64, None)):
        x = LAYOUTS[layout](draw(case.shape, dtype=dtype))
        options = {**_weights(case), **case.options, "activation": activation}
        if activation is not None:
            options["residual"] = draw(case.shape, seed=3, dtype=dtype)
        want = sn.normalize(x, case.pattern, **options)
        y = sn.normalize(x, case.pattern, inplace=True, **options)
        assert torch.equal(y, want)
        if y.data_ptr() == x.data_ptr():
            assert torch.equal(x, want)
            assert x._version > 0


@pytest.mark.parametrize("last", [False, True])
def test_large_outputs_that_pass_the_caches(last: bool) -> None:
    x = torch.randn(8, 64, 56, 56)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    want = sn.normalize(x, "n c h w -> c", activation="relu")
    y = sn.normalize(x, "n c h w -> c", activation="relu", inplace=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, want)


def test_dense_memory_is_taken() -> None:
    trained = sn.BatchNorm(6, inplace=True)
    trained(X)
    for layer in (trained.eval(), sn.GroupNorm(2, 6, inplace=True).eval()):
        layer.requires_grad_(False)
        x = X.clone()
        want = layer(x.clone().requires_grad_()).detach()  # a gradient is needed: memory of its own
        assert torch.equal(x, X)
        y = layer(x)
        assert y.data_ptr() == x.data_ptr()
        assert torch.equal(y, want)
        with torch.inference_mode():
            y = layer(x := X.clone())
            assert y.data_ptr() == x.data_ptr()


def test_what_cannot_be_taken_stays() -> None:
    kept = X.clone()
    for x, options in (
        (X.clone().requires_grad_(), {}),  # the backward reads it
        (X[:, :, ::2], {}),  # not dense
        (X[:1].expand(4, 6, 5, 7), {}),
        (X, {"residual": X}),  # read and written
        (X.double(), {"activation": "gelu"}),  # the activation runs on its own
    ):
        before = x.detach().clone()
        sn.normalize(x, "n c h w -> n", inplace=True, **options)
        assert torch.equal(x, before)
    assert torch.equal(X, kept)


def test_memory_that_weights_share_or_numpy_made() -> None:
    table = np.random.default_rng(0).normal(size=(9, 800)).astype(np.float32)
    x, residual = torch.from_numpy(table[1:]), torch.from_numpy(table[:8])
    for options in ({"residual": residual}, {"weight": x[0]}, {"bias": x[3]}):
        want = sn.normalize(x, "n c -> n", affine="c", **options)
        assert torch.equal(sn.normalize(x, "n c -> n", affine="c", inplace=True, **options), want)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_read_the_input_again(reentrant: bool) -> None:
    gradients = []
    for inplace in (False, True):
        torch.manual_seed(0)
        before, norm, after = nn.Linear(8, 8), sn.LayerNorm(8, inplace=inplace), nn.Linear(8, 8)

        def block(h: torch.Tensor, norm: nn.Module = norm, after: nn.Module = after) -> torch.Tensor:
            return after(torch.tanh(norm(h)))

        y = checkpoint(block, before(torch.randn(8, 8)), use_reentrant=reentrant)
        y.square().sum().backward()
        gradients.append(before.weight.grad)
    assert torch.equal(*gradients)


def test_a_constant_slab_with_eps_0_leaves_the_input() -> None:
    x = torch.ones(2, 6)
    with pytest.raises(StatisticsError):
        sn.normalize(x, "n c -> n", eps=0.0, inplace=True)
    assert torch.equal(x, torch.ones(2, 6))


def test_a_graph_that_needs_the_input_refuses() -> None:
    weight = torch.ones(6, requires_grad=True)
    x = torch.randn(3, 6)
    product = x * weight  # saves x
    sn.normalize(x, "n c -> n", inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_a_layer_says_so() -> None:
    assert "inplace=True" in repr(sn.LayerNorm(6, inplace=True))
    assert "inplace" not in repr(sn.RMSNorm(6))


def _off(values: torch.Tensor, by: int = 2) -> torch.Tensor:
    """Return values in memory that begins some bytes off what their size divides."""
    memory = bytearray(values.numel() * values.element_size() + by)
    return torch.frombuffer(memory, dtype=values.dtype, offset=by).view(values.shape).copy_(values)


def test_misaligned_memory_of_4_mib_is_read_and_never_written() -> None:
    """Stores past the caches need addresses that the size of an element divides."""
    x = draw((1024, 1024))
    want = sn.normalize(x, "n c -> n")
    off = _off(x)
    assert off.data_ptr() % 4 == 2
    assert torch.equal(sn.normalize(off, "n c -> n", inplace=True), want)
    assert torch.equal(off, x)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_map_of_a_file_gets_its_result_in_new_memory(tmp_path: Path) -> None:
    x = draw((1024, 1024))
    x.numpy().tofile(tmp_path / "x")
    mapped = torch.from_numpy(np.memmap(tmp_path / "x", dtype=np.float32, mode="r", shape=(1024, 1024)))
    assert torch.equal(sn.normalize(mapped, "n c -> n", inplace=True), sn.normalize(x, "n c -> n"))
    assert torch.equal(mapped, x)


def test_misaligned_tensors_everywhere_in_a_call() -> None:
    """Forward, backward, given and running statistics and their counters: the same bits."""
    shape = (24, 40)
    values = [draw(shape), draw((40,), seed=1), draw((40,), seed=2), draw(shape, seed=3), draw(shape, seed=4)]
    found = []
    for move in (torch.clone, _off):
        x, w, b, r, dy = (move(t) for t in values)
        x, w, b, r = (t.requires_grad_() for t in (x, w, b, r))
        y = sn.normalize(x, "n c -> n", weight=w, bias=b, residual=r, activation="silu")
        layer = sn.BatchNorm(40)
        for name, buffer in list(layer.named_buffers()):
            setattr(layer, name, move(buffer.reshape(-1)).view(buffer.shape))
        trained = layer(x)
        layer(x + 1)
        frozen = layer.eval()(x)
        found.append(
            [y, *torch.autograd.grad(y, (x, w, b, r), dy), trained, frozen, *layer.buffers(),
             *torch.autograd.grad(frozen, (x, layer.weight), dy)]
        )  # fmt: skip
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-6)
