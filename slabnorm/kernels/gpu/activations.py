"""The activations and their derivatives in Triton, of the pre-activation p in float32.

NaN stays NaN: comparisons are written so that it falls through to where p is passed on.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(p):
    # exp of a number that is not positive: nothing overflows, and the tail keeps its digits.
    e = tl.exp(-tl.abs(p))
    near = 1.0 / (1.0 + e)
    return tl.where(p < 0, e * near, near)


@triton.jit
def _tanh(p):
    size = tl.abs(p)
    e = tl.exp(-2.0 * size)
    # Near 0 the quotient has no digits left.
    far = (1.0 - e) / (1.0 + e)
    near = size * (1.0 - p * p * (0.3333333333333333 - p * p * 0.13333333333333333))
    t = tl.where(size < 0.05, near, far)
    return tl.where(p < 0, -t, t)


@triton.jit
def _normal(p):
    # The standard normal distribution at p: exp(z * z) * erfc(z) / t in powers of t = 1 / (1 + z / 2), fitted
    # at Chebyshev nodes for z >= 0, 8e-9. erf has no digits in the lower tail.
    z = tl.abs(p) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.5 * z)
    series = t * 0.044132042355542994 - 0.23951619173424082
    series = series * t + 0.5041335699246327
    series = series * t - 0.4676878528924546
    series = series * t + 0.14164035715145515
    series = series * t - 0.06364376472889174
    series = series * t + 0.09475923443656808
    series = series * t + 0.17508852800847172
    series = series * t + 0.24690649764418798
    series = series * t + 0.28209277715538084
    series = series * t + 0.28209480852296975
    bell = tl.exp(-0.5 * p * p)
    tail = 0.5 * bell * series * t
    return tl.where(p > 0, 1.0 - tail, tail), bell * 0.3989422804014327


@triton.jit
def _gelu_tanh_sigmoid(p):
    # 0.5 * (1 + tanh(u)) = sigmoid(2 u)
    return _sigmoid(1.5957691216057308 * (p + 0.044715 * p * p * p))


@triton.jit
def activate(p, ACTIVATION: tl.constexpr):
    """Return the activation of p."""
    if ACTIVATION == "relu":
        p = tl.where(p <= 0, 0.0, p)
    elif ACTIVATION == "leaky_relu":
        p = tl.where(p > 0, p, 0.01 * p)
    elif ACTIVATION == "silu":
        p = p * _sigmoid(p)
    elif ACTIVATION == "sigmoid":
        p = _sigmoid(p)
    elif ACTIVATION == "tanh":
        p = _tanh(p)
    elif ACTIVATION == "hardswish":
        p = tl.where(p <= -3, 0.0, tl.where(p >= 3, p, p * (p + 3.0) * 0.16666666666666666))
    elif ACTIVATION == "gelu":
        below, _ = _normal(p)
        p = p * below
    elif ACTIVATION == "gelu_tanh":
        p = p * _gelu_tanh_sigmoid(p)
    return p


@triton.jit
def passed(g, p, ACTIVATION: tl.constexpr):
    """Return what of a gradient g passes through the activation at p."""
    if ACTIVATION == "relu":
        g = tl.where(p <= 0, 0.0, g)
    elif ACTIVATION == "leaky_relu":
        g = tl.where(p > 0, g, 0.01 * g)
    elif ACTIVATION == "silu":
        s = _sigmoid(p)
        g = g * (s * (1.0 + p * (1.0 - s)))
    elif ACTIVATION == "sigmoid":
        s = _sigmoid(p)
        g = g * (s * (1.0 - s))
    elif ACTIVATION == "tanh":
        t = _tanh(p)
        g = g * (1.0 - t * t)
    elif ACTIVATION == "hardswish":
        slope = p * 0.3333333333333333 + 0.5
        g = g * tl.where(p <= -3, 0.0, tl.where(p >= 3, 1.0, slope))
    elif ACTIVATION == "gelu":
        below, density = _normal(p)
        g = g * (below + p * density)
    elif ACTIVATION == "gelu_tanh":
        s = _gelu_tanh_sigmoid(p)
        g = g * (s + p * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * p * p))
    return g
