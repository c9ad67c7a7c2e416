"""One element, compiled by Numba: how it is read and written.

Every function is chosen by type when a loop is compiled: the dtype of memory, memory or a number, None.
Nothing is decided while a loop runs. Arithmetic is that of the coefficients: float32 or float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from slabnorm.kernels.cpu.llvm import keep_at, overload, read, read_back, write

# torch has no array of 16-bit floats that Numba knows: bfloat16 comes as int16, float16 as uint16.
# Where the processor cannot convert float16 itself, LLVM would call a function that is not there.
HAS_FLOAT16 = bool(binding.get_host_cpu_features().get("f16c"))


@intrinsic
def _from_bfloat16(context, bits):
    def build(context, builder, signature, args):
        wide = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.int16), build


@intrinsic
def _to_bfloat16(context, value):
    # Round to even by adding just under half a unit; a NaN, which that might turn into inf, is quiet.
    def build(context, builder, signature, args):
        i32 = ir.IntType(32)
        bits = builder.bitcast(args[0], i32)
        odd = builder.and_(builder.lshr(bits, i32(16)), i32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, i32(0x7FFF))), i32(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, i32(0x7FC0), rounded), ir.IntType(16))

    return types.int16(types.float32), build


@intrinsic
def _from_float16(context, bits):
    def build(context, builder, signature, args):
        narrow = builder.bitcast(args[0], ir.HalfType())
        return builder.fpext(narrow, ir.FloatType())

    return types.float32(types.uint16), build


@intrinsic
def _to_float16(context, value):
    def build(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), build


def load(u: Any, i: Any, like: Any) -> Any:
    """Return element i of memory in the arithmetic of `like`; 0 where there is none."""


def store(u: Any, i: Any, value: Any) -> Any:
    """Round a number to the memory's dtype and write it; nothing where there is none."""


def leave(u: Any, i: Any, value: Any) -> None:
    """Leave a number, in float32, for a later sweep; nothing where there is no memory for it."""


def added(u: Any, i: Any, value: Any) -> Any:
    """Return a number plus element i of memory; the number alone where there is none."""


def add_to(u: Any, i: Any, value: Any) -> Any:
    """Add a number to element i of memory."""


def at(v: Any, i: Any) -> Any:
    """Return element i of memory, or the number itself."""


def times(w: Any, i: Any, value: Any) -> Any:
    """Return a number times element i of w, or times w; the number alone where w is None."""


def plus(b: Any, i: Any, value: Any) -> Any:
    """Return a number plus element i of b, or plus b; the number alone where b is None."""


def type_of(like: Any, value: Any) -> Any:
    """Return a number in the arithmetic of `like`."""


def real(fast: Any, value: Any) -> Any:
    """Return a number as float32, or as float64 where `fast` is None."""


def zeros(fast: Any, n: Any) -> Any:
    """Return n zeros: float32, or float64 where `fast` is None."""


def _kind(like: Any) -> Any:
    return like.dtype if isinstance(like, types.CPointer) else like


def _real(like: Any) -> Any:
    return np.float32 if _kind(like) == types.float32 else np.float64


@overload(load)
def _load(u, i, like):
    real = _real(like)
    if isinstance(u, types.NoneType):
        return lambda u, i, like: real(0.0)
    if u.dtype == types.int16:
        return lambda u, i, like: real(_from_bfloat16(read(u, i)))
    if u.dtype == types.uint16:
        return lambda u, i, like: real(_from_float16(read(u, i)))
    return lambda u, i, like: real(read(u, i))


@overload(store)
def _store(u, i, value):
    if isinstance(u, types.NoneType):
        return lambda u, i, value: None
    if u.dtype == types.int16:
        return lambda u, i, value: write(u, i, _to_bfloat16(np.float32(value)))
    if u.dtype == types.uint16:
        return lambda u, i, value: write(u, i, _to_float16(np.float32(value)))
    real = _real(u)
    return lambda u, i, value: write(u, i, real(value))


@overload(leave)
def _leave(u, i, value):
    if isinstance(u, types.NoneType):
        return lambda u, i, value: None
    return lambda u, i, value: keep_at(u, i, np.float32(value))


@overload(added)
def _added(u, i, value):
    if isinstance(u, types.NoneType):
        return lambda u, i, value: value
    return lambda u, i, value: value + load(u, i, value)


@overload(add_to)
def _add_to(u, i, value):
    real = _real(u)
    return lambda u, i, value: write(u, i, real(read_back(u, i) + value))


@overload(at)
def _at(v, i):
    return (lambda v, i: read(v, i)) if isinstance(v, types.CPointer) else (lambda v, i: v)


@overload(times)
def _times(w, i, value):
    if isinstance(w, types.NoneType):
        return lambda w, i, value: value
    return lambda w, i, value: at(w, i) * value


@overload(plus)
def _plus(b, i, value):
    if isinstance(b, types.NoneType):
        return lambda b, i, value: value
    return lambda b, i, value: value + at(b, i)


@overload(type_of)
def _type_of(like, value):
    real = _real(like)
    return lambda like, value: real(value)


@overload(real)
def _real_of(fast, value):
    dtype = np.float64 if isinstance(fast, types.NoneType) else np.float32
    return lambda fast, value: dtype(value)


@overload(zeros)
def _zeros(fast, n):
    if isinstance(fast, types.NoneType):
        return lambda fast, n: np.zeros(n)
    return lambda fast, n: np.zeros(n, dtype=np.float32)
