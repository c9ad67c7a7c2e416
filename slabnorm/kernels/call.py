"""What passes between autograd and a kernel beside the data: what one call is, and its small tensors."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slabnorm.errors import DeviceError, ShapeError
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


def memory_of(given: Given, slabs: int, device: torch.device) -> Given:
    """Return given statistics as plain memory, which kernels read from addresses.

    Raises:
        ShapeError, DeviceError: it is not one mean and one variance a slab, or not on the device of x.
    """
    mean, var = given
    if mean.numel() != slabs or var.numel() != slabs:
        raise ShapeError(
            f"there is one mean and one variance for each of the {slabs} slabs",
            f"{tuple(mean.shape)} and {tuple(var.shape)}",
            "give statistics of the shape of the pattern's right side",
        )
    for t in given:
        if t.device != device:
            raise DeviceError(
                "statistics lie on the device of x",
                f"statistics on {t.device}, x on {device}",
                "move the layer",
            )
    return Given(mean.resolve_neg().contiguous(), var.resolve_neg().contiguous())


class Measured(Protocol):
    """Statistics of the slabs themselves as a kernel keeps them; gathered when they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where they lie."""

    @property
    def mean(self) -> Tensor:
        """The means."""

    @property
    def m2(self) -> Tensor:
        """The sums of squared deviations."""

    def enter(
        self, count: int, mean: Tensor, var: Tensor, momentum: float, batches: Tensor | None,
        elements: Tensor | None, skipped: Tensor | None,
    ) -> bool:  # fmt: skip
        """Let a batch enter running statistics and counters: `kernels.enter`, which has checked them."""


class FoundTensors(NamedTuple):
    """The same, as tensors."""

    mean: Tensor
    m2: Tensor


Found = Measured | FoundTensors


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
