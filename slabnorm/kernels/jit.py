"""Numba's compiler for kernels, whatever NUMBA_DISABLE_JIT says.

The setting makes a user's own functions plain Python, to debug them or to see what of them runs. Kernels
work on addresses, which plain Python cannot follow: they are compiled all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock


@contextmanager
def compiling() -> Iterator[None]:
    """Let Numba compile within the block, on this thread."""
    config.reload_config()  # as the compiler itself does: not within the block, where it could undo this
    if not config.DISABLE_JIT:
        yield
        return
    with global_compiler_lock:
        before, config.DISABLE_JIT = config.DISABLE_JIT, 0
        try:
            yield
        finally:
            config.DISABLE_JIT = before


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: `numba.njit` with these options."""

    def decorate(function: Callable[..., Any]) -> Any:
        with compiling():
            return numba.njit(**options)(function)

    return decorate
