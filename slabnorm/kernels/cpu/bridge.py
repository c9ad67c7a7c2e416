"""Numba on the CPU: the plumbing between tensors and the compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from slabnorm.kernels.call import Call, Found, Given, Statistics, memory_of
from slabnorm.kernels.cpu import compiled
from slabnorm.kernels.cpu.activations import PIECEWISE
from slabnorm.kernels.cpu.addressing import LOW, M2, MEAN, RSTD, SHIFT
from slabnorm.kernels.cpu.elements import HAS_FLOAT16
from slabnorm.kernels.cpu.memory_order import copy
from slabnorm.kernels.cpu.plans import Plan, Plans, constant
from slabnorm.kernels.huge_pages import empty_like
from slabnorm.kernels.layout import find_placement
from slabnorm.slab import Axes, Slab

NAME = "cpu"
_WIDE = (torch.float32, torch.float64)
_NOTHING = np.zeros(1)


class NumbaStatistics:
    """Statistics that a kernel found, as tensors when they are asked for."""

    __slots__ = ("slab", "stats")
    device = torch.device("cpu")

    def __init__(self, stats: np.ndarray, slab: Slab) -> None:
        self.stats, self.slab = stats, slab

    @property
    def mean(self) -> Tensor:
        """The means, gathered."""
        return _gathered(self.stats[MEAN], self.slab.kept)

    @property
    def m2(self) -> Tensor:
        """The sums of squared deviations, gathered."""
        return _gathered(self.stats[M2], self.slab.kept)

    def update_running(
        self, count: int, mean: Tensor, var: Tensor, momentum: float, batches: Tensor | None,
        elements: Tensor | None, skipped: Tensor | None,
    ) -> bool:  # fmt: skip
        """Let a batch enter running statistics; False, and nothing changed, if it is not finite."""
        addresses = mean.data_ptr(), var.data_ptr(), momentum, _address(batches), _address(elements)
        return bool(compiled.update_running(mean.dtype)(self.stats, count, *addresses))


def bind(x: Tensor, slab: Slab) -> Plans | None:
    """Take tensors whose slabs lie in a Layout; strided ones that do not through a dense copy."""
    if slab.numel == 0 or (x.dtype == torch.float16 and not HAS_FLOAT16):
        return None
    found = find_placement(x, slab)
    return None if found is None else Plans(slab, found)


def fuses(activation: str | None, dtype: torch.dtype) -> bool:
    """Return whether the kernels apply this activation: the smooth ones are not exact enough for float64."""
    return activation is None or dtype != torch.float64 or activation in PIECEWISE


def statistics(x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, what the mean lost to rounding, and the sum of squared deviations of every slab."""
    stats = _forward(x, None, None, None, call, write=False)[1]
    low = (stats[SHIFT] - stats[MEAN]) + stats[LOW]
    mean, low, m2 = (_gathered(values, call.slab.kept) for values in (stats[MEAN], low, stats[M2]))
    return mean, low, m2


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, np.ndarray, Found | None]:
    """Return y, the statistics for backward(), and those found unless they were given."""
    y, stats = _forward(x, weight, bias, residual, call, write=True)
    return y, stats, NumbaStatistics(stats, call.slab) if call.given is None else None


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call, write: bool
) -> tuple[Tensor, np.ndarray]:
    plan = call.plans.find(x, weight, bias, residual, call, back=False, write=write)
    y = x if not write or _taken(x, weight, bias, residual, call, plan) else empty_like(x)
    if plan.copied:
        x = _like(x, x)
    if residual is not None and residual.stride() != plan.strides:
        residual = _like(residual, y)
    stats = np.empty((5, call.slab.slabs))
    if call.given is not None:
        _use(call.given, stats, call.eps)
    wide_weight, wide_bias = _cast(weight, plan.weight, 1, plan), _cast(bias, plan.bias, 0, plan)
    x_at, residual_at, weight_at, bias_at = (
        x.data_ptr(), _address(residual), wide_weight.data_ptr(), wide_bias.data_ptr(),
    )  # fmt: skip
    if (x_at | residual_at) % x.itemsize or (weight_at | bias_at) % plan.affine.itemsize:
        x, weight, bias, residual = _aligned(x, weight, bias, residual)
        return _forward(x, weight, bias, residual, call._replace(plans=bind(x, call.slab)), write)
    drive, team = compiled.drive()
    drive(
        plan.kernel, plan.phases, plan.record, plan.threads, stats,
        np.zeros(plan.work) if plan.work else _NOTHING, _NOTHING, team, call.eps,
        x_at, residual_at, y.data_ptr(), weight_at, bias_at, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return y, stats


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: np.ndarray, call: Call, needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of x, weight, bias and residual, each None unless it is needed."""
    need_x, need_weight, need_bias, need_residual = needed
    # Without an activation the residual's gradient is dy itself.
    inner = need_residual and call.activation is not None
    write = need_x or inner
    plan = call.plans.find(x, weight, bias, residual, call, back=True, write=write, inner=inner)
    if dy.stride() != plan.strides or dy.dtype != x.dtype:
        dy = _like(dy, x)
    if plan.copied:
        x = _like(x, x)
    if residual is not None and residual.stride() != plan.strides:
        residual = _like(residual, x)
    dx = empty_like(x) if write else None
    dresidual = empty_like(x) if inner else None
    wide_weight, wide_bias = _cast(weight, plan.weight, 1, plan), _cast(bias, plan.bias, 0, plan)
    x_at, residual_at, weight_at, bias_at, dy_at = (
        x.data_ptr(), _address(residual), wide_weight.data_ptr(), wide_bias.data_ptr(), dy.data_ptr(),
    )  # fmt: skip
    if (x_at | residual_at | dy_at) % x.itemsize or (weight_at | bias_at) % plan.affine.itemsize:
        dy, x, weight, bias, residual = _aligned(dy, x, weight, bias, residual)
        call = call._replace(plans=bind(x, call.slab))
        return backward(dy, x, weight, bias, residual, stats, call, needed)
    dweight = torch.empty_like(wide_weight) if weight is not None and need_weight else None
    dbias = torch.empty_like(wide_bias) if bias is not None and need_bias else None
    drive, team = compiled.drive()
    drive(
        plan.kernel, plan.phases, plan.record, plan.threads, stats,
        np.zeros(plan.work) if plan.work else _NOTHING, np.zeros(plan.cells), team, call.eps,
        x_at, residual_at, 0, weight_at, bias_at, dy_at,
        _address(dx), _address(dresidual), _address(dweight), _address(dbias),
    )  # fmt: skip
    if weight is not None and dweight is not None and dweight.dtype != weight.dtype:
        dweight = dweight.to(weight.dtype)
    if bias is not None and dbias is not None and dbias.dtype != bias.dtype:
        dbias = dbias.to(bias.dtype)
    return dx if need_x else None, dweight, dbias, (dresidual if inner else dy) if need_residual else None


def used(stats: np.ndarray, slab: Slab) -> Statistics:
    """Return what a forward has normalised with, as tensors."""
    mean, rstd, low = (_gathered(stats[row], slab.kept) for row in (SHIFT, RSTD, LOW))
    return Statistics(mean, low, rstd)


def _taken(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    call: Call,
    plan: Plan,
) -> bool:
    """Return whether the output takes the memory of x; kernels read each element before they write it."""
    if not call.inplace or x.stride() != plan.strides or x.requires_grad:
        return False  # a checkpoint, which runs without gradients at first, reads x again
    # Memory that PyTorch has not allocated, and so cannot resize, may be a map of a file that is only to be
    # read: nothing tells but a crash, or /proc/self/maps, which takes longer than the norm.
    if not x.untyped_storage().resizable():
        return False
    if any(t is not None and _overlap(x, t) for t in (weight, bias, residual)):
        return False
    if not x.is_inference():
        increment_version([x])  # a graph that has saved x is to refuse, not to compute with y
    return True


def _overlap(x: Tensor, t: Tensor) -> bool:
    """Return whether two tensors may share memory, also where they come from other libraries."""

    def ends(t: Tensor) -> tuple[int, int]:
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()

    (start, end), (first, last) = ends(x), ends(t)
    return start < last and first < end


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _aligned(*tensors: Tensor | None) -> list[Any]:
    """Return tensors at addresses that their element sizes divide, as kernels need them, or copies that are.

    PyTorch's own are; a buffer taken from some byte on, by `torch.frombuffer` or NumPy, need not be.
    """
    return [t if t is None or t.data_ptr() % t.itemsize == 0 else t.clone() for t in tensors]


def _cast(given: Tensor | None, kept: Tensor | None, value: int, plan: Plan) -> Tensor:
    """Return weight or bias in the dtype that a kernel takes; 1 or 0 where there is none."""
    if given is None:
        return constant(plan.layout.parameters, value, plan.affine) if kept is None else kept
    return given if given.dtype == plan.affine else given.to(plan.affine)


def _use(given: Given, stats: np.ndarray, eps: float) -> None:
    # They are taken as they are now: running statistics may move on before the backward.
    mean, var = memory_of(given, stats.shape[1], torch.device("cpu"))
    if mean.dtype not in _WIDE or mean.dtype != var.dtype:
        mean, var = mean.double(), var.double()
    mean, var = _aligned(mean, var)
    compiled.use(mean.dtype)(mean.data_ptr(), var.data_ptr(), stats, eps)


def _like(t: Tensor, x: Tensor) -> Tensor:
    return copy(t, empty_like(x))


def _gathered(values: np.ndarray, axes: Axes) -> Tensor:
    gathered = torch.from_numpy(values)
    return gathered if len(axes.shape) == 1 else gathered.view(axes.shape)
