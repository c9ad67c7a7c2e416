"""A call checked and bound to what runs it: once for all calls on tensors of the same kinds."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.errors import DeviceError, DtypeError, ShapeError
from slabnorm.kernels import backend as backends
from slabnorm.kernels.backend import Backend, choose
from slabnorm.kernels.call import Kind
from slabnorm.kernels.memory_format import order_of
from slabnorm.notation import Item, Pattern
from slabnorm.slab import Slab, plan
from slabnorm.tracing import plain, traced

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_KEPT = 512  # bound calls of different kinds that are remembered
# Of one shape. Windows into tensors of any length have one shape and, each time, other strides.
_KEPT_OF_ONE_SHAPE = 32
_OTHER = ()


class Bound(NamedTuple):
    """A pattern bound to tensors, and what runs it.

    Attributes:
        slab: the pattern bound to the shape of x.
        backend: what runs it; None: plain operations, to be traced.
        plans: what the backend keeps for it.
        order: the memory format of a result like x; `torch.preserve_format` if it is none of the three.
        kinds: those of x, weight, bias and residual.
    """

    slab: Slab
    backend: Backend | None
    plans: Any
    order: torch.memory_format
    kinds: tuple[Kind | None, ...]


def bind(
    pattern: Pattern,
    affine: tuple[Item, ...],
    sizes: tuple[tuple[str, int], ...],
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Bound:
    """Check the tensors of a call, and find what runs it.

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
        return Bound(slab, None, None, order_of(x, x), ())
    return find(pattern, affine, sizes, x, weight, bias, residual)


def find(
    pattern: Pattern,
    affine: tuple[Item, ...],
    sizes: tuple[tuple[str, int], ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Bound:
    """Do what `bind` does for a call that runs, whatever is traced around it."""
    kinds = _kind(x), _kind(weight), _kind(bias), _kind(residual)
    key = (pattern, affine, sizes, backends.forced, *kinds)
    known = _bound.get(key)
    if known is not None:
        return known
    slab = _checked(pattern, affine, sizes, x, weight, bias, residual)
    backend, plans = choose(x, slab, weight, bias, residual)
    order = order_of(x, torch.empty_like(x, device="meta"))
    bound = Bound(slab, backend, plans, order, tuple(Kind.of(t) for t in (x, weight, bias, residual)))
    if _OTHER not in kinds:
        _keep(key, bound)
    return bound


def _kind(t: Tensor | None) -> tuple[Any, ...] | None:
    """Return all that checks and plans look at; `_OTHER` for what is not remembered."""
    if t is None:
        return None
    return (t.shape, t.stride(), t.dtype, t.device) if plain(t) else _OTHER


def _keep(key: tuple[Any, ...], bound: Bound) -> None:
    if len(_bound) >= _KEPT:
        _bound.clear()
    alike = [other for other in list(_bound) if other[:4] == key[:4] and other[4][0] == key[4][0]]
    if len(alike) >= _KEPT_OF_ONE_SHAPE:
        for other in alike:
            _bound.pop(other, None)
    _bound[key] = bound


def _checked(
    pattern: Pattern,
    affine: tuple[Item, ...],
    sizes: tuple[tuple[str, int], ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Slab:
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
            f"{name} is on {tensor.device}, but x is on {x.device}",
            fix=f"move {name} with .to({str(x.device)!r})",
        )
    if tuple(tensor.shape) != shape:
        found = f'{name} has shape {tuple(tensor.shape)}, but "{pattern}" needs {shape}'
        raise ShapeError(f"{found} for x of shape {tuple(x.shape)}", fix=_FITS[name])


_VARY = "weight and bias vary along the axis with `c`, or along affine=: give them its size"
_FITS = {
    "weight": _VARY,
    "bias": _VARY,
    "residual": "give a residual of x's shape",
    "mean": "give one mean for each slab: the shape of the pattern's right side",
    "var": "give one variance for each slab: the shape of the pattern's right side",
}


def check_input(x: Tensor, name: str) -> None:
    """Raise DtypeError unless x is a dense tensor of a floating-point dtype that slabnorm computes in."""
    if not isinstance(x, Tensor):
        raise DtypeError(f"{name} must be a tensor", type(x).__name__, "convert it with torch.as_tensor")
    if x.layout != torch.strided or x.is_nested:
        got = "a nested tensor" if x.is_nested else str(x.layout)
        raise DtypeError(f"{name} must be a strided tensor", got, "convert it, as with .to_dense()")
    if x.dtype not in _FLOATS:
        wanted = f"{name} must be float32, float64, bfloat16 or float16"
        raise DtypeError(wanted, str(x.dtype), "convert it, as with .float()")


_bound: dict[tuple[Any, ...], Bound] = {}


def forget() -> None:
    """Forget all bound calls: the next ones are checked and planned anew."""
    _bound.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)  # a forked child has other backends
