"""The layers under torch's transforms: compile, export, torch.func, forward mode, traced and fake tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import slabnorm as sn
from tests.cases import draw

X = draw((4, 6, 5, 7))
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: sn.BatchNorm(6, activation="relu"),
    "batch-average": lambda: sn.BatchNorm(6, momentum=None),
    "instance": lambda: sn.InstanceNorm(6, affine=True),
    "group": lambda: sn.GroupNorm(3, 6, activation="silu"),
    "layer": lambda: sn.LayerNorm(7),
    "rms": lambda: sn.RMSNorm(7),
    "any": lambda: sn.SlabNorm("n c h w -> h", c=6, h=5),
}
layers = pytest.mark.parametrize("name", LAYERS)


def fresh(name: str, train: bool) -> nn.Module:
    layer = LAYERS[name]()
    layer(X)
    return layer.train(train)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * max(1, b.abs().max()))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@layers
def test_compile_whole_graph(name: str, train: bool) -> None:
    torch._dynamo.reset()
    layer = fresh(name, train)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    got, want = compiled(x), twin(y)
    assert close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    assert close(x.grad, y.grad)
    for key, value in twin.state_dict().items():
        assert close(layer.state_dict()[key].double(), value.double())


def test_compile_the_function() -> None:
    torch._dynamo.reset()

    def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return sn.normalize(x, "n (g c) h w -> n g", weight=weight, g=3, affine="(g c)", activation="relu")

    weight = draw((6,), seed=1)
    assert close(torch.compile(call, fullgraph=True, backend="aot_eager")(X, weight), call(X, weight))


def test_compile_with_sizes_unknown() -> None:
    torch._dynamo.reset()
    layer = sn.GroupNorm(3, 6)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (2, 3, 5):
        x = draw((samples, 6, 5, 7))
        assert close(compiled(x), layer(x))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@layers
def test_export(name: str, train: bool) -> None:
    layer = fresh(name, train)
    program = torch.export.export(copy.deepcopy(layer), (X,))
    assert close(program.module()(X), layer(X))


JIT = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own


@JIT
@layers
def test_function_transforms(name: str) -> None:
    layer = fresh(name, False)
    parameters = dict(layer.named_parameters())
    moved = {key: value + 0.5 for key, value in parameters.items()}
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.5
    assert close(torch.func.functional_call(layer, moved, (X,)), changed(X))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return layer(x).square().sum()

    x = X.clone().requires_grad_()
    assert close(torch.func.grad(loss)(X), torch.autograd.grad(loss(x), x)[0])
    assert close(torch.func.vmap(layer)(torch.stack([X, 2 * X])), torch.stack([layer(X), layer(2 * X)]))
    tangent = draw(X.shape, seed=5)
    _, slope = torch.func.jvp(layer, (X,), (tangent,))
    step = 1e-3
    wide = copy.deepcopy(layer).double()
    difference = (wide(X.double() + step * tangent) - wide(X.double() - step * tangent)) / (2 * step)
    assert (slope - difference).abs().max() <= 1e-2


def test_meta_device_gives_shapes() -> None:
    for name in LAYERS:
        layer = LAYERS[name]().to("meta")
        assert layer(torch.empty(X.shape, device="meta")).shape == X.shape
    assert sn.moments(torch.empty(X.shape, device="meta"), "n c h w -> c").mean.shape == (6,)


def test_trace() -> None:
    layer = fresh("batch", False)
    with pytest.warns(torch.jit.TracerWarning), pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(layer, X)
    assert close(traced(X), layer(X))


def test_batched_gradients() -> None:
    """As jacobian(vectorize=True) asks for them: the upstream gradient is a tensor of tensors."""
    for dtype in (torch.float32, torch.float64):
        x = draw((3, 4, 5), dtype=dtype).requires_grad_()
        y = sn.normalize(x, "n c t -> c")
        dys = draw((2, 3, 4, 5), dtype=dtype, seed=1)
        (batched,) = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)
        for dy, dx in zip(dys, batched, strict=True):
            assert close(dx, torch.autograd.grad(y, x, dy, retain_graph=True)[0])


def test_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(X)
        layer = sn.BatchNorm(6)
        assert layer(x).shape == X.shape
        assert layer.eval()(x).shape == X.shape


@JIT
def test_forward_mode() -> None:
    from torch.autograd import forward_ad

    tangent = draw(X.shape, seed=5)
    layer = sn.GroupNorm(3, 6)
    with forward_ad.dual_level():
        slope = forward_ad.unpack_dual(layer(forward_ad.make_dual(X, tangent))).tangent
    assert close(slope, torch.func.jvp(layer, (X,), (tangent,))[1])


def test_given_statistics_are_constants_in_transforms_too() -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        return (sn.normalize(x, "n c h w -> c", mean=mean, var=var) ** 3).sum()

    x = X.clone().requires_grad_()
    assert close(torch.func.grad(loss)(X), torch.autograd.grad(loss(x), x)[0])


def test_compile_with_eps_and_sizes_unknown() -> None:
    torch._dynamo.reset()

    def call(x: torch.Tensor, eps: float) -> torch.Tensor:
        return sn.normalize(x, "n c h w -> c", eps=eps)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for eps in (1e-5, 1e-3):
        assert close(compiled(X, eps), call(X, eps))


@pytest.mark.parametrize("name", [*LAYERS, "instance-tracked"])
def test_export_with_any_batch(name: str) -> None:
    if name == "instance-tracked":
        layer = sn.InstanceNorm(6, track_running_stats=True)
        layer(X)
        layer.eval()
    else:
        layer = fresh(name, False)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (X,), dynamic_shapes=({0: batch},))
    assert close(program.module()(X[:3]), layer(X[:3]))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic", "before dispatch"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_of_make_fx_holds_no_constants_of_its_sample(name: str, mode: str) -> None:
    """It gives right results for another input, of another size where the sizes were left unknown."""
    kind = {"pre_dispatch": True} if mode == "before dispatch" else {"tracing_mode": mode}
    layer = fresh(name, False)
    graph = make_fx(layer, _allow_non_fake_inputs=True, **kind)(X)
    other = 3 + 2 * draw((9 if mode == "symbolic" else 4, 6, 5, 7), seed=1)
    assert close(graph(other), layer(other))


def test_a_graph_of_make_fx_updates_running_statistics_and_holds_gradients() -> None:
    other = 3 + 2 * draw(X.shape, seed=1)
    layer = sn.BatchNorm(6, momentum=0.5)
    graph = make_fx(layer)(X)
    layer.reset_running_stats()
    graph(other)
    assert close(layer.running_mean, other.mean((0, 2, 3)) / 2)
    assert layer.num_batches_tracked == 1

    def slope(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = sn.normalize(x, "n c h w -> n", weight=weight, activation="silu")
        return torch.autograd.grad((y**3).sum(), x)[0]

    weight = draw((6,), seed=2)
    graph = make_fx(slope)(X.clone().requires_grad_(), weight)
    assert close(graph(other.requires_grad_(), weight), slope(other, weight))


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    m = sn.moments(x, "n c h w -> c") + sn.moments(2 * x, "n c h w -> c")
    return m.mean, m.std(1), m.min, m.count


def test_moments_are_recorded_too() -> None:
    other = 3 + 2 * draw(X.shape, seed=1)
    torch._dynamo.reset()
    graphs = [
        make_fx(_moments)(X),
        make_fx(_moments, tracing_mode="symbolic")(X),
        torch.compile(_moments, fullgraph=True, backend="aot_eager"),
        torch.func.functionalize(_moments),
        lambda x: [t[1] for t in torch.func.vmap(_moments)(torch.stack([X, x]))],
    ]
    want = _moments(other)
    for graph in graphs:
        assert all(torch.equal(a, b) or close(a, b) for a, b in zip(graph(other), want, strict=True))
    compiled = torch.compile(lambda x: sn.moments(x, "n c h w -> c"), fullgraph=True, backend="aot_eager")
    assert close(compiled(other).var(), sn.moments(other, "n c h w -> c").var())


@pytest.mark.parametrize("inside", [True, False], ids=["in its mode", "outside"])
def test_moments_and_eps_0_of_fake_tensors(inside: bool) -> None:
    from torch._subclasses import FakeTensorMode

    mode = FakeTensorMode()
    x = mode.from_tensor(X)
    with mode if inside else nullcontext():
        assert [t.shape for t in _moments(x)] == [(6,)] * 4
        assert sn.normalize(x, "n c h w -> c", eps=0.0).shape == X.shape


def test_kernels_run_under_the_modes_that_only_watch() -> None:
    layer = fresh("group", True)
    want = layer(X)
    with FlopCounterMode(display=False), torch.device("cpu"):
        assert torch.equal(layer(X), want)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("order", ["channels last", "with gaps", "transposed"])
def test_vmap_over_any_memory_order(name: str, order: str) -> None:
    """vmap does not answer whether a tensor is channels_last."""
    x = draw((3, 4, 5, 7, 6)).permute(0, 1, 4, 2, 3)
    if order == "with gaps":
        x = draw((3, 4, 5, 14, 6))[:, :, :, ::2].permute(0, 1, 4, 2, 3)
    if order == "transposed":
        x = draw((3, 4, 6, 7, 5)).transpose(3, 4)
    layer = fresh(name, False)
    assert close(torch.func.vmap(layer)(x), torch.stack([layer(one) for one in x]))
    assert close(
        torch.func.vmap(lambda x: sn.normalize(x, "n c h w -> c"))(x),
        torch.stack([sn.normalize(one, "n c h w -> c") for one in x]),
    )
