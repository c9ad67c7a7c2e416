"""Kernels that `fit` counts data sets with, compiled by Numba: imported where one runs, not with `fit`."""

from slabnorm.kernels.cpu.kernel_cache import digest_sources, joined_digests

# The sources of these kernels: a change in a norm's kernel compiles none of them anew, nor the reverse.
_COMPILER = digest_sources("slabnorm.kernels.cpu", "kernel_cache", "llvm")
SOURCES = joined_digests(digest_sources(__name__), _COMPILER)
