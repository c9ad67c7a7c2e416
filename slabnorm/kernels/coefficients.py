"""What a slab is normalised with, as the coefficients of the loops.

    z = r * (u - k) + l        p = w * z + b        dx = w * r * g + d * (u - k) + e

k is the mean, in float32 rounded, and l = -low * r with low what that has lost. Where weight and bias are
constant (`each` is None) they go into r and l: p = r * (u - k) + l.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from slabnorm.kernels.elements import load
from slabnorm.kernels.memory import inlined
from slabnorm.kernels.pointers import ahead, overload


@inlined
def shift_of(stats, slab, rounded):
    """Return the mean, rounded to float32 or not, and what it has lost."""
    shift, rest = stats[2, slab], stats[4, slab]
    k = np.float64(np.float32(shift + rest)) if rounded else shift
    return k, (shift - k) + rest


def folded(each: Any, w: Any, bias: Any, j: Any, rstd: Any, low: Any) -> Any:
    """Return r and l; with element j of weight and bias in them where `each` is None."""


def beside(each: Any, w: Any, j: Any) -> Any:
    """Return weight or bias from element j on; None where `each` is None: it is in r and l already."""


def one(each: Any, w: Any, j: Any, like: Any) -> Any:
    """Return element j of weight or bias in the arithmetic of `like`; None where `each` is None."""


@overload(folded)
def _folded(each, w, bias, j, rstd, low):
    if isinstance(each, types.NoneType):

        def both(each, w, bias, j, rstd, low):
            r = rstd * load(w, j, 0.0)
            return r, load(bias, j, 0.0) - low * r

        return both
    return lambda each, w, bias, j, rstd, low: (rstd, -low * rstd)


@overload(beside)
def _beside(each, w, j):
    if isinstance(each, types.NoneType):
        return lambda each, w, j: None
    return lambda each, w, j: ahead(w, j)


@overload(one)
def _one(each, w, j, like):
    if isinstance(each, types.NoneType):
        return lambda each, w, j, like: None
    return lambda each, w, j, like: load(w, j, like)


@inlined
def gradient(rstd, low, c1, c2):
    """Return d and e: dx = rstd * (w * g - c1 - c2 * z) in powers of u - k, but for the term in g."""
    d = -rstd * rstd * c2
    return d, -rstd * c1 - low * d
