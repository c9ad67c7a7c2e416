"""A few numbers per slab: taking given statistics, and letting a batch enter the running ones.

In loops: the same as expressions of arrays takes Numba three times as long to compile.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from slabnorm.kernels.cpu.addressing import LOW, M2, MEAN, RSTD, SHIFT
from slabnorm.kernels.cpu.elements import load, store
from slabnorm.kernels.cpu.llvm import pointer


def use_kernel(dtype):
    """Return `use` as plain Python, to be compiled."""

    def use(mean_at, var_at, stats, eps):
        """Normalise with given means and variances, as they are now."""
        mean, var = pointer(mean_at, dtype), pointer(var_at, dtype)
        for slab in range(stats.shape[1]):
            stats[SHIFT, slab] = load(mean, slab, 0.0)
            stats[RSTD, slab] = 1.0 / np.sqrt(load(var, slab, 0.0) + eps)
            stats[LOW, slab] = 0.0

    return use


def update_kernel(dtype):
    """Return `update_running` as plain Python, to be compiled."""

    def update_running(stats, count, mean_at, var_at, momentum, batches_at, elements_at):
        """Let a batch enter the running statistics; return whether all of its own are finite.

        running = (1 - momentum) * running + momentum * batch      (batch: mean, unbiased variance)

        The batch and its elements are counted. Nothing is changed unless every mean and variance is finite
        in the dtype of the running ones.
        """
        slabs, less = stats.shape[1], max(count - 1, 1)
        for slab in range(slabs):
            if not (np.isfinite(dtype(stats[MEAN, slab])) and np.isfinite(dtype(stats[M2, slab] / less))):
                return 0
        mean, var = pointer(mean_at, dtype), pointer(var_at, dtype)
        for slab in range(slabs):
            old, new = load(mean, slab, 0.0), np.float64(dtype(stats[MEAN, slab]))
            store(mean, slab, old + momentum * (new - old))
            old, new = load(var, slab, 0.0), np.float64(dtype(stats[M2, slab] / less))
            store(var, slab, old + momentum * (new - old))
        for by, address in ((1, batches_at), (count, elements_at)):
            if address != 0:
                carray(pointer(address, np.int64), (1,))[0] += by
        return 1

    return update_running
