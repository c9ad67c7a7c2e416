"""Zarr arrays, versions 2 and 3, chunked or sharded, in a folder, a zip file or behind a URL."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.errors import DataError, DataWarning, ExtraError, SlabError
from slabnorm.extras import extra
from slabnorm.inputs.sources.base import (
    BLOCK_BYTES,
    Block,
    Schema,
    Shard,
    Source,
    Unreadable,
    check_dtype,
    check_shape,
    empty,
    pick,
    shard_rows,
)
from slabnorm.inputs.sources.files import file_mark, remote_mark
from slabnorm.inputs.split import Hint, held_out, path_hints

# Zarr stores: opening an array, and finding which of its chunks are there.

CHUNKS = 1 << 24  # to ask for the status of this many files takes 4 minutes
ROWS_BYTES = 1 << 32  # of decoded rows: 1 GB of zeros compresses to 30 kB


@dataclass(frozen=True)
class ArrayLocation:
    """Where an array is stored; it can be pickled.

    Attributes:
        name: how messages call it.
        store: a path, a URL, or a store of Zarr's own.
        path: of the array inside the store.
    """

    name: str
    store: Any
    path: str = ""

    @property
    def file(self) -> Path | None:
        """The local file or folder that holds it all, if there is one."""
        return Path(self.store) if isinstance(self.store, str) and "://" not in self.store else None

    @property
    def where(self) -> str:
        """The path or URL of the store."""
        path = getattr(self.store, "path", self.store)
        # Also a store that is no file of this machine may have a path.
        return f"{path}" if isinstance(path, Path) or path is self.store else f"store://{path}"


class MissingChunkError(Exception):
    """A chunk was asked for, and is not there."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def import_zarr() -> Any:
    """Return zarr.

    Raises:
        ExtraError: it is not installed, or older than version 3.
    """
    zarr = extra("zarr", "reading Zarr arrays", "'slabnorm[zarr]'")
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise ExtraError("Zarr arrays need zarr 3", f"zarr {zarr.__version__}", "pip install 'zarr>=3'")
    return zarr


@contextmanager
def open_array(location: ArrayLocation, strict: bool = False) -> Iterator[Any]:
    """Open an array.

    Args:
        location: of the array.
        strict: whether reading a chunk that is not there raises MissingChunkError.

    Raises:
        DataError: there is none, or its metadata are damaged.
    """
    zarr = import_zarr()
    try:
        store = _store(location)
    except SlabError:
        raise
    except Exception as error:
        raise _unreadable(location, error) from error
    try:
        yield _open(zarr, location, _strict()(store) if strict else store)
    finally:
        if store is not location.store:
            with suppress(AttributeError):  # of a zip file that could not be opened
                store.close()


def find_array(location: ArrayLocation, key: str | None) -> ArrayLocation:
    """Return the location of the array that `key` names in a group, else "x", else the only one.

    Raises:
        DataError: there is none, or none can be told to be x; lists the arrays of a group.
    """
    zarr = import_zarr()
    with open_array(location) as node:
        if isinstance(node, zarr.Array):
            if key is not None:
                raise DataError(
                    f"Not a group but one array: {location.name}",
                    f"key={key!r}, which names an array of a group",
                    "leave key= out",
                )
            return location
        try:
            arrays = sorted(name for name, member in node.members(None) if isinstance(member, zarr.Array))
        except Exception as error:
            raise _unreadable(location, error) from error
    chosen = pick(arrays, key, location.name)
    path = f"{location.path}/{chosen}".strip("/")
    return ArrayLocation(f"{location.name}[{chosen!r}]", location.store, path)


def location_of(node: Any) -> ArrayLocation:
    """Return the location of an opened array or group."""
    zarr = import_zarr()
    store = node.store
    inside = f"[{node.path!r}]" if node.path else ""
    if isinstance(store, zarr.storage.LocalStore):
        return ArrayLocation(f"{store.root}{inside}", str(store.root), node.path)
    return ArrayLocation(f"{store}{inside}", store, node.path)


def metadata_digest(array: Any) -> str:
    """Return a hash of the metadata, without the attributes, which do not change values."""
    plain = array.metadata.to_dict()
    text = json.dumps({k: v for k, v in plain.items() if k != "attributes"}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def stored_shape(array: Any) -> tuple[int, ...]:
    """Return the shape of what is stored as one file: a chunk, or a shard of chunks."""
    shape: tuple[int, ...] = array.shards or array.chunks
    return shape


def chunk_keys(array: Any, first: int, last: int) -> Iterator[str]:
    """Yield the keys of all chunks or shards that rows `first` to `last` lie in."""
    size = stored_shape(array)
    rows = range(first // size[0], -(-last // size[0]))
    others = (range(-(-n // step)) for n, step in zip(array.shape[1:], size[1:], strict=True))
    for index in product(rows, *others):
        yield chunk_key(array, index)


def chunk_key(array: Any, index: tuple[int, ...]) -> str:
    """Return the key in the store of a chunk or shard."""
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}".strip("/")


class ChunkMarks:
    """The marks of a store's chunks, without reading them.

    Attributes:
        lasting: whether it changes when the data do, so that it is good for a fingerprint.
    """

    def __init__(self, array: Any, location: ArrayLocation) -> None:
        zarr = import_zarr()
        self._root = array.store.root if isinstance(array.store, zarr.storage.LocalStore) else None
        self._listed = None if self._root else _listing(zarr, array, location)
        self.lasting = self._root is not None or bool(self._listed and all(self._listed.values()))

    def of(self, wanted: Sequence[str]) -> list[str | None]:
        """Return the mark of each chunk: None if it is not there, "" if the store does not say."""
        if self._root is not None:
            return [_mark_or_none(self._root / key) for key in wanted]
        if self._listed is None:
            return [""] * len(wanted)
        return [self._listed.get(key) for key in wanted]


def _store(location: ArrayLocation) -> Any:
    storage = import_zarr().storage
    if not isinstance(location.store, str):
        return location.store
    if "://" in location.store:
        extra("fsspec", "reading Zarr arrays from URLs", "'slabnorm[zarr]'")
        return storage.FsspecStore.from_url(location.store.rstrip("/"), read_only=True)
    if location.store.lower().endswith(".zip"):
        return storage.ZipStore(location.store, mode="r", read_only=True)
    return storage.LocalStore(location.store, read_only=True)


def _open(zarr: Any, location: ArrayLocation, store: Any) -> Any:
    try:
        node = zarr.open(store=store, path=location.path or None, mode="r")
        if isinstance(node, zarr.Array):
            _check(node, location)
    except SlabError:
        raise
    except Exception as error:  # Zarr raises anything for JSON that is not metadata
        raise _unreadable(location, error) from error
    return node


def _check(array: Any, location: ArrayLocation) -> None:
    """Raise DataError unless an array's metadata are those of numbers that can be read."""
    name, plain = location.name, array.metadata.to_dict()
    # numcodecs has a codec that unpickles, and so runs code from the data.
    codecs = [plain.get(part) for part in ("codecs", "compressor", "filters")]
    if any("pickle" in codec for codec in _names(codecs)):
        raise DataError(f"Pickled data: {name} has a codec that unpickles", fix="write it with another codec")
    check_dtype(array.dtype, name)
    shape = check_shape(array.shape, name)
    for size in (array.chunks, stored_shape(array)):
        if len(size) != len(shape) or not all(0 < step < 1 << 63 for step in size):
            raise DataError(
                f"Impossible chunks: {name}",
                f"shape {shape}, chunks {size!r:.200}",
                "write it again",
            )
    held = array.chunks[0] * math.prod(map(max, array.chunks[1:], shape[1:])) * array.dtype.itemsize
    if held > ROWS_BYTES:
        raise DataError(
            f"Too many bytes in the rows of one chunk: {name}",
            f"{array.chunks[0]} rows, {held:,} bytes: shape {shape} in chunks of {array.chunks}; "
            "they are read at once, and have at most 4 GiB",
            "write it again if that is damage, or with fewer rows in a chunk",
        )
    count = math.prod(-(-n // step) for n, step in zip(shape, stored_shape(array), strict=True))
    if count > CHUNKS:
        raise DataError(
            f"Too many chunks: {name}",
            f"shape {shape} in chunks of {stored_shape(array)} are {count:,}, at most {CHUNKS:,}",
            "write it again if that is damage, or in larger chunks",
        )


def _names(codecs: Any) -> Iterator[str]:
    """Yield the names of codecs, as JSON has them, and of those within, as sharding has."""
    if isinstance(codecs, dict):
        yield from (str(codecs[key]).lower() for key in ("name", "id") if key in codecs)
        codecs = list(codecs.values())
    if isinstance(codecs, list | tuple):
        for codec in codecs:
            yield from _names(codec)


def _unreadable(location: ArrayLocation, error: Exception) -> DataError:
    why = str(error).partition("\n")[0][:300] or type(error).__name__
    return DataError(
        f"No readable Zarr array or group: {location.name}", why, "check the path, or write it again"
    )


@cache
def _strict() -> type:
    """Return the class of a store that raises MissingChunkError where Zarr would use the fill value."""

    # Found by the read itself: no second request, and no time between a check and a read.
    class Strict(import_zarr().storage.WrapperStore):  # type: ignore[misc]
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await super().get(key, prototype, byte_range)
            if found is None and key.rpartition("/")[2] not in _METADATA:
                raise MissingChunkError(key)
            return found

    return Strict


_METADATA = frozenset(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"))


def _mark_or_none(path: Path) -> str | None:
    try:
        return file_mark(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _listing(zarr: Any, array: Any, location: ArrayLocation) -> dict[str, str] | None:
    """Return the marks of all files of an array by their keys; None if the store cannot be listed."""
    from zarr.core.sync import sync  # Zarr has no public function to wait for a store

    store = array.store

    async def listed() -> dict[str, str]:
        if isinstance(store, zarr.storage.FsspecStore):
            infos = await store.fs._find(f"{store.path}/{array.path}".rstrip("/"), detail=True)
            return {name.removeprefix(f"{store.path}/"): _info_mark(info) for name, info in infos.items()}
        mark = _mark_or_none(location.file) or "" if location.file else ""
        return {key: mark async for key in store.list_prefix(f"{array.path}/".lstrip("/"))}

    try:
        found = sync(listed())
    except Exception:  # such as an HTTP server, most of which do not list
        return None
    known = any(f"{array.path}/{name}".strip("/") in found for name in ("zarr.json", ".zarray"))
    return found if known else None


def _info_mark(info: dict[str, Any]) -> str:
    """Return the mark of a file by what its filesystem says of it; "" if that tells no change."""
    mark = remote_mark(info)
    return "" if mark.endswith(":") else mark


# Chunks inside the shards of a Zarr array: which of them a shard's index says are there.
#
# The index is at one end of a shard: offset and length of every chunk, in C order, as little-endian uint64,
# both 2^64 - 1 for a chunk that is not there; mostly a CRC-32C follows (Zarr version 3, sharding_indexed).

_NONE = np.uint64((1 << 64) - 1)


class ShardIndex:
    """Finds chunks that shards do not have.

    Args:
        array: sharded, read through a store that raises MissingChunkError for a shard that is not there.
        layout: the configuration of its sharding.
    """

    def __init__(self, array: Any, layout: dict[str, Any]) -> None:
        self._array, self._size = array, stored_shape(array)
        self._grid = tuple(n // step for n, step in zip(self._size, array.chunks, strict=True))
        checked = any(codec["name"] == "crc32c" for codec in layout["index_codecs"])
        self._bytes = 16 * int(np.prod(self._grid)) + 4 * checked
        self._end = layout.get("index_location", "end") == "end"
        self._table = lru_cache(64)(self._read)  # blocks are shorter than shards, and so need an index again

    @classmethod
    def of(cls, array: Any) -> ShardIndex | None:
        """Return the index of an array, or None if it has no shards or an index of another kind."""
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
        for index in product(rows, *others):
            # The chunks of the rows asked for, without those beyond the array's edge.
            low = [at * step for at, step in zip(index, size, strict=True)]
            ends = (last, *array.shape[1:])
            inside = [
                slice(0, -(-min(end - start, step) // n))
                for start, end, step, n in zip(low, ends, size, array.chunks, strict=True)
            ]
            inside[0] = slice(max(0, first - low[0]) // array.chunks[0], inside[0].stop)
            if (self._table(index)[tuple(inside)] == _NONE).all(-1).any():
                raise MissingChunkError(chunk_key(array, index))

    def _read(self, index: tuple[int, ...]) -> np.ndarray:
        from zarr.abc.store import RangeByteRequest, SuffixByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        part = SuffixByteRequest(self._bytes) if self._end else RangeByteRequest(0, self._bytes)
        key = chunk_key(self._array, index)
        found = sync(self._array.store.get(key, default_buffer_prototype(), part)).to_bytes()
        return np.frombuffer(found, "<u8", 2 * int(np.prod(self._grid))).reshape(*self._grid, 2)


# Zarr arrays, versions 2 and 3, chunked or sharded, in a folder, a zip file or behind a URL.
#
# Zarr reads a chunk that is not there as its fill value. A lost chunk would then be a block of zeros in the
# statistics, so that here it is an error, unless `missing_chunks="fill"` says that chunks were left out on
# purpose, as Zarr does with those that hold the fill value only.

FILES = ("zarr.json", ".zarray", ".zgroup")  # one of which a Zarr folder has
_ABSENT = 1 << 17  # missing chunks; with more the store is another one, and listing them would take over 4 s


@dataclass(frozen=True)
class ZarrShard(Shard):
    """Some rows of a Zarr array."""

    location: ArrayLocation = ArrayLocation("", "")
    fill: bool = False
    digest: str = ""

    def blocks(self) -> Iterator[Block | Unreadable]:
        """Yield the rows of a few chunks at a time."""
        with open_array(self.location, strict=not self.fill) as array:
            if metadata_digest(array) != self.digest:
                raise DataError(
                    f"Changed while it was read: the metadata of {self.name}",
                    fix="read it when it is written",
                )
            if self.first == self.last:
                yield np.empty(array.shape, array.dtype)
                return
            present = None if self.fill else ShardIndex.of(array)
            step = _step(array, BLOCK_BYTES)
            for start in range(self.first, self.last, step):
                yield from self._read(array, present, start, min(start + step, self.last))

    def _read(
        self, array: Any, present: ShardIndex | None, first: int, last: int
    ) -> Iterator[Block | Unreadable]:
        """Yield rows; if that fails, go on chunk by chunk, so that only damaged chunks are left out."""
        try:
            if present:
                present.check(first, last)
            rows = array[first:last]
        except Exception:  # codecs raise errors of any type
            size = array.chunks[0]
            for start in range(first, last, size):
                yield self._chunk_or_why(array, present, start, min(start + size, last))
            return
        yield rows

    def _chunk_or_why(
        self, array: Any, present: ShardIndex | None, first: int, last: int
    ) -> Block | Unreadable:
        """Return the rows of one chunk, or the first chunk along the other axes that cannot be read."""
        others = [range(0, n, step) for n, step in zip(array.shape[1:], array.chunks[1:], strict=True)]
        for corner in product((first,), *others):
            key = chunk_key(array, tuple(at // n for at, n in zip(corner, stored_shape(array), strict=True)))
            name = f"chunk {key} of {self.name}, rows {first} to {last - 1}"
            try:
                if present:
                    present.check(first, last)
                at = (slice(start, start + n) for start, n in zip(corner[1:], array.chunks[1:], strict=True))
                array[(slice(first, last), *at)]
            except MissingChunkError:
                return Unreadable(name, "it is missing", _MISSING, last - first)
            except Exception as error:
                return Unreadable(name, _why(error), samples=last - first)
        try:
            rows: Block = array[first:last]
        except Exception as error:  # such as too little memory
            name = f"rows {first} to {last - 1} of {self.name}"
            return Unreadable(name, _why(error), samples=last - first)
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
        location = location_of(source) if is_zarr(source) else ArrayLocation(str(source), str(source))
        self._fill = missing_chunks == "fill"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dtypes, refused below, and of other files
            self.location = find_array(location, key)
            self._read_metadata()
        word = held_out(self.location.path)
        self.hints = (
            *path_hints([self.location.where.rstrip("/")]),
            *((Hint(f"the array {self.location.path!r}", word),) if word else ()),
        )

    def _read_metadata(self) -> None:
        """Read and check the metadata."""
        self.name = self.location.name
        with open_array(self.location) as array:
            self.shape, self.dtype = tuple(array.shape), array.dtype
            if self._fill and array.metadata.to_dict()["fill_value"] is None:
                raise DataError(
                    f"No fill value: {self.name}", 'missing_chunks="fill"', "bring the missing chunks back"
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
        with open_array(self.location) as array:
            marks, plan = ChunkMarks(array, self.location), metadata_digest(array)
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            memory = 2 * _step(array, BLOCK_BYTES) * row
            shards: list[Shard] = []
            absent = 0
            for number, (first, last) in enumerate(_rows_of_shards(array, self.chunk_values)):
                mark, absent = self._fingerprint(marks, array, (first, last), plan, absent)
                shards.append(
                    ZarrShard(
                        number,
                        self.name,
                        fingerprint=mark,
                        size=row * (last - first),
                        memory=memory,
                        first=first,
                        samples=last - first,
                        location=self.location,
                        fill=self._fill,
                        digest=plan,
                    )
                )
            if self._fill and absent:
                warnings.warn(
                    f"{absent} chunks of {self.name} are missing and count as the fill value"
                    f" {array.fill_value}",
                    DataWarning,
                    stacklevel=2,
                )
        return shards

    def _fingerprint(
        self, marks: ChunkMarks, array: Any, rows: tuple[int, int], plan: str, absent: int
    ) -> tuple[str, int]:
        """Return the fingerprint of some rows, "" if the store has none, and the number of missing chunks."""
        digest, wanted = hashlib.sha256(f"{plan}\n{self._fill}".encode()), chunk_keys(array, *rows)
        while some := list(islice(wanted, 4096)):
            found = marks.of(some)
            absent += found.count(None)
            if absent > _ABSENT and not self._fill:
                raise DataError(f"More than {_ABSENT:,} chunks are missing: {self.name}", fix=_MISSING)
            digest.update("".join(f"\n{'missing' if mark is None else mark}" for mark in found).encode())
        return digest.hexdigest() if marks.lasting else "", absent


def is_zarr(value: Any) -> bool:
    """Whether a value is an opened Zarr array or group; imports nothing."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "zarr" and kind.__name__ in ("Array", "Group")


def is_zarr_folder(path: str) -> bool:
    """Whether a folder is a Zarr store."""
    try:
        return any((Path(path) / name).is_file() for name in FILES)
    except OSError:
        return False


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _rows_of_shards(array: Any, chunk_values: int) -> list[tuple[int, int]]:
    """Return the rows of each shard: as of an array in memory, but at bounds of chunks."""
    found = shard_rows(array.shape, chunk_values)
    if len(found) == 1:
        return found
    rows, size, count = found[0][1], array.chunks[0], array.shape[0]
    step = max(1, rows // size) * size
    return [(first, min(first + step, count)) for first in range(0, count, step)]


def _step(array: Any, most: int) -> int:
    """Return how many rows are read at once: those of whole chunks, of at most `most` bytes if possible."""
    size: int = array.chunks[0]
    row = math.prod(array.shape[1:]) * array.dtype.itemsize
    return max(1, most // max(1, size * row)) * size
