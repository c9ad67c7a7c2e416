"""Many shards as one task, so that a fit hands out, commits and merges no more of them than it can.

A group is 2^k neighbours, merged by whoever counts them: a node of the tree above shards, so that the bits
are those of shards handed out one by one. Committing and merging a task takes 2.5 ms, in one place: a
petabyte in shards of 64 MB would take it 11 hours, in 61,000 groups of 16 GB not 3 minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from slabnorm.inputs.sources.base import Bad, Block, Columns, Named, Shard

TASKS = 1 << 16  # at most


@dataclass(frozen=True)
class Group(Shard):
    """Neighbouring shards, as many as a power of two, or the last ones."""

    parts: tuple[Shard, ...] = field(kw_only=True)

    def blocks(self) -> Iterator[Block | Columns | Bad | Named]:
        """Yield the samples of all parts."""
        for part in self.parts:
            yield from part.blocks()


def grouped(shards: Sequence[Shard]) -> list[Shard]:
    """Return shards as they are, or as at most TASKS groups of them."""
    size = 1
    while len(shards) > size * TASKS:
        size *= 2
    if size == 1:
        return list(shards)
    return [_group(first // size, shards[first : first + size]) for first in range(0, len(shards), size)]


def _group(number: int, parts: Sequence[Shard]) -> Group:
    marks = [part.fingerprint for part in parts]
    lines = "\n".join(f"{part.name}\n{part.fingerprint}" for part in parts)
    return Group(
        number,
        f"{parts[0].name} to {parts[-1].name}" if len(parts) > 1 else parts[0].name,
        hashlib.sha256(lines.encode()).hexdigest() if all(marks) else "",
        sum(part.size for part in parts),
        max(part.memory for part in parts),
        parts[0].first,
        sum(part.samples for part in parts),
        parts=tuple(parts),
    )
