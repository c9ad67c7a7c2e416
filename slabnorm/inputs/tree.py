"""Merging the Moments of many chunks in a tree that only the data decide.

Node (level, i) is the merge of nodes (level - 1, 2i) and (level - 1, 2i + 1); chunk i is node (0, i).
Rounding then depends on the chunks' numbers and on nothing else: not on arrival, not on how many worked.
"""

from __future__ import annotations

from slabnorm.moments import Moments


class Tree:
    """Chunks arrive in order, one per `add`; at most one node per level waits for its neighbour."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Moments]] = []  # (level, moments), levels falling

    def add(self, moments: Moments) -> None:
        """Add the next chunk."""
        level = 0
        while self._waiting and self._waiting[-1][0] == level:
            moments = self._waiting.pop()[1].merge(moments)
            level += 1
        self._waiting.append((level, moments))

    def total(self) -> Moments:
        """Return the Moments of all chunks so far; the empty Moments if there are none."""
        if not self._waiting:
            return Moments.empty()
        total = self._waiting[-1][1]
        for _, moments in reversed(self._waiting[:-1]):
            total = moments.merge(total)
        return total
