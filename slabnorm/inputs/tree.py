"""Merging the tallies of many shards in a tree that only the data decide.

Node (level, i) is the merge of nodes (level - 1, 2i) and (level - 1, 2i + 1); shard i is node (0, i).
Rounding then depends on the shards' numbers and on nothing else: not on arrival, not on how many worked.
"""

from __future__ import annotations

from slabnorm.inputs.sketch import Bounds
from slabnorm.inputs.tally import Tally


class Tree:
    """Takes shards in any order; at most one node per level waits for its neighbour, and what came early."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._nodes: list[tuple[int, Tally]] = []  # (level, tally), levels falling
        self._early: dict[int, Tally] = {}
        self._next = 0
        self.bounds = bounds or Bounds()

    def add(self, number: int, tally: Tally) -> None:
        """Add shard `number`; each number once."""
        self._early[number] = tally
        self.bounds.lower(tally.sketch.bound, tally.sample.bound)
        while self._next in self._early:
            self._append(self._early.pop(self._next))
            self._next += 1

    def _append(self, tally: Tally) -> None:
        level = 0
        while self._nodes and self._nodes[-1][0] == level:
            tally = self._nodes.pop()[1].merge(tally)
            level += 1
        self._nodes.append((level, tally))

    def whole(self) -> Tally:
        """Return the tally of all shards, of which there is at least one."""
        total = self.total()
        assert total is not None
        return total

    def total(self) -> Tally | None:
        """Return the tally of all shards, of which none may be missing; None if there were none."""
        if not self._nodes:
            return None
        total = self._nodes[-1][1]
        for _, tally in reversed(self._nodes[:-1]):
            total = tally.merge(total)
        return total
