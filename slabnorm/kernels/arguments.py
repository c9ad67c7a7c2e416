"""What a kernel is given: one array of numbers and addresses, the same for every kernel.

A kernel is a function of a *phase* and an index. Within a phase the indices may run in any order and on any
thread; phases run one after another (driver.py).
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import carray

from slabnorm.kernels.layout import NUMBERS
from slabnorm.kernels.memory import inlined
from slabnorm.kernels.pointers import memory, pointer

# Of the layout; the tensors; the statistics and how many; flags; room that phases share; for the backward
# the gradients, the sums that make dweight and dbias, and where these go.
NAMES = (
    "numbers", "group", "axes", "x", "residual", "out", "w", "bias", "stats", "slabs",
    "own", "write", "center", "again", "past", "work", "dy", "dx", "dresidual", "cells", "dweight", "dbias",
)  # fmt: skip
(
    _NUMBERS, _GROUP, _AXES, X, RESIDUAL, OUT, W, BIAS, STATS, _SLABS,
    OWN, WRITES, CENTER, AGAIN, PAST, WORK, DY, DX, DRESIDUAL, CELLS, DWEIGHT, DBIAS,
) = range(len(NAMES))  # fmt: skip

# Whole tasks; or, where all threads share every task: find shifts, sum and merge in up to three sweeps,
# finish, write. ADD_UP ends a backward.
TASK, START, SUM, MERGE, FINISH, WRITE, ADD_UP = 0, 1, 2, 5, 8, 9, 10

Forward = namedtuple("Forward", "x residual out w bias")
Backward = namedtuple("Backward", "dy x residual dx dresidual w bias")


@inlined
def arguments(address):
    """Return the array of arguments."""
    return carray(pointer(address, np.int64), (len(NAMES),))


@inlined
def numbers(a):
    """Return the numbers of the layout."""
    return carray(pointer(a[_NUMBERS], np.int64), (len(NUMBERS),))


@inlined
def group(a):
    """Return the axes within a run: sizes, and strides in statistics, and in weight and bias."""
    return carray(pointer(a[_GROUP], np.int64), (a[_AXES], 3))


@inlined
def statistics(a):
    """Return the statistics, [5, slabs]: mean, sum of squared deviations, shift, rstd, rest of the shift."""
    return carray(pointer(a[STATS], np.float64), (5, a[_SLABS]))


@inlined
def of_forward(a, dtype, affine_dtype, fused):
    """Return the tensors of a forward; `fused`: None or 1, a residual."""
    w, bias = pointer(a[W], affine_dtype), pointer(a[BIAS], affine_dtype)
    return Forward(pointer(a[X], dtype), memory(fused, a[RESIDUAL], dtype), pointer(a[OUT], dtype), w, bias)


@inlined
def of_backward(a, dtype, affine_dtype, fused, inner):
    """Return the tensors of a backward; `inner`: None or 1, whether the residual's gradient is written."""
    w, bias = pointer(a[W], affine_dtype), pointer(a[BIAS], affine_dtype)
    dy, x, dx = pointer(a[DY], dtype), pointer(a[X], dtype), pointer(a[DX], dtype)
    return Backward(dy, x, memory(fused, a[RESIDUAL], dtype), dx, memory(inner, a[DRESIDUAL], dtype), w, bias)


@inlined
def work(a, start, shape):
    """Return a part of the room that phases share, as an array."""
    return carray(pointer(a[WORK] + 8 * start, np.float64), shape)


@inlined
def cells(a, shape):
    """Return the sums that make dweight and dbias, as an array."""
    return carray(pointer(a[CELLS], np.float64), shape)
