"""One planned call: choose the kernel, find the statistics, connect the result to autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slabnorm import kernels
from slabnorm.errors import StatisticsError
from slabnorm.kernels import eager
from slabnorm.kernels.activation import ACTIVATIONS
from slabnorm.kernels.call import Call, Found, Given, Statistics
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
    call, found = Call(slab, eps, center, given, dtype), None
    if slab.numel == 0:
        y = _empty(x, slab, weight, bias).to(dtype)
    elif kernels.traced() or x.device.type == "meta":
        y, found = _traced(x, weight, bias, call)
    else:
        y, mean, m2 = _Normalize.apply(x, weight, bias, call, kernels.backend(x, slab))
        found = None if mean is None else Found(mean, m2)
    if residual is not None:
        y = y + residual
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y.to(x.dtype), found


def _check_spread(rstd: Tensor, slab: Slab) -> None:
    constant = rstd.isinf().nonzero()
    if len(constant):
        raise StatisticsError(
            "eps=0 needs a spread in every slab",
            f'slab {tuple(constant[0].tolist())} of "{slab.pattern}" is constant ({len(constant)} in all)',
            "give eps a positive value such as 1e-5",
        )


def _traced(x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call) -> tuple[Tensor, Found | None]:
    """Run as plain torch operations, which compile, export and torch.func can follow."""
    if call.given is None:
        mean, _, m2 = eager.statistics(x.detach(), call.slab)
        return eager.formula(x, weight, bias, call), Found(mean, m2)
    stats = Statistics(call.given.mean.double(), None, (call.given.var.double() + call.eps).rsqrt())
    return eager.apply(x, weight, bias, stats, call), None


def _empty(x: Tensor, slab: Slab, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    # Nothing to normalise, but the graph stays connected: every gradient is zero, none is missing.
    y = x.reshape(slab.split)
    if weight is not None:
        y = y * slab.affine.spread(weight)
    if bias is not None:
        y = y + slab.affine.spread(bias)
    return y.reshape(x.shape)


class _Normalize(torch.autograd.Function):
    """One norm in the graph: x, weight and bias are saved, nothing of the output's size.

    Returns y, and mean and m2 as found in the data, or None and None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call, backend: ModuleType
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        y, ctx.stats, found = backend.forward(x, weight, bias, call)
        if call.eps == 0:
            _check_spread(ctx.stats.rstd, call.slab)
        ctx.save_for_backward(x, weight, bias)
        ctx.call, ctx.backend = call, backend
        ctx.set_materialize_grads(False)
        if found is None:
            return y, None, None
        ctx.mark_non_differentiable(*found)
        return y, *found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = upstream[0]
        if dy is None:
            return None, None, None, None, None
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            return *_differentiable(dy, ctx), None, None
        x, weight, bias = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        backend = kernels.backward_backend(dy, ctx.backend)
        dx, dweight, dbias = backend.backward(dy, x, weight, ctx.stats, ctx.call, need_x)
        dweight = dweight.to(weight.dtype) if need_weight else None
        return dx, dweight, dbias.to(bias.dtype) if need_bias else None, None, None


def _differentiable(dy: Tensor, ctx: Any) -> tuple[Tensor | None, ...]:
    """Differentiate the plain formula again, with a graph."""
    call: Call = ctx.call
    x, weight, bias = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    inputs = [tensor for tensor, wanted in zip((x, weight, bias), needed, strict=True) if wanted]
    if call.given is None:
        y = eager.formula(x, weight, bias, call)
    else:
        y = eager.apply(x, weight, bias, ctx.stats, call)
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in needed)
