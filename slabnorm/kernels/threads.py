"""torch's own threads, for the kernels: the OpenMP library that torch has loaded, by its addresses.

Numba's threads would be a second pool: the threads of torch's wait for work awake, and the two take the cores
from each other (group norm 2x320x48x48 beside torch's, two cores: 0.5 ns an element, alone 0.08).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

_LIBRARIES = ("libgomp*.so*", "libomp*.dylib", "libiomp5*")


class Pool(NamedTuple):
    """Addresses: run a function on n threads; which of them this one is; how many there are."""

    parallel: int
    number: int
    size: int


@cache
def pool() -> Pool | None:
    """Return torch's pool; None if torch has none that can be called this way."""
    home = Path(torch.__file__).parent
    found = [path for folder in (home / "lib", home.parent / "torch.libs") for name in _LIBRARIES
             for path in sorted(folder.glob(name))]  # fmt: skip
    for name in [*map(str, found), "libgomp.so.1", None]:
        try:
            library = ctypes.CDLL(name)
            functions = library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads
        except (OSError, AttributeError):
            continue
        return Pool(*(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions))
    return None
