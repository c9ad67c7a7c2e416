"""The output in the memory of the input, where the caller allows it and nothing is lost."""

from __future__ import annotations

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
