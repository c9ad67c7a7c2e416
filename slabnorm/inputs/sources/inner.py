"""Chunks inside the shards of a Zarr array: which of them a shard's index says are there.

The index is at one end of a shard: offset and length of every chunk, in C order, as little-endian uint64,
both 2^64 - 1 for a chunk that is not there; mostly followed by a CRC-32C (Zarr version 3, sharding_indexed).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from slabnorm.inputs.sources.stores import MissingChunkError, key_of, outer

_NONE = np.uint64((1 << 64) - 1)


class Inner:
    """Finds chunks that shards do not have.

    Args:
        array: sharded, read through a store that raises MissingChunkError for a shard that is not there.
        layout: the configuration of its sharding.
    """

    def __init__(self, array: Any, layout: dict[str, Any]) -> None:
        self._array, self._size = array, outer(array)
        self._grid = tuple(n // step for n, step in zip(self._size, array.chunks, strict=True))
        checked = any(codec["name"] == "crc32c" for codec in layout["index_codecs"])
        self._bytes = 16 * int(np.prod(self._grid)) + 4 * checked
        self._end = layout.get("index_location", "end") == "end"
        self._index = lru_cache(64)(self._read)  # a shard is longer than a block

    @classmethod
    def of(cls, array: Any) -> Inner | None:
        """Return it for an array with shards whose index can be read; else None."""
        if not array.shards:
            return None
        layout = array.metadata.to_dict()["codecs"][0]["configuration"]
        plain = [codec["name"] for codec in layout["index_codecs"]] in (["bytes"], ["bytes", "crc32c"])
        endian = layout["index_codecs"][0].get("configuration", {}).get("endian", "little")
        return cls(array, layout) if plain and endian == "little" else None

    def check(self, first: int, last: int) -> None:
        """Raise MissingChunkError unless all chunks of these rows are there."""
        array, size = self._array, self._size
        rows = range(first // size[0], -(-last // size[0]))
        others = (range(-(-n // step)) for n, step in zip(array.shape[1:], size[1:], strict=True))
        for place in product(rows, *others):
            # The chunks of the rows asked for, without those beyond the array's edge.
            low = [at * step for at, step in zip(place, size, strict=True)]
            ends = (last, *array.shape[1:])
            inside = [slice(0, -(-min(end - start, step) // n))
                      for start, end, step, n in zip(low, ends, size, array.chunks, strict=True)]  # fmt: skip
            inside[0] = slice(max(0, first - low[0]) // array.chunks[0], inside[0].stop)
            if (self._index(place)[tuple(inside)] == _NONE).all(-1).any():
                raise MissingChunkError(key_of(array, place))

    def _read(self, place: tuple[int, ...]) -> np.ndarray:
        from zarr.abc.store import RangeByteRequest, SuffixByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        part = SuffixByteRequest(self._bytes) if self._end else RangeByteRequest(0, self._bytes)
        key = key_of(self._array, place)
        found = sync(self._array.store.get(key, default_buffer_prototype(), part)).to_bytes()
        return np.frombuffer(found, "<u8", 2 * int(np.prod(self._grid))).reshape(*self._grid, 2)
