"""Where a column of a run belongs: worked out from its number, digit by digit.

A table in the GPU's memory would have to outlive every CUDA graph that reads it, and cannot be made while one
is captured.
"""

from __future__ import annotations

from slabnorm.kernels.cpu.layout import Layout

# Four sizes and strides, the innermost first. Kernels are compiled without what has a size of 1.
Digits = tuple[int, ...]
MOST = 4
_Axes = list[tuple[int, int]]


def slab_of(layout: Layout) -> Digits | None:
    """Return how a column's slab follows from its number; None: it is its number."""
    return _unless_same([_joined([(size, slab) for size, slab, _ in reversed(layout.group)])], layout.run)


def affine_of(layout: Layout) -> Digits | None:
    """Return how a column's element of weight and bias follows from its number; None: it is its number."""
    return _unless_same([_joined([(size, to) for size, _, to in reversed(layout.group)])], layout.run)


def members(layout: Layout) -> Digits | None:
    """Return how a column follows from a slab's number and its own within it, the digits of both.

    None: from the first times the columns of a slab, plus the second.
    """
    kept, pooled, step = [], [], 1
    for size, slab, _ in reversed(layout.group):
        if slab:
            kept.append((slab, size, step))
        else:
            pooled.append((size, step))
        step *= size
    numbers = _joined([(size, step) for _, size, step in sorted(kept)])
    return _unless_same([numbers, _joined(pooled)], step)


def _joined(axes: _Axes) -> _Axes:
    """Join axes that one digit can stand for."""
    joined: _Axes = []
    for size, stride in axes:
        if joined and stride == joined[-1][0] * joined[-1][1]:
            joined[-1] = joined[-1][0] * size, joined[-1][1]
        else:
            joined.append((size, stride))
    return joined


def _unless_same(parts: list[_Axes], columns: int) -> Digits | None:
    """Return the digits of all parts; None if every column follows from the digits just above its own."""
    expected = 1
    for size, stride in (axis for axes in reversed(parts) for axis in axes):
        if stride != expected:
            break
        expected *= size
    else:
        if expected == columns:
            return None
    return tuple(n for axes in parts for axis in (axes + [(1, 0)] * MOST)[:MOST] for n in axis)
