"""Which phases a call runs, and how much room they share: numbers of a Layout alone."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from slabnorm.kernels.arguments import ADD_UP, FINISH, MERGE, START, SUM, TASK, WRITE
from slabnorm.kernels.layout import CHUNK, Layout


class Phases:
    """The phases of a Layout's kernels, kept for the calls to come."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._kept: dict[tuple[bool, ...], np.ndarray] = {}

    def forward(self, shared: bool, own: bool, again: bool, write: bool) -> np.ndarray:
        """Return the phases of a forward: `own` statistics, `again` in float64 only, with output or not."""
        key = (True, shared, own, again, write)
        if key not in self._kept:
            sweeps = (1, 2) if again else (0, 1, 2)
            summing = [pair for n in sweeps for pair in ((SUM + n, self.units), (MERGE + n, 1))]
            found = [(START, 1), *summing] if own else []
            parts = [*found, (FINISH, 1)] + ([(WRITE, self.units)] if write else [])
            self._kept[key] = _array(parts if shared else [(TASK, self.layout.tasks)])
        return self._kept[key]

    def backward(self, shared: bool, write: bool) -> np.ndarray:
        """Return the phases of a backward: with the gradient of x or without."""
        key = (False, shared, write)
        if key not in self._kept:
            sums = self.chunks if self.layout.rows and self.layout.mixed else self.units
            start = [] if self.layout.rows else [(START, 1)]
            parts = [*start, (SUM, sums), (FINISH, 1)] + ([(WRITE, self.units)] if write else [])
            self._kept[key] = _array([*(parts if shared else [(TASK, self.layout.tasks)]), (ADD_UP, 1)])
        return self._kept[key]

    @cached_property
    def chunks(self) -> int:
        """Return how many chunks a run of rows is summed in."""
        return -(-self.layout["run"] // CHUNK)

    @cached_property
    def units(self) -> int:
        """Return what threads that share every task share: chunks of rows, pieces of columns."""
        layout = self.layout
        if layout.rows:
            return layout["blocks"] * layout["runs"] * self.chunks
        return layout.tasks * -(-layout["runs"] // layout["piece"])

    @cached_property
    def work(self) -> int:
        """Return how many float64 such threads need beside the tensors."""
        layout = self.layout
        if layout.rows:
            return 4 * layout["blocks"] + 2 * self.units
        return layout["tile"] * (11 * layout.tasks + 2 * self.units) + 2 * layout.tasks

    @cached_property
    def cells(self) -> int:
        """Return how many sums make dweight and dbias."""
        layout = self.layout
        if layout.rows:
            if layout.mixed:
                return layout.tasks * 2 * layout["run"]
            differ = (layout["runs1"] if layout["ar1"] else 1) * (layout["runs0"] if layout["ar0"] else 1)
            return 2 * layout["blocks"] * differ
        return 2 * (layout.tasks * layout["runs"] if layout.mixed else layout["blocks"] * layout["run"])


def _array(phases: list[tuple[int, int]]) -> np.ndarray:
    # Writing reads again what summing has read: in the reverse order.
    return np.array([(phase, n, phase == WRITE) for phase, n in phases], dtype=np.int64)
