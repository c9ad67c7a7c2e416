"""One allocator for every peer: memory that a process has freed is used again.

glibc hands a block above 32 MB back to the kernel when it is freed, and gets fresh, zeroed pages for the
next one. For a result of that size this costs several times the norm itself, whichever library computes it.
"""

from __future__ import annotations

import ctypes
import platform

# The numbers of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> str:
    """Tell glibc to keep freed memory, before anything large is allocated; return what was done."""
    if platform.libc_ver()[0] != "glibc":
        return "the system's, as it is"
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
    # Some versions of glibc refuse a threshold above 32 MB; no mapping at all does the same.
    direct = libc.mallopt(M_MMAP_THRESHOLD, LARGEST) or libc.mallopt(M_MMAP_MAX, 0)
    return "glibc, keeping freed memory for all peers (mallopt)" if kept and direct else "glibc, as it is"
