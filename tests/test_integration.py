"""The layers inside everything that PyTorch users put them in."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import slabnorm as sn
from slabnorm.kernels.activation import ACTIVATIONS
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


def test_autocast() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), sn.BatchNorm(6), nn.ReLU(), sn.GroupNorm(2, 6))
    want = copy.deepcopy(model)(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(X)
    assert y.dtype == torch.bfloat16  # the convolution's
    assert (y - want).abs().max() < 0.1
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_and_residual(name: str, dtype: torch.dtype) -> None:
    plain = {"gelu_tanh": lambda t: F.gelu(t, approximate="tanh")}.get(name) or getattr(F, name)
    x, residual = (draw(X.shape, seed=s).to(dtype).requires_grad_() for s in (0, 1))
    weight = torch.randn(6, requires_grad=True)
    y = sn.normalize(x, "n c h w -> c", weight=weight, activation=name, residual=residual)
    wide = [t.detach().double().requires_grad_() for t in (x, residual, weight)]
    want = plain(sn.normalize(wide[0], "n c h w -> c", weight=wide[2]) + wide[1])
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    assert ((y - want).abs() <= rounding * want.abs().clamp(min=1)).all()
    dy = draw(X.shape, seed=2).to(dtype)
    got = torch.autograd.grad(y, (x, residual, weight), dy)
    for a, b in zip(got, torch.autograd.grad(want, wide, dy.double()), strict=True):
        assert (a - b).abs().max() <= 8 * rounding * b.abs().max()


def test_a_layer_takes_a_residual() -> None:
    layer = sn.GroupNorm(2, 6, activation="relu")
    assert torch.equal(layer(X, X), F.relu(sn.GroupNorm(2, 6)(X) + X))


class _Normalising(Dataset):
    """A data set whose workers run a layer: forked processes, where OpenMP cannot start threads."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return sn.normalize(draw((1, 3, 64, 64), seed=index), "n c h w -> n c")[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_forked_workers() -> None:
    wanted = torch.stack([_Normalising()[i] for i in range(8)])  # the kernels run here first
    loader = DataLoader(_Normalising(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    got = torch.cat(list(loader))
    assert (got - wanted).abs().max() <= 1e-6


def test_torch_keeps_its_number_of_threads() -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "import slabnorm as sn; sn.normalize(torch.randn(8, 4, 64, 64), 'n c h w -> c')\n"
        "print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_when_numba_runs_on_other_threads() -> None:
    """Layers that cannot be called from several threads at once: slabnorm leaves Numba alone then."""
    code = (
        "import numpy as np, numba, torch\n"
        "numba.config.THREADING_LAYER = 'workqueue'\n"
        "@numba.njit(parallel=True)\n"
        "def mine(x):\n"
        "    s = 0.0\n"
        "    for i in numba.prange(x.size): s += x[i]\n"
        "    return s\n"
        "mine(np.ones(1000))\n"
        "import slabnorm as sn\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "x = torch.randn(4, 8, 64, 64)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    ys = list(pool.map(lambda _: sn.normalize(x, 'n c h w -> c'), range(16)))\n"
        "assert all(torch.equal(y, ys[0]) for y in ys)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_batched_gradients() -> None:
    """As jacobian(vectorize=True) asks for them: the upstream gradient is a tensor of tensors."""
    for dtype in (torch.float32, torch.float64):
        x = draw((3, 4, 5), dtype=dtype).requires_grad_()
        y = sn.normalize(x, "n c t -> c")
        dys = draw((2, 3, 4, 5), dtype=dtype, seed=1)
        (batched,) = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)
        for dy, dx in zip(dys, batched, strict=True):
            assert close(dx, torch.autograd.grad(y, x, dy, retain_graph=True)[0])


def test_lazily_negated_tensors() -> None:
    z = torch.view_as_complex(draw((3, 4, 6, 2)))
    x, weight = z.conj().imag, torch.view_as_complex(draw((6, 2), seed=1)).conj().imag
    assert x.is_neg()
    want = sn.normalize(x.resolve_neg(), "n t c -> c", weight=weight.resolve_neg())
    assert close(sn.normalize(x, "n t c -> c", weight=weight), want)


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


def test_from_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    inputs = [draw((4, 8, 64, 64), seed=s) for s in range(16)]
    wanted = [sn.normalize(x, "n c h w -> c") for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: sn.normalize(x, "n c h w -> c"), inputs))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_data_parallel_wrapper(tmp_path: object) -> None:
    """DDP on one process: buffers are broadcast, hooks fire, gradients arrive."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    store = dist.FileStore(f"{tmp_path}/store", 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Conv2d(6, 6, 1), sn.BatchNorm(6))
        twin = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model)
        for network in (wrapped, twin):
            for _ in range(2):
                network(X).square().sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert close(a.grad, b.grad)
        assert torch.equal(model[1].running_mean, twin[1].running_mean)
    finally:
        dist.destroy_process_group()


def test_saved_tensors_are_the_input_and_small_ones() -> None:
    """Nothing of the output's size is kept for the backward, and x is not copied."""
    saved: list[torch.Tensor] = []
    x = X.clone().requires_grad_()
    layer = sn.BatchNorm(6)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    large = [t for t in saved if t.numel() >= x.numel()]
    assert [t.data_ptr() for t in large] == [x.data_ptr()]


def test_changing_the_input_in_place_is_noticed() -> None:
    x = X.clone().requires_grad_()
    z = x * 1
    y = sn.normalize(z, "n c h w -> c")
    z += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
