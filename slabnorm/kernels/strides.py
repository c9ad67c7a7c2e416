"""How a tensor of some strides is taken: as it lies, or through a dense copy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slabnorm.kernels.layout import Layout, find_layout
from slabnorm.slab import Slab


class Memory(NamedTuple):
    """How tensors of some strides are taken: through a dense copy, or as they are; the output is dense."""

    layout: Layout
    copied: bool
    strides: tuple[int, ...]


def memory(x: Tensor, slab: Slab) -> Memory | None:
    """Return how a tensor is taken; None if its slabs lie in no Layout."""
    kept: dict[tuple[int, ...], Memory | None] = slab.__dict__.setdefault("_memory", {})
    key = x.stride()
    if key not in kept:
        dense = torch.empty_like(x, device="meta").stride()
        layout = find_layout(slab, key, dense)
        copied = layout is None and dense != key
        if copied:
            layout = find_layout(slab, dense, dense)
        kept[key] = None if layout is None else Memory(layout, copied, dense)
    return kept[key]
