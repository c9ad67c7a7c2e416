"""The least time that memory allows: the bytes that must move, over the bandwidth of a copy."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import DTYPES, Case


@dataclass(frozen=True)
class Floor:
    """Tensors of the input's size that must be read or written."""

    reads: int  # how often the input has to be read: twice where a slab does not fit in a core's L2
    forward: int
    backward: int

    def seconds(self, tensors: int, copy: float) -> float:
        """Return the floor for a number of tensors, given the time of a copy, which moves two."""
        return tensors * copy / 2


def floor(case: Case, l2: int) -> Floor:
    """Return a training step's floor.

    Forward reads x (and the residual) and writes y. Backward reads dy and x and writes dx; after an
    activation the residual's gradient is one more tensor to write, without one it is dy itself.
    A slab beyond the cache is read once for its statistics and once more to be normalised.
    """
    again = 1 if case.slab_elements * DTYPES[case.dtype].itemsize > l2 else 0
    forward = 2 + case.residual + again
    backward = 3 + (case.residual and case.function is not None) + 2 * again
    return Floor(1 + again, forward, backward)


def inference_floor(case: Case) -> Floor:
    """Return the floor of eval mode, which needs no statistics of the input."""
    return Floor(1, 2 + case.residual, 0)
