"""Numba on the CPU: the plumbing between tensors and the loops of loops.py.

Kernels see the flat memory of a tensor and the four loops (A, O, C, I) in which its cells lie there
(Cells in slab.py); views, thread counts and small tensors are settled here.
"""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

from slabnorm.kernels import loops
from slabnorm.slab import Axes, Cells, Slab

if TYPE_CHECKING:
    from slabnorm.kernels import Statistics

_state = {"forked": False, "omp": False}
_local = threading.local()


def _start() -> None:
    # torch's OpenMP library is loaded by now and in the global scope, so Numba's `omp` layer binds
    # to it, and both share one pool. The other layers would add a pool of their own.
    try:
        from numba.np.ufunc import omppool  # type: ignore[attr-defined]  # noqa: F401
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
    mean, m2 = loops.statistics(flat, cells.loops, cells.slab_of, slab.slabs)
    return _gathered(mean, slab.kept), None, _gathered(m2, slab.kept)


def apply(
    x: Tensor, slab: Slab, stats: Statistics, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return y = (x - mean) * rstd * weight + bias."""
    y = torch.empty_like(x)
    cells, (flat, out) = _open(x, (x, y), slab)
    mean, rstd = _small(stats.mean), _small(stats.rstd)
    weights, biases = _per_affine(weight, 1.0, slab), _per_affine(bias, 0.0, slab)
    loops.apply(flat, out, cells.loops, cells.slab_of, cells.affine_of, mean, rstd, weights, biases)
    return y.to(dtype)


def sums(
    dy: Tensor, x: Tensor, slab: Slab, stats: Statistics, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s1, s2 per slab and dweight, dbias; see eager.sums."""
    cells, (flat, upstream) = _open(x, (x, _like(dy, x)), slab)
    s1, s2, dweight, dbias = loops.sums(
        upstream, flat, cells.loops, cells.slab_of, cells.affine_of, _small(stats.mean), _small(stats.rstd),
        _per_affine(weight, 1.0, slab),
    )  # fmt: skip
    kept, affine = slab.kept, slab.affine
    return _gathered(s1, kept), _gathered(s2, kept), _gathered(dweight, affine), _gathered(dbias, affine)


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
    mean, rstd, weights = _small(stats.mean), _small(stats.rstd), _per_affine(weight, 1.0, slab)
    where = cells.loops, cells.slab_of, cells.affine_of
    if c1 is None and c2 is None:
        # rstd * weight * dy: apply, around nothing; x is not read.
        loops.apply(upstream, out, *where, np.zeros_like(mean), rstd, weights, np.zeros_like(weights))
    else:
        means = [np.zeros_like(mean) if c is None else _small(c) for c in (c1, c2)]
        loops.gradient(upstream, flat, out, *where, mean, rstd, weights, *means)
    return dx


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
    _use_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    plain = order == tuple(range(x.ndim))
    tensors = tuple(t.detach() if plain else t.detach().permute(order) for t in tensors)
    return cells, [tensor.numpy().reshape(-1) for tensor in tensors]


def _use_threads(threads: int) -> None:
    # Numba keeps the number per Python thread; asking it takes longer than remembering.
    if getattr(_local, "threads", None) != threads:
        before = torch.get_num_threads()
        numba.set_num_threads(threads)
        # The first call starts Numba's layer, which resizes the pool that torch shares.
        torch.set_num_threads(before)
        _local.threads = threads


def _like(dy: Tensor, x: Tensor) -> Tensor:
    if dy.stride() == x.stride() and dy.dtype == x.dtype:
        return dy
    return torch.empty_like(x).copy_(dy)


def _small(values: Tensor) -> np.ndarray:
    if values.dtype not in (torch.float32, torch.float64):
        values = values.double()
    return values.detach().numpy().astype(np.float64, copy=False).reshape(-1)


def _per_affine(values: Tensor | None, default: float, slab: Slab) -> np.ndarray:
    return np.full(math.prod(slab.affine.shape), default) if values is None else _small(values)


def _gathered(values: np.ndarray, axes: Axes) -> Tensor:
    return torch.from_numpy(values).view(axes.shape)
