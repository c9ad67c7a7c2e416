"""The norm as two custom operators: what torch.compile and torch.export see of the kernels.

    slabnorm::norm(x, ...) -> y, stats, factors
    slabnorm::norm_backward(dy, x, ..., stats, factors, ...) -> dx, dweight, dbias, dresidual

x, residual and dy are split, every bracket of the pattern opened, so that a slab is told by the dims it keeps
apart. stats are float64 [2, slabs]: mean and squared deviations, or the mean and variance that were given;
factors are the kernels' own, float32 [4, slabs]. A gradient that is not asked for has no elements.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from slabnorm import kernels
from slabnorm.kernels import eager
from slabnorm.kernels.call import Call, Given, Statistics, check_shapes
from slabnorm.notation import parse, product
from slabnorm.slab import Slab, plan

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Return whether a traced call is to be one operator: on a GPU, and not for ONNX."""
    if not (kernels.TRITON and x.device.type == "cuda" and x.dtype in _DTYPES):
        return False
    own = torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export()
    return own and type(x).__name__ != "DTensor"


def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the means and squared deviations of its slabs, gathered; of no use if they were given."""
    slab = call.slab
    mean, var = (None, None) if call.given is None else call.given
    residual = None if residual is None else residual.reshape(slab.split)
    y, stats, _ = _norm(
        x.reshape(slab.split), weight, bias, residual, mean, var, slab.kept.dims, slab.affine.dims, call.eps,
        call.center, call.activation or "",
    )  # fmt: skip
    mean, m2 = (t.reshape(slab.kept.shape) for t in stats.detach().unbind())
    return y.reshape(x.shape), mean, m2


@torch.library.custom_op("slabnorm::norm", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor | None,
    var: Tensor | None, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    given = None if mean is None or var is None else Given(mean, var)
    call = _call(x, kept, affine, eps, center, activation, given)
    gpu = _gpu(x, weight, bias, residual, call)
    if gpu is not None:
        y, measured, _ = gpu.forward(x, weight, bias, residual, call)
        return y, measured.values, measured.coefficients
    y, _, found = eager.forward(x, weight, bias, residual, call)
    pair = given if found is None else (found.mean, found.m2)
    assert pair is not None
    stats = torch.stack([t.double().reshape(-1) for t in pair])
    return _like(x, y), stats, stats.new_zeros((4, stats.shape[1]), dtype=torch.float32)


@_norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor | None,
    var: Tensor | None, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    slabs = product([x.shape[dim] for dim in kept])
    stats = x.new_empty((2, slabs), dtype=torch.float64)
    return torch.empty_like(x), stats, x.new_empty((4, slabs), dtype=torch.float32)


@torch.library.custom_op("slabnorm::norm_backward", mutates_args=())
def _norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, stats: Tensor,
    factors: Tensor, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool, activation: str,
    own: bool, needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    call = _call(x, kept, affine, eps, center, activation, None if own else Given(stats[0], stats[1]))
    gpu = _gpu(x, weight, bias, residual, call)
    tensors, asked = (dy, x, weight, bias, residual), tuple(needed)
    if gpu is not None and kernels.backward_backend(dy, gpu) is gpu:
        grads = gpu.backward(*tensors, gpu.Measured(stats, factors, call), call, asked)
    else:
        grads = eager.backward(*tensors, _used(stats, call), call, asked)
    dx, dweight, dbias, dresidual = (t if need else None for t, need in zip(grads, needed, strict=True))
    return (
        _like(x, dx),
        _nothing(x) if dweight is None or weight is None else dweight.reshape(weight.shape).contiguous(),
        _nothing(x) if dbias is None or bias is None else dbias.reshape(bias.shape).contiguous(),
        _like(x, dresidual),
    )


@_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, stats: Tensor,
    factors: Tensor, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool, activation: str,
    own: bool, needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def of(t: Tensor | None, need: bool) -> Tensor:
        return t.new_empty(t.shape) if t is not None and need else _nothing(x)

    dx = torch.empty_like(x) if needed[0] else _nothing(x)
    dresidual = _nothing(x)
    if residual is not None and needed[3]:
        dresidual = torch.empty_like(x, dtype=residual.dtype)
    return dx, of(weight, needed[1]), of(bias, needed[2]), dresidual


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, mean, _, *ctx.call = inputs
    ctx.own = mean is None
    # Without an activation no gradient depends on the residual, and its own is dy.
    kept = None if residual is None or (ctx.call[-1] == "" and residual.dtype == x.dtype) else residual
    ctx.shapes = tuple(None if t is None else t.shape for t in (x, weight, bias, kept))
    ctx.save_for_backward(x, weight, bias, kept, *output[1:])


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, stats, factors = ctx.saved_tensors
    check_shapes(tensors, ctx.shapes)
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    of_dy = need_residual and tensors[3] is None
    needed = need_x, need_weight, need_bias, need_residual and not of_dy
    grads: tuple[Tensor | None, ...]
    if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
        x, weight, bias, residual = tensors
        call = _call(x, *ctx.call)
        if not ctx.own:
            call = call._replace(given=Given(stats[0], stats[1]))
        used = _used(stats, call)
        grads = eager.differentiable_backward(dy, x, weight, bias, residual, used, call, needed)
    else:
        found = _norm_backward(dy, *tensors, stats, factors, *ctx.call, ctx.own, needed)
        grads = tuple(t if need else None for t, need in zip(found, needed, strict=True))
    return *grads[:3], dy if of_dy else grads[3], *(None,) * 7


_norm.register_autograd(_differentiate, setup_context=_keep)


def _call(
    x: Tensor, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool, activation: str,
    given: Given | None = None,
) -> Call:  # fmt: skip
    slab = _slab(tuple(x.shape), tuple(kept), tuple(affine))
    return Call(slab, eps, center, given, activation or None)


@lru_cache(maxsize=256)
def _slab(shape: tuple[int, ...], kept: tuple[int, ...], affine: tuple[int, ...]) -> Slab:
    names = [f"d{dim}" for dim in range(len(shape))]
    pattern = parse(f"{' '.join(names)} -> {' '.join(names[dim] for dim in kept)}")
    return plan(pattern, tuple((names[dim],) for dim in affine), shape, ())


def _gpu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> ModuleType | None:
    """Return the GPU backend if it runs a call."""
    backend = kernels.backend(x, call.slab, weight, bias, residual)
    return backend if backend is sys.modules.get("slabnorm.kernels.gpu") else None


def _used(stats: Tensor, call: Call) -> Statistics:
    mean, second = (t.reshape(call.slab.kept.shape) for t in stats.unbind())
    return eager.used_of(mean, second if call.given is not None else second / call.slab.count, call)


def _like(x: Tensor, t: Tensor | None) -> Tensor:
    """Return a tensor in the memory order that the fake operator has promised."""
    if t is None:
        return _nothing(x)
    like = torch.empty_like(x, device="meta")
    return t if t.stride() == like.stride() else torch.empty_like(x, dtype=t.dtype).copy_(t)


def _nothing(x: Tensor) -> Tensor:
    return x.new_empty(0)
