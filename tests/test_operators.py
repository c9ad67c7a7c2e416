"""The norm as custom operators, with the Triton kernels inside: as compile and export see it on a GPU."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import slabnorm as sn
from slabnorm import operators
from slabnorm.kernels import using
from slabnorm.prepare import forget
from tests.cases import draw

pytest.importorskip("triton", reason="the GPU kernels need Triton")
from slabnorm.kernels.gpu import tiling

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning",  # NumPy computes in the interpreter, and warns
    "ignore:Dynamo detected a call to a `functools.lru_cache`",
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
X = draw((4, 6, 5, 7)).to(DEVICE)
LAST = X.contiguous(memory_format=torch.channels_last)
W = draw((6,), seed=1).to(DEVICE)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: sn.BatchNorm(6, activation="relu"),
    "group": lambda: sn.GroupNorm(3, 6, activation="silu"),
    "layer": lambda: sn.LayerNorm(7),
}
layers = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _through_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr(tiling, "FILL", 1)  # fewer and larger programs
    forget()
    with using("gpu"):
        assert operators._bound(torch.ones(2, 8), None, None, None, [0], [1]).backend.NAME == "gpu"
        yield
    forget()


def check(x: torch.Tensor, kept: list[int], **changes: object) -> None:
    arguments = {
        "weight": W.clone().requires_grad_(), "bias": -W, "residual": None, "mean": None, "var": None,
        "kept": kept, "affine": [1], "eps": 1e-5, "center": True, "activation": "",
    } | changes  # fmt: skip
    torch.library.opcheck(operators._norm, (x.clone().requires_grad_(),), arguments, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "last", "fused", "given", "bare"])
def test_opcheck(kind: str) -> None:
    if kind == "plain":
        check(X, [0])
    elif kind == "last":
        check(LAST, [1])
    elif kind == "fused":
        check(LAST, [0], residual=X.clone().requires_grad_(), activation="silu")
    elif kind == "given":
        check(X, [1], mean=W, var=W.square(), activation="relu")
    else:
        check(X, [0, 1], weight=None, bias=None, center=False)


@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("kind", ["same", "wide residual", "narrow residual", "strided"])
def test_backward_is_as_promised(kind: str, activation: str) -> None:
    """Compiled code reads the gradients in the dtypes and strides that the fake operator has told."""
    x = LAST.transpose(2, 3)[..., ::2] if kind == "strided" else LAST
    x = x.to(torch.bfloat16 if kind == "wide residual" else torch.float32)
    residual = torch.ones_like(x, dtype=torch.bfloat16 if kind == "narrow residual" else torch.float32)
    fixed = ([0], [1], 1e-5, True, activation)
    _, stats, factors = operators._norm(x, W, -W, residual, None, None, *fixed)

    def gradients(x: torch.Tensor, *rest: torch.Tensor) -> list[tuple[object, ...]]:
        dy = torch.ones_like(x)
        inner = activation != "" or x.dtype != residual.dtype  # else it is dy, and nobody asks for it
        found = operators._norm_backward(dy, x, *rest, *fixed, True, (True, True, True, inner))
        return [(t.shape, t.stride(), t.dtype) for t in found]

    tensors = (x, W, -W, residual, stats, factors)
    with FakeTensorMode() as mode:
        promised = gradients(*(mode.from_tensor(t) for t in tensors))
    assert gradients(*tensors) == promised


def test_opcheck_through_torch() -> None:
    check(X.double(), [0], weight=W.double(), bias=None, residual=X.double(), activation="relu")


@layers
def test_compiled_as_it_runs(name: str) -> None:
    """Forward, gradients, running statistics and eval mode: the same kernels run."""
    layer = LAYERS[name]().to(DEVICE)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for train in (True, False):
        layer.train(train), twin.train(train)
        x, y = LAST.clone().requires_grad_(), LAST.clone().requires_grad_()
        got, want = compiled(x), twin(y)
        # Running statistics are torch's to update in a graph, and may differ in the last bit.
        assert torch.equal(got, want) if train else torch.allclose(got, want, rtol=1e-6, atol=1e-6)
        dy = draw(got.shape, seed=2).to(DEVICE)
        got.backward(dy)
        want.backward(dy)
        assert torch.allclose(x.grad, y.grad, rtol=1e-6)
        for mine, its in zip(layer.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(mine.grad, its.grad, rtol=1e-5)
        for key, value in twin.state_dict().items():
            assert torch.allclose(layer.state_dict()[key].double(), value.double(), rtol=1e-6)


def test_compiled_with_sizes_unknown() -> None:
    layer = sn.GroupNorm(3, 6).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 3, 7):
        x = draw((batch, 6, 5, 7)).to(DEVICE)
        assert torch.equal(compiled(x), layer(x))


@layers
def test_exported_and_loaded(name: str) -> None:
    layer = LAYERS[name]().to(DEVICE)
    layer(X)
    layer.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (X,), dynamic_shapes=({0: batch},))
    assert "slabnorm.norm" in str(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for x in (X, draw((9, 6, 5, 7)).to(DEVICE)):
        assert torch.equal(loaded(x), layer(x))


def test_gradient_of_a_gradient() -> None:
    def penalty(dtype: torch.dtype) -> list[torch.Tensor]:
        x, w, r, dy = (t.to(dtype).requires_grad_() for t in (X, W, LAST, X + 1))
        y = operators._norm(x, w, None, r, None, None, [0], [1], 1e-5, True, "silu")[0]
        dx, dr = torch.autograd.grad(y, (x, r), dy, create_graph=True)
        return list(torch.autograd.grad((dx * dr).sum(), (x, w, r, dy)))

    for got, want in zip(penalty(torch.float32), penalty(torch.float64), strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
