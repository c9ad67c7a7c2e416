"""The kernels and the one table that says which of them runs a call.

Every backend is a module with the same functions over a Slab:

    takes(x, slab)                                                    whether it can run this call
    fuses(activation, dtype)                                          whether with this activation
    statistics(x, slab)                                               -> mean, low, m2
    forward(x, weight, bias, residual, call)                          -> y, stats, Found or None
    backward(dy, x, weight, bias, residual, stats, call, needed)      -> dx, dweight, dbias, dresidual
    used(stats, slab)                                                 -> stats as Statistics

Inside, forward is reduce, merge, apply; and backward the same three.

| backend | runs |
|---|---|
| cpu   | the CPU, every dtype, any memory order whose slabs lie in a Layout (layout.py) |
| gpu   | NVIDIA GPUs of compute capability 8.0 and up, with Triton: the same but float64 |
| eager | everything else: plain torch in float64, any device and strides |

What a kernel found enters running statistics through its Found (call.py), or it is left to torch.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from warnings import warn

import torch
from torch import Tensor

from slabnorm.errors import KernelWarning
from slabnorm.kernels import eager
from slabnorm.kernels.call import Found, FoundTensors
from slabnorm.slab import Slab


def backward_backend(dy: Tensor, forward: ModuleType) -> ModuleType:
    """Return the backend that runs a backward: the forward's, unless dy is not plain memory."""
    return forward if plain(dy) else eager


def plain(x: Tensor) -> bool:
    """Return whether a tensor is memory and strides, and nothing else."""
    # Batched gradients arrive as tensors of tensors (torch.func, or is_grads_batched); a lazily negated
    # tensor shares its memory with the original.
    return (
        type(x) in _TENSORS
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()
        and not x._is_zerotensor()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def _after_fork() -> None:
    # GNU OpenMP cannot start threads in a forked child whose parent has used it: Numba would end the process.
    global _forked
    _forked = True


_TENSORS = (Tensor, torch.nn.Parameter)
_WIDE = (torch.float32, torch.float64)
TRITON = torch.version.hip is None and find_spec("triton") is not None  # for NVIDIA's GPUs
_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def backend(
    x: Tensor,
    slab: Slab,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> ModuleType:
    """Return the backend that runs a call: the first of the table that takes it."""
    if residual is not None and not (residual.dtype == x.dtype and plain(residual)):
        return eager
    if not (plain(x) and _simple(weight) and _simple(bias)):
        return eager
    if x.device.type == "cpu" and not _forked:
        from slabnorm.kernels.cpu import bridge  # loads Numba: on first use, not with `import slabnorm`

        return bridge if bridge.takes(x, slab) else eager
    if triton_runs_on(x.device) and _starts(x.device):
        from slabnorm.kernels import gpu  # loads Triton

        return gpu if gpu.takes(x, slab) else eager
    return eager


def triton_runs_on(device: torch.device) -> bool:
    """Return whether the GPU kernels run on a device."""
    return device.type == "cuda" and TRITON and _recent(device)


@cache
def _recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _starts(device: torch.device) -> bool:
    """Return whether a first small kernel runs: Triton may be too old, or lack the C compiler it needs."""
    try:
        from slabnorm.kernels import gpu

        gpu.start(device)
    except Exception as error:  # whatever a compiler and a driver raise: a norm without kernels is a norm
        warn(
            f"the GPU kernels do not start on {device}: plain PyTorch computes, as exactly and slower\n"
            f"  got: {type(error).__name__}: {error}\n"
            "  fix: Triton 3.3 or later (PyTorch 2.7), and a C compiler if Triton asks for one",
            KernelWarning,
            stacklevel=2,
        )
        return False
    return True


def _simple(t: Tensor | None) -> bool:
    return t is None or (plain(t) and t.is_contiguous())


def enter(
    found: Found, count: int, mean: Tensor, var: Tensor, momentum: float, batches: Tensor | None,
    elements: Tensor | None, skipped: Tensor | None,
) -> bool | None:  # fmt: skip
    """Let a batch enter running statistics, one per slab, and the counters of batches and elements.

    Where a statistic of the batch is not finite nothing else changes. A GPU then counts it in `skipped`;
    where nobody has to wait for the answer, it is False. None if no kernel can do it.
    """
    if isinstance(found, FoundTensors) or mean.dtype != var.dtype or mean.dtype not in _WIDE:
        return None
    # Kernels write to addresses: what does not fit is torch's to refuse.
    device, counters = found.device, (batches, elements, skipped)
    if not (mean.shape == var.shape == found.mean.shape and mean.device == var.device == device):
        return None
    if not (_simple(mean) and _simple(var) and all(_counts(t, device) for t in counters)):
        return None
    if any(t is not None and t.data_ptr() % t.itemsize for t in (mean, var, *counters)):
        return None
    return found.enter(count, mean, var, momentum, *counters)


def _counts(t: Tensor | None, device: torch.device) -> bool:
    return t is None or (t.dtype == torch.int64 and t.numel() == 1 and t.device == device and plain(t))
