"""The kernels and the one table that says which of them runs a call.

Every backend is a module with the same four functions over a Slab:

    takes(x, slab)                                                   whether it can run this call
    statistics(x, slab)                                              -> mean, low, m2
    forward(x, weight, bias, call)                                   -> y, Statistics, Found or None
    backward(dy, x, weight, stats, call, need_x)                     -> dx, dweight, dbias

Inside, forward is reduce, merge, apply; and backward the same three.

| backend | runs |
|---|---|
| cpu   | float32 on the CPU, any dense memory order that lies in cells (Cells in slab.py) |
| eager | everything else: plain torch in float64, any device, dtype and strides |
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from slabnorm.kernels import eager
from slabnorm.slab import Slab


def traced() -> bool:
    """Whether torch records this call and needs plain torch operations.

    It does in compile, export, trace, torch.func and forward mode.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def backward_backend(dy: Tensor, forward: ModuleType) -> ModuleType:
    """Return the backend that runs a backward: the forward's, unless dy is not plain memory."""
    return forward if _plain(dy) else eager


def _plain(x: Tensor) -> bool:
    # Batched gradients arrive as tensors of tensors (torch.func, or is_grads_batched); a lazily negated
    # tensor shares its memory with the original.
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def _after_fork() -> None:
    # GNU OpenMP cannot start threads in a forked child whose parent has used it: Numba would end the process.
    global _forked
    _forked = True


_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def backend(x: Tensor, slab: Slab) -> ModuleType:
    """Return the backend that runs a call: the first of the table that takes it."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and _plain(x) and not _forked:
        from slabnorm.kernels import cpu  # loads Numba: on first use, not with `import slabnorm`

        if cpu.takes(x, slab):
            return cpu
    return eager
