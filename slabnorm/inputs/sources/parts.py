"""How data that can be read from any row on are cut into shards."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from slabnorm.errors import DataError

CHUNK = 1 << 20  # values: 4 MB of float32, which hashing finds in the cache where counting left them
SHARD = 16  # chunks of a shard; a power of two, so that the tree above shards is that above chunks

AXES = 64  # the most that NumPy and PyTorch work on
VALUES = 1 << 44  # of a data set: to list its 2^20 shards takes 0.4 GB


def check_shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """Return a shape that a header, metadata or an object claims, before anything is made of it.

    Raises:
        DataError: it is none, has no axis or too many, samples without values, or more values than can be.
    """
    if not all((type(size) is int or isinstance(size, np.integer)) and size >= 0 for size in shape):
        raise DataError(
            "sizes in a shape are whole numbers, and not negative", f"{name}: shape {tuple(shape)!r:.200}",
            "write it again",
        )  # fmt: skip
    if not shape:
        raise DataError(
            "data have their samples along the first axis",
            f"{name} is a single number",
            "give an array of them",
        )
    if len(shape) > AXES:
        raise DataError(f"an array has at most {AXES} axes", f"{name}: {len(shape)}", "join some of them")
    if 0 in shape[1:]:
        raise DataError(
            "a sample holds values", f"{name}: samples of shape {tuple(shape[1:])}", "leave out empty axes"
        )
    # Also where there are no samples: NumPy makes no array of shape (0, 2^62).
    if math.prod(size or 1 for size in shape) > VALUES:
        raise DataError(
            "a data set has at most 2^44 values",
            f"{name}: shape {tuple(shape)}",
            "write it again if that is damage; or fit a part of it",
        )
    return tuple(map(int, shape))


def empty(name: str) -> DataError:
    """Return the error of a data set without samples."""
    return DataError("a data set holds samples", f"{name} is empty", "check what was selected or filtered")


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
