"""Kernels by what they are compiled for: built on first use, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import types

from slabnorm.kernels import columns, columns_backward, driver, hashing, rows, rows_backward, small, threads
from slabnorm.kernels import tally as tallying
from slabnorm.kernels.curves import CODES

_STATS = types.Array(types.float64, 2, "C")
_KERNEL = types.void(types.int64, types.int64, types.int64, types.float64)  # arguments.py
_WORK = types.void(types.int64)
_TABLE, _LIST = types.Array(types.int64, 2, "C"), types.Array(types.int64, 1, "C")
_ROOM = types.Array(types.float64, 1, "C")
_ADDRESSES = (types.int64,) * 10
_DRIVER = (types.int64, _TABLE, _LIST, types.float64, types.int64, _STATS, _ROOM, _ROOM, _LIST, *_ADDRESSES)
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
    build: Callable[..., Callable[..., None]] = rows.forward_kernel if kernel.rows else columns.forward_kernel
    return _kernel(build(*_kinds(kernel), _flag(kernel.residual), _version()))


@cache
def backward(kernel: Kernel) -> int:
    """Return the address of a compiled backward."""
    build: Callable[..., Callable[..., None]] = (
        rows_backward.backward_kernel if kernel.rows else columns_backward.backward_kernel
    )
    return _kernel(build(*_kinds(kernel), _flag(kernel.residual), _flag(kernel.writes), _version()))


def _kinds(kernel: Kernel) -> tuple[Any, ...]:
    fast = _flag(kernel.dtype != torch.float64)
    dtypes = ARRAYS[kernel.dtype], ARRAYS[kernel.affine]
    return kernel.shared, *dtypes, CODES[kernel.activation or ""], _flag(kernel.mixed), fast


@cache
def drive() -> tuple[Callable[..., None], np.ndarray]:
    """Return the compiled driver, which runs a kernel's phases, and the team of threads it takes."""
    work = _kept(lambda cached: numba.cfunc(_WORK, cache=cached, **_OPTIONS)(driver.work_kernel(_version())))
    _alive.append(work)
    team = np.array([work.address, *(threads.pool() or (0, 0, 0))], dtype=np.int64)
    return _compiled(driver.drive_kernel(_version()), _DRIVER), team


@cache
def use(dtype: torch.dtype) -> Callable[..., None]:
    """Return the compiled `small.use`."""
    signature = (types.int64, types.int64, _STATS, types.float64)
    return _compiled(small.use_kernel(ARRAYS[dtype], _version()), signature)


@cache
def enter(dtype: torch.dtype) -> Callable[..., int]:
    """Return the compiled `small.enter`."""
    signature = (_STATS, types.int64, types.int64, types.int64, types.float64, types.int64, types.int64)
    return _compiled(small.enter_kernel(ARRAYS[dtype], _version()), signature)


@cache
def tally(dtype: str, exact: bool) -> Callable[..., Any]:
    """Return the compiled function that adds a table of this dtype to the sums of its features."""
    values, wide = numba.from_dtype(np.dtype(dtype)), types.int64 if exact else types.float64
    line, table = (lambda of: types.Array(of, 1, "C")), (lambda of: types.Array(of, 2, "C"))
    signature = (
        line(values), line(types.int64), table(wide), table(types.int64), table(values),
        line(wide), table(wide), table(values), table(wide),
    )  # fmt: skip
    return _compiled(tallying.add_kernel(_flag(exact), _version()), signature)


@cache
def hashes(dtype: str) -> Callable[..., Any]:
    """Return the compiled function that adds values of this dtype to the hashes of their samples."""
    words, values = types.Array(types.uint64, 1, "C"), types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    signature = (values, types.int64, types.int64, words, words, words)
    return _compiled(hashing.hash_kernel(_version()), signature)


@cache
def column_hashes(dtype: str) -> Callable[..., Any]:
    """Return the compiled function that adds a column of this dtype to the hashes of its samples."""
    words, values = types.Array(types.uint64, 1, "C"), types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    signature = (values, types.int64, words, words, words)
    return _compiled(hashing.column_kernel(_version()), signature)


@cache
def mix() -> Callable[..., int]:
    """Return the compiled function that finishes hashes and picks the small ones."""
    words = types.Array(types.uint64, 1, "C")
    return _compiled(hashing.mix_kernel(_version()), (words, types.uint64, words, words))


def _flag(value: bool) -> int | None:
    # Numba leaves out, when it compiles, what stands under `if flag is None`; of numbers it knows the type.
    return 1 if value else None


@cache
def _version() -> str:
    """Return a digest of the kernels' sources.

    Numba takes a kernel from disk if its own file has not changed, though it may have been compiled from
    others too. A kernel that refers to this digest is not found again once any of them has changed.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _compiled(function: Callable[..., Any], signature: tuple[Any, ...], **options: Any) -> Callable[..., Any]:
    """Compile a function, or take it from disk; return what calls it without looking at types again."""
    options |= _OPTIONS | {"nogil": True}
    return _kept(lambda cached: numba.njit(cache=cached, **options)(function).compile(signature))


def _kernel(function: Callable[..., Any]) -> int:
    """Compile a kernel, or take it from disk; return its address."""
    compiled = _kept(lambda cached: numba.cfunc(_KERNEL, cache=cached, **_OPTIONS)(function))
    _alive.append(compiled)
    return int(compiled.address)


def _kept(compile_: Callable[[bool], Any]) -> Any:
    try:
        return compile_(True)
    except Exception:
        # No folder to keep it in, a full disk, a damaged file (unpickling can raise anything): compile
        # it for this process alone. What is wrong with the function itself is raised again here.
        return compile_(False)


_OPTIONS = {"error_model": "numpy"}
_alive: list[Any] = []  # Numba frees a kernel that nobody holds, and its address with it
