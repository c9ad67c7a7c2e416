"""Kernels by what they are compiled for: built on first use, kept on disk (kernel_cache.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import types

from slabnorm.kernels.cpu import columns, launch, rows, running_stats, transpose
from slabnorm.kernels.cpu.activations import CODES
from slabnorm.kernels.cpu.addressing import CALL
from slabnorm.kernels.cpu.kernel_cache import Build, compile_address, compile_function, flag

_STATS = types.Array(types.float64, 2, "C")
_KERNEL = types.void(*(types.int64,) * 3)  # a phase, an index, the address of a call's record
_WORK = types.void(types.int64)
_PHASES, _TEAM = types.Array(types.int64, 2, "C"), types.Array(types.int64, 1, "C")
_CALL = types.Array(numba.from_dtype(CALL), 1, "C")
_ROOM = types.Array(types.float64, 1, "C")
_PARTS = types.int64, _PHASES, _CALL, types.int64, _STATS, _ROOM, _ROOM, _TEAM, types.float64
_DRIVER = (*_PARTS, *(types.int64,) * 10)  # and the addresses of ten tensors
# What stands for a dtype in an array: elements.py.
ARRAYS = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.int16,
    torch.float16: np.uint16,
}


class Kernel(NamedTuple):
    """What a kernel is compiled for.

    A kind of layout, whether threads share every task, the dtypes of x and of weight and bias, the
    activation, whether there is a residual, whether its gradient is written, and whether a backward keeps the
    gradient at the pre-activation from one sweep for the next.
    """

    rows: bool
    mixed: bool
    shared: bool
    dtype: torch.dtype
    affine: torch.dtype
    activation: str | None
    residual: bool
    writes: bool = False
    keeps: bool = False


@cache
def forward(kernel: Kernel) -> int:
    """Return the address of a compiled forward."""
    build: Build = rows.forward_kernel if kernel.rows else columns.forward_kernel
    return compile_address(_KERNEL, build, *_kinds(kernel), flag(kernel.residual))


@cache
def backward(kernel: Kernel) -> int:
    """Return the address of a compiled backward."""
    build: Build = rows.backward_kernel if kernel.rows else columns.backward_kernel
    flags = flag(kernel.residual), flag(kernel.writes), flag(kernel.keeps)
    return compile_address(_KERNEL, build, *_kinds(kernel), *flags)


def _kinds(kernel: Kernel) -> tuple[Any, ...]:
    fast = flag(kernel.dtype != torch.float64)
    dtypes = ARRAYS[kernel.dtype], ARRAYS[kernel.affine]
    return kernel.shared, *dtypes, CODES[kernel.activation or ""], flag(kernel.mixed), fast


@cache
def drive() -> tuple[Callable[..., None], np.ndarray]:
    """Return the compiled driver, which runs a kernel's phases, and the team of threads it takes."""
    work = compile_address(_WORK, launch.work_kernel)
    team = np.array([work, *(launch.pool() or (0, 0, 0))], dtype=np.int64)
    return compile_function(_DRIVER, launch.drive_kernel), team


@cache
def turn(itemsize: int) -> int:
    """Return the address of the compiled `transpose.turn`, for elements of so many bytes."""
    return compile_address(_KERNEL, transpose.turn_kernel, {2: np.int16, 4: np.int32, 8: np.int64}[itemsize])


@cache
def use(dtype: torch.dtype) -> Callable[..., None]:
    """Return the compiled `running_stats.use`."""
    signature = (types.int64, types.int64, _STATS, types.float64)
    return compile_function(signature, running_stats.use_kernel, ARRAYS[dtype])


@cache
def update_running(dtype: torch.dtype) -> Callable[..., int]:
    """Return the compiled `running_stats.update_running`."""
    signature = (_STATS, types.int64, types.int64, types.int64, types.float64, types.int64, types.int64)
    return compile_function(signature, running_stats.update_kernel, ARRAYS[dtype])
