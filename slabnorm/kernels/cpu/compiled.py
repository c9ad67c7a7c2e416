"""Kernels by what they are compiled for: built on first use, kept on disk (kernel_cache.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import types
from numba.core import sigutils
from numba.core.ccallback import CFunc

from slabnorm.kernels.cpu import column_moments as tallying
from slabnorm.kernels.cpu import columns, hashing, launch, rows, running_stats
from slabnorm.kernels.cpu.activations import CODES
from slabnorm.kernels.cpu.addressing import CALL
from slabnorm.kernels.cpu.kernel_cache import KernelCache
from slabnorm.kernels.cpu.llvm import compiling

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
    activation, whether there is a residual, and whether its gradient is written.
    """

    rows: bool
    mixed: bool
    shared: bool
    dtype: torch.dtype
    affine: torch.dtype
    activation: str | None
    residual: bool
    writes: bool = False


@cache
def forward(kernel: Kernel) -> int:
    """Return the address of a compiled forward."""
    build: _Build = rows.forward_kernel if kernel.rows else columns.forward_kernel
    return _address(_KERNEL, build, *_kinds(kernel), _flag(kernel.residual))


@cache
def backward(kernel: Kernel) -> int:
    """Return the address of a compiled backward."""
    build: _Build = rows.backward_kernel if kernel.rows else columns.backward_kernel
    return _address(_KERNEL, build, *_kinds(kernel), _flag(kernel.residual), _flag(kernel.writes))


def _kinds(kernel: Kernel) -> tuple[Any, ...]:
    fast = _flag(kernel.dtype != torch.float64)
    dtypes = ARRAYS[kernel.dtype], ARRAYS[kernel.affine]
    return kernel.shared, *dtypes, CODES[kernel.activation or ""], _flag(kernel.mixed), fast


@cache
def drive() -> tuple[Callable[..., None], np.ndarray]:
    """Return the compiled driver, which runs a kernel's phases, and the team of threads it takes."""
    work = _address(_WORK, launch.work_kernel)
    team = np.array([work, *(launch.pool() or (0, 0, 0))], dtype=np.int64)
    return _compiled(_DRIVER, launch.drive_kernel), team


@cache
def use(dtype: torch.dtype) -> Callable[..., None]:
    """Return the compiled `running_stats.use`."""
    signature = (types.int64, types.int64, _STATS, types.float64)
    return _compiled(signature, running_stats.use_kernel, ARRAYS[dtype])


@cache
def enter(dtype: torch.dtype) -> Callable[..., int]:
    """Return the compiled `running_stats.enter`."""
    signature = (_STATS, types.int64, types.int64, types.int64, types.float64, types.int64, types.int64)
    return _compiled(signature, running_stats.enter_kernel, ARRAYS[dtype])


@cache
def tally(dtype: str, exact: bool) -> Callable[..., Any]:
    """Return the compiled function that adds a table of this dtype to the sums of its features."""
    values, wide = numba.from_dtype(np.dtype(dtype)), types.int64 if exact else types.float64
    line, table = (lambda of: types.Array(of, 1, "C")), (lambda of: types.Array(of, 2, "C"))
    signature = (
        line(values), line(types.int64), table(wide), table(types.int64), table(values),
        line(wide), table(wide), table(values), table(wide),
    )  # fmt: skip
    return _compiled(signature, tallying.add_kernel, _flag(exact))


@cache
def hashes(dtype: str) -> Callable[..., Any]:
    """Return the compiled function that adds values of this dtype to the hashes of their samples."""
    words, values = types.Array(types.uint64, 1, "C"), types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    signature = (values, types.int64, types.int64, words, words, words)
    return _compiled(signature, hashing.hash_kernel)


@cache
def column_hashes(dtype: str) -> Callable[..., Any]:
    """Return the compiled function that adds a column of this dtype to the hashes of its samples."""
    words, values = types.Array(types.uint64, 1, "C"), types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    signature = (values, types.int64, words, words, words)
    return _compiled(signature, hashing.column_kernel)


@cache
def mix() -> Callable[..., int]:
    """Return the compiled function that finishes hashes and picks the small ones."""
    words = types.Array(types.uint64, 1, "C")
    return _compiled((words, types.uint64, words, words), hashing.mix_kernel)


def _flag(value: bool) -> int | None:
    # Numba leaves out, when it compiles, what stands under `if flag is None`; of numbers it knows the type.
    return 1 if value else None


def _compiled(signature: tuple[Any, ...], build: _Build, *of: Any) -> Callable[..., Any]:
    """Compile a function, or take it from disk; return what calls it without looking at types again."""
    options = _OPTIONS | {"nogil": True}
    function, kept = _function(signature, options, build, of)
    with compiling():
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = kept
        return dispatcher.compile(signature)


def _address(signature: Any, build: _Build, *of: Any) -> int:
    """Compile a function to be called from C, or take it from disk; return its address."""
    function, kept = _function(signature, _OPTIONS, build, of)
    with compiling():
        compiled: Any = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=_OPTIONS)
        compiled._cache = kept
        compiled.compile()
    _alive.append(compiled)
    return int(compiled.address)


def _function(
    signature: Any, options: dict[str, Any], build: _Build, of: tuple[Any, ...]
) -> tuple[Callable[..., Any], KernelCache]:
    """Return a function as plain Python, and where it is kept: by all that makes it what it is."""
    kept = KernelCache(repr((build.__module__, build.__qualname__, of, signature, options)))
    function = build(*of)
    # Numba makes a symbol of a function's name and of a number that each process counts anew: the symbols of
    # one that is read from disk, and of another that is compiled here, would be the same.
    function.__qualname__ += f"_{kept.key.hex()[:16]}"
    return function, kept


_Build = Callable[..., Callable[..., Any]]  # makes a function that is to be compiled
_OPTIONS = {"error_model": "numpy"}
_alive: list[Any] = []  # Numba frees a kernel that nobody holds, and its address with it
