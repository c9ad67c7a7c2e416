"""How data that can be read from any row on are cut into shards."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

CHUNK = 1 << 20  # values: 4 MB of float32, which hashing finds in the cache where counting left them
SHARD = 16  # chunks of a shard; a power of two, so that the tree above shards is that above chunks


def chunk_rows(values: int) -> int:
    """Return how many samples of so many values are a chunk."""
    return max(1, CHUNK // max(1, values))


def bounds(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last row of each shard, of data of this shape; at least one shard.

    >>> bounds((1_000_000, 64))
    [(0, 262144), (262144, 524288), (524288, 786432), (786432, 1000000)]
    """
    count = shape[0] if shape else 0
    rows = chunk_rows(math.prod(shape[1:])) * SHARD
    return [(first, min(first + rows, count)) for first in range(0, max(1, count), rows)]


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return what changes when a file does: its size and the time of its last change."""
    status = os.stat(path)
    return f"{status.st_size}:{status.st_mtime_ns}"
