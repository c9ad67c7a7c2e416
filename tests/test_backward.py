"""What a backward is given and asked for: saved tensors that hooks have changed, some gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import slabnorm as sn
from slabnorm.errors import DtypeError, ShapeError
from tests.cases import draw

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
X, W, B, DY = draw((24, 40)), draw((40,), seed=1), draw((40,), seed=2), draw((24, 40), seed=3)


def _gradients(unpack: Callable[[Tensor], object], create_graph: bool = False) -> list[Tensor]:
    x, w, b = (t.clone().requires_grad_() for t in (X, W, B))
    with saved_tensors_hooks(lambda t: t.detach(), unpack):
        y = sn.normalize(x, "n c -> n", weight=w, bias=b)
    return [t.detach() for t in torch.autograd.grad(y, (x, w, b), DY, create_graph=create_graph)]


def _column(t: Tensor) -> Tensor:
    wide = torch.full((*t.shape, 3), 1e6)
    wide[..., 1] = t
    return wide[..., 1]


def _shifted(t: Tensor) -> Tensor:
    """Return a tensor two bytes off, as `torch.frombuffer` may give one."""
    memory = bytearray(t.numel() * t.element_size() + 2)
    moved = torch.frombuffer(memory, dtype=t.dtype, offset=2).view(t.shape)
    return moved.copy_(t)


class Tagged(Tensor):
    pass


REPAIRED: dict[str, Callable[[Tensor], Tensor]] = {
    "a column": _column,
    "transposed": lambda t: t.T.contiguous().T if t.ndim == 2 else t,
    "double": Tensor.double,
    "float16": Tensor.half,
    "misaligned": _shifted,
    "negated": lambda t: torch._neg_view(-t),
    "a subclass": lambda t: t.as_subclass(Tagged),
    "read only": lambda t: torch.from_numpy(np.frombuffer(t.numpy().tobytes(), np.float32)).view(t.shape),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", REPAIRED)
def test_saved_tensors_may_come_back_otherwise(kind: str, create_graph: bool) -> None:
    tolerance = 5e-3 if kind == "float16" else 1e-6
    want = _gradients(lambda t: t)
    for got, exact in zip(_gradients(REPAIRED[kind], create_graph), want, strict=True):
        assert (got - exact).abs().max() <= tolerance * exact.abs().max()


def test_an_expanded_weight_comes_back() -> None:
    x, w = X.clone().requires_grad_(), torch.full((40,), 1.5, requires_grad=True)
    with saved_tensors_hooks(lambda t: t, lambda t: t[:1].expand(40) if t.ndim == 1 else t):
        y = sn.normalize(x, "n c -> n", weight=w)
    got = torch.autograd.grad(y, (x, w), DY)
    for a, b in zip(got, torch.autograd.grad(sn.normalize(x, "n c -> n", weight=w), (x, w), DY), strict=True):
        assert torch.equal(a, b)


def test_offloaded_tensors_come_back() -> None:
    x = X.clone().requires_grad_()
    with save_on_cpu():
        y = sn.normalize(x, "n c -> n", weight=W, bias=B)
    assert torch.equal(torch.autograd.grad(y, x, DY)[0], _gradients(lambda t: t)[0])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda t: t[:-1], ShapeError),
        (lambda t: t.T if t.ndim == 2 else t, ShapeError),
        (lambda t: t.to(torch.complex64), DtypeError),
        (lambda t: t.to("meta"), DtypeError),
        (lambda t: t.to_sparse(), DtypeError),
    ],
    ids=["shorter", "transposed", "complex numbers", "without values", "sparse"],
)
def test_what_hooks_have_broken_is_an_error(
    wrong: Callable[[Tensor], Tensor], error: type[Exception]
) -> None:
    with pytest.raises(error, match="than the forward has saved"):
        _gradients(wrong)


def test_a_parameter_replaced_before_the_backward_is_an_error() -> None:
    layer = sn.LayerNorm(40)
    y = layer(X)
    layer.weight.data = torch.ones(3)
    with pytest.raises(ShapeError, match="weight"):
        y.sum().backward()


NAMES = ("x", "weight", "bias", "residual")


def _formula(t: dict[str, Tensor], given: tuple[Tensor, Tensor] | None, activation: str | None) -> Tensor:
    x = t["x"]
    mean, var = given or (x.mean(1), x.var(1, unbiased=False))
    y = (x - mean[:, None]) / (var[:, None] + 1e-5).sqrt() * t["weight"] + t["bias"] + t["residual"]
    return torch.tanh(y) if activation else y


def _some() -> Iterator[tuple[str, ...]]:
    for flags in product((False, True), repeat=4):
        if any(flags):
            yield tuple(name for name, flag in zip(NAMES, flags, strict=True) if flag)


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("given", [False, True])
def test_gradients_of_gradients_whatever_is_frozen(given: bool, activation: str | None) -> None:
    """Any of x, weight, bias and residual alone, or some of them; against the formula in float64."""
    f64 = torch.float64
    values = {
        "x": draw((3, 4), dtype=f64), "weight": draw((4,), dtype=f64, seed=1),
        "bias": draw((4,), dtype=f64, seed=2), "residual": draw((3, 4), dtype=f64, seed=3),
    }  # fmt: skip
    statistics = (draw((3,), dtype=f64), draw((3,), dtype=f64).square() + 1) if given else None
    options = dict(zip(("mean", "var"), statistics, strict=True)) if statistics else {}
    for trained in _some():
        found = []
        for own in (True, False):
            t = {name: value.clone().requires_grad_(name in trained) for name, value in values.items()}
            dy = draw((3, 4), dtype=f64, seed=4).requires_grad_()
            if own:
                x, rest = t["x"], {name: t[name] for name in NAMES[1:]}
                y = sn.normalize(x, "n c -> n", activation=activation, **rest, **options)
            else:
                y = _formula(t, statistics, activation)
            wanted = [t[name] for name in trained]
            first = torch.autograd.grad(y, wanted, dy, create_graph=True)
            total = sum((g**3).sum() for g in first)
            second = torch.autograd.grad(total, [*wanted, dy], allow_unused=True, materialize_grads=True)
            found.append([*first, *second])
        for got, want in zip(*found, strict=True):
            assert (got - want).abs().max() <= 1e-10 * max(1, want.abs().max()), trained


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_result_of_plain_torch_may_be_changed_in_place(dtype: torch.dtype) -> None:
    x = X.to(dtype).requires_grad_()
    y = sn.normalize(x, "n (g c) -> n g", g=8)
    y += 2 * x
    (dx,) = torch.autograd.grad(y, x, DY.to(dtype))
    (alone,) = torch.autograd.grad(sn.normalize(x, "n (g c) -> n g", g=8), x, DY.to(dtype))
    torch.testing.assert_close(dx, alone + 2 * DY.to(dtype))


# Kinds of layout, with threads that share a task, and one whose results leave the caches.
KEPT = {
    "rows": ("n c s -> c", (3, 8, 50)),
    "columns": ("n s c -> c", (3, 50, 8)),
    "tokens": ("n s c -> n s", (3, 50, 80)),
    "channel": ("n c s -> n s", (3, 8, 50)),
    "shared rows": ("n c s -> n", (1, 8, 20000)),
    "shared columns": ("n s c -> c", (4, 10000, 8)),
    "large": ("n c s -> c", (8, 40, 4000)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_whatever_is_frozen_through_the_kernels(kind: str) -> None:
    """A smooth activation leaves its gradient in the memory of a result, if that is asked for."""
    pattern, shape = KEPT[kind]
    channels = shape[1] if pattern.startswith("n c") else shape[2]
    values = {"x": draw(shape), "weight": draw((channels,), seed=1), "bias": draw((channels,), seed=2)}
    values["residual"] = draw(shape, seed=3)
    dy = draw(shape, seed=4)
    exact = {name: value.double().requires_grad_() for name, value in values.items()}
    x, rest = exact["x"], {name: exact[name] for name in NAMES[1:]}
    wide = torch.autograd.grad(sn.normalize(x, pattern, activation="silu", **rest), list(exact.values()), dy)
    wanted = dict(zip(exact, wide, strict=True))
    some = list(_some()) if np.prod(shape) < 20000 else [NAMES, ("x",), ("residual",), ("weight", "bias")]
    for trained in some:
        t = {name: value.clone().requires_grad_(name in trained) for name, value in values.items()}
        x, rest = t["x"], {name: t[name] for name in NAMES[1:]}
        y = sn.normalize(x, pattern, activation="silu", **rest)
        inputs, upstream = [t[name] for name in trained], dy.clone()
        found = torch.autograd.grad(y, inputs, upstream, retain_graph=True)
        again = torch.autograd.grad(y, inputs, upstream)
        assert torch.equal(upstream, dy)
        for name, got, other in zip(trained, found, again, strict=True):
            assert torch.equal(got, other)
            assert (got - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max(), (name, trained)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_that_nobody_asks_for_takes_no_memory(frozen: bool) -> None:
    x = draw((64, 40, 40)).requires_grad_(not frozen)
    w = draw((40,), seed=1).requires_grad_()
    y = sn.normalize(x, "n c s -> c", weight=w, activation="silu")
    wanted, dy = [w] if frozen else [w, x], torch.ones_like(y)
    with torch.profiler.profile(profile_memory=True) as profiled:
        torch.autograd.grad(y, wanted, dy)
    assert any(event.self_cpu_memory_usage >= x.nbytes for event in profiled.events()) != frozen
