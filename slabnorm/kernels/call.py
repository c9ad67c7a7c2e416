"""What passes between autograd and a kernel beside the data: what one call is, and its small tensors."""

from __future__ import annotations

from typing import NamedTuple, Protocol

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


class Found(Protocol):
    """Statistics of the slabs themselves, gathered: mean and sum of squared deviations."""

    @property
    def mean(self) -> Tensor:
        """The means."""

    @property
    def m2(self) -> Tensor:
        """The sums of squared deviations."""


class FoundTensors(NamedTuple):
    """Found, as tensors."""

    mean: Tensor
    m2: Tensor


class Call(NamedTuple):
    """What one call is, beside its tensors.

    Attributes:
        slab: the plan.
        eps: added to the variance.
        center: whether the mean is subtracted.
        given: statistics to use instead of the slab's own; None: its own, and gradient flows through them.
        activation: applied last, by name.
        inplace: whether the output may take the memory of x.
    """

    slab: Slab
    eps: float
    center: bool
    given: Given | None
    activation: str | None
    inplace: bool = False
