"""One planned call: choose the kernel, find the statistics, connect the result to autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slabnorm import kernels, operators
from slabnorm.errors import StatisticsError
from slabnorm.kernels import eager
from slabnorm.kernels.activations import ACTIVATIONS
from slabnorm.kernels.call import Call, Found, FoundTensors, Given, Statistics, restored, unchanged
from slabnorm.prepare import Prepared
from slabnorm.tracing import readable


def run(
    x: Tensor,
    prepared: Prepared,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    given: Given | None,
    activation: str | None,
    residual: Tensor | None,
    inplace: bool = False,
) -> tuple[Tensor, Found | None]:
    """Run a prepared call; return y, and the statistics it found unless they were given.

    With `inplace`, y may take the memory of x where no gradient is needed: `normalize` says when it does.
    """
    slab, backend = prepared.slab, prepared.backend
    if given is None and slab.count == 1 and slab.pattern.pools_samples and slab.slabs > 0:
        raise StatisticsError(
            "statistics over samples need more than one element per slab",
            f'shape {tuple(x.shape)} for "{slab.pattern}": 1 element per slab',
            "use a larger batch, running statistics (eval mode), or a norm that does not pool samples",
        )
    if backend is not None and not backend.fuses(activation, x.dtype):
        y, found = run(x, prepared, weight, bias, eps, center, given, None, residual)
        return ACTIVATIONS[activation or ""](y), found
    call = Call(slab, float(eps), center, given, activation)  # a kernel takes no other kind of number
    if slab.numel == 0:
        return _empty(x, weight, bias, residual, call), None
    if backend is None or x.device.type == "meta":
        return _traced(x, weight, bias, residual, call)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, residual)
    ):
        out: list[Found | None] = []
        y = _apply(x, weight, bias, residual, call, prepared, out)
        return y, out[0]
    if inplace and eps != 0:  # with eps=0 a constant slab is an error, and x is to stay as it was
        call = call._replace(inplace=True)
    y, stats, found = backend.forward(x, weight, bias, residual, call)
    _check_spread(stats, call, backend)
    return y, found


def _check_spread(stats: Any, call: Call, backend: ModuleType) -> None:
    if call.eps != 0:
        return
    rstd = backend.used(stats, call.slab).rstd
    if not readable(rstd):
        return
    constant = rstd.isinf().nonzero()
    if len(constant):
        raise StatisticsError(
            "eps=0 needs a spread in every slab",
            f'slab {tuple(constant[0].tolist())} of "{call.slab.pattern}" is constant '
            f"({len(constant)} in all)",
            "give eps a positive value such as 1e-5",
        )


def _traced(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, Found | None]:
    """Run as plain torch operations, which compile, export and torch.func can follow; or as one operator."""
    if operators.takes(x):
        y, mean, m2 = operators.norm(x, weight, bias, residual, call)
        return y, FoundTensors(mean, m2) if call.given is None else None
    if call.given is None:
        mean, _, m2 = eager.statistics(x.detach(), call.slab)
        return eager.formula(x, weight, bias, residual, call), FoundTensors(mean, m2)
    stats = Statistics(call.given.mean.double(), None, (call.given.var.double() + call.eps).rsqrt())
    return eager.apply(x, weight, bias, residual, stats, call), None


def _empty(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> Tensor:
    # Nothing to normalise, but the graph stays connected: every gradient is zero, none is missing.
    y = x.reshape(call.slab.split)
    for t in (weight, bias):
        y = y if t is None else y * call.slab.affine.spread(t)
    y = y.reshape(x.shape).to(x.dtype)
    return y if residual is None else y + residual.to(x.dtype)


class _Normalize(torch.autograd.Function):
    """One norm in the graph: its inputs are saved, and nothing of the output's size.

    The last argument is a list; the statistics found in the data are appended to it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call,
        prepared: Prepared, out: list[Found | None],
    ) -> Tensor:  # fmt: skip
        backend = prepared.backend
        assert backend is not None
        y, ctx.stats, found = backend.forward(x, weight, bias, residual, call)
        _check_spread(ctx.stats, call, backend)
        out.append(found)
        # Without an activation no gradient depends on the residual, and its own is dy.
        unused = residual is None or (call.activation is None and residual.dtype == x.dtype)
        kept = None if unused else residual
        ctx.save_for_backward(x, weight, bias, kept)
        ctx.call, ctx.backend, ctx.kinds = call, backend, prepared.kinds
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = upstream[0]
        if dy is None:
            return (None,) * 7
        needed = ctx.needs_input_grad[:4]
        backend, stats, call = ctx.backend, ctx.stats, ctx.call
        saved = ctx.saved_tensors
        as_saved = unchanged(saved, ctx.kinds)
        x, weight, bias, residual = saved if as_saved else restored(saved, ctx.kinds)
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            used = None if call.given is None else backend.used(stats, call.slab)
            grads = eager.differentiable_backward(dy, x, weight, bias, residual, used, call, needed)
            return *grads, None, None, None
        fits = as_saved or kernels.backend(x, call.slab, weight, bias, residual) is backend
        if not fits or kernels.backward_backend(dy, backend) is not backend:
            backend, stats = eager, backend.used(stats, call.slab)
        return *backend.backward(dy, x, weight, bias, residual, stats, call, needed), None, None, None


# Function.apply without what it does for torch.func, which does not come here: 3 of 9 microseconds.
_apply = super(torch.autograd.Function, _Normalize).apply
