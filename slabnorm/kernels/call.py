"""What passes between autograd and a kernel beside the data: what one call is, and its small tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slabnorm.slab import Slab


class Statistics(NamedTuple):
    """What a slab is normalised with, gathered and in float64: z = ((x - mean) - low) * rstd.

    `low` is what float64 could not hold of the mean, None where it is nothing.
    """

    mean: Tensor
    low: Tensor | None
    rstd: Tensor


class Given(NamedTuple):
    """Statistics that come from elsewhere, gathered: running, fitted, or merged over processes."""

    mean: Tensor
    var: Tensor


class Found(NamedTuple):
    """Statistics of the slabs themselves, gathered: mean and sum of squared deviations."""

    mean: Tensor
    m2: Tensor


class Call(NamedTuple):
    """What one call is, beside its tensors.

    Attributes:
        slab: the plan.
        eps: added to the variance.
        center: whether the mean is subtracted.
        given: statistics to use instead of the slab's own; None: its own, and gradient flows through them.
        dtype: of the output.
    """

    slab: Slab
    eps: float
    center: bool
    given: Given | None
    dtype: torch.dtype
