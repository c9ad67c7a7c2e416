"""Plain tensors, whatever mode or default device the caller has set; both are a thread's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Make tensors on the CPU that autograd may use later."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield
