"""How a tensor of some strides is taken: as it lies, or through a dense copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.kernels.layout import Layout, find_layout
from slabnorm.slab import Slab

_KEPT = 32  # kinds of one shape


class Memory(NamedTuple):
    """How tensors of some strides are taken: through a dense copy, or as they are; the output is dense."""

    layout: Layout
    copied: bool
    strides: tuple[int, ...]


def memory(x: Tensor, slab: Slab) -> Memory | None:
    """Return how a tensor is taken; None if its slabs lie in no Layout."""
    kept: dict[tuple[int, ...], tuple[Memory | None]] = slab.__dict__.setdefault("_memory", {})
    key = x.stride()
    known = kept.get(key)
    if known is None:
        dense = torch.empty_like(x, device="meta").stride()
        layout = find_layout(slab, key, dense)
        copied = layout is None and dense != key
        if copied:
            layout = find_layout(slab, dense, dense)
        known = (None if layout is None else Memory(layout, copied, dense),)
        keep(kept, key, known)
    return known[0]


def keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep what a slab needs for tensors of some strides and dtypes; all of it goes when it gets too much.

    Windows into tensors of any length have one shape and, each time, other strides.
    """
    if len(kept) >= _KEPT:
        kept.clear()
    kept[key] = value
