"""What the kernels found of a batch, and how it enters running statistics."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from slabnorm.kernels.call import Call
from slabnorm.kernels.gpu import merge
from slabnorm.kernels.gpu.plan import FUSED

_ENTERED = 1024  # running statistics that are updated at once


class Measured:
    """Statistics that a kernel found or was given: float64 [2, slabs] (mean, squared deviations).

    With them the factors that normalise, float32 [4, slabs]: factors.py.
    """

    __slots__ = ("call", "factors", "slab", "values")

    def __init__(self, values: Tensor, factors: Tensor, call: Call) -> None:
        self.values, self.factors, self.call, self.slab = values, factors, call, call.slab

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.values.device

    @property
    def mean(self) -> Tensor:
        """The means, gathered."""
        return self.values[0].view(self.slab.kept.shape)

    @property
    def m2(self) -> Tensor:
        """The sums of squared deviations, gathered."""
        return self.values[1].view(self.slab.kept.shape)

    def enter(
        self, count: int, mean: Tensor, var: Tensor, momentum: float, batches: Tensor | None,
        elements: Tensor | None, skipped: Tensor | None,
    ) -> bool:  # fmt: skip
        """Let a batch enter running statistics and counters; where it is not finite, it is only counted."""
        with on(mean):
            merge.enter[(1,)](
                self.values, self.slab.slabs, count, mean, var, momentum, batches, elements, skipped,
                S=_ENTERED, **FUSED,
            )  # fmt: skip
        return True


def on(t: Tensor) -> AbstractContextManager[object]:
    """Return a context in which kernels start on a tensor's device."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)
