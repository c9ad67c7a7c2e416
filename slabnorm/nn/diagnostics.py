"""Where a layer was made and runs: the user's lines, its name in the model, and whether it is recomputed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType

import torch
from torch import nn

# Activation checkpointing, whose reentrant kind turns gradients off at first, what recomputes statistics, and
# Lightning's training step, in which a part without gradients follows another one; evaluations run elsewhere.
_ON_PURPOSE = frozenset((
    "torch.utils.checkpoint", "torch.optim.swa_utils", "fvcore.nn.precise_bn",
    *(f"{package}.loops.optimization.{kind}"
      for package in ("lightning.pytorch", "pytorch_lightning") for kind in ("automatic", "manual")),
))  # fmt: skip


def root_of(layer: nn.Module) -> nn.Module:
    """Return the outermost module whose forward is running and that holds this layer.

    A layer does not know its own model. The calls on the stack do; reading them takes a
    millisecond, so this is for warnings.
    """
    root = layer
    for frame in _frames():
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and any(module is layer for module in owner.modules()):
            root = owner
    return root


def name_of(layer: nn.Module, root: nn.Module) -> str:
    """Return a layer's name in a module, such as `encoder.3.norm (BatchNorm)`."""
    name = next((name for name, module in root.named_modules() if module is layer), "")
    kind = type(layer).__name__
    return f"{name} ({kind})" if name else kind


def user_level() -> int:
    """Return the `stacklevel` with which a warning of the calling function points at the user's line."""
    for level, frame in enumerate(_frames()):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in ("slabnorm", "torch"):
            return level
    return 1


def user_line() -> str:
    """Return the user's line that is running, such as `model.py, line 12`; nothing under torch.compile."""
    if torch.compiler.is_compiling():
        return ""
    for frame in _frames():
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in ("slabnorm", "torch"):
            return f"{os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno}"
    return ""


def recomputing() -> bool:
    """Whether activation checkpointing runs this forward again, inside a backward.

    Other forwards may run there too: in a hook, or in the backward of a function of one's own. What calls a
    recomputation is `unpack_hook` of torch.utils.checkpoint or, where it is reentrant, the backward of
    CheckpointFunction, there or in a copy that another library has. The latter also starts a backward of its
    own, and what hooks run in that one is no recomputation.

    Under torch.compile this cannot be seen; `torch.compile(checkpoint(...))` is handled by the compiler.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return False
    inner = ""
    for frame in _frames():
        module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
        if function == "unpack_hook" and module == "torch.utils.checkpoint":
            return True
        if function == "backward" and inner != "torch.autograd":
            ctx = frame.f_locals.get("ctx")
            if type(ctx).__name__ == "CheckpointFunctionBackward":
                return True
        inner = str(module)
    return False


def training_without_gradients() -> bool:
    """Whether what is on the stack runs a model in train mode and without gradients on purpose."""
    return any(frame.f_globals.get("__name__") in _ON_PURPOSE for frame in _frames())


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
