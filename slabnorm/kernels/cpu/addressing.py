"""What a kernel is given: records of a call and its layout; addresses as arrays; and indices as offsets."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import carray

from slabnorm.kernels.cpu.elements import store
from slabnorm.kernels.cpu.llvm import INNER, ahead, memory, njit, pointer

serial = njit(**INNER)
# A call costs as much as summing a short run, so what finds places is inlined. Inlining everything doubled
# the time of compiling.
inlined = njit(**INNER, forceinline=True)

# What a kernel is given: one record of numbers and addresses, the same for every kernel.
#
# A kernel is a function of a *phase* and an index. Within a phase the indices may run in any order and on any
# thread; phases run one after another (launch.py).

_ADDRESSES = (
    ("layout", "group", "stats", "work", "cells"),  # the layout and its axes; statistics; room (see plans.py)
    ("x", "residual", "out", "weight", "bias"),  # the tensors
    ("dy", "dx", "dresidual", "dweight", "dbias"),  # their gradients, of a backward
)
# How many axes there are within a run, and how many slabs. Whether the slabs' own statistics are used, an
# output is written, the mean is subtracted, statistics are summed in float64 only, and outputs go past the
# caches.
_NUMBERS = ("axes", "slabs", "own", "write", "center", "again", "past")
_INTEGERS = [(name, np.int64) for names in (*_ADDRESSES, _NUMBERS) for name in names]
CALL = np.dtype([*_INTEGERS, ("eps", np.float64)], align=True)

# Whole tasks; or, where all threads share every task: find shifts, sum and merge in up to three sweeps,
# finish, write. ADD_UP ends a backward.
TASK, START, SUM, MERGE, FINISH, WRITE, ADD_UP = 0, 1, 2, 5, 8, 9, 10

# The tensors of a forward and of a backward: pointers to their starts, or to some element of each. None is a
# tensor that is not there; weight and bias are numbers where they are the same all along a run of columns.
# `kept` is where the first sweep of a backward leaves the gradient at the pre-activation for the second, if
# an activation costs more than that: the residual's gradient, which it is, or dx, which takes its place.
Forward = namedtuple("Forward", "x residual out weight bias")
Backward = namedtuple("Backward", "dy x residual dx dresidual weight bias kept")
# Rows of the statistics of a forward: mean and sum of squared deviations of each slab, then what it is
# normalised with: z = ((x - SHIFT) - LOW) * RSTD.
MEAN, M2, SHIFT, RSTD, LOW = range(5)


@inlined
def group(call):
    """Return the axes within a run: sizes, and strides in statistics, and in weight and bias."""
    return carray(pointer(call.group, np.int64), (call.axes, 3))


@inlined
def statistics(call):
    """Return the statistics, [5, slabs]."""
    return carray(pointer(call.stats, np.float64), (5, call.slabs))


@inlined
def of_forward(call, dtype, affine, fused):
    """Return the tensors of a forward; `fused`: None or 1, a residual."""
    residual = memory(fused, call.residual, dtype)
    weight, bias = pointer(call.weight, affine), pointer(call.bias, affine)
    return Forward(pointer(call.x, dtype), residual, pointer(call.out, dtype), weight, bias)


@inlined
def of_backward(call, dtype, affine, fused, inner, keeps):
    """Return the tensors of a backward.

    `inner`: None or 1, whether the residual's gradient is written; `keeps`: None or 1, whether the gradient
    at the pre-activation is kept between the sweeps.
    """
    dy, x, dx = pointer(call.dy, dtype), pointer(call.x, dtype), pointer(call.dx, dtype)
    residual = memory(fused, call.residual, dtype)
    weight, bias = pointer(call.weight, affine), pointer(call.bias, affine)
    if keeps is None:
        return Backward(dy, x, residual, dx, memory(inner, call.dresidual, dtype), weight, bias, None)
    kept = call.dx if inner is None else call.dresidual
    return Backward(dy, x, residual, dx, None, weight, bias, pointer(kept, dtype))


@inlined
def work(call, start, shape):
    """Return a part of the room that phases share, as an array."""
    return carray(pointer(call.work + 8 * start, np.float64), shape)


@inlined
def cells(call, shape):
    """Return the sums that make dweight and dbias, as an array."""
    return carray(pointer(call.cells, np.float64), shape)


# A block and a run are each two numbers, along the outer and the inner of their two axes: dividing to find
# them costs more than summing a short run (batch norm of 14x14 images: 1.15 ns an element, not 0.68).


@inlined
def block_of(layout, number):
    """Return a block's steps along its two axes."""
    return number // layout.blocks0, number % layout.blocks0


@inlined
def run_of(layout, number):
    """Return a run's steps along its two axes."""
    return number // layout.runs0, number % layout.runs0


@inlined
def next_run(layout, run):
    """Return the run after this."""
    return (run[0], run[1] + 1) if run[1] + 1 < layout.runs0 else (run[0] + 1, 0)


@inlined
def run_before(layout, run):
    """Return the run before this."""
    return (run[0], run[1] - 1) if run[1] > 0 else (run[0] - 1, layout.runs0 - 1)


@inlined
def next_block(layout, block):
    """Return the block after this."""
    return (block[0], block[1] + 1) if block[1] + 1 < layout.blocks0 else (block[0] + 1, 0)


@inlined
def start_of(strides, block, run):
    """Return where a run of a block starts in a tensor of these strides."""
    outer, inner = block[0] * strides.blocks1, block[1] * strides.blocks0
    return outer + inner + run[0] * strides.runs1 + run[1] * strides.runs0


@inlined
def first_slab(layout, block):
    """Return the slab of a block, or of its first column."""
    return block[0] * layout.slab.blocks1 + block[1] * layout.slab.blocks0


@inlined
def forward_ahead(layout, tensors, block, run, start, weight, bias):
    """Return the tensors from an element of a run on, with the weight and bias of that place."""
    x, out = start_of(layout.x, block, run) + start, start_of(layout.out, block, run) + start
    residual = ahead(tensors.residual, out)
    return Forward(ahead(tensors.x, x), residual, ahead(tensors.out, out), weight, bias)


@inlined
def backward_ahead(layout, tensors, block, run, start, weight, bias):
    """Return the tensors from an element of a run on, with the weight and bias of that place."""
    x, out = start_of(layout.x, block, run) + start, start_of(layout.out, block, run) + start
    residual, dresidual = ahead(tensors.residual, out), ahead(tensors.dresidual, out)
    dy, dx, kept = ahead(tensors.dy, out), ahead(tensors.dx, out), ahead(tensors.kept, out)
    return Backward(dy, ahead(tensors.x, x), residual, dx, dresidual, weight, bias, kept)


@serial
def keep(values, address, dtype):
    """Round an array of float64 to a dtype and write it to an address; nothing if there is none."""
    if address != 0:
        out = pointer(address, dtype)
        for i in range(values.size):
            store(out, i, values[i])
