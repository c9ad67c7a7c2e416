"""The backends: what each of them does, and which of them runs a call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, Protocol
from warnings import warn

import torch
from torch import Tensor

from slabnorm.errors import KernelWarning, OptionError
from slabnorm.kernels import eager, memory_format
from slabnorm.kernels.call import Call, Found, FoundTensors, Statistics
from slabnorm.slab import Slab
from slabnorm.tracing import plain, traced

Name = Literal["cpu", "gpu", "eager"]


class Backend(Protocol):
    """What runs norms. Each of the three is a module with these functions.

    Inside, a forward is reduce, merge, apply; and a backward the same three.
    """

    NAME: str

    def bind(self, x: Tensor, slab: Slab) -> Any:
        """Return what the backend keeps for calls on tensors like x; None if it does not take them."""

    def fuses(self, activation: str | None, dtype: torch.dtype) -> bool:
        """Return whether the backend applies this activation itself."""

    def statistics(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, what the mean lost to rounding, and the sum of squared deviations of every slab."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call
    ) -> tuple[Tensor, Any, Found | None]:
        """Return y, the statistics it was normalised with, and those found unless they were given."""

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        stats: Any,
        call: Call,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and residual, each None unless it is needed."""

    def used(self, stats: Any, slab: Slab) -> Statistics:
        """Return what a forward has normalised with."""


_WIDE = (torch.float32, torch.float64)
_TRITON = torch.version.hip is None and find_spec("triton") is not None  # for NVIDIA's GPUs
forced: Name | None = None  # the backend of the latest block of `using` that has not ended
_blocks: list[tuple[object, Name]] = []  # of all threads
_blocks_lock = threading.Lock()
_forked = False


@contextmanager
def using(name: Name) -> Iterator[None]:
    """Run the norms called within the block with one backend, whatever would run them else.

    For comparing backends, and for finding out whether a surprising result is a kernel's. It holds for all
    threads of the process. A gradient is computed by the backend that has computed the output, unless hooks
    give the backward tensors of other strides.

    Args:
        name: "eager", plain PyTorch in float64; "cpu", the Numba kernels; or "gpu", the Triton kernels, on
            the CPU too where TRITON_INTERPRET=1 has Triton interpret them. What a backend does not take is
            left to "eager", as always.

    >>> import slabnorm as sn, torch
    >>> from slabnorm.kernels import using
    >>> x = torch.randn(64, 32)
    >>> with using("eager"):
    ...     expected = sn.normalize(x, "n c -> n")
    >>> torch.allclose(sn.normalize(x, "n c -> n"), expected, atol=1e-6)
    True
    """
    global forced
    if name not in ("cpu", "gpu", "eager"):
        raise OptionError(f"There is no backend {name!r}", fix='use "cpu", "gpu" or "eager"')
    block = object(), name
    with _blocks_lock:
        _blocks.append(block)
        forced = name
    try:
        yield
    finally:
        with _blocks_lock:  # blocks of several threads need not end in the order in which they began
            _blocks.remove(block)
            forced = _blocks[-1][1] if _blocks else None


def choose(
    x: Tensor,
    slab: Slab,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Backend, Any]:
    """Return the backend that runs a call, and what it keeps for calls like it."""
    alike = residual is None or (residual.dtype == x.dtype and plain(residual))
    if alike and plain(x) and _simple(weight) and _simple(bias):
        backend = _backend_of(x)
        plans = backend.bind(x, slab)
        if plans is not None:
            return backend, plans
    return eager, eager.bind(x, slab)


def dense(x: Tensor, order: torch.memory_format) -> Tensor:
    """Return x, which is not dense in this order, as a copy that is; also under vmap."""
    if traced() or not plain(x) or x.device.type != "cpu" or forced not in (None, "cpu") or _forked:
        return memory_format.dense(x, order)
    from slabnorm.kernels.cpu.memory_order import Dense

    y: Tensor = Dense.apply(x, order)
    return y


def _backend_of(x: Tensor) -> Backend:
    if x.device.type == "cpu" and forced in (None, "cpu") and not _forked:
        from slabnorm.kernels.cpu import bridge  # loads Numba: on first use, not with `import slabnorm`

        return bridge
    if on_gpu(x) and (x.device.type == "cpu" or _starts(x.device)):
        from slabnorm.kernels import gpu  # loads Triton

        return gpu
    return eager


def on_gpu(x: Tensor) -> bool:
    """Return whether the GPU kernels are to run on a tensor's device."""
    return may_run_on_gpu(x) and (x.device.type == "cpu" or _recent(x.device))


def may_run_on_gpu(x: Tensor) -> bool:
    """Return what `on_gpu` does, without asking whether the GPU is recent enough for Triton."""
    if forced == "gpu" and x.device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return forced in (None, "gpu") and x.device.type == "cuda" and _TRITON


def triton_runs_on(device: torch.device) -> bool:
    """Return whether the GPU kernels run on a device."""
    return device.type == "cuda" and _TRITON and _recent(device)


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
            f"The GPU kernels do not start on {device}: plain PyTorch computes, as exactly and slower\n"
            f"  got: {type(error).__name__}: {error}\n"
            "  fix: Triton 3.3 or later (PyTorch 2.7), and a C compiler if Triton asks for one",
            KernelWarning,
            stacklevel=2,
        )
        return False
    return True


def _simple(t: Tensor | None) -> bool:
    return t is None or (plain(t) and t.is_contiguous())


def update_running(
    found: Found,
    count: int,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    batches: Tensor | None,
    elements: Tensor | None,
    skipped: Tensor | None,
) -> bool | None:
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
    return found.update_running(count, mean, var, momentum, *counters)


def _counts(t: Tensor | None, device: torch.device) -> bool:
    return t is None or (t.dtype == torch.int64 and t.numel() == 1 and t.device == device and plain(t))


def _after_fork() -> None:
    # GNU OpenMP cannot start threads in a forked child whose parent has used it: Numba would end the process.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
