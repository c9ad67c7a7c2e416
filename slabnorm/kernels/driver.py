"""Running a kernel: phase by phase, and within a phase on threads.

Kernels are called by address: each is compiled once for all uses of threads, and the loops over threads once
for all kernels.
"""

from __future__ import annotations

from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from slabnorm.kernels.pointers import address_of, data


@intrinsic
def _call(context, address, phase, i, arguments, eps):
    def build(context, builder, signature, args):
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64, i64, i64, ir.DoubleType()])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.none(i64, i64, i64, i64, types.float64), build


def drive_kernel(threads, version):
    """Return `drive` as plain Python, to be compiled with threads or without."""

    def drive(kernel, phases, arguments, eps, count):
        """Call a kernel for every index of every phase, on `count` threads.

        `phases` is [[phase, number of indices, whether they are taken from the last to the first], ...].
        Each thread has the same share of the indices in every phase. What a phase reads again it takes in
        the reverse order: what was read last is still in the caches.
        """
        threads, version  # noqa: B018  else Numba would find one on disk in place of the other
        at = address_of(data(arguments, 0))
        for p in range(len(phases)):
            phase, n, reverse = phases[p, 0], phases[p, 1], phases[p, 2]
            if n == 1:
                _call(kernel, phase, 0, at, eps)
            else:
                for thread in prange(count):
                    lo, hi = thread * n // count, (thread + 1) * n // count
                    for i in range(lo, hi):
                        _call(kernel, phase, lo + hi - 1 - i if reverse else i, at, eps)

    return drive
