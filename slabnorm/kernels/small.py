"""A few numbers per slab: taking given statistics, and letting a batch enter the running ones."""

from __future__ import annotations

import numpy as np
from numba import carray

from slabnorm.kernels.memory import keep, small
from slabnorm.kernels.pointers import pointer


def use_kernel(dtype, version):
    """Return `use` as plain Python, to be compiled."""

    def use(mean_at, var_at, stats, eps):
        """Normalise with given means and variances, as they are now."""
        version  # noqa: B018
        slabs = stats.shape[1]
        stats[4] = 0.0
        stats[2] = small(mean_at, slabs, dtype)
        stats[3] = 1.0 / np.sqrt(small(var_at, slabs, dtype) + eps)

    return use


def enter_kernel(dtype, version):
    """Return `enter` as plain Python, to be compiled."""

    def enter(stats, count, mean_at, var_at, momentum, batches_at, elements_at):
        """Let a batch enter the running statistics; return whether all of its own are finite.

        running = (1 - momentum) * running + momentum * batch      (batch: mean, unbiased variance)

        The batch and its elements are counted. Nothing is changed unless every mean and variance is finite
        in the dtype of the running ones.
        """
        version  # noqa: B018
        slabs = stats.shape[1]
        mean, var = stats[0].copy(), stats[1] / max(count - 1, 1)
        mean, var = mean.astype(dtype).astype(np.float64), var.astype(dtype).astype(np.float64)
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            return 0
        for batch, address in ((mean, mean_at), (var, var_at)):
            running = small(address, slabs, dtype)
            keep(running + momentum * (batch - running), address, dtype)
        for by, address in ((1, batches_at), (count, elements_at)):
            if address != 0:
                carray(pointer(address, np.int64), (1,))[0] += by
        return 1

    return enter
