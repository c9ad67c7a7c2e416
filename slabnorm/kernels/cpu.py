"""Numba on the CPU: the plumbing between tensors and the compiled kernels.

A kernel gets addresses and the numbers of a Layout. For small tensors a call's overhead is most of its
time, so what does not change from call to call is worked out once: layouts, phases, addresses of kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import ShapeError
from slabnorm.kernels import compiled
from slabnorm.kernels.call import Call, Found, Given, Statistics
from slabnorm.kernels.compiled import Kernel
from slabnorm.kernels.curves import PIECEWISE
from slabnorm.kernels.elements import HAS_FLOAT16
from slabnorm.kernels.layout import Layout, find_layout
from slabnorm.kernels.phases import Phases
from slabnorm.kernels.pointers import LINE
from slabnorm.kernels.threads import pool
from slabnorm.slab import Axes, Slab

_WIDE = (torch.float32, torch.float64)
_GRAIN = 32768  # elements that are not worth waking a second thread for
_STREAM = 4 << 20  # bytes of an output that leave the caches before anyone can read them
_NOTHING = np.zeros(1)


class _Memory(NamedTuple):
    """How tensors of some strides are taken: through a dense copy, or as they are; the output is dense."""

    layout: Layout
    copied: bool
    strides: tuple[int, ...]  # of the output
    phases: Phases
    fixed: tuple[int, ...]  # the first arguments of kernels


class Measured:
    """Statistics that a kernel found, as tensors when they are asked for."""

    __slots__ = ("slab", "stats")

    def __init__(self, stats: np.ndarray, slab: Slab) -> None:
        self.stats, self.slab = stats, slab

    @property
    def mean(self) -> Tensor:
        """The means, gathered."""
        return _gathered(self.stats[0], self.slab.kept)

    @property
    def m2(self) -> Tensor:
        """The sums of squared deviations, gathered."""
        return _gathered(self.stats[1], self.slab.kept)


def takes(x: Tensor, slab: Slab) -> bool:
    """Take tensors whose slabs lie in a Layout; strided ones that do not through a dense copy."""
    if slab.numel == 0 or (x.dtype == torch.float16 and not HAS_FLOAT16):
        return False
    return _memory(x, slab) is not None


def fuses(activation: str | None, dtype: torch.dtype) -> bool:
    """Return whether the kernels apply this activation: the smooth ones are not exact enough for float64."""
    return activation is None or dtype != torch.float64 or activation in PIECEWISE


def statistics(x: Tensor, slab: Slab) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return mean, what the mean lost to rounding, and the sum of squared deviations of every slab."""
    call = Call(slab, 0.0, True, None, None)
    stats = _forward(x, None, None, None, call, write=False, again=True)[1]
    low = (stats[2] - stats[0]) + stats[4]
    return _gathered(stats[0], slab.kept), _gathered(low, slab.kept), _gathered(stats[1], slab.kept)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
) -> tuple[Tensor, np.ndarray, Found | None]:
    """Return y, the statistics for backward(), and those found unless they were given."""
    y, stats = _forward(x, weight, bias, residual, call, write=True, again=x.dtype == torch.float64)
    return y, stats, Measured(stats, call.slab) if call.given is None else None


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call, write: bool,
    again: bool
) -> tuple[Tensor, np.ndarray]:  # fmt: skip
    slab, own = call.slab, call.given is None
    layout, copied, strides, phases, fixed = _memory(x, slab)  # type: ignore[misc]
    y = torch.empty_like(x) if write else x
    if copied:
        x = x.clone(memory_format=torch.preserve_format)
    if residual is not None and residual.stride() != strides:
        residual = _like(residual, y)
    stats = np.empty((5, slab.slabs))
    if call.given is not None:
        _use(call.given, stats, call.eps)
    weight, bias, affine = _affine(weight, bias, layout)
    threads, shared = _how(layout, slab.numel)
    kernel = _kernel(
        compiled.forward, layout, shared, x.dtype, affine, call.activation, residual is not None, False
    )
    work = np.zeros(phases.work) if shared else _NOTHING
    numbers = (
        *fixed, x.data_ptr(), _address(residual), y.data_ptr(), weight.data_ptr(), bias.data_ptr(),
        0, slab.slabs, own, write, call.center, again, _past(layout, y), 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    steps = phases.forward(shared, own, again, write)
    arguments, (drive, team) = np.array(numbers, dtype=np.int64), compiled.drive()
    drive(kernel, steps, arguments, call.eps, threads, stats, work, _NOTHING, team)
    return y, stats


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    stats: np.ndarray,
    call: Call, needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of x, weight, bias and residual, each None unless it is needed."""
    need_x, need_weight, need_bias, need_residual = needed
    slab = call.slab
    layout, copied, strides, phases, fixed = _memory(x, slab)  # type: ignore[misc]
    if dy.stride() != strides or dy.dtype != x.dtype:
        dy = _like(dy, x)
    if copied:
        x = x.clone(memory_format=torch.preserve_format)
    if residual is not None and residual.stride() != strides:
        residual = _like(residual, x)
    # Without an activation the residual's gradient is dy itself.
    writes = need_residual and call.activation is not None
    dx = torch.empty_like(x) if need_x or writes else dy
    dresidual = torch.empty_like(x) if writes else dy
    wide_weight, wide_bias, affine = _affine(weight, bias, layout)
    dweight = torch.empty_like(wide_weight) if weight is not None and need_weight else None
    dbias = torch.empty_like(wide_bias) if bias is not None and need_bias else None
    threads, shared = _how(layout, slab.numel)
    kernel = _kernel(
        compiled.backward, layout, shared, x.dtype, affine, call.activation, residual is not None, writes
    )
    cells = np.zeros(phases.cells)
    work = np.zeros(phases.work) if shared else _NOTHING
    numbers = (
        *fixed, x.data_ptr(), _address(residual), 0, wide_weight.data_ptr(), wide_bias.data_ptr(),
        0, slab.slabs, call.given is None, need_x or writes, call.center, 0, _past(layout, x),
        0, dy.data_ptr(), dx.data_ptr(), dresidual.data_ptr(), 0, _address(dweight), _address(dbias),
    )  # fmt: skip
    steps = phases.backward(shared, need_x or writes)
    arguments, (drive, team) = np.array(numbers, dtype=np.int64), compiled.drive()
    drive(kernel, steps, arguments, call.eps, threads, stats, work, cells, team)
    if weight is not None and dweight is not None and dweight.dtype != weight.dtype:
        dweight = dweight.to(weight.dtype)
    if bias is not None and dbias is not None and dbias.dtype != bias.dtype:
        dbias = dbias.to(bias.dtype)
    return dx if need_x else None, dweight, dbias, dresidual if need_residual else None


def used(stats: np.ndarray, slab: Slab) -> Statistics:
    """Return what a forward has normalised with, as tensors."""
    mean, rstd, low = (_gathered(stats[row], slab.kept) for row in (2, 3, 4))
    return Statistics(mean, low, rstd)


def enter(found: Measured, count: int, mean: Tensor, var: Tensor, momentum: float) -> bool:
    """Let a batch enter running statistics; return False, and change nothing, if it is not finite."""
    return bool(compiled.enter(mean.dtype)(found.stats, count, mean.data_ptr(), var.data_ptr(), momentum))


def _memory(x: Tensor, slab: Slab) -> _Memory | None:
    cache: dict[tuple[int, ...], _Memory | None] = slab.__dict__.setdefault("_memory", {})
    key = x.stride()
    if key not in cache:
        dense = torch.empty_like(x).stride()
        layout = find_layout(slab, key, dense)
        copied = layout is None and dense != key
        if copied:
            layout = find_layout(slab, dense, dense)
        cache[key] = (
            None if layout is None else _Memory(layout, copied, dense, Phases(layout), _fixed(layout))
        )
    return cache[key]


def _fixed(layout: Layout) -> tuple[int, ...]:
    arrays = (layout.numbers, layout.slab_of, layout.affine_of)
    return (*(array.ctypes.data for array in arrays), len(layout.slab_of))


def _how(layout: Layout, numel: int) -> tuple[int, bool]:
    """Return how many threads to use, as torch would, and whether they share every task."""
    if numel < _GRAIN or pool() is None:
        return 1, False
    threads = torch.get_num_threads()
    return threads, threads > 1 and layout.shared(threads)


def _past(layout: Layout, out: Tensor) -> bool:
    """Return whether an output goes past the caches: it would not stay in them, nor is a run too short."""
    size = out.element_size()
    return out.numel() * size >= _STREAM and layout["run"] * size >= 4 * LINE


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _kernel(make: Callable[[Kernel], int], layout: Layout, *kind: Any) -> int:
    """Return a kernel's address, remembered by layout: looking it up by all it depends on takes longer."""
    kept = layout.__dict__.setdefault("_kernels", {})
    key = make, kind
    if key not in kept:
        kept[key] = make(Kernel(layout.rows, layout.mixed, *kind))
    return int(kept[key])


def _affine(weight: Tensor | None, bias: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return weight and bias in one dtype, float32 or float64; 1 and 0 where there is none."""
    if weight is not None and bias is not None and weight.dtype == bias.dtype == torch.float32:
        return weight, bias, torch.float32
    given = [t.dtype for t in (weight, bias) if t is not None]
    dtype = torch.float64 if torch.float64 in given else torch.float32
    weight = layout.default(1, dtype) if weight is None else weight
    bias = layout.default(0, dtype) if bias is None else bias
    if weight.dtype != dtype:
        weight = weight.to(dtype)
    if bias.dtype != dtype:
        bias = bias.to(dtype)
    return weight, bias, dtype


def _use(given: Given, stats: np.ndarray, eps: float) -> None:
    # They are taken as they are now: running statistics may move on before the backward. Kernels read from
    # addresses, so what does not fit is refused here.
    mean, var = given
    if mean.numel() != stats.shape[1] or var.numel() != stats.shape[1]:
        raise ShapeError(
            f"there is one mean and one variance for each of the {stats.shape[1]} slabs",
            f"{tuple(mean.shape)} and {tuple(var.shape)}",
            "give statistics of the shape of the pattern's right side",
        )
    if mean.dtype not in _WIDE or mean.dtype != var.dtype:
        mean, var = mean.double(), var.double()
    mean, var = mean.contiguous(), var.contiguous()
    compiled.use(mean.dtype)(mean.data_ptr(), var.data_ptr(), stats, eps)


def _like(t: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(t)


def _gathered(values: np.ndarray, axes: Axes) -> Tensor:
    gathered = torch.from_numpy(values)
    return gathered if len(axes.shape) == 1 else gathered.view(axes.shape)
