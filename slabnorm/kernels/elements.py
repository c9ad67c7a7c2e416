"""One element, compiled by Numba: how it is read and written.

Every function is chosen by type when a loop is compiled: the dtype of an array, an array or a number, None.
Nothing is decided while a loop runs. Arithmetic is that of the coefficients: float32 or float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload

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


@intrinsic
def two_to_the(context, exponent):
    """Return 2 to the power of a small int32, as float32."""

    def build(context, builder, signature, args):
        i32 = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.add(args[0], i32(127)), i32(23)), ir.FloatType())

    return types.float32(types.int32), build


@intrinsic
def pointer(context, address):
    """Turn the address of a tensor's memory into a pointer for `numba.carray`."""

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


def load(u: Any, i: Any, like: Any) -> Any:
    """Return element i of an array in the arithmetic of `like`; 0 where there is no array."""


def store(u: Any, i: Any, value: Any) -> Any:
    """Round a number to the array's dtype and write it; nothing where there is no array."""


def at(v: Any, i: Any) -> Any:
    """Return element i of an array, or the number itself."""


def zero(like: Any) -> Any:
    """Return 0 in the arithmetic of `like`, an array or a number."""


def along(each: Any, w: Any, j: Any, lo: Any, hi: Any) -> Any:
    """Return the slice of w from lo to hi counted from j, or the one number at j where `each` is None."""


def zeros(fast: Any, n: Any) -> Any:
    """Return n zeros: float32, or float64 where `fast` is None."""


def type_of(like: Any, value: Any) -> Any:
    """Return a number in the arithmetic of `like`."""


def part(u: Any, lo: Any, hi: Any) -> Any:
    """Return u[lo:hi], or None where there is no array."""


def _kind(like: Any) -> Any:
    return like.dtype if isinstance(like, types.Array) else like


@overload(load)
def _load(u, i, like):
    real = np.float32 if _kind(like) == types.float32 else np.float64
    if isinstance(u, types.NoneType):
        return lambda u, i, like: real(0.0)
    if u.dtype == types.int16:
        return lambda u, i, like: real(_from_bfloat16(u[i]))
    if u.dtype == types.uint16:
        return lambda u, i, like: real(_from_float16(u[i]))
    return lambda u, i, like: real(u[i])


@overload(store)
def _store(u, i, value):
    def bfloat16(u, i, value):
        u[i] = _to_bfloat16(np.float32(value))

    def float16(u, i, value):
        u[i] = _to_float16(np.float32(value))

    def plain(u, i, value):
        u[i] = value

    def nothing(u, i, value):
        pass

    if isinstance(u, types.NoneType):
        return nothing
    return {types.int16: bfloat16, types.uint16: float16}.get(u.dtype, plain)


@overload(at)
def _at(v, i):
    return (lambda v, i: v[i]) if isinstance(v, types.Array) else (lambda v, i: v)


@overload(zero)
def _zero(like):
    real = np.float32 if _kind(like) == types.float32 else np.float64
    return lambda like: real(0.0)


@overload(type_of)
def _type_of(like, value):
    real = np.float32 if _kind(like) == types.float32 else np.float64
    return lambda like, value: real(value)


@overload(along)
def _along(each, w, j, lo, hi):
    if isinstance(each, types.NoneType):
        return lambda each, w, j, lo, hi: w[j]
    return lambda each, w, j, lo, hi: w[j + lo : j + hi]


@overload(zeros)
def _zeros(fast, n):
    if isinstance(fast, types.NoneType):
        return lambda fast, n: np.zeros(n)
    return lambda fast, n: np.zeros(n, dtype=np.float32)


@overload(part)
def _part(u, lo, hi):
    return (lambda u, lo, hi: None) if isinstance(u, types.NoneType) else (lambda u, lo, hi: u[lo:hi])
