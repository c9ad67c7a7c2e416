"""Kernels by what they are compiled for: built on first use, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types

from slabnorm.kernels import columns, columns_backward, rows, rows_backward, small
from slabnorm.kernels.curves import CODES
from slabnorm.kernels.memory import SERIAL

_NUMBERS = types.Array(types.int64, 1, "C")
_STATS = types.Array(types.float64, 2, "C")
_FORWARD = (types.int64,) * 6 + (_STATS,) + (types.int64,) * 4 + (types.float64,)
_BACKWARD = (types.int64,) * 8 + (_STATS,) + (types.int64,) * 5
# What stands for a dtype in an array: elements.py.
ARRAYS = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.int16,
    torch.float16: np.uint16,
}


# Only loops that say so run on threads; looking for others takes time to compile.
_OTHERS = ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion")
_PARALLEL = dict.fromkeys(_OTHERS, False) | {"prange": True}


@cache
def forward(
    is_rows: bool, mixed: bool, how: int, dtype: torch.dtype, affine: torch.dtype, activation: str | None,
    residual: bool
) -> Callable[..., None]:  # fmt: skip
    """Return the compiled forward for a kind of layout, use of threads, dtypes of x and of weight and bias,
    an activation, and with or without a residual.
    """
    build = rows.forward_kernel if is_rows else columns.forward_kernel
    kinds = (
        ARRAYS[dtype],
        ARRAYS[affine],
        CODES[activation or ""],
        _flag(mixed),
        _flag(dtype != torch.float64),
    )
    return _compiled(
        build(how, *kinds, _flag(residual), _version()),
        _layout(is_rows) + _FORWARD,
        parallel=_PARALLEL if how != SERIAL else False,
    )


@cache
def backward(
    is_rows: bool, mixed: bool, how: int, dtype: torch.dtype, affine: torch.dtype, activation: str | None,
    residual: bool,
    writes_residual: bool,
) -> Callable[..., None]:  # fmt: skip
    """Return the compiled backward; `writes_residual`: the residual's gradient too."""
    build = rows_backward.backward_kernel if is_rows else columns_backward.backward_kernel
    kinds = (
        ARRAYS[dtype],
        ARRAYS[affine],
        CODES[activation or ""],
        _flag(mixed),
        _flag(dtype != torch.float64),
    )
    function = build(how, *kinds, _flag(residual), _flag(writes_residual), _version())
    return _compiled(function, _layout(is_rows) + _BACKWARD, parallel=_PARALLEL if how != SERIAL else False)


@cache
def use(dtype: torch.dtype) -> Callable[..., None]:
    """Return the compiled `small.use`."""
    signature = (types.int64, types.int64, _STATS, types.float64)
    return _compiled(small.use_kernel(ARRAYS[dtype], _version()), signature)


@cache
def enter(dtype: torch.dtype) -> Callable[..., int]:
    """Return the compiled `small.enter`."""
    signature = (_STATS, types.int64, types.int64, types.int64, types.float64)
    return _compiled(small.enter_kernel(ARRAYS[dtype], _version()), signature)


def _layout(is_rows: bool) -> tuple[Any, ...]:
    return (_NUMBERS,) if is_rows else (_NUMBERS,) * 3


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
    options |= {"error_model": "numpy", "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function).compile(signature)
    except Exception:
        # No folder to keep it in, a full disk, a damaged file (unpickling can raise anything): compile
        # it for this process alone. What is wrong with the function itself is raised again here.
        return numba.njit(**options)(function).compile(signature)
