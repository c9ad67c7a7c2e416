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

from slabnorm.kernels.cpu.addressing import serial
from slabnorm.kernels.cpu.llvm import address_of, data, record

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
def _run(context, kernel, phase, i, call):
    """Call a kernel."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 4), build


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
def _share(kernel, phase, n, reverse, call, thread, threads):
    """Call a kernel for one thread's share of the indices of a phase."""
    lo, hi = thread * n // threads, (thread + 1) * n // threads
    for i in range(lo, hi):
        _run(kernel, phase, lo + hi - 1 - i if reverse else i, call)


# What each thread of the pool is told: the kernel, its phase and how many indices that has, from the last to
# the first or not, the address of the call's record, and those of the pool's functions for a thread's number
# and size.
_JOB = np.dtype([(name, np.int64) for name in ("kernel", "phase", "n", "reverse", "call", "number", "size")])


def work_kernel():
    """Return `work` as plain Python, to be compiled: what each thread of the pool does."""

    def work(address):
        """Do this thread's share of a phase."""
        job = record(address, _JOB)
        thread, threads = _ask(job.number), _ask(job.size)
        _share(job.kernel, job.phase, job.n, job.reverse, job.call, thread, threads)

    return work


def drive_kernel():
    """Return `drive` as plain Python, to be compiled."""

    def drive(
        kernel, phases, template, count, stats, room, cells, team, eps,
        x, residual, out, weight, bias, dy, dx, dresidual, dweight, dbias,
    ):  # fmt: skip
        """Call a kernel for every index of every phase, on `count` threads.

        `phases` is [[phase, number of indices, whether they are taken from the last to the first], ...].
        Each thread has the same share of the indices in every phase. What a phase reads again it takes in
        the reverse order: what was read last is still in the caches.

        `team` is the addresses of `work` and of a pool's functions.
        `template` is the call's record without eps and the addresses of its tensors: making the whole of it
        in Python takes two microseconds in a loop, and twenty in a training step.
        """
        records, jobs = template.copy(), np.empty(1, dtype=_JOB)
        call, job = records[0], jobs[0]
        call.x, call.residual, call.out, call.weight, call.bias = x, residual, out, weight, bias
        call.dy, call.dx, call.dresidual, call.dweight, call.dbias = dy, dx, dresidual, dweight, dbias
        call.stats, call.work = address_of(data(stats, 0)), address_of(data(room, 0))
        call.cells, call.eps = address_of(data(cells, 0)), eps
        at = address_of(data(records, 0))
        job.kernel, job.call, job.number, job.size = kernel, at, team[2], team[3]
        for p in range(len(phases)):
            phase, n, reverse = phases[p, 0], phases[p, 1], phases[p, 2]
            if n == 1 or count == 1:
                _share(kernel, phase, n, reverse, at, 0, 1)
            else:
                job.phase, job.n, job.reverse = phase, n, reverse
                _parallel(team[1], team[0], address_of(data(jobs, 0)), min(count, n))
        # Numba frees an array after its last use, and an address is none.
        return len(records) + len(jobs) + len(stats) + len(room) + len(cells)

    return drive
