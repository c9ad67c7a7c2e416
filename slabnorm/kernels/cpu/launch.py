"""Running a kernel: phase by phase, and within a phase on torch's own threads."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from slabnorm.kernels.cpu.addressing import (
    BIAS,
    CELLS,
    DBIAS,
    DRESIDUAL,
    DWEIGHT,
    DX,
    DY,
    OUT,
    RESIDUAL,
    STATS,
    WORK,
    W,
    X,
    serial,
)  # fmt: skip
from slabnorm.kernels.cpu.llvm import address_of, data, pointer, read_back, write

# torch's own threads, for the kernels: the OpenMP library that torch has loaded, by its addresses.
#
# Numba's threads would be a second pool: the threads of torch's wait for work awake, and the two take the
# cores from each other (group norm 2x320x48x48 beside torch's, two cores: 0.5 ns an element, alone 0.08).

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


# Running a kernel: phase by phase, and within a phase on threads.
#
# Kernels are called by address: each is compiled once for all uses of threads, and the loops over threads
# once for all kernels.

_I64, _I32 = ir.IntType(64), ir.IntType(32)


@intrinsic
def _call(context, address, phase, i, arguments, eps):
    """Call a kernel."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64, ir.DoubleType()])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.none(i64, i64, i64, i64, types.float64), build


@intrinsic
def _parallel(context, address, function, argument, count):
    """Call GOMP_parallel: a function of one argument, on `count` threads."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I32, _I32])
        count = builder.trunc(args[3], _I32)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1], args[2], count, _I32(0)])
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 4), build


@intrinsic
def _ask(context, address):
    """Call a function that takes nothing and returns an int."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(_I32, [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), _I64)

    return types.int64(types.int64), build


@serial
def _share(kernel, phase, n, reverse, at, eps, thread, threads):
    """Call a kernel for one thread's share of the indices of a phase."""
    lo, hi = thread * n // threads, (thread + 1) * n // threads
    for i in range(lo, hi):
        _call(kernel, phase, lo + hi - 1 - i if reverse else i, at, eps)


def work_kernel():
    """Return `work` as plain Python, to be compiled: what each thread of the pool does."""

    def work(address):
        """Do this thread's share of a phase; the argument is what `drive` has written."""
        job, eps = pointer(address, np.int64), read_back(pointer(address, np.float64), 7)
        thread, threads = _ask(read_back(job, 5)), _ask(read_back(job, 6))
        kernel, phase, n = read_back(job, 0), read_back(job, 1), read_back(job, 2)
        _share(kernel, phase, n, read_back(job, 3), read_back(job, 4), eps, thread, threads)

    return work


def drive_kernel():
    """Return `drive` as plain Python, to be compiled."""

    def drive(
        kernel, phases, plan, eps, count, stats, room, cells, team,
        x, residual, out, w, bias, dy, dx, dresidual, dweight, dbias,
    ):  # fmt: skip
        """Call a kernel for every index of every phase, on `count` threads.

        `phases` is [[phase, number of indices, whether they are taken from the last to the first], ...].
        Each thread has the same share of the indices in every phase. What a phase reads again it takes in
        the reverse order: what was read last is still in the caches.

        `team` is the addresses of `work` and of a pool's functions.
        `plan` is the arguments without the addresses of this call: making the whole of them in Python takes
        two microseconds in a loop, and twenty in a training step.
        """
        arguments = plan.copy()
        at = address_of(data(arguments, 0))
        arguments[X], arguments[RESIDUAL], arguments[OUT], arguments[W], arguments[BIAS] = (
            x,
            residual,
            out,
            w,
            bias,
        )
        arguments[DY], arguments[DX], arguments[DRESIDUAL] = dy, dx, dresidual
        arguments[DWEIGHT], arguments[DBIAS] = dweight, dbias
        arguments[STATS] = address_of(data(stats, 0))
        arguments[WORK] = address_of(data(room, 0))
        arguments[CELLS] = address_of(data(cells, 0))
        job = np.empty(8, dtype=np.int64)
        job[0], job[4], job[5], job[6] = kernel, at, team[2], team[3]
        write(pointer(address_of(data(job, 0)), np.float64), 7, eps)
        for p in range(len(phases)):
            phase, n, reverse = phases[p, 0], phases[p, 1], phases[p, 2]
            if n == 1 or count == 1:
                _share(kernel, phase, n, reverse, at, eps, 0, 1)
            else:
                job[1], job[2], job[3] = phase, n, reverse
                _parallel(team[1], team[0], address_of(data(job, 0)), min(count, n))
        return arguments[STATS]  # Numba frees an array after its last use, and an address is none

    return drive
