"""One planned call: choose the kernel, find the statistics, connect the result to autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm import kernels
from slabnorm.errors import StatisticsError
from slabnorm.kernels import Statistics, eager
from slabnorm.kernels.activation import ACTIVATIONS
from slabnorm.slab import Slab


class Given(NamedTuple):
    """Statistics that come from elsewhere, gathered: running, fitted, or merged over processes."""

    mean: Tensor
    var: Tensor


class Found(NamedTuple):
    """Statistics of the slabs themselves, gathered, without a graph: mean and sum of squared deviations."""

    mean: Tensor
    m2: Tensor


def run(
    x: Tensor,
    slab: Slab,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    given: Given | None,
    activation: str | None,
    residual: Tensor | None,
) -> tuple[Tensor, Found | None]:
    """Run a checked and planned call; return y, and the statistics it found unless they were given."""
    if given is None and slab.count == 1 and slab.pattern.pools_samples and slab.slabs > 0:
        raise StatisticsError(
            "statistics over samples need more than one element per slab",
            f'shape {tuple(x.shape)} for "{slab.pattern}": 1 element per slab',
            "use a larger batch, call eval(), or a norm that does not pool samples",
        )
    # Half precision rounds once, after the activation.
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if narrow and (activation or residual is not None) else x.dtype
    found = None
    if slab.numel == 0:
        y = _empty(x, slab, weight, bias).to(dtype)
    elif kernels.traced() or x.device.type == "meta":
        y, found = _traced(x, slab, weight, bias, eps, center, given, dtype)
    else:
        y, found = _with_kernel(x, slab, weight, bias, eps, center, given, dtype)
    if residual is not None:
        y = y + residual
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y.to(x.dtype), found


def _with_kernel(
    x: Tensor,
    slab: Slab,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    given: Given | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Found | None]:
    backend = kernels.backend(x, slab)
    with torch.no_grad():
        if given is None:
            mean, low, m2 = backend.statistics(x.detach(), slab)
            found, var = Found(mean, m2), m2 / slab.count
            if not center:
                # mean(x^2) = var + mean^2; both terms are positive, so nothing cancels.
                var, mean, low = var + mean.square(), torch.zeros_like(mean), None
        else:
            mean, low, var, found = given.mean.double(), None, given.var.double(), None
        if eps == 0:
            _check_spread(var, slab)
        stats = Statistics(mean, low, (var + eps).rsqrt())
    call = _Call(backend, slab, eps, center, given is None, dtype)
    return _Normalize.apply(x, weight, bias, stats, call), found


def _check_spread(var: Tensor, slab: Slab) -> None:
    constant = (var == 0).nonzero()
    if len(constant):
        raise StatisticsError(
            "eps=0 needs a spread in every slab",
            f'slab {tuple(constant[0].tolist())} of "{slab.pattern}" is constant ({len(constant)} in all)',
            "give eps a positive value such as 1e-5",
        )


def _traced(
    x: Tensor,
    slab: Slab,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    given: Given | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Found | None]:
    """Run as plain torch operations, which compile, export and torch.func can follow."""
    if given is None:
        mean, _, m2 = eager.statistics(x.detach(), slab)
        return eager.formula(x, slab, weight, bias, eps, center, dtype), Found(mean, m2)
    stats = Statistics(given.mean.double(), None, (given.var.double() + eps).rsqrt())
    return eager.apply(x, slab, stats, weight, bias, dtype), None


def _empty(x: Tensor, slab: Slab, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    # Nothing to normalise, but the graph stays connected: every gradient is zero, none is missing.
    y = x.reshape(slab.split)
    if weight is not None:
        y = y * slab.affine.spread(weight)
    if bias is not None:
        y = y + slab.affine.spread(bias)
    return y.reshape(x.shape)


class _Call(NamedTuple):
    """What one call is, beside its tensors."""

    backend: ModuleType
    slab: Slab
    eps: float
    center: bool
    own: bool  # whether the statistics are the slab's own, so that gradient flows through them
    dtype: torch.dtype


class _Normalize(torch.autograd.Function):
    """One norm in the graph: x, weight and bias are saved, nothing of the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Statistics, call: _Call
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, stats.mean, stats.low, stats.rstd)
        ctx.call = call
        return call.backend.apply(x, call.slab, stats, weight, bias, call.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = upstream
        x, weight, bias, mean, low, rstd = ctx.saved_tensors
        stats = Statistics(mean, low, rstd)
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            return *_differentiable(dy, x, weight, bias, stats, ctx), None, None
        return *_gradients(dy, x, weight, bias, stats, ctx), None, None


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Statistics, ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    call: _Call = ctx.call
    backend, slab = call.backend, call.slab
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx = dweight = dbias = c1 = c2 = None
    if call.own or need_weight or need_bias:
        s1, s2, sum_weight, sum_bias = backend.sums(dy, x, slab, stats, weight)
        if call.own:
            c1, c2 = (s1 / slab.count if call.center else None), s2 / slab.count
        dweight = sum_weight.to(weight.dtype) if need_weight and weight is not None else None
        dbias = sum_bias.to(bias.dtype) if need_bias and bias is not None else None
    if need_x:
        dx = backend.gradient(dy, x, slab, stats, weight, c1, c2)
    return dx, dweight, dbias


def _differentiable(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, stats: Statistics, ctx: Any
) -> tuple[Tensor | None, ...]:
    call: _Call = ctx.call
    found_for = zip((x, weight, bias), ctx.needs_input_grad, strict=False)
    inputs = [tensor for tensor, needed in found_for if needed and tensor is not None]
    if call.own:
        y = eager.formula(x, call.slab, weight, bias, call.eps, call.center, call.dtype)
    else:
        y = eager.apply(x, call.slab, stats, weight, bias, call.dtype)
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[:3])
