"""The activations and their derivatives, compiled by Numba, as functions of the pre-activation p.

NaN stays NaN: comparisons are written so that it falls through to where p is passed on. The smooth ones are
float32, a few units in the last place; the others take the arithmetic of p.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from slabnorm.kernels.cpu.elements import type_of
from slabnorm.kernels.cpu.llvm import INNER, overload

_compiled = register_jitable(**INNER)
_F = np.float32
# 2^f for |f| <= 1/2 in powers of f, fitted: 1.6e-8 of the value.
_EXP2 = (
    1.0, 0.6931471824645996, 0.24022646248340607, 0.05550328642129898, 0.009618489071726799,
    0.0013399930903688073, 0.0001534581242594868,
)  # fmt: skip
_LOG2E = float(_F(1 / math.log(2))), float(_F(1 / math.log(2) - _F(1 / math.log(2))))  # and what that lost
_MOVE = 1.5 * 2**23  # a float32 of less than 2^22 plus this has no fraction
# exp(z * z) * erfc(z) / t in powers of t = 1 / (1 + z / 2): fitted at Chebyshev nodes for z >= 0, 8e-9.
_ERFCX = tuple(_F(c) for c in (
    0.28209480852296975, 0.28209277715538084, 0.24690649764418798, 0.17508852800847172,
    0.09475923443656808, -0.06364376472889174, 0.14164035715145515, -0.4676878528924546,
    0.5041335699246327, -0.23951619173424082, 0.044132042355542994,
))  # fmt: skip


@intrinsic
def _decay(context, p):
    """Return exp(-p) of a float32, within e^-87 and e^87; NaN stays NaN.

    math.exp is a call, which keeps a loop from being vectorised: ten times slower. Here are 15 instructions.
    With -p * log2(e) = n + f, n an integer, the series gives 2^f, and the lowest bits of `moved` are n. A NaN
    has any bits there: 2^n is multiplied by the series, which is NaN then, and not added to its exponent.
    LLVM must not reassociate, and so is given the instructions themselves.
    """

    def build(context, builder, signature, args):
        f32, i32 = ir.FloatType(), ir.IntType(32)
        fma = builder.module.declare_intrinsic("llvm.fmuladd", [f32], ir.FunctionType(f32, [f32] * 3))
        (x,) = args
        for way, most in (("<", -87.0), (">", 87.0)):  # comparisons that let NaN through, as one instruction
            x = builder.select(builder.fcmp_ordered(way, x, f32(most)), f32(most), x)
        high, low = f32(-_LOG2E[0]), f32(-_LOG2E[1])
        moved = builder.call(fma, [x, high, f32(_MOVE)])
        n = builder.fsub(moved, f32(_MOVE))
        f = builder.call(fma, [x, low, builder.call(fma, [x, high, builder.fneg(n)])])
        series = f32(_EXP2[6])
        for k in (5, 4, 3, 2, 1, 0):
            series = builder.call(fma, [series, f, f32(_EXP2[k])])
        exponent = builder.shl(builder.bitcast(moved, i32), i32(23))
        power = builder.bitcast(builder.add(exponent, i32(127 << 23)), f32)
        return builder.fmul(series, power, flags=("contract",))

    return types.float32(types.float32), build


@_compiled
def _sigmoid(p):
    return _F(1.0) / (_F(1.0) + _decay(_F(p)))


@_compiled
def _tanh(p):
    p = _F(p)
    near = p * (_F(1.0) - p * p * (_F(1 / 3) - _F(2 / 15) * p * p))
    return near if abs(p) < _F(0.05) else _F(2.0) * _sigmoid(_F(2.0) * p) - _F(1.0)


@_compiled
def _normal(p):
    # The standard normal distribution and its density at p.
    p = _F(p)
    z = abs(p) * _F(math.sqrt(0.5))
    bell = _decay(z * z)
    t = _F(1.0) / (_F(1.0) + _F(0.5) * z)
    series = _ERFCX[10]
    for k in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0):
        series = series * t + _ERFCX[k]
    tail = _F(0.5) * bell * series * t
    return (_F(1.0) - tail if p > _F(0.0) else tail), bell * _F(1.0 / math.sqrt(2.0 * math.pi))


_TANH_A, _TANH_B = _F(2 * math.sqrt(2 / math.pi)), _F(0.044715)


def _pairs() -> dict[str, tuple[Any, Any]]:
    def gelu_slope(p):
        below, density = _normal(p)
        return below + _F(p) * density

    def silu_slope(p):
        s = _sigmoid(p)
        return s * (_F(1.0) + _F(p) * (_F(1.0) - s))

    def gelu_tanh(p):
        # 0.5 * (1 + tanh(u)) = sigmoid(2 u)
        p = _F(p)
        return p * _sigmoid(_TANH_A * (p + _TANH_B * p * p * p))

    def gelu_tanh_slope(p):
        p = _F(p)
        s = _sigmoid(_TANH_A * (p + _TANH_B * p * p * p))
        return s + p * s * (_F(1.0) - s) * _TANH_A * (_F(1.0) + _F(3.0) * _TANH_B * p * p)

    def sigmoid_slope(p):
        s = _sigmoid(p)
        return s * (_F(1.0) - s)

    def tanh_slope(p):
        t = _tanh(p)
        return _F(1.0) - t * t

    # In the arithmetic of p: exact in float64 too. The constants are no powers of two, so they are cast.
    def hardswish(p):
        return (
            type_of(p, 0.0) if p <= -3 else (p if p >= 3 else p * (p + type_of(p, 3.0)) * type_of(p, 1 / 6))
        )

    def hardswish_slope(p):
        return (
            type_of(p, 0.0)
            if p <= -3
            else (type_of(p, 1.0) if p >= 3 else p * type_of(p, 1 / 3) + type_of(p, 0.5))
        )

    return {
        "": (lambda p: p, lambda p: type_of(p, 1.0)),
        "relu": (
            lambda p: type_of(p, 0.0) if p <= 0 else p,
            lambda p: type_of(p, 0.0) if p <= 0 else type_of(p, 1.0),
        ),
        "leaky_relu": (
            lambda p: p if p > 0 else type_of(p, 0.01) * p,
            lambda p: type_of(p, 1.0) if p > 0 else type_of(p, 0.01),
        ),
        "hardswish": (hardswish, hardswish_slope),
        "silu": (lambda p: _F(p) * _sigmoid(p), silu_slope),
        "sigmoid": (_sigmoid, sigmoid_slope),
        "tanh": (_tanh, tanh_slope),
        "gelu": (lambda p: _F(p) * _normal(p)[0], gelu_slope),
        "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
    }


_PAIRS = {name: tuple(_compiled(f) for f in pair) for name, pair in _pairs().items()}
# An activation is known to the compiler by a tuple of so many None: a type, where a number would be a value.
CODES = {name: (None,) * code for code, name in enumerate(_PAIRS)}
# These have no transcendental function in them, and are exact in float64 too.
PIECEWISE = ("", "relu", "leaky_relu", "hardswish")


@intrinsic
def widely(context, code):
    """Have a function's loops use all 512 bits that a vector may have, if the activation is smooth.

    LLVM uses 256 of Intel's, some of which clock lower with more. Group norm and SiLU, both passes, one core
    with AVX-512: 2.1 ns an element, with half the bits 2.4; GELU 2.6 and 3.4.
    """

    def build(context, builder, signature, args):
        attributes = builder.function.attributes
        if list(CODES)[len(code)] not in PIECEWISE and isinstance(attributes, set):
            set.add(attributes, '"prefer-vector-width"="512"')  # LLVM knows it, llvmlite does not
        return context.get_dummy_value()

    return types.none(code), build


def activate(code: Any, p: Any) -> Any:
    """Return the activation with this code at the pre-activation p."""


def passes(code: Any, p: Any) -> Any:
    """Return the derivative of the activation at p: the share of a gradient that passes through it."""


def _chosen(code: Any, which: int) -> Any:
    chosen = list(_PAIRS.values())[len(code)][which]
    return lambda code, p: chosen(p)


@overload(activate)
def _activate(code, p):
    return _chosen(code, 0)


@overload(passes)
def _passes(code, p):
    return _chosen(code, 1)
