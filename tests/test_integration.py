"""The layers inside everything that PyTorch users put them in."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import slabnorm as sn
from slabnorm.kernels import backend, using
from slabnorm.kernels.activations import ACTIVATIONS
from tests.cases import draw

X = draw((4, 6, 5, 7))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * max(1, b.abs().max()))


def test_autocast() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), sn.BatchNorm(6), nn.ReLU(), sn.GroupNorm(2, 6))
    want = copy.deepcopy(model)(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(X)
    assert y.dtype == torch.bfloat16  # the convolution's
    assert (y - want).abs().max() < 0.1
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


# Every kernel takes seconds to compile: with a residual, and of bfloat16, one each; test_laws.py has more.
@pytest.mark.parametrize(
    ("name", "dtype", "adds"),
    [
        *((name, torch.float32, name in ("relu", "silu")) for name in ACTIVATIONS),
        ("gelu", torch.bfloat16, True),
    ],
)
def test_activation_and_residual(name: str, dtype: torch.dtype, adds: bool) -> None:
    plain = {"gelu_tanh": lambda t: F.gelu(t, approximate="tanh")}.get(name) or getattr(F, name)
    x, residual = (draw(X.shape, seed=s).to(dtype).requires_grad_() for s in (0, 1))
    weight = torch.randn(6, requires_grad=True)
    y = sn.normalize(x, "n c h w -> c", weight=weight, activation=name, residual=residual if adds else None)
    wide = [t.detach().double().requires_grad_() for t in (x, residual, weight)]
    want = plain(sn.normalize(wide[0], "n c h w -> c", weight=wide[2]) + (wide[1] if adds else 0))
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    assert ((y - want).abs() <= rounding * want.abs().clamp(min=1)).all()
    dy = draw(X.shape, seed=2).to(dtype)
    # The residual comes last, where there is one.
    given, exact = [x, weight, residual][: 2 + adds], [wide[0], wide[2], wide[1]][: 2 + adds]
    got = torch.autograd.grad(y, given, dy)
    for a, b in zip(got, torch.autograd.grad(want, exact, dy.double()), strict=True):
        assert (a - b).abs().max() <= 8 * rounding * b.abs().max()


def test_a_layer_takes_a_residual() -> None:
    layer = sn.GroupNorm(2, 6, activation="relu")
    torch.testing.assert_close(layer(X, X), F.relu(sn.GroupNorm(2, 6)(X) + X))


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


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_kernels_run_on_the_threads_of_torch() -> None:
    """No second OpenMP library is loaded, and no thread beside those that torch itself starts."""
    code = (
        "import os, torch\n"
        "import slabnorm as sn\n"
        "from slabnorm.kernels.cpu.launch import pool\n"
        "def seen():\n"
        "    lines = open('/proc/self/maps').read().split()\n"
        "    return {w for w in lines if 'omp.so' in w or 'omp5' in w}, len(os.listdir('/proc/self/task'))\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(4, 8, 64, 64)\n"
        "sn.normalize(x[:1, :, :8], 'n c h w -> c')\n"  # compiles: LLVM has threads of its own
        "(x * 2).sum()\n"
        "before = seen()\n"
        "sn.normalize(x, 'n c h w -> c')\n"
        "assert seen() == before, (seen(), before)\n"
        "assert pool() is not None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_when_numba_runs_on_other_threads() -> None:
    """What a user's own Numba code runs on is left alone."""
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


def test_lazily_negated_tensors() -> None:
    z = torch.view_as_complex(draw((3, 4, 6, 2)))
    x, weight = z.conj().imag, torch.view_as_complex(draw((6, 2), seed=1)).conj().imag
    assert x.is_neg()
    want = sn.normalize(x.resolve_neg(), "n t c -> c", weight=weight.resolve_neg())
    assert close(sn.normalize(x, "n t c -> c", weight=weight), want)


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


def test_blocks_of_several_threads_that_choose_a_backend_need_not_end_in_order() -> None:
    first, second = using("eager"), using("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert backend.forced == "cpu"
    second.__exit__(None, None, None)
    assert backend.forced is None
