"""Where a layer is: its name in the model that is running, and whether autograd is recomputing it."""

from __future__ import annotations

import sys

import torch
from torch import nn


def name_of(layer: nn.Module) -> str:
    """Return a layer's name in the outermost module whose forward is running, such as `encoder.3.norm`.

    A layer does not know its own name. The calls on the stack do; reading them takes a
    millisecond, so this is for warnings and errors.
    """
    root: nn.Module | None = None
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and any(module is layer for module in owner.modules()):
            root = owner
        frame = frame.f_back  # type: ignore[assignment]
    found = next((name for name, module in root.named_modules() if module is layer), "") if root else ""
    kind = type(layer).__name__
    return f"{found} ({kind})" if found else kind


def recomputing() -> bool:
    """Whether this forward runs inside a backward, as activation checkpointing's second forward does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def checkpointing() -> bool:
    """Whether activation checkpointing is on the stack: its reentrant kind turns gradients off at first."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
