"""The norm as two custom operators: what torch.compile and torch.export see of the kernels.

    slabnorm::norm(x, ...) -> y, stats, coefficients
    slabnorm::norm_backward(dy, x, ..., stats, coefficients, ...) -> dx, dweight, dbias, dresidual

x, residual and dy are split, every bracket of the pattern opened, so that a slab is told by the dims it keeps
apart. stats are float64 [2, slabs]: mean and squared deviations, or the mean and variance that were given;
coefficients are the kernels' own, float32 [4, slabs]. A gradient that is not asked for has no elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from slabnorm.kernels import eager
from slabnorm.kernels.backend import may_run_on_gpu
from slabnorm.kernels.call import Call, Given, Statistics, check_shapes
from slabnorm.notation import Item, Pattern, parse, product
from slabnorm.prepare import Bound, find
from slabnorm.slab import plan
from slabnorm.tracing import plain

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Return whether a traced call is to be one operator: on a GPU, and not for ONNX."""
    # The GPU's age is not asked for while torch traces; on an old one the operator runs in plain torch.
    if x.dtype not in _DTYPES or not may_run_on_gpu(x):
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
    weight, bias = _opened(weight, x, affine), _opened(bias, x, affine)
    bound = _bound(x, weight, bias, residual, kept, affine)
    call = Call(bound.slab, eps, center, given, activation or None, bound.plans)
    if _is_gpu(bound):
        from slabnorm.kernels import gpu

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
    coefficients: Tensor, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool,
    activation: str, own: bool, needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    opened_weight, opened_bias = _opened(weight, x, affine), _opened(bias, x, affine)
    bound, given = (
        _bound(x, opened_weight, opened_bias, residual, kept, affine),
        None if own else Given(stats[0], stats[1]),
    )
    call = Call(bound.slab, eps, center, given, activation or None, bound.plans)
    tensors, asked = (dy, x, opened_weight, opened_bias, residual), tuple(needed)
    if _is_gpu(bound) and plain(dy):
        from slabnorm.kernels import gpu

        grads = gpu.backward(*tensors, gpu.TritonStatistics(stats, coefficients, call), call, asked)
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
    coefficients: Tensor, kept: Sequence[int], affine: Sequence[int], eps: float, center: bool,
    activation: str, own: bool, needed: Sequence[bool],
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
    *tensors, stats, coefficients = ctx.saved_tensors
    check_shapes(tensors, ctx.shapes)
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    of_dy = need_residual and tensors[3] is None
    needed = need_x, need_weight, need_bias, need_residual and not of_dy
    grads: tuple[Tensor | None, ...]
    if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
        x, weight, bias, residual = tensors
        kept, affine, eps, center, activation = ctx.call
        given = None if ctx.own else Given(stats[0], stats[1])
        slab = plan(*_pattern(x.dim(), tuple(kept), tuple(affine)), tuple(x.shape), ())
        call = Call(slab, eps, center, given, activation or None)
        used = _used(stats, call)
        grads = eager.differentiable_backward(dy, x, weight, bias, residual, used, call, needed)
    else:
        found = _norm_backward(dy, *tensors, stats, coefficients, *ctx.call, ctx.own, needed)
        grads = tuple(t if need else None for t, need in zip(found, needed, strict=True))
    return *grads[:3], dy if of_dy else grads[3], *(None,) * 7


_norm.register_autograd(_differentiate, setup_context=_keep)


def _opened(t: Tensor | None, x: Tensor, affine: Sequence[int]) -> Tensor | None:
    """Return weight or bias with an axis for each of its dims of x."""
    return None if t is None else t.reshape([x.shape[dim] for dim in affine])


def _bound(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    kept: Sequence[int],
    affine: Sequence[int],
) -> Bound:
    return find(*_pattern(x.dim(), tuple(kept), tuple(affine)), (), x, weight, bias, residual)


@lru_cache(maxsize=256)
def _pattern(dims: int, kept: tuple[int, ...], affine: tuple[int, ...]) -> tuple[Pattern, tuple[Item, ...]]:
    names = [f"d{dim}" for dim in range(dims)]
    pattern = parse(f"{' '.join(names)} -> {' '.join(names[dim] for dim in kept)}")
    return pattern, tuple((names[dim],) for dim in affine)


def _is_gpu(bound: Bound) -> bool:
    return bound.backend is not None and bound.backend.NAME == "gpu"


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
