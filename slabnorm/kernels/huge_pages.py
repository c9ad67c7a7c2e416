"""Memory for large results on the CPU: in huge pages, where the system gives them to those who ask.

A block that malloc takes anew from the system comes as zeroed pages of 4 KiB, each handed out when it is
first touched. glibc does so at every call from 32 MiB on, and below that wherever freed memory was given
back. Layer norm 2048x4096 takes four times as long as its kernel then, whichever library computes it.
Advised before it is touched, the block comes 2 MiB at a time. The advice belongs to the addresses: a block
that goes back to the system takes it along, one that malloc keeps for others keeps it. No memory is held for
it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from slabnorm.tracing import plain, traced

# Bytes from which results are advised.
_LEAST = 4 << 20
_HUGE = 2 << 20  # bytes of a huge page
_MADV_HUGEPAGE = 14  # <sys/mman.h> of Linux
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Return the system's madvise; None where the system gives huge pages unasked, or never."""
    if os.environ.get("SLABNORM_HUGE_PAGES") == "0":
        return None
    try:
        if "[madvise]" not in _ENABLED.read_text():
            return None
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int
    found: Callable[[int, int, int], int] = madvise
    return found


def numbers_only(dtype: torch.dtype, *of: Tensor | float) -> bool:
    """Return whether a result in a dtype is large, and nothing but numbers on the CPU.

    Neither is a graph kept of it nor does anything record it: it may be written into memory made for it.
    """
    if traced() or _advise() is None:
        return False
    grad, largest = torch.is_grad_enabled(), 0
    for t in of:
        if isinstance(t, Tensor):
            if not plain(t) or t.device.type != "cpu" or (grad and t.requires_grad):
                return False
            largest = max(largest, t.numel())
    return largest * dtype.itemsize >= _LEAST


def empty_like(
    x: Tensor, dtype: torch.dtype | None = None, order: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Return `torch.empty_like(x)`, in huge pages if it is large."""
    y = torch.empty_like(x, dtype=dtype, memory_format=order)
    if y.nbytes >= _LEAST:
        advise(y)
    return y


def advise(y: Tensor) -> None:
    """Ask for huge pages for the memory of a tensor that nobody has written to yet."""
    madvise = _advise()
    if madvise is not None:
        # Whole pages alone: what lies beside the tensor in the first and the last is not its own.
        start = -(-y.data_ptr() // _HUGE) * _HUGE
        size = (y.data_ptr() + y.nbytes) // _HUGE * _HUGE - start
        if size > 0:
            madvise(start, size, _MADV_HUGEPAGE)  # refused, it costs what it cost before
