"""In which memory format torch returns the result of a tensor of some strides."""

from __future__ import annotations

import torch
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def order_of(x: Tensor, result: Tensor) -> torch.memory_format:
    """Return the memory format of a result of x; `torch.preserve_format` if torch would give it another."""
    if result.is_contiguous():
        return torch.contiguous_format
    last = suggested(x)
    return last if last in _LAST.values() and _is_last(result) else torch.preserve_format


def _is_last(x: Tensor) -> bool:
    """Return `x.is_contiguous(memory_format=torch.channels_last)`, which vmap does not answer."""
    size = 1
    for dim in _last_order(x):
        if x.shape[dim] != 1 and x.stride(dim) != size:
            return False
        size *= x.shape[dim]
    return True


def _last_order(x: Tensor) -> tuple[int, ...]:
    """Return the axes of channels_last, from the innermost out."""
    return 1, *range(x.dim() - 1, 1, -1), 0


def dense(x: Tensor, order: torch.memory_format) -> Tensor:
    """Return `x.contiguous(memory_format=order)`, under vmap too."""
    if order == torch.contiguous_format:
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def suggested(x: Tensor) -> torch.memory_format:
    """Return the format that torch's functions make a tensor dense in, C++'s `suggest_memory_format`.

    That is channels_last where the strides ascend in its order, gaps allowed, and contiguous everywhere else.
    """
    if x.dim() not in _LAST:
        return torch.contiguous_format
    least = 1
    for dim in _last_order(x):
        if x.stride(dim) < least:
            return torch.contiguous_format
        least = x.stride(dim) * x.shape[dim]
    return _LAST[x.dim()]
