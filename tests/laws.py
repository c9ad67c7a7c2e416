"""The laws that every norm obeys, and the oracle they are checked against.

The oracle is NumPy in extended precision, two passes, from the already rounded input. It shares no
code with slabnorm: what a norm pools over is spelled out in cases.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

import slabnorm as sn
from tests.cases import Case

EPS = 1e-5
LONG = np.longdouble


@dataclass
class Exact:
    """What the oracle says; dx and the terms of dweight and dbias are for the given upstream gradient."""

    y: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    weight_terms: np.ndarray
    bias_terms: np.ndarray
    kappa: float
    dresidual: np.ndarray


def long(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy().astype(LONG)


def oracle(
    case: Case, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, eps: float = EPS,
    activation: str | None = None, residual: Tensor | None = None,
) -> Exact:  # fmt: skip
    wide, g = (long(t).reshape(case.split) for t in (x, dy))
    shape = [size if dim in case.varying else 1 for dim, size in enumerate(case.split)]
    order = np.argsort(case.varying)

    def spread(t: Tensor) -> np.ndarray:
        return long(t).reshape([case.split[dim] for dim in case.varying]).transpose(order).reshape(shape)

    count = np.prod([case.split[dim] for dim in case.pooled])
    with np.errstate(all="ignore"):
        mean = wide.sum(case.pooled, keepdims=True) / count
        if not case.center:
            mean = np.zeros_like(mean)
        var = ((wide - mean) ** 2).sum(case.pooled, keepdims=True) / count
        kappa = float(np.sqrt(1 + np.max(mean**2 / np.where(var > 0, var, np.inf))))
        rstd = 1 / np.sqrt(var + LONG(eps))
        z = (wide - mean) * rstd
        p = z * spread(weight) + spread(bias)
        if residual is not None:
            p = p + long(residual).reshape(case.split)
        y, slope = _activated(activation, p)
        g = g * slope
        gw = g * spread(weight)
        c1 = gw.sum(case.pooled, keepdims=True) / count if case.center else 0
        dx = rstd * (gw - c1 - z * (gw * z).sum(case.pooled, keepdims=True) / count)
    rest = tuple(dim for dim in range(len(case.split)) if dim not in case.varying)

    def total(t: np.ndarray) -> np.ndarray:
        summed = t.sum(rest)  # dims ascending; back to the order of the weight
        return summed.transpose(np.argsort(order)).reshape(case.weight_shape)

    return Exact(
        y.reshape(case.shape), dx.reshape(case.shape), total(g * z), total(g), total(abs(g * z)),
        total(abs(g)), kappa, g.reshape(case.shape),
    )  # fmt: skip


def _activated(name: str | None, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an activation and its derivative, spelled out; erf and exp in float64 are exact enough."""
    one, narrow = np.ones_like(p), p.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-p))
    if name is None:
        return p, one
    if name == "relu":
        return np.where(p > 0, p, 0), np.where(p > 0, one, 0)
    if name == "leaky_relu":
        return np.where(p > 0, p, LONG(0.01) * p), np.where(p > 0, one, LONG(0.01))
    if name == "silu":
        return p * sigmoid, sigmoid * (1 + p * (1 - sigmoid))
    if name == "sigmoid":
        return sigmoid, sigmoid * (1 - sigmoid)
    if name == "tanh":
        return np.tanh(p), 1 - np.tanh(p) ** 2
    if name == "hardswish":
        inside = (p > -3) & (p < 3)
        return np.where(inside, p * (p + 3) / 6, np.where(p > 0, p, 0)), np.where(inside, p / 3 + 0.5, p > 0)
    if name == "gelu":
        below = special.ndtr(narrow)
        return p * below, below + p * np.exp(-(p**2) / 2) / np.sqrt(2 * LONG(np.pi))
    assert name == "gelu_tanh"
    inner = np.sqrt(2 / LONG(np.pi)) * (p + LONG(0.044715) * p**3)
    t, rise = np.tanh(inner), np.sqrt(2 / LONG(np.pi)) * (1 + 3 * LONG(0.044715) * p**2)
    return p * (1 + t) / 2, (1 + t) / 2 + p * (1 - t**2) * rise / 2


@dataclass
class Run:
    """One forward and backward of slabnorm with a random upstream gradient."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor
    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor
    residual: Tensor | None
    dresidual: Tensor | None

    @property
    def results(self) -> tuple[Tensor, ...]:
        found = self.y, self.dx, self.dweight, self.dbias
        return found if self.dresidual is None else (*found, self.dresidual)


def run(
    case: Case, x: Tensor, eps: float = EPS, plain: bool = False, activation: str | None = None,
    residual: bool = False
) -> Run:  # fmt: skip
    """Run a case on x, on its device; all returned is on the CPU. `plain`: weight is 1 and bias 0."""
    generator = torch.Generator().manual_seed(1)
    half = x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else x.dtype
    weight = 1 + 0.5 * torch.randn(case.weight_shape, generator=generator, dtype=torch.float64)
    bias = 0.5 * torch.randn(case.weight_shape, generator=generator, dtype=torch.float64)
    if plain:
        weight, bias = torch.ones_like(weight), torch.zeros_like(bias)
    weight, bias = (t.to(x.device, dtype).requires_grad_() for t in (weight, bias))
    dy = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(x)
    added = None
    if residual:
        added = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(x).requires_grad_()
    x = x.detach().requires_grad_()
    y = sn.normalize(
        x,
        case.pattern,
        weight=weight,
        bias=bias,
        eps=eps,
        activation=activation,
        residual=added,
        **case.options,
    )
    inputs = [t for t in (x, weight, bias, added) if t is not None]
    dx, dweight, dbias, *dresidual = torch.autograd.grad(y, inputs, dy)
    tensors = x, weight, bias, dy, y, dx, dweight, dbias, added, dresidual[0] if residual else None
    return Run(*(None if t is None else t.detach().cpu() for t in tensors))


# Rounding of one unit in the last place, and the gates of accuracy: (output, input gradient, sums).
GATES = {torch.float32: (1e-6, 1e-5, 1e-6), torch.float64: (1e-14, 1e-13, 1e-14)}


def output_is_exact(case: Case, done: Run, exact: Exact) -> None:
    """float32: |error| <= 1e-6 max(1, |y|); half precision: 1 unit in the last place."""
    error = abs(long(done.y) - exact.y)
    if done.x.dtype in GATES:
        # float64 has 53 bits for kappa, too: what is left of them is the gate.
        lost = 1 if done.x.dtype == torch.float32 else max(1.0, exact.kappa / 100)
        bound = GATES[done.x.dtype][0] * lost * np.maximum(1, abs(exact.y))
    else:
        rounded = torch.from_numpy(exact.y.astype(np.float64)).to(done.x.dtype)
        error = abs(long(done.y) - long(rounded))
        bound = long(_ulp(rounded))
    assert (error <= bound).all(), f"{case}: {float((error / bound).max()):.3g} times the gate"


def _ulp(x: Tensor) -> Tensor:
    info = torch.finfo(x.dtype)
    exponent = torch.floor(torch.log2(x.double().abs().clamp(min=info.tiny)))
    return 2.0**exponent * info.eps


def gradients_are_exact(case: Case, done: Run, exact: Exact) -> None:
    """dx to 1e-5 of the largest; dweight and dbias to 1e-6 of the sum of absolute terms (float32)."""
    _, of_x, of_sums = GATES[done.x.dtype]
    for got, want in ((done.dx, exact.dx), (done.dresidual, exact.dresidual)):
        if got is not None:
            scale, error = abs(want).max(), abs(long(got) - want).max()
            assert error <= of_x * scale, f"{case} dx: {float(error / (of_x * scale)):.3g} times the gate"
    for name, got, want, terms in (
        ("dweight", done.dweight, exact.dweight, exact.weight_terms),
        ("dbias", done.dbias, exact.dbias, exact.bias_terms),
    ):
        error, bound = abs(long(got) - want), of_sums * terms
        # A float32 cannot be closer than its rounding, nor than the smallest number there is.
        assert (error <= np.maximum(bound, torch.finfo(got.dtype).tiny)).all(), f"{case} {name}"


def constant_gives_bias(case: Case, done: Run) -> None:
    """A constant slab gives exactly the bias."""
    shape = [size if dim in case.varying else 1 for dim, size in enumerate(case.split)]
    order = np.argsort(case.varying).tolist()
    opened = done.bias.detach().reshape([case.split[dim] for dim in case.varying]).permute(order)
    want = opened.reshape(shape).expand(case.split).reshape(case.shape)
    assert torch.equal(done.y, want), f"{case}: off by {(done.y - want).abs().max()}"


def only_its_slab(case: Case, clean: Run, dirty: Run, where: int) -> None:
    """One NaN or inf makes its own slab non-finite, and changes nothing elsewhere."""
    slab = torch.zeros(case.split, dtype=torch.bool)
    index = list(np.unravel_index(where, case.split))
    slab[tuple(slice(None) if dim in case.pooled else i for dim, i in enumerate(index))] = True
    slab = slab.reshape(case.shape)
    assert not dirty.y[slab].isfinite().all(), f"{case}: the fault was swallowed"
    assert torch.equal(dirty.y[~slab], clean.y[~slab]), f"{case}: the fault spread"
    assert torch.equal(dirty.dx[~slab], clean.dx[~slab]), f"{case}: the fault spread in the gradient"


def same_bits(case: Case, first: Run, second: Run) -> None:
    for a, b in zip(first.results, second.results, strict=True):
        assert torch.equal(a, b), f"{case}: {(a - b).abs().max()} apart"
