"""What a call on the CPU needs beside its tensors: its phases, and all else, worked out once and kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.kernels.call import Call
from slabnorm.kernels.cpu import compiled
from slabnorm.kernels.cpu.activations import PIECEWISE
from slabnorm.kernels.cpu.addressing import ADD_UP, CALL, FINISH, MERGE, START, SUM, TASK, WRITE
from slabnorm.kernels.cpu.compiled import Kernel
from slabnorm.kernels.cpu.launch import pool
from slabnorm.kernels.cpu.llvm import LINE, STREAM
from slabnorm.kernels.layout import Layout, Placement
from slabnorm.slab import Slab

# For small tensors a call's overhead is most of its time, and in a training step, where the caches hold other
# things, every line of Python takes five times what it takes in a loop.

_GRAIN = 32768  # elements that are not worth waking a second thread for
_SMALL = 4096  # elements of a weight or bias that are kept for calls without
_KEPT = 32  # plans for calls on tensors of the same kinds


class Plan(NamedTuple):
    """A kernel and what it takes.

    Attributes:
        kernel: its address.
        phases: its phases, as `launch.drive` takes them.
        record: the record of the call, without the addresses of its tensors.
        threads: how many run it.
        work, cells: how much room it needs, in float64: shared by phases; for the sums of dweight and dbias.
        layout: how the tensors lie.
        held: the arrays that the record has addresses of.
        copied: whether it takes a dense copy of x.
        strides: of the output, and so of what else has x's shape.
        affine: the dtype of weight and bias.
        weight, bias: what stands for them in a call that has none; None where it is too large to be kept.
    """

    kernel: int
    phases: np.ndarray
    record: np.ndarray
    threads: int
    work: int
    cells: int
    layout: Layout
    held: tuple[np.ndarray, np.ndarray]
    copied: bool
    strides: tuple[int, ...]
    affine: torch.dtype
    weight: Tensor | None
    bias: Tensor | None


class Plans:
    """The plans of all calls on tensors of the same kinds."""

    __slots__ = ("kept", "memory", "slab", "small")

    def __init__(self, slab: Slab, memory: Placement) -> None:
        self.slab, self.memory = slab, memory
        self.small = slab.numel < _GRAIN or pool() is None
        self.kept: dict[tuple[object, ...], Plan] = {}

    def find(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call,
        *, back: bool, write: bool, inner: bool = False,
    ) -> Plan:  # fmt: skip
        """Return the plan of a call, made if need be.

        Args:
            x, weight, bias, residual, call: the call.
            back: a backward; else a forward.
            write: with an output, of a backward the gradient of x. A forward without is for its statistics,
                as exact as they get.
            inner: with the gradient of the residual.
        """
        threads = 1 if self.small else torch.get_num_threads()
        own, fused = call.given is None, residual is not None
        key = back, write, inner, fused, own, call.center, call.activation, threads
        plan = self.kept.get(key)
        if plan is None:
            if len(self.kept) >= _KEPT:
                self.kept.clear()
            layout, affine = self.memory.layout, _dtype_of(weight, bias)
            shared = threads > 1 and layout.shared(threads)
            # A smooth activation costs more than to keep its gradient for the second sweep: SiLU's derivative
            # takes 0.7 ns an element and core, a write and a read 0.2. In half precision that would round it.
            smooth = call.activation not in (None, *PIECEWISE)
            keeps = back and write and smooth and x.dtype == torch.float32
            kinds = layout.rows, layout.mixed, shared, x.dtype, affine
            kernel = Kernel(*kinds, call.activation, fused, inner, keeps)
            again = not back and (not write or x.dtype == torch.float64)
            if back:
                address, phases = compiled.backward(kernel), _backward_phases(layout, shared, write)
            else:
                address, phases = compiled.forward(kernel), _forward_phases(layout, shared, own, again, write)
            record, numbers, axes = np.zeros(1, CALL), layout.record, layout.axes
            record["layout"], record["group"] = numbers.ctypes.data, axes.ctypes.data
            record["axes"], record["slabs"] = len(axes), self.slab.slabs
            record["own"], record["center"], record["write"], record["again"] = own, call.center, write, again
            record["past"] = _past(layout, x) and (not keeps or inner)  # what was kept in dx is in the caches
            n = layout.parameters
            one, zero = (constant(n, value, affine) if n <= _SMALL else None for value in (1, 0))
            work = _work(layout) if shared else 0
            plan = self.kept[key] = Plan(
                address, phases, record, threads, work, _cells(layout), layout, (numbers, axes),
                self.memory.copied, self.memory.strides, affine, one, zero,
            )  # fmt: skip
        return plan


def _dtype_of(weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Return the dtype in which a kernel takes weight and bias."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (weight, bias))
    return torch.float64 if wide else torch.float32


def constant(n: int, value: int, dtype: torch.dtype) -> Tensor:
    """Return a weight or bias for a call that has none."""
    return torch.full((n,), value, dtype=dtype, device="cpu")


def _past(layout: Layout, out: Tensor) -> bool:
    """Return whether an output goes past the caches: it would not stay in them, nor is a run too short."""
    size = out.element_size()
    return out.numel() * size >= STREAM and layout.run * size >= 4 * LINE


# Which phases a call runs, and how much room they share.


def _forward_phases(layout: Layout, shared: bool, own: bool, again: bool, write: bool) -> np.ndarray:
    """Return the phases of a forward: `own` statistics, `again` in float64 only, with output or not."""
    if not shared:
        return _phases((TASK, layout.tasks))
    sweeps = (1, 2) if again else (0, 1, 2)
    summing = [pair for n in sweeps for pair in ((SUM + n, layout.units), (MERGE + n, 1))]
    found = [(START, 1), *summing] if own else []
    return _phases(*found, (FINISH, 1), *([(WRITE, layout.units)] if write else []))


def _backward_phases(layout: Layout, shared: bool, write: bool) -> np.ndarray:
    """Return the phases of a backward: with the gradient of x or without."""
    if not shared:
        return _phases((TASK, layout.tasks), (ADD_UP, 1))
    start = [] if layout.rows else [(START, 1)]
    summed = layout.chunks if layout.rows and layout.mixed else layout.units
    written = [(WRITE, layout.units)] if write else []
    return _phases(*start, (SUM, summed), (FINISH, 1), *written, (ADD_UP, 1))


def _phases(*phases: tuple[int, int]) -> np.ndarray:
    # Writing reads again what summing has read: in the reverse order.
    return np.array([(phase, n, phase == WRITE) for phase, n in phases], dtype=np.int64)


def _work(layout: Layout) -> int:
    """Return how many float64 threads that share every task need beside the tensors."""
    if layout.rows:
        return 4 * layout.blocks + 2 * layout.units
    return layout.tile * (11 * layout.tasks + 2 * layout.units) + 2 * layout.tasks


def _cells(layout: Layout) -> int:
    """Return how many sums make dweight and dbias."""
    if layout.rows and layout.mixed:
        return layout.tasks * 2 * layout.run
    if layout.rows:
        outer, inner = layout.affine.runs1 != 0, layout.affine.runs0 != 0
        return 2 * layout.blocks * (layout.runs1 if outer else 1) * (layout.runs0 if inner else 1)
    return 2 * (layout.tasks * layout.runs if layout.mixed else layout.blocks * layout.run)
