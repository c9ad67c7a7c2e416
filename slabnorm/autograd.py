"""One planned call: choose the kernel, find the statistics, connect the result to autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm import kernels
from slabnorm.errors import StatisticsError
from slabnorm.kernels import eager
from slabnorm.kernels.activation import ACTIVATIONS
from slabnorm.kernels.statistics import Found, Given, Statistics
from slabnorm.slab import Slab


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
            "use a larger batch, running statistics (eval mode), or a norm that does not pool samples",
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
    call = _Call(kernels.backend(x, slab), slab, eps, center, given, dtype)
    y, mean, m2 = _Normalize.apply(x, weight, bias, call)
    return y, None if mean is None else Found(mean, m2)


def _check_spread(rstd: Tensor, slab: Slab) -> None:
    constant = rstd.isinf().nonzero()
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
    given: Given | None
    dtype: torch.dtype


class _Normalize(torch.autograd.Function):
    """One norm in the graph: x, weight and bias are saved, nothing of the output's size.

    Returns y, and mean and m2 as found in the data, or None and None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        options = call.slab, weight, bias, call.eps, call.center, call.given, call.dtype
        y, ctx.stats, found = call.backend.forward(x, *options)
        if call.eps == 0:
            _check_spread(ctx.stats.rstd, call.slab)
        ctx.save_for_backward(x, weight, bias)
        ctx.call = call
        ctx.set_materialize_grads(False)
        if found is None:
            return y, None, None
        ctx.mark_non_differentiable(*found)
        return y, *found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = upstream[0]
        if dy is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            return *_differentiable(dy, ctx), None
        x, weight, bias = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        call: _Call = ctx.call
        dx, dweight, dbias = kernels.backward_backend(dy, call.backend).backward(
            dy, x, call.slab, weight, ctx.stats, call.given is None, call.center, need_x
        )
        dweight = dweight.to(weight.dtype) if need_weight else None
        return dx, dweight, dbias.to(bias.dtype) if need_bias else None, None


def _differentiable(dy: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """Differentiate the plain formula again, with a graph."""
    call: _Call = ctx.call
    x, weight, bias = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    inputs = [tensor for tensor, wanted in zip((x, weight, bias), needed, strict=True) if wanted]
    if call.given is None:
        y = eager.formula(x, call.slab, weight, bias, call.eps, call.center, call.dtype)
    else:
        y = eager.apply(x, call.slab, ctx.stats, weight, bias, call.dtype)
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in needed)
