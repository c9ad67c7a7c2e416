"""The shapes of shapes.json, made large enough to fill a GPU, in both layouts and dtypes."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmarks.cases import DTYPES, Case, full, layouts

FILLING = 16_000_000  # elements: 64 MB of float32 is more than an L2
LEAST = 1_000_000  # smaller ones stay as they are: they measure what a call costs
BATCH = 128  # of ResNet-50 on a GPU
# Single samples too large for one block a slab; and rows of 8192.
MORE = {
    "group32": [(1, 128, 20, 256, 256), (1, 512, 16, 180, 320)],
    "layer_rows": [(8192, 8192)],
    "rms_rows": [(8192, 8192)],
}
# One activation for each norm, so that a run takes minutes: the one it is used with.
WITH = {"batch": "relu", "group32": "silu", "instance": "leaky_relu"}
LINE = 128  # bytes that memory gives at once


def cases() -> list[Case]:
    """Return every case, the large ones first: a run that is out of time leaves out small ones."""
    found: dict[Case, None] = {}
    for case in full():
        if case.activation == WITH.get(case.norm, ""):
            found[replace(case, shape=filling(case.norm, case.shape))] = None
    for norm, shapes in MORE.items():
        for shape in shapes:
            for layout in layouts(norm, shape):
                for dtype in DTYPES:
                    found[Case(norm, shape, layout, WITH.get(norm, ""), dtype)] = None
    return sorted(found, key=lambda case: (case.elements < FILLING, case.dtype == "float32", case.norm))


def filling(norm: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with more samples, or rows; one sample stays one."""
    elements, samples = math.prod(shape), shape[0]
    if norm == "batch" and samples == 32:
        return (BATCH, *shape[1:])
    if samples == 1 or elements < LEAST:
        return shape
    return (samples * max(1, math.ceil(FILLING / elements)), *shape[1:])


def reads(case: Case, l2: int) -> int:
    """Return how often x has to be read from memory: twice where what is read together exceeds the L2.

    In channels last that is a slab and its neighbours in a line of memory.
    """
    together = 1
    if case.layout != "contiguous" and not case.norm.endswith("rows"):
        neighbours = LINE // DTYPES[case.dtype].itemsize
        channels = case.shape[1]
        of_slab = channels // case.groups if case.norm.startswith("group") else 1
        together = max(1, min(channels, neighbours) // of_slab) if case.norm != "channel" else 1
    return 2 if case.slab_elements * DTYPES[case.dtype].itemsize * together > l2 else 1


def passes(case: Case, l2: int) -> tuple[int, int]:
    """Return the tensors of x's size that a forward, and a backward, moves at least."""
    again = reads(case, l2) - 1
    return 2 + case.residual + again, 3 + 2 * again
