"""What a call on the CPU needs beside its tensors: its phases, and all else, worked out once and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.kernels.call import Call
from slabnorm.kernels.cpu import compiled
from slabnorm.kernels.cpu.addressing import ADD_UP, CALL, FINISH, MERGE, START, SUM, TASK, WRITE
from slabnorm.kernels.cpu.compiled import Kernel
from slabnorm.kernels.cpu.launch import pool
from slabnorm.kernels.cpu.layout import CHUNK, Layout
from slabnorm.kernels.cpu.llvm import LINE
from slabnorm.kernels.strides import keep, memory
from slabnorm.slab import Slab

# Which phases a call runs, and how much room they share: numbers of a Layout alone.


class Phases:
    """The phases of a Layout's kernels, kept for the calls to come."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._kept: dict[tuple[bool, ...], np.ndarray] = {}

    def forward(self, shared: bool, own: bool, again: bool, write: bool) -> np.ndarray:
        """Return the phases of a forward: `own` statistics, `again` in float64 only, with output or not."""
        key = (True, shared, own, again, write)
        if key not in self._kept:
            sweeps = (1, 2) if again else (0, 1, 2)
            summing = [pair for n in sweeps for pair in ((SUM + n, self.units), (MERGE + n, 1))]
            found = [(START, 1), *summing] if own else []
            parts = [*found, (FINISH, 1)] + ([(WRITE, self.units)] if write else [])
            self._kept[key] = _array(parts if shared else [(TASK, self.layout.tasks)])
        return self._kept[key]

    def backward(self, shared: bool, write: bool) -> np.ndarray:
        """Return the phases of a backward: with the gradient of x or without."""
        key = (False, shared, write)
        if key not in self._kept:
            sums = self.chunks if self.layout.rows and self.layout.mixed else self.units
            start = [] if self.layout.rows else [(START, 1)]
            parts = [*start, (SUM, sums), (FINISH, 1)] + ([(WRITE, self.units)] if write else [])
            self._kept[key] = _array([*(parts if shared else [(TASK, self.layout.tasks)]), (ADD_UP, 1)])
        return self._kept[key]

    @cached_property
    def chunks(self) -> int:
        """Return how many chunks a run of rows is summed in."""
        return -(-self.layout.run // CHUNK)

    @cached_property
    def units(self) -> int:
        """Return what threads that share every task share: chunks of rows, pieces of columns."""
        layout = self.layout
        if layout.rows:
            return layout.blocks * layout.runs * self.chunks
        return layout.tasks * -(-layout.runs // layout.piece)

    @cached_property
    def work(self) -> int:
        """Return how many float64 such threads need beside the tensors."""
        layout = self.layout
        if layout.rows:
            return 4 * layout.blocks + 2 * self.units
        return layout.tile * (11 * layout.tasks + 2 * self.units) + 2 * layout.tasks

    @cached_property
    def cells(self) -> int:
        """Return how many sums make dweight and dbias."""
        layout = self.layout
        if layout.rows:
            if layout.mixed:
                return layout.tasks * 2 * layout.run
            outer, inner = layout.affine.runs1 != 0, layout.affine.runs0 != 0
            return 2 * layout.blocks * (layout.runs1 if outer else 1) * (layout.runs0 if inner else 1)
        return 2 * (layout.tasks * layout.runs if layout.mixed else layout.blocks * layout.run)


def _array(phases: list[tuple[int, int]]) -> np.ndarray:
    # Writing reads again what summing has read: in the reverse order.
    return np.array([(phase, n, phase == WRITE) for phase, n in phases], dtype=np.int64)


# What a call on the CPU needs beside its tensors: worked out once, and kept for the calls like it.
#
# For small tensors a call's overhead is most of its time, and in a training step, where the caches hold other
# things, every line of Python takes five times what it takes in a loop.

_GRAIN = 32768  # elements that are not worth waking a second thread for
_SMALL = 4096  # elements of a weight or bias that are kept for calls without
_STREAM = 4 << 20  # bytes of an output that leave the caches before anyone can read them


class Plan(NamedTuple):
    """A kernel and what it takes.

    Attributes:
        kernel: its address.
        phases: its phases, as `driver.drive` takes them.
        arguments: its arguments, without the addresses of a call's tensors.
        threads: how many run it.
        work, cells: how much room it needs, in float64: shared by phases; for the sums of dweight and dbias.
        layout: what some of the arguments are addresses of.
        copied: whether it takes a dense copy of x.
        strides: of the output, and so of what else has x's shape.
        affine: the dtype of weight and bias.
        elements: of weight and bias.
        weight, bias: what stands for them in a call that has none; None where it is too large to be kept.
    """

    kernel: int
    phases: np.ndarray
    arguments: np.ndarray
    threads: int
    work: int
    cells: int
    layout: Layout
    copied: bool
    strides: tuple[int, ...]
    affine: torch.dtype
    elements: int
    weight: Tensor | None
    bias: Tensor | None


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call, write: bool
) -> Plan:
    """Return the plan of a forward: with output or, without, of statistics as exact as they get."""
    slab = call.slab
    key = (
        x.stride(), x.dtype, None if weight is None else weight.dtype, None if bias is None else bias.dtype,
        residual is None, call.activation, call.given is None, call.center, write, _threads(slab),
    )  # fmt: skip
    kept: dict[Any, Plan] = slab.__dict__.setdefault("_forwards", {})
    plan = kept.get(key)
    if plan is None:
        again = not write or x.dtype == torch.float64

        def phases(phases: Phases, shared: bool) -> np.ndarray:
            return phases.forward(shared, call.given is None, again, write)

        flags = {"write": write, "again": again}
        plan = _plan(x, weight, bias, call, compiled.forward, phases, flags, residual is not None, False)
        keep(kept, key, plan)
    return plan


def backward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call, write: bool,
    inner: bool,
) -> Plan:  # fmt: skip
    """Return the plan of a backward: with the gradient of x or without, `inner`: with the residual's."""
    slab = call.slab
    key = (
        x.stride(), x.dtype, None if weight is None else weight.dtype, None if bias is None else bias.dtype,
        residual is None, call.activation, call.given is None, call.center, write, inner, _threads(slab),
    )  # fmt: skip
    kept: dict[Any, Plan] = slab.__dict__.setdefault("_backwards", {})
    plan = kept.get(key)
    if plan is None:

        def phases(phases: Phases, shared: bool) -> np.ndarray:
            return phases.backward(shared, write)

        flags = {"write": write, "again": False}
        plan = _plan(x, weight, bias, call, compiled.backward, phases, flags, residual is not None, inner)
        keep(kept, key, plan)
    return plan


def _plan(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, call: Call, make: Callable[[Kernel], int],
    phases_of: Callable[[Phases, bool], np.ndarray], flags: dict[str, bool], residual: bool, inner: bool,
) -> Plan:  # fmt: skip
    slab = call.slab
    found = memory(x, slab)
    assert found is not None, "`takes` was not asked"
    layout, threads = found.layout, _threads(slab)
    phases = Phases(layout)
    shared = threads > 1 and layout.shared(threads)
    affine = torch.promote_types(*(torch.float32 if t is None else t.dtype for t in (weight, bias)))
    if affine != torch.float64:
        affine = torch.float32
    kernel = Kernel(layout.rows, layout.mixed, shared, x.dtype, affine, call.activation, residual, inner)
    arguments = np.zeros(1, CALL)
    values = {
        "layout": layout.record.ctypes.data, "group": layout.axes.ctypes.data, "axes": len(layout.axes),
        "slabs": slab.slabs,
        "own": call.given is None, "center": call.center, "past": _past(layout, x), **flags,
    }  # fmt: skip
    for name, value in values.items():
        arguments[name] = value
    n = layout.parameters
    ones, zeros = (constant(n, value, affine) if n <= _SMALL else None for value in (1, 0))
    return Plan(
        make(kernel), phases_of(phases, shared), arguments, threads, phases.work if shared else 0,
        phases.cells, layout, found.copied, found.strides, affine, n, ones, zeros,
    )  # fmt: skip


def constant(n: int, value: int, dtype: torch.dtype) -> Tensor:
    """Return a weight or bias for a call that has none."""
    return torch.full((n,), value, dtype=dtype, device="cpu")


def _threads(slab: Slab) -> int:
    """Return how many threads to use, as torch would."""
    return 1 if slab.numel < _GRAIN or pool() is None else torch.get_num_threads()


def _past(layout: Layout, out: Tensor) -> bool:
    """Return whether an output goes past the caches: it would not stay in them, nor is a run too short."""
    size = out.element_size()
    return out.numel() * size >= _STREAM and layout.run * size >= 4 * LINE
