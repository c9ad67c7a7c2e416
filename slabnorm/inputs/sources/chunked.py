"""Zarr arrays, versions 2 and 3, chunked or sharded, in a folder, a zip file or behind a URL.

Zarr reads a chunk that is not there as its fill value. A lost chunk would then be a block of zeros in the
statistics, so that here it is an error, unless `missing_chunks="fill"` says that chunks were left out on
purpose, as Zarr does with those that hold the fill value only.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.schema import Schema
from slabnorm.inputs.sources.base import BLOCK_BYTES, Bad, Block, Shard, Source
from slabnorm.inputs.sources.inner import Inner
from slabnorm.inputs.sources.parts import bounds, empty
from slabnorm.inputs.sources.stores import (
    Marks,
    MissingChunkError,
    Place,
    digest,
    find,
    key_of,
    keys,
    opened,
    outer,
    place_of,
)
from slabnorm.inputs.split import Hint, held_out, path_hints

FILES = ("zarr.json", ".zarray", ".zgroup")  # by which a folder is known
_ABSENT = 1 << 17  # chunks: a store that lacks more is not damaged but another, and to list them takes 4 s


@dataclass(frozen=True)
class ZarrShard(Shard):
    """Some rows of a Zarr array."""

    place: Place = field(default_factory=lambda: Place("", ""))
    fill: bool = False
    digest: str = ""

    def blocks(self) -> Iterator[Block | Bad]:
        """Yield the rows of a few chunks at a time."""
        with opened(self.place, strict=not self.fill) as array:
            if digest(array) != self.digest:
                raise DataError(
                    "a Zarr array does not change while it is read",
                    f"the metadata of {self.name} did",
                    "read it when it is written",
                )
            if self.first == self.last:
                yield np.empty(array.shape, array.dtype)
                return
            inner = None if self.fill else Inner.of(array)
            step = _step(array, BLOCK_BYTES)
            for start in range(self.first, self.last, step):
                yield from self._read(array, inner, start, min(start + step, self.last))

    def _read(self, array: Any, inner: Inner | None, first: int, last: int) -> Iterator[Block | Bad]:
        """Yield rows; if they cannot be read, chunk by chunk, to leave out no more than must be."""
        try:
            if inner:
                inner.check(first, last)
            rows = array[first:last]
        except Exception:  # codecs raise whatever they like
            size = array.chunks[0]
            for start in range(first, last, size):
                yield self._piece(array, inner, start, min(start + size, last))
            return
        yield rows

    def _piece(self, array: Any, inner: Inner | None, first: int, last: int) -> Block | Bad:
        """Return rows of one chunk, or the first chunk of them that cannot be read, and why."""
        others = [range(0, n, step) for n, step in zip(array.shape[1:], array.chunks[1:], strict=True)]
        for corner in product((first,), *others):
            key = key_of(array, tuple(at // n for at, n in zip(corner, outer(array), strict=True)))
            name = f"chunk {key} of {self.name}, rows {first} to {last - 1}"
            try:
                if inner:
                    inner.check(first, last)
                at = (slice(start, start + n) for start, n in zip(corner[1:], array.chunks[1:], strict=True))
                array[(slice(first, last), *at)]
            except MissingChunkError:
                return Bad(name, "it is missing", _MISSING, last - first)
            except Exception as error:
                return Bad(name, _why(error), samples=last - first)
        try:
            rows: Block = array[first:last]
        except Exception as error:  # such as too little memory for all of them
            name = f"rows {first} to {last - 1} of {self.name}"
            return Bad(name, _why(error), samples=last - first)
        return rows


_MISSING = (
    "bring it back; or if chunks of nothing but the fill value were left out, as Zarr does: write with "
    'config={"write_empty_chunks": True}, or take them as such with missing_chunks="fill"'
)


class ZarrSource(Source):
    """One Zarr array, its samples along the first axis.

    Args:
        source: a folder, a zip file, a URL, or an opened array or group.
        key: the array of a group.
        missing_chunks: "raise", or "fill": a chunk that is not there is its fill value.

    Raises:
        DataError: there is no such array, its metadata are damaged, or it holds no real numbers.
        ExtraError: zarr is not installed.
    """

    def __init__(self, source: Any, key: str | None = None, missing_chunks: str = "raise") -> None:
        place = place_of(source) if is_zarr(source) else Place(str(source), _plain(str(source)))
        self._fill = missing_chunks == "fill"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dtypes that are refused anyway, and of files in between
            self.place = find(place, key)
            self._look()
        word = held_out(self.place.path)
        self.hints = (
            *path_hints([self.place.where.rstrip("/")]),
            *((Hint(f"the array {self.place.path!r}", word),) if word else ()),
        )

    def _look(self) -> None:
        """Note what the metadata say, and check it."""
        self.name = self.place.name
        with opened(self.place) as array:
            self.shape, self.dtype = tuple(array.shape), array.dtype
            if self._fill and array.metadata.to_dict()["fill_value"] is None:
                raise DataError(
                    'missing_chunks="fill" wants an array that says its fill value', f"{self.name} has none"
                )

    def schema(self) -> Schema:
        """Return shape and dtype of the samples, from the metadata."""
        if not self.shape[0]:
            raise empty(self.name)
        return Schema(self.shape[1:], self.dtype.newbyteorder("=").name)

    def shards(self) -> list[Shard]:
        """Return runs of rows that share no chunk, so that each is decoded once.

        Warns:
            DataWarning: chunks that are missing and count as the fill value.
        """
        with opened(self.place) as array:
            marks, plan = Marks(array, self.place), digest(array)
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            memory = 2 * _step(array, BLOCK_BYTES) * row
            shards: list[Shard] = []
            absent = 0
            for number, (first, last) in enumerate(_bounds(array)):
                mark, absent = self._mark(marks, array, (first, last), plan, absent)
                shards.append(ZarrShard(
                    number, self.name, mark, row * (last - first), memory, first, last - first, self.place,
                    self._fill, plan,
                ))  # fmt: skip
            if self._fill and absent:
                warnings.warn(
                    f"{absent} chunks of {self.name} are missing and count as the fill value"
                    f" {array.fill_value}",
                    DataWarning,
                    stacklevel=2,
                )
        return shards

    def _mark(
        self, marks: Marks, array: Any, rows: tuple[int, int], plan: str, absent: int
    ) -> tuple[str, int]:
        """Return what changes when some rows do, "" if that is not known, and how many chunks lack so far."""
        digest, wanted = hashlib.sha256(f"{plan}\n{self._fill}".encode()), keys(array, *rows)
        while some := list(islice(wanted, 4096)):
            found = marks.of(some)
            absent += found.count(None)
            if absent > _ABSENT and not self._fill:
                raise DataError(
                    "a Zarr array has its chunks", f"{self.name} lacks more than {_ABSENT:,}", _MISSING
                )
            digest.update("".join(f"\n{'missing' if mark is None else mark}" for mark in found).encode())
        return digest.hexdigest() if marks.lasting else "", absent


def is_zarr(value: Any) -> bool:
    """Whether a value is an opened Zarr array or group; imports nothing."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "zarr" and kind.__name__ in ("Array", "Group")


def is_zarr_path(text: str) -> bool:
    """Whether a path or URL is that of a Zarr store."""
    if text.rstrip("/").lower().endswith((".zarr", ".zarr.zip")):
        return True
    try:
        return "://" not in text and any((Path(text) / name).is_file() for name in FILES)
    except OSError:
        return False


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _plain(text: str) -> str:
    return text.removeprefix("file://") if text.startswith("file:///") else text


def _bounds(array: Any) -> list[tuple[int, int]]:
    """Return the rows of each shard: those of an array in memory, or the next that no chunk lies across."""
    found = bounds(array.shape)
    if len(found) == 1:
        return found
    rows, size, count = found[0][1], array.chunks[0], array.shape[0]
    step = max(1, rows // size) * size
    return [(first, min(first + step, count)) for first in range(0, count, step)]


def _step(array: Any, most: int) -> int:
    """Return how many rows are read at once: those of as many whole chunks as `most` bytes hold."""
    size: int = array.chunks[0]
    row = math.prod(array.shape[1:]) * array.dtype.itemsize
    return max(1, most // max(1, size * row)) * size
