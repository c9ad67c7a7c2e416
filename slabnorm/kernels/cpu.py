"""Numba on the CPU: the plumbing between tensors and the kernels of merge.py and loops.py.

Kernels see the flat memory of a tensor and the four loops (A, O, C, I) in which its cells lie there
(Cells in slab.py); views, thread counts and small tensors are settled here.
"""

from __future__ import annotations

import math
import threading
from functools import cache

import numba
import numpy as np
import torch
from torch import Tensor

from slabnorm.kernels import merge
from slabnorm.kernels.call import Call, Found, Statistics
from slabnorm.slab import Axes, Cells, Slab

_local = threading.local()


@cache
def _threads_are_shared() -> bool:
    """Start Numba's threads, and return whether they can be used from several Python threads at once.

    torch's OpenMP library is loaded by now and in the global scope, so Numba's `omp` layer binds to it,
    and both share one pool. Numba keeps the layer that it was first started with, perhaps by the user.
    """
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    before = torch.get_num_threads()
    try:
        numba.set_num_threads(1)  # starts the layer, which resizes the pool that torch shares
        return numba.threading_layer() in ("omp", "tbb")
    except ValueError:  # there is no such layer on this machine
        return False
    finally:
        torch.set_num_threads(before)


def takes(x: Tensor, slab: Slab) -> bool:
    """Take float32 tensors whose memory is dense and lies in cells of more than one element."""
    if slab.numel == 0 or not _threads_are_shared():
        return False
    order = _order(x)
    return order is not None and slab.cells(order) is not None


def statistics(x: Tensor, slab: Slab) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return mean, None, and the sum of squared deviations of every slab."""
    cells, (flat,) = _open(x, (x,), slab)
    mean, m2 = merge.statistics(flat, cells.loops, cells.slab_of, slab.slabs, True)
    return _gathered(mean, slab.kept), None, _gathered(m2, slab.kept)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call
) -> tuple[Tensor, Statistics, Found | None]:
    """Return y, the statistics it was normalised with, and those found unless they were given."""
    slab, y = call.slab, torch.empty_like(x)
    cells, (flat, out) = _open(x, (x, y), slab)
    where = cells.loops, cells.slab_of, cells.affine_of
    weights, biases = _per_affine(weight, 1.0, slab), _per_affine(bias, 0.0, slab)
    if call.given is None:
        options = slab.slabs, weights, biases, float(call.eps), call.center, False
        mean, m2, shift, rstd = merge.forward(flat, out, *where, *options)
        found = Found(_gathered(mean, slab.kept), _gathered(m2, slab.kept))
    else:
        # A copy: running statistics may move on before the backward.
        shift, rstd = _small(call.given.mean).copy(), 1 / np.sqrt(_small(call.given.var) + call.eps)
        found = None
        merge.apply(flat, out, *where, shift, rstd, weights, biases)
    stats = Statistics(_gathered(shift, slab.kept), None, _gathered(rstd, slab.kept))
    return y.to(call.dtype), stats, found


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, stats: Statistics, call: Call, need_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x (None unless it is needed), weight and bias."""
    slab, dx = call.slab, torch.empty_like(x) if need_x else None
    # Where x needs no gradient, out is not written; any array will do.
    cells, (flat, upstream, out) = _open(x, (x, _like(dy, x), x if dx is None else dx), slab)
    dweight, dbias = merge.backward(
        upstream, flat, out, cells.loops, cells.slab_of, cells.affine_of, _small(stats.mean),
        _small(stats.rstd), _per_affine(weight, 1.0, slab), call.given is None, call.center, need_x,
    )  # fmt: skip
    return dx, _gathered(dweight, slab.affine), _gathered(dbias, slab.affine)


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
        numba.set_num_threads(threads)
        _local.threads = threads


def _like(dy: Tensor, x: Tensor) -> Tensor:
    if dy.stride() == x.stride() and dy.dtype == x.dtype:
        return dy
    return torch.empty_like(x).copy_(dy)


def _small(values: Tensor) -> np.ndarray:
    if values.dtype not in (torch.float32, torch.float64):
        values = values.double()
    return values.detach().resolve_neg().numpy().astype(np.float64, copy=False).reshape(-1)


def _per_affine(values: Tensor | None, default: float, slab: Slab) -> np.ndarray:
    return np.full(math.prod(slab.affine.shape), default) if values is None else _small(values)


def _gathered(values: np.ndarray, axes: Axes) -> Tensor:
    gathered = torch.from_numpy(values)
    return gathered if len(axes.shape) == 1 else gathered.view(axes.shape)
