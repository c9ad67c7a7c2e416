"""Where results lie: as the system hands memory out, in memory freed before, or as users can set it.

glibc hands a block of 32 MiB and more back to the kernel when it is freed, and gets fresh, zeroed pages for
the next one. For a result of that size this costs several times the norm itself, whichever library computes.
"""

from __future__ import annotations

import ctypes
import platform
from ctypes.util import find_library

# The numbers of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 2**31 - 1  # mallopt takes an int


AS_INSTALLED = "as installed"


def described() -> str:
    """Return the name of the allocator that a process gets."""
    return "glibc" if platform.libc_ver()[0] == "glibc" else "the system's"


def settings() -> dict[str, dict[str, str]]:
    """Return by name what makes PyTorch's own results cost less: settings in the environment of a process."""
    found = {AS_INSTALLED: {}, "THP_MEM_ALLOC_ENABLE=1": {"THP_MEM_ALLOC_ENABLE": "1"}}
    for name in ("jemalloc", "tcmalloc_minimal"):
        library = find_library(name)
        if library:
            found[f"{name} preloaded"] = {"LD_PRELOAD": library}
    return found


def keep_freed_memory() -> str:
    """Tell glibc to keep freed memory from now on; return what was done."""
    if platform.libc_ver()[0] != "glibc":
        return "the system's, as it is"
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    # Some versions of glibc refuse a threshold above 32 MB; no mapping at all does the same.
    direct = libc.mallopt(M_MMAP_THRESHOLD, LARGEST) or libc.mallopt(M_MMAP_MAX, 0)
    return "glibc, keeping freed memory for all peers (mallopt)" if kept and direct else "glibc, as it is"
