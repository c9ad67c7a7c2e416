"""What passes between autograd and a kernel beside the data: what one call is, and its small tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from slabnorm.errors import DeviceError, DtypeError, ShapeError
from slabnorm.slab import Slab
from slabnorm.tracing import plain


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
            f"mean and var must have one value for each of the {slabs} slabs",
            f"shapes {tuple(mean.shape)} and {tuple(var.shape)}",
            "give statistics of the shape of the pattern's right side",
        )
    for t in given:
        if t.device != device:
            raise DeviceError(
                f"The statistics are on {t.device}, but x is on {device}",
                fix="move the layer to the device of x",
            )
    return Given(mean.resolve_neg().contiguous(), var.resolve_neg().contiguous())


class Kind(NamedTuple):
    """What kernels and plans look at in a tensor, beside its address."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t: Tensor | None) -> Kind | None:
        """Return the kind of a tensor."""
        return None if t is None else cls(t.shape, t.stride(), t.dtype, t.device)


_NAMES = ("x", "weight", "bias", "residual")
_SAVED = "The backward got other tensors than the forward has saved"
_HOOK = "return from an unpack hook what its pack hook was given; leave .data alone until the backward"


def unchanged(saved: tuple[Tensor | None, ...], kinds: tuple[Kind | None, ...]) -> bool:
    """Return whether a backward gets back what the forward has saved: plain tensors of the same kinds."""
    for t, kind in zip(saved, kinds, strict=True):
        if t is not None and not (plain(t) and (t.shape, t.stride(), t.dtype, t.device) == kind):
            return False
    return True


def check_shapes(saved: Sequence[Tensor | None], shapes: Sequence[torch.Size | None]) -> None:
    """Raise ShapeError unless a backward gets x, weight, bias and residual of the shapes that were saved."""
    for name, t, shape in zip(_NAMES, saved, shapes, strict=True):
        if t is not None and shape is not None and t.shape != shape:
            raise ShapeError(_SAVED, f"{tuple(t.shape)} for {name} of shape {tuple(shape)}", _HOOK)


def restored(saved: tuple[Tensor | None, ...], kinds: tuple[Kind | None, ...]) -> list[Any]:
    """Return what the hooks of `saved_tensors_hooks` gave back as tensors of the kinds that were saved.

    Hooks may offload, compress or lay out anew what a graph keeps. x and the residual may have other strides,
    which kernels take as they lie.

    Raises:
        ShapeError, DtypeError: it has another shape, or does not hold real numbers that can be read.
    """
    check_shapes(saved, tuple(None if kind is None else kind.shape for kind in kinds))
    found: list[Any] = []
    for name, t, kind in zip(_NAMES, saved, kinds, strict=True):
        if t is None or kind is None:
            found.append(None)
            continue
        usable = t.layout is torch.strided and not t.is_quantized and t.is_floating_point()
        if not usable or t.is_meta != (kind.device.type == "meta"):
            got = f"{t.dtype}, {t.layout} on {t.device} for {name} of {kind.dtype} on {kind.device}"
            raise DtypeError(_SAVED, got, _HOOK)
        t = t.to(kind.device, kind.dtype).resolve_neg()
        found.append(t.contiguous() if name in ("weight", "bias") else t)
    return found


class KernelStatistics(Protocol):
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

    def update_running(
        self, count: int, mean: Tensor, var: Tensor, momentum: float, batches: Tensor | None,
        elements: Tensor | None, skipped: Tensor | None,
    ) -> bool:  # fmt: skip
        """Let a batch enter running statistics and counters, which `backend.update_running` has checked."""


class FoundTensors(NamedTuple):
    """Statistics of the slabs as tensors, where plain PyTorch has found them."""

    mean: Tensor
    m2: Tensor


Found = KernelStatistics | FoundTensors


class Call(NamedTuple):
    """What one call is, beside its tensors.

    Attributes:
        slab: the plan.
        eps: added to the variance.
        center: whether the mean is subtracted.
        given: statistics to use instead of the slab's own; None: its own, and gradient flows through them.
        activation: applied last, by name.
        plans: what the backend keeps for calls like this, from its `bind`.
        inplace: whether the output may take the memory of x.
    """

    slab: Slab
    eps: float = 0.0
    center: bool = True
    given: Given | None = None
    activation: str | None = None
    plans: Any = None
    inplace: bool = False
