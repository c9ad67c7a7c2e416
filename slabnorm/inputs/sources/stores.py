"""Zarr stores: opening an array by plain data, and which of its chunks are there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from slabnorm.errors import DataError, ExtraError, SlabError
from slabnorm.extras import extra
from slabnorm.inputs.sources.base import check_dtype
from slabnorm.inputs.sources.parts import check_shape
from slabnorm.inputs.sources.samples import pick

CHUNKS = 1 << 24  # files of a store: to look at each takes 4 minutes
ROWS_BYTES = 1 << 32  # decoded: a chunk of zeros is 30 kB for each GB


@dataclass(frozen=True)
class Place:
    """Where an array is; it can be pickled.

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
        # A store that is no file of this machine has a path all the same.
        return f"{path}" if isinstance(path, Path) or path is self.store else f"store://{path}"


class MissingChunkError(Exception):
    """A chunk was asked for, and is not there."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def package() -> Any:
    """Return zarr.

    Raises:
        ExtraError: it is not installed, or older than version 3.
    """
    zarr = extra("zarr", "a Zarr array", "'slabnorm[zarr]'")
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise ExtraError("a Zarr array wants zarr 3", f"zarr {zarr.__version__}", "pip install 'zarr>=3'")
    return zarr


@contextmanager
def opened(place: Place, strict: bool = False) -> Iterator[Any]:
    """Open an array.

    Args:
        place: of the array.
        strict: whether reading a chunk that is not there raises MissingChunkError.

    Raises:
        DataError: there is none, or its metadata are damaged.
    """
    zarr = package()
    try:
        store = _store(place)
    except SlabError:
        raise
    except Exception as error:
        raise _unreadable(place, error) from error
    try:
        yield _open(zarr, place, _strict()(store) if strict else store)
    finally:
        if store is not place.store:
            with suppress(AttributeError):  # of a zip file that could not be opened
                store.close()


def find(place: Place, key: str | None) -> Place:
    """Return the place of the array that `key` names in a group, else "x", else the only one.

    Raises:
        DataError: there is none, or none can be told to be x; lists the arrays of a group.
    """
    zarr = package()
    with opened(place) as node:
        if isinstance(node, zarr.Array):
            if key is not None:
                raise DataError("key= names an array of a group", f"key={key!r} for {place.name}, one array")
            return place
        try:
            arrays = sorted(name for name, member in node.members(None) if isinstance(member, zarr.Array))
        except Exception as error:
            raise _unreadable(place, error) from error
    chosen = pick(arrays, key, place.name)
    path = f"{place.path}/{chosen}".strip("/")
    return Place(f"{place.name}[{chosen!r}]", place.store, path)


def place_of(node: Any) -> Place:
    """Return the place of an opened array or group."""
    zarr = package()
    store = node.store
    inside = f"[{node.path!r}]" if node.path else ""
    if isinstance(store, zarr.storage.LocalStore):
        return Place(f"{store.root}{inside}", str(store.root), node.path)
    return Place(f"{store}{inside}", store, node.path)


def digest(array: Any) -> str:
    """Return a hash of the metadata that decide values."""
    plain = array.metadata.to_dict()
    text = json.dumps({k: v for k, v in plain.items() if k != "attributes"}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def outer(array: Any) -> tuple[int, ...]:
    """Return the shape of what the store holds as one file: a chunk, or a shard of chunks."""
    shape: tuple[int, ...] = array.shards or array.chunks
    return shape


def keys(array: Any, first: int, last: int) -> Iterator[str]:
    """Yield the keys in the store of all that rows `first` to `last` lie in."""
    size = outer(array)
    rows = range(first // size[0], -(-last // size[0]))
    others = (range(-(-n // step)) for n, step in zip(array.shape[1:], size[1:], strict=True))
    for place in product(rows, *others):
        yield key_of(array, place)


def key_of(array: Any, place: tuple[int, ...]) -> str:
    """Return the key in the store of a chunk or shard."""
    return f"{array.path}/{array.metadata.encode_chunk_key(place)}".strip("/")


class Marks:
    """What a store tells of its chunks without reading them.

    Attributes:
        lasting: whether it changes when the data do, so that it is good for a fingerprint.
    """

    def __init__(self, array: Any, place: Place) -> None:
        zarr = package()
        self._root = array.store.root if isinstance(array.store, zarr.storage.LocalStore) else None
        self._listed = None if self._root else _listing(zarr, array, place)
        self.lasting = self._root is not None or bool(self._listed and all(self._listed.values()))

    def of(self, wanted: Sequence[str]) -> list[str | None]:
        """Return what marks each chunk; None for one that is not there, "" if the store does not say."""
        if self._root is not None:
            return [_file_mark(self._root / key) for key in wanted]
        if self._listed is None:
            return [""] * len(wanted)
        return [self._listed.get(key) for key in wanted]


def _store(place: Place) -> Any:
    storage = package().storage
    if not isinstance(place.store, str):
        return place.store
    if "://" in place.store:
        extra("fsspec", "a Zarr array at a URL", "'slabnorm[zarr]'")
        return storage.FsspecStore.from_url(place.store.rstrip("/"), read_only=True)
    if place.store.lower().endswith(".zip"):
        return storage.ZipStore(place.store, mode="r", read_only=True)
    return storage.LocalStore(place.store, read_only=True)


def _open(zarr: Any, place: Place, store: Any) -> Any:
    try:
        node = zarr.open(store=store, path=place.path or None, mode="r")
        if isinstance(node, zarr.Array):
            _check(node, place)
    except SlabError:
        raise
    except Exception as error:  # whatever a reader of JSON makes of JSON that is no metadata
        raise _unreadable(place, error) from error
    return node


def _check(array: Any, place: Place) -> None:
    """Raise DataError unless an array's metadata are those of numbers that can be read."""
    name, plain = place.name, array.metadata.to_dict()
    # numcodecs has a codec that runs what the data say; old versions of it do so without being asked.
    codecs = [plain.get(part) for part in ("codecs", "compressor", "filters")]
    if any("pickle" in codec for codec in _names(codecs)):
        raise DataError(
            "data are never unpickled", f"{name} has a codec that does", "write it with another codec"
        )
    check_dtype(array.dtype, name)
    shape = check_shape(array.shape, name)
    for size in (array.chunks, outer(array)):
        if len(size) != len(shape) or not all(0 < step < 1 << 63 for step in size):
            raise DataError(
                "a Zarr array has chunks, as long as 1 or more along each axis of its shape",
                f"{name}: shape {shape}, chunks {size!r:.200}",
                "write it again",
            )
    held = array.chunks[0] * math.prod(map(max, array.chunks[1:], shape[1:])) * array.dtype.itemsize
    if held > ROWS_BYTES:
        raise DataError(
            "the rows of a Zarr array that lie in one chunk are read at once, and have at most 4 GiB",
            f"{name}: {array.chunks[0]} rows, {held:,} bytes: shape {shape} in chunks of {array.chunks}",
            "write it again if that is damage, or with fewer rows in a chunk",
        )
    count = math.prod(-(-n // step) for n, step in zip(shape, outer(array), strict=True))
    if count > CHUNKS:
        raise DataError(
            f"a Zarr array has at most {CHUNKS:,} chunks or shards",
            f"{name}: shape {shape} in chunks of {outer(array)} are {count:,}",
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


def _unreadable(place: Place, error: Exception) -> DataError:
    why = str(error).partition("\n")[0][:300] or type(error).__name__
    return DataError(
        "a Zarr store holds an array or a group, with whole metadata",
        f"{place.name}: {why}",
        "check the path, or write it again",
    )


@cache
def _strict() -> type:
    """Return a store around another that raises where Zarr would take the fill value."""

    # The read itself tells: no second request, and nothing can happen between a check and a read.
    class Strict(package().storage.WrapperStore):  # type: ignore[misc]
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await super().get(key, prototype, byte_range)
            if found is None and key.rpartition("/")[2] not in _METADATA:
                raise MissingChunkError(key)
            return found

    return Strict


_METADATA = frozenset(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"))


def _file_mark(path: Path) -> str | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{status.st_size}:{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else None


def _listing(zarr: Any, array: Any, place: Place) -> dict[str, str] | None:
    """Return the keys below an array, with what changes when their content does; None if it cannot be had."""
    from zarr.core.sync import sync  # there is no public way to wait for a store

    store = array.store

    async def listed() -> dict[str, str]:
        if isinstance(store, zarr.storage.FsspecStore):
            infos = await store.fs._find(f"{store.path}/{array.path}".rstrip("/"), detail=True)
            return {name.removeprefix(f"{store.path}/"): _info_mark(info) for name, info in infos.items()}
        mark = _file_mark(place.file) or "" if place.file else ""
        return {key: mark async for key in store.list_prefix(f"{array.path}/".lstrip("/"))}

    try:
        found = sync(listed())
    except Exception:  # a server without listings, as most of HTTP
        return None
    known = any(f"{array.path}/{name}".strip("/") in found for name in ("zarr.json", ".zarray"))
    return found if known else None


def _info_mark(info: dict[str, Any]) -> str:
    when = next((info[name] for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
                 if info.get(name)), "")  # fmt: skip
    return f"{info.get('size')}:{when}" if when else ""
