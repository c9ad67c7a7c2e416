"""Train and eval mode: which statistics are used, how a batch enters them, what is worth a warning."""

from __future__ import annotations

import io
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.errors import (
    DtypeError,
    ModeWarning,
    OptionError,
    ShapeError,
    StatisticsError,
    StatisticsWarning,
)
from tests.cases import draw
from tests.nn.trained import same, state, trained


def test_eval_output_of_a_sample_ignores_the_others() -> None:
    layer = trained().eval()
    before = state(layer)
    x, other = draw((8, 4, 5), seed=7), 100 * draw((8, 4, 5), seed=8)
    alone = layer(x[:1])
    crowd = layer(torch.cat([x[:1], other]))
    assert torch.equal(alone, crowd[:1])
    assert same(before, state(layer))


def test_train_output_of_a_sample_depends_on_the_others() -> None:
    layer = trained()
    x = draw((8, 4, 5), seed=7)
    a, b = layer(x), layer(torch.cat([x[:1], 3 * x[1:]]))
    assert not torch.allclose(a[:1], b[:1], atol=1e-2)


def test_cumulative_average_is_weighted_by_count() -> None:
    layer = sn.BatchNorm(2, momentum=None)
    batches = [draw((n, 2, 3), seed=n) * n for n in (7, 2, 4)]
    for batch in batches:
        layer(batch)
    everything = torch.cat(batches)
    assert torch.allclose(layer.running_mean, everything.mean((0, 2)), atol=1e-6)
    weights = torch.tensor([b.numel() / 2 for b in batches])
    unbiased = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches])
    assert torch.allclose(layer.running_var, (weights[:, None] * unbiased).sum(0) / weights.sum(), rtol=1e-5)


def test_cumulative_average_goes_on_after_a_checkpoint() -> None:
    """The count travels in the metadata; without it the batches so far count like the next one."""
    batches = [draw((n, 2, 3), seed=n) for n in (7, 2, 4, 4)]
    straight = sn.BatchNorm(2, momentum=None)
    for batch in batches:
        straight(batch)
    half = sn.BatchNorm(2, momentum=None)
    for batch in batches[:2]:
        half(batch)
    stored = io.BytesIO()
    torch.save(nn.Sequential(half).state_dict(), stored)
    stored.seek(0)
    resumed = nn.Sequential(sn.BatchNorm(2, momentum=None))
    resumed.load_state_dict(torch.load(stored))
    for batch in batches[2:]:
        resumed(batch)
    assert torch.allclose(resumed[0].running_mean, straight.running_mean, atol=1e-7)
    bare = sn.BatchNorm(2, momentum=None)
    bare.load_state_dict(dict(half.state_dict()))  # keys alone, as safetensors keeps them
    bare(batches[2])
    want = (2 * half.running_mean + batches[2].mean((0, 2))) / 3
    assert torch.allclose(bare.running_mean, want, atol=1e-6)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(OptionError, match="momentum"):
        sn.BatchNorm(4, momentum=momentum)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_a_nonfinite_batch_is_left_out(fault: float, momentum: float | None) -> None:
    layer = trained(momentum=momentum)
    before, seen = state(layer), layer.num_elements_tracked.clone()
    bad = draw((8, 4, 5), seed=9)
    bad[3, 2, 1] = fault
    with pytest.warns(StatisticsWarning, match="left out"):
        layer(bad)
    layer(bad)  # warns once
    assert same(before, state(layer))
    assert torch.equal(seen, layer.num_elements_tracked)
    assert layer.num_batches_skipped == 2
    layer(draw((8, 4, 5), seed=9))
    assert layer.num_batches_tracked == 4


def test_an_empty_batch_changes_nothing() -> None:
    layer = trained()
    before = state(layer)
    x = torch.zeros(0, 4, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (0, 4, 5)
    assert same(before, state(layer))
    assert layer.weight.grad.eq(0).all()
    assert layer.eval()(x).shape == (0, 4, 5)


def test_one_element_per_slab() -> None:
    with pytest.raises(StatisticsError, match="one element per slab"):
        sn.BatchNorm(4)(draw((1, 4)))
    layer = trained().eval()
    assert layer(draw((1, 4))).isfinite().all()
    instance = sn.InstanceNorm(4, affine=True)
    nn.init.constant_(instance.bias, 0.3)
    assert instance(draw((2, 4, 1))).eq(torch.tensor(0.3)).all()


def test_train_mode_without_gradients_warns_once_and_names_the_layer() -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.Conv1d(4, 4, 1))
    model.add_module("block", nn.Sequential(sn.BatchNorm(4), nn.ReLU()))
    with torch.no_grad():
        with pytest.warns(ModeWarning, match=r"block\.0 \(BatchNorm\)") as caught:
            model(draw((8, 4, 5)))
        model(draw((8, 4, 5)))  # a second warning would be an error
    assert "eval()" in str(caught[0].message)


def test_no_mode_warning_where_there_is_nothing_wrong() -> None:
    x = draw((8, 4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = trained().eval()
        with torch.no_grad():
            sn.GroupNorm(2, 4)(x)
            layer(x)


def test_eval_before_training_warns_once() -> None:
    layer = sn.BatchNorm(4).eval()
    with pytest.warns(StatisticsWarning, match="before any training step"):
        layer(draw((8, 4, 5)))
    layer(draw((8, 4, 5)))
    loaded = sn.BatchNorm(4).eval()
    loaded.load_state_dict(trained().state_dict())
    loaded(draw((8, 4, 5)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpointing_updates_once(reentrant: bool, momentum: float | None) -> None:
    plain, saved = (nn.Sequential(nn.Linear(4, 4), sn.BatchNorm(4, momentum=momentum)) for _ in range(2))
    saved.load_state_dict(plain.state_dict())
    x = draw((8, 4)).requires_grad_()
    plain(x).square().sum().backward()
    checkpoint(saved, x, use_reentrant=reentrant).square().sum().backward()
    assert same(state(plain), state(saved))
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_wrong_shape() -> None:
    with pytest.raises(ShapeError, match=r"Axis 1 \(`c`\) has size 5, but c=4 was given"):
        sn.BatchNorm(4)(draw((8, 5, 3)))


def test_running_statistics_of_any_pattern() -> None:
    """Per channel and column over samples and rows; the sample axis never has running statistics."""
    layer = sn.SlabNorm("n c h w -> w c", c=3, w=5, momentum=1.0)
    x = draw((6, 3, 4, 5))
    layer(x)
    assert layer.running_mean.shape == (5, 3)
    assert torch.allclose(layer.running_mean, x.mean((0, 2)).T, atol=1e-6)
    assert torch.allclose(layer.running_var, x.transpose(1, 2).flatten(0, 1).var(0).T, atol=1e-6)
    frozen = layer.eval()(x)
    scale = (x.transpose(1, 2).flatten(0, 1).var(0) + 1e-5).rsqrt()
    assert torch.allclose(frozen, (x - x.mean((0, 2))[:, None]) * scale[:, None], atol=1e-5)


def test_rms_that_pools_samples_tracks_the_mean_square() -> None:
    layer = sn.SlabNorm("n c -> c", c=3, center=False, momentum=1.0)
    x = 5 + draw((64, 3))
    y = layer(x)
    assert layer.running_mean.eq(0).all()
    assert torch.allclose(layer.running_var, x.square().mean(0), rtol=1e-5)
    assert torch.allclose(layer.eval()(x), y, atol=1e-5)


def test_a_batch_too_large_for_the_running_dtype_is_left_out() -> None:
    layer = trained()
    before = state(layer)
    with pytest.warns(StatisticsWarning, match="float32"):
        layer(1e25 * draw((8, 4, 5)))
    assert same(before, state(layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_statistics_may_move_on_before_the_backward(dtype: torch.dtype) -> None:
    layer = trained(dtype=dtype).eval()
    x = draw((8, 4, 5), dtype=dtype).requires_grad_()
    dy = draw((8, 4, 5), dtype=dtype, seed=1)
    want = torch.autograd.grad(layer(x), (x, layer.weight), dy)
    y = layer(x)
    layer.train()(5 * x)
    for a, b in zip(torch.autograd.grad(y, (x, layer.weight), dy), want, strict=True):
        assert torch.equal(a, b)


def test_tracking_can_be_switched_off() -> None:
    layer = trained()
    before = state(layer)
    layer.track_running_stats = False
    layer(3 + draw((8, 4, 5)))
    assert same(before, state(layer))
    uncounted = trained()
    uncounted.num_batches_tracked = None
    uncounted(draw((8, 4, 5)))
    assert not torch.equal(uncounted.running_mean, before["running_mean"])


def test_one_warning_for_a_whole_model() -> None:
    model = nn.Sequential(*(sn.BatchNorm(4) for _ in range(5)))
    with torch.no_grad():
        with pytest.warns(ModeWarning, match=r"0 \(BatchNorm\)") as caught:
            model(draw((8, 4, 5)))
        assert len(caught) == 1
        assert caught[0].filename == __file__
    bad = torch.full((8, 4, 5), float("nan"))
    with pytest.warns(StatisticsWarning) as caught:
        model(bad)
    assert len(caught) == 1
    assert [int(layer.num_batches_skipped) for layer in model] == [1] * 5


def test_a_reset_layer_is_untrained_again() -> None:
    layer = trained().eval()
    layer(draw((8, 4, 5)))
    layer.reset_running_stats()
    with pytest.warns(StatisticsWarning, match="before any training step"):
        layer(draw((8, 4, 5)))


X = draw((8, 4))


class _Twice(torch.autograd.Function):
    """A function whose backward runs a layer."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        ctx.layer(X)
        return 2 * g, None


def _in_a_backward(layer: nn.Module) -> None:
    _Twice.apply(X.clone().requires_grad_(), layer).sum().backward()


def _in_a_hook(run: Callable[[], object]) -> None:
    x = X.clone().requires_grad_()
    y = x * 2
    y.register_hook(lambda _: (run(), None)[1])
    y.sum().backward()


def _in_a_hook_of_a_checkpoint(layer: nn.Module, reentrant: bool) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        if y.requires_grad:
            y.register_hook(lambda _: (layer(X), None)[1])
        return y * y

    checkpoint(block, X.clone().requires_grad_(), use_reentrant=reentrant).sum().backward()


def _checkpointed(layer: nn.Module, reentrant: bool) -> None:
    with torch.enable_grad():
        x = X.clone().requires_grad_()
        checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()


def _inside_a_grad_that_is_checkpointed(layer: nn.Module) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        z = x.detach().requires_grad_()
        y = z * 2
        y.register_hook(lambda _: (layer(X), None)[1])
        return x * x * torch.autograd.grad((y * y).sum(), z)[0]

    checkpoint(block, X.clone().requires_grad_(), use_reentrant=False).sum().backward()


FORWARDS: dict[str, Callable[[nn.Module], object]] = {
    "in a hook": lambda layer: _in_a_hook(lambda: layer(X)),
    "in a backward of one's own": lambda layer: (
        _Twice.apply(X.clone().requires_grad_(), layer).sum().backward()
    ),
    "in a hook of a checkpoint": lambda layer: _in_a_hook_of_a_checkpoint(layer, False),
    "in a hook of a reentrant checkpoint": lambda layer: _in_a_hook_of_a_checkpoint(layer, True),
    "a checkpoint in a hook": lambda layer: _in_a_hook(lambda: _checkpointed(layer, False)),
    "a reentrant checkpoint in a hook": lambda layer: _in_a_hook(lambda: _checkpointed(layer, True)),
    "a checkpointed gradient": _inside_a_grad_that_is_checkpointed,
}


@pytest.mark.filterwarnings("ignore::slabnorm.errors.ModeWarning")
@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("where", FORWARDS)
def test_a_forward_in_a_backward_counts_and_a_recomputation_does_not(where: str) -> None:
    layer, plain = sn.BatchNorm(4), sn.BatchNorm(4)
    FORWARDS[where](layer)
    plain(X)
    assert layer.num_batches_tracked == 1
    assert same(state(layer), state(plain))


def test_an_input_that_does_not_fit_is_told_with_the_layer_and_the_line_that_made_it() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), sn.BatchNorm(64))
    made = sys._getframe().f_lineno - 1
    with pytest.raises(ShapeError) as caught:
        model(torch.randn(2, 3, 4, 4))
    assert caught.value.problem.startswith("1 (BatchNorm) cannot normalise its input")
    assert {"3", "64"} <= set(re.findall(r"\d+", caught.value.problem))
    assert caught.value.got.endswith(f"the layer was made at {Path(__file__).name}, line {made}")
    copied = pickle.loads(pickle.dumps(model))
    with pytest.raises(ShapeError, match=f"{Path(__file__).name}, line {made}"):
        copied(torch.randn(2, 3, 4, 4))
    with pytest.raises(DtypeError, match="LayerNorm cannot"):
        sn.LayerNorm(4)(torch.ones(2, 4, dtype=torch.int64))


def test_a_compiled_layer_says_what_does_not_fit() -> None:
    torch._dynamo.reset()
    layer = torch.compile(sn.BatchNorm(4), backend="eager")
    with pytest.raises(ShapeError, match="has size 5"):
        layer(torch.randn(8, 5, 3))


def test_a_residual_that_does_not_fit_is_told_as_such() -> None:
    with pytest.raises(ShapeError, match="residual of x's shape"):
        sn.BatchNorm(4)(torch.randn(8, 4, 3), torch.randn(8, 4, 2))
