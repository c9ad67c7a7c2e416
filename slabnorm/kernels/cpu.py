"""Numba on the CPU: the plumbing between tensors and the loops of loops.py.

Kernels see the flat memory of a tensor and the four loops (A, O, C, I) in which its cells lie there
(Cells in slab.py); views, thread counts and small tensors are settled here.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

from slabnorm.kernels import loops
from slabnorm.slab import Cells, Slab

if TYPE_CHECKING:
    from slabnorm.kernels import Statistics

_state = {"forked": False, "omp": False}


def _start() -> None:
    # torch's OpenMP library is loaded by now and in the global scope, so Numba's `omp` layer binds
    # to it, and both share one pool. The other layers would add a pool of their own.
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return
    numba.config.THREADING_LAYER = "omp"
    _state["omp"] = True


def _after_fork() -> None:
    # GNU OpenMP cannot start threads in a forked child: Numba would abort the process.
    _state["forked"] = True


_start()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def takes(x: Tensor, slab: Slab) -> bool:
    """Take float32 tensors whose memory is dense and lies in cells of more than one element."""
    if _state["forked"] or not _state["omp"] or slab.numel == 0:
        return False
    order = _order(x)
    return order is not None and slab.cells(order) is not None


def statistics(x: Tensor, slab: Slab) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return mean, None, and the sum of squared deviations of every slab."""
    cells, (flat,) = _open(x, (x,), slab)
    shift = loops.firsts(flat, cells.loops)
    s1, s2 = loops.reduce(flat, None, shift, cells.loops)
    mean, m2 = _merge(s1, s2, shift, cells, slab)
    return torch.from_numpy(mean).view(slab.kept.shape), None, torch.from_numpy(m2).view(slab.kept.shape)


def apply(
    x: Tensor, slab: Slab, stats: Statistics, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return y = (x - mean) * rstd * weight + bias."""
    y = torch.empty_like(x)
    cells, (flat, out) = _open(x, (x, y), slab)
    scale, shift = _scale_and_shift(stats, weight, cells)
    zero = np.zeros_like(scale)
    offset = zero if bias is None else _small(bias)[cells.affine_of]
    loops.apply(flat, None, out, cells.loops, (scale, zero, shift, offset))
    return y.to(dtype)


def sums(
    dy: Tensor, x: Tensor, slab: Slab, stats: Statistics, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s1, s2 per slab and dweight, dbias; see eager.sums."""
    cells, (flat, upstream) = _open(x, (x, _like(dy, x)), slab)
    p, q = loops.reduce(upstream, flat, _small(stats.mean)[cells.slab_of], cells.loops)
    q *= _small(stats.rstd)[cells.slab_of]
    dweight, dbias = (_total(t, cells.affine_of, slab.affine.shape) for t in (q, p))
    if weight is not None:
        scale = _small(weight)[cells.affine_of]
        p, q = p * scale, q * scale
    s1, s2 = (_total(t, cells.slab_of, slab.kept.shape) for t in (p, q))
    return s1, s2, dweight, dbias


def gradient(
    dy: Tensor,
    x: Tensor,
    slab: Slab,
    stats: Statistics,
    weight: Tensor | None,
    c1: Tensor | None,
    c2: Tensor | None,
) -> Tensor:
    """Return dx = rstd * (weight * dy - c1 - z * c2); without c1 and c2, of statistics held fixed."""
    dx = torch.empty_like(x)
    cells, (flat, upstream, out) = _open(x, (x, _like(dy, x), dx), slab)
    scale, shift = _scale_and_shift(stats, weight, cells)
    zero, rstd = np.zeros_like(scale), _small(stats.rstd)
    offset = zero if c1 is None else (-rstd * _small(c1))[cells.slab_of]
    if c2 is None:
        loops.apply(upstream, None, out, cells.loops, (scale, zero, zero, offset))
    else:
        slope = (-rstd * rstd * _small(c2))[cells.slab_of]
        loops.apply(upstream, flat, out, cells.loops, (scale, slope, shift, offset))
    return dx


def _merge(
    s1: np.ndarray, s2: np.ndarray, shift: np.ndarray, cells: Cells, slab: Slab
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the shifted sums of cells of equal size into mean and m2 of slabs."""
    count = slab.numel // shift.size
    mean, m2 = shift + s1 / count, s2 - s1 * s1 / count
    if shift.size > slab.slabs:
        # Around one cell's mean per slab, so that equal cells merge without a rounding.
        around = np.empty(slab.slabs)
        around[cells.slab_of] = mean
        apart = mean - around[cells.slab_of]
        share = shift.size // slab.slabs
        low = np.bincount(cells.slab_of, apart, slab.slabs) / share
        apart -= low[cells.slab_of]
        m2 = np.bincount(cells.slab_of, m2 + count * apart * apart, slab.slabs)
        mean = around + low
    else:
        mean, m2 = _ordered(mean, cells), _ordered(m2, cells)
    # Rounding can leave less than nothing of a constant slab's m2; NaN stays NaN.
    return mean, np.maximum(m2, 0.0)


def _ordered(values: np.ndarray, cells: Cells) -> np.ndarray:
    ordered = np.empty_like(values)
    ordered[cells.slab_of] = values
    return ordered


def _total(values: np.ndarray, owner: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.bincount(owner, values, math.prod(shape))).view(shape)


def _scale_and_shift(
    stats: Statistics, weight: Tensor | None, cells: Cells
) -> tuple[np.ndarray, np.ndarray]:
    scale, shift = _small(stats.rstd)[cells.slab_of], _small(stats.mean)[cells.slab_of]
    return (scale if weight is None else scale * _small(weight)[cells.affine_of]), shift


def _order(x: Tensor) -> tuple[int, ...] | None:
    """Return the dims of x from the outermost in memory to the innermost; None if there are gaps."""
    if x.is_contiguous():
        return tuple(range(x.ndim))
    strides = x.stride()
    order = tuple(sorted(range(x.ndim), key=lambda dim: (-strides[dim], dim)))
    return order if x.permute(order).is_contiguous() else None


def _open(x: Tensor, tensors: tuple[Tensor, ...], slab: Slab) -> tuple[Cells, list[np.ndarray]]:
    """Return the cells of x and the flat memory of tensors that lie as x does."""
    order = _order(x)
    assert order is not None
    cells = slab.cells(order)
    assert cells is not None
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads != numba.get_num_threads():
        numba.set_num_threads(threads)
    return cells, [tensor.detach().permute(order).reshape(-1).numpy() for tensor in tensors]


def _like(dy: Tensor, x: Tensor) -> Tensor:
    if dy.stride() == x.stride() and dy.dtype == x.dtype:
        return dy
    return torch.empty_like(x).copy_(dy)


def _small(values: Tensor) -> np.ndarray:
    return values.detach().to(torch.float64).reshape(-1).numpy()
