"""A call checked and planned: once for all calls on tensors of the same kinds."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm import kernels
from slabnorm.errors import DeviceError, DtypeError, ShapeError
from slabnorm.kernels.call import Kind
from slabnorm.kernels.strides import order_of
from slabnorm.notation import Item, Pattern
from slabnorm.slab import Slab, plan
from slabnorm.tracing import traced

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_KEPT = 512  # calls of different kinds that are remembered
_OTHER = ()


class Prepared(NamedTuple):
    """A pattern bound to a shape, and what runs it.

    Attributes:
        slab: the plan.
        backend: what runs it; None: plain operations, to be traced.
        order: the memory format of a result like x; `torch.preserve_format` if it is none of the three.
        kinds: those of x, weight, bias and residual.
    """

    slab: Slab
    backend: ModuleType | None
    order: torch.memory_format
    kinds: tuple[Kind | None, ...]


def prepare(
    pattern: Pattern, affine: tuple[Item, ...], sizes: tuple[tuple[str, int], ...], x: Tensor,
    weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
) -> Prepared:  # fmt: skip
    """Check the tensors of a call and plan it.

    Args:
        pattern: the pattern.
        affine: the axes of weight and bias, from `Pattern.affine`.
        sizes: the sizes given as keywords, as sorted pairs.
        x, weight, bias, residual: the tensors.

    Raises:
        PatternError, ShapeError: the sizes or a tensor do not fit the pattern.
        DtypeError, DeviceError: a tensor cannot take part in a call on x.
    """
    if traced():
        slab = _checked(pattern, affine, sizes, x, weight, bias, residual)
        return Prepared(slab, None, order_of(x, x), ())
    kinds = _kind(x), _kind(weight), _kind(bias), _kind(residual)
    key = (pattern, affine, sizes, *kinds)
    known = _prepared.get(key)
    if known is not None:
        return known
    slab = _checked(pattern, affine, sizes, x, weight, bias, residual)
    backend = kernels.backend(x, slab, weight, bias, residual)
    order = order_of(x, torch.empty_like(x, device="meta"))
    prepared = Prepared(slab, backend, order, tuple(Kind.of(t) for t in (x, weight, bias, residual)))
    if _OTHER not in kinds:
        if len(_prepared) >= _KEPT:
            _prepared.clear()
        _prepared[key] = prepared
    return prepared


def _kind(t: Tensor | None) -> tuple[Any, ...] | None:
    """Return all that checks and plans look at; `_OTHER` for what is not remembered."""
    if t is None:
        return None
    return (t.shape, t.stride(), t.dtype, t.device) if kernels.plain(t) else _OTHER


def _checked(
    pattern: Pattern, affine: tuple[Item, ...], sizes: tuple[tuple[str, int], ...], x: Tensor,
    weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
) -> Slab:  # fmt: skip
    check_input(x, "x")
    slab = plan(pattern, affine, tuple(x.shape), sizes)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_fits(name, tensor, slab.affine.shape, x, pattern)
    if residual is not None:
        check_fits("residual", residual, tuple(x.shape), x, pattern)
    return slab


def check_fits(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor, pattern: Pattern) -> None:
    """Raise ShapeError, DtypeError or DeviceError unless a tensor can take part in a call on x."""
    check_input(tensor, name)
    if tensor.device != x.device:
        raise DeviceError(
            "all tensors of a call are on one device",
            f"{name} on {tensor.device}, x on {x.device}",
            f"move {name} with .to({str(x.device)!r})",
        )
    if tuple(tensor.shape) != shape:
        raise ShapeError(
            f'{name} has shape {shape} for "{pattern}" and x of shape {tuple(x.shape)}',
            str(tuple(tensor.shape)),
            "weight and bias vary along the axis with `c`, or along affine=; statistics along the right side"
            if name != "residual"
            else "give a residual of x's shape",
        )


def check_input(x: Tensor, name: str) -> None:
    """Raise DtypeError unless x is a dense tensor of a floating-point dtype that slabnorm computes in."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name} is a torch tensor", type(x).__name__, "convert it with torch.as_tensor")
    if x.layout != torch.strided or x.is_nested:
        got = "a nested tensor" if x.is_nested else str(x.layout)
        raise DtypeError(f"{name} is a strided tensor", got, "convert it, as with .to_dense()")
    if x.dtype not in _FLOATS:
        raise DtypeError(
            f"{name} is float32, float64, bfloat16 or float16", str(x.dtype), "convert it, as with .float()"
        )


_prepared: dict[Any, Prepared] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_prepared.clear)  # a forked child has other backends
