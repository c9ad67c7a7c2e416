"""`.npy` and `.npz` files, streamed: a few rows at a time, whatever the size of the file.

Read, not memory-mapped: a map of a file that shrinks meanwhile ends the process with SIGBUS, a read
ends in an error. Only arrays in Fortran order, whose rows are scattered, are mapped (`.npy`) or
loaded whole (`.npz`, up to 1 GiB: a file of 2 MB can hold 2 GB of zeros).
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from slabnorm.errors import DataError, SlabError
from slabnorm.inputs.sources.base import (
    BLOCK_BYTES,
    Block,
    Schema,
    Shard,
    Source,
    Stream,
    check_dtype,
    check_shape,
    empty,
    pick,
    shard_rows,
)
from slabnorm.inputs.sources.files import file_mark
from slabnorm.inputs.split import Hint, held_out, path_hints
from slabnorm.text import printable

# The errors that NumPy lets through when it parses a header, which is Python text.
_BROKEN = (ValueError, SyntaxError, EOFError, RecursionError, MemoryError, TypeError, TokenError)
_HEADER = 10_000  # bytes; NumPy's own limit, which it applies to what it has read
_WHOLE = 1 << 30  # bytes that an array may have which is loaded whole
# Bytes of a sample, which is read at once: the header of a sparse file can claim any number.
_SAMPLE = 1 << 32


CheckDtype = Callable[[np.dtype, str], None]  # raises DataError for a dtype that is not taken


@dataclass(frozen=True)
class Header:
    """What the header of a file says of the array behind it."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def schema(self, name: str) -> Schema:
        """Return what all samples have in common.

        Raises:
            DataError: there are none.
        """
        if not self.shape[0]:
            raise empty(name)
        return Schema(self.shape[1:], self.dtype.newbyteorder("=").name)


@dataclass(frozen=True)
class NpyShard(Shard):
    """Some rows of a `.npy` file.

    Its header has been read: in threads, Python 3.11, which parses it, raises SystemError now and then.
    """

    path: Path = Path()
    start: int = 0
    header: Header | None = None

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield a few rows at a time."""
        header = self.header
        assert header is not None
        try:
            with open(self.path, "rb") as file:
                check_size(header, self.path.stat().st_size - self.start, self.name)
                if not header.fortran:
                    file.seek(self.start)
                    yield from read_rows(file, header, self.name, self.first, self.last)
                    return
            shape, start = header.shape, self.start
            yield np.memmap(self.path, header.dtype, "r", start, shape, "F")[self.first : self.last]
        except OSError as error:
            raise unreadable(self.name, error) from error


class NpySource(Source):
    """One `.npy` file, or one of another format that is a header and then the values."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.hints = path_hints([path])
        self._path = path

    def schema(self) -> Schema:
        """Return shape and dtype of the samples, from the header."""
        return self._read_start()[0].schema(self.name)

    def shards(self) -> list[NpyShard]:
        """Return runs of rows."""
        header, start, mark = self._read_start()
        row = header.sample_bytes
        return [
            NpyShard(
                number,
                self.name,
                fingerprint=mark,
                size=row * (last - first),
                memory=2 * max(BLOCK_BYTES, row),
                first=first,
                samples=last - first,
                path=self._path,
                start=start,
                header=header,
            )
            for number, (first, last) in enumerate(shard_rows(header.shape, self.chunk_values))
        ]

    def _read_header(self, file: IO[bytes], name: str) -> Header:
        return _read_npy_header(file, name)

    def _read_start(self) -> tuple[Header, int, str]:
        """Return the header, where the values begin, and the file's mark."""
        try:
            with open(self._path, "rb") as file:
                header = self._read_header(file, self.name)
                start = file.tell()
                check_size(header, self._path.stat().st_size - start, self.name)
                return header, start, file_mark(self._path)
        except OSError as error:
            raise unreadable(self.name, error) from error


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file, in memory.

    Raises:
        DataError: it is none, or damaged.
    """
    blocks = [block for shard in NpySource(path).shards() for block in shard.blocks()]
    return np.concatenate(blocks)


class NpzSource(Stream):
    """One array of an `.npz` file: that named by `key`, else `x`, else the only one."""

    unit = "rows"

    def __init__(self, path: Path, key: str | None) -> None:
        self._path = path
        with self._open(str(path)) as archive:
            members = check_members(archive, str(path))
        self._key = pick(members, key, str(path))
        self.name = f"{path}[{self._key!r}]"
        word = held_out(self._key)
        self.hints = (
            *path_hints([path]),
            *((Hint(f"the array {self._key!r} of {path}", word),) if word else ()),
        )

    def schema(self) -> Schema:
        """Return shape and dtype of the samples, from the header."""
        with self._open(self.name) as archive, archive.open(f"{self._key}.npy") as file:
            return _member_header(archive, file, self._key, self.name).schema(self.name)

    def blocks(self) -> Iterator[Block]:
        """Yield a few rows at a time: a compressed file is read from the start.

        Reading a member to its end compares its checksum; when all is read the other members' are compared,
        too, so that no byte is read twice.
        """
        with self._open(self.name) as archive:
            with archive.open(f"{self._key}.npy") as file:
                header = _member_header(archive, file, self._key, self.name)
                if header.fortran:
                    yield _read_whole(file, header, self.name)
                else:
                    yield from read_rows(file, header, self.name, 0, header.shape[0])
            with _zip_errors(str(self._path)):
                _check_others(archive, f"{self._key}.npy")

    @contextmanager
    def _open(self, name: str) -> Iterator[zipfile.ZipFile]:
        with _zip_errors(name), zipfile.ZipFile(self._path) as archive:
            yield archive


def open_npz(archive: np.lib.npyio.NpzFile, key: str | None) -> tuple[str, np.ndarray]:
    """Return the name and the values of one array of an opened `.npz` file.

    Raises:
        DataError: there is no such array, or the file is damaged.
    """
    name = "the npz file"
    file: Any = archive.zip  # None if it is closed, which is handled like any other error
    with _zip_errors(name):
        chosen = pick(check_members(file, name), key, name)
        array = _read_member(file, chosen, f"npz[{chosen!r}]", check_dtype)
        _check_others(file, f"{chosen}.npy")
    return chosen, array


def read_labelled(path: Path, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays x and y of an `.npz` file, in memory. They may hold text; nothing is unpickled.

    Raises:
        DataError: one is not there, the file is damaged, or unpacked it has more than `most` bytes.
    """
    name = printable(path)
    with _zip_errors(name), zipfile.ZipFile(path) as archive:
        members = check_members(archive, name)
        size = sum(member.file_size for member in archive.infolist())
        if size > most:
            raise DataError(
                f"Too large for memory: {name}",
                f"{size / 2**30:.1f} GiB unpacked, at most {most >> 30} GiB",
                "give a subset",
            )
        missing = [key for key in ("x", "y") if key not in members]
        if missing:
            held = f"it holds {', '.join(map(repr, members[:10])) or 'nothing'}"
            raise DataError(f"No array {missing[0]!r} in {name}", held, "numpy.savez(path, x=x, y=y)")
        x, y = (_read_member(archive, key, f"{name}[{key!r}]", _check_labels) for key in ("x", "y"))
    return x, y


def _check_labels(dtype: np.dtype, where: str) -> None:
    """Raise DataError unless a dtype is one of numbers or text."""
    if dtype.kind not in "fUS":
        check_dtype(dtype, where)


def _read_member(archive: zipfile.ZipFile, key: str, name: str, check: CheckDtype) -> np.ndarray:
    """Return one array, and compare its checksum."""
    with archive.open(f"{key}.npy") as member:
        header = _member_header(archive, member, key, name, check)
        if header.fortran:
            return _read_whole(member, header, name)
        return np.concatenate([*read_rows(member, header, name, 0, header.shape[0])])


def check_members(archive: zipfile.ZipFile, name: str) -> list[str]:
    """Return the names of an archive's arrays.

    Raises:
        DataError: a member is no array, or two have one name, as one whose name has changed by a bit.
    """
    names = archive.namelist()
    wrong = next((member for member in names if not member.endswith(".npy")), None)
    if wrong is not None:
        raise DataError(
            f"Not an array in {name}: {wrong!r:.200}",
            "the names of all members end in .npy",
            "write it again with numpy.savez: its table of contents is damaged, or other files were added",
        )
    if len(set(names)) < len(names):
        twice = next(member for member in names if names.count(member) > 1)
        raise DataError(
            f"Two arrays of one name in {name}: {twice!r:.200}", fix="write it again with numpy.savez"
        )
    for member in archive.infolist():
        archive.open(member).close()  # compares the member's two names
    return [member.removesuffix(".npy") for member in names]


def _check_others(archive: zipfile.ZipFile, read: str) -> None:
    """Compare the checksums of all members but one."""
    for member in archive.infolist():
        if member.filename != read:
            with archive.open(member) as file:
                while file.read(1 << 20):
                    pass


@contextmanager
def _zip_errors(name: str) -> Iterator[None]:
    """Raise DataError for what zipfile raises: of damage, passwords and compression it does not know."""
    try:
        yield
    except SlabError:
        raise
    except MemoryError as error:  # a file of 2 MB can hold 2 GB of zeros
        raise DataError(
            f"Not enough memory to read {name}", fix="fit a part of it, or save it as .npy"
        ) from error
    except OSError as error:
        raise unreadable(name, error) from error
    # BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, zlib.error, ...
    except Exception as error:
        raise DataError(
            f"Damaged npz file: {name}", f"{str(error) or type(error).__name__:.300}", "write the file again"
        ) from error


def _read_npy_header(file: IO[bytes], name: str, check: CheckDtype = check_dtype) -> Header:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    # Read exactly the header, as a member of an archive is read once, from its start.
    start = file.read(8)
    size = file.read(2 if start[6:7] == b"\x01" else 4)
    try:
        length = int.from_bytes(size, "little")
        text = io.BytesIO(start + size + (file.read(length) if length <= _HEADER else b""))
        version = np.lib.format.read_magic(text)
        # Version 3.0 exists for field names of structured arrays, which are refused anyway.
        if version not in readers:
            raise ValueError(f"format version {version[0]}.{version[1]}")
        if length > _HEADER:
            raise ValueError(f"{length:,} bytes of text")
        header = Header(*readers[version](text))
    except _BROKEN as error:
        raise DataError(f"Damaged header: {name}", str(error), "write it again with numpy.save") from error
    check(header.dtype, name)
    return header


def _member_header(
    archive: zipfile.ZipFile, file: IO[bytes], key: str, name: str, check: CheckDtype = check_dtype
) -> Header:
    header = _read_npy_header(file, name, check)
    check_size(header, archive.getinfo(f"{key}.npy").file_size - file.tell(), name)
    return header


def check_size(header: Header, held: int, name: str) -> None:
    """Raise DataError unless the shape is valid and the file has as many bytes as it says."""
    said = math.prod(header.shape) * header.dtype.itemsize
    if said != held and not any(size < 0 for size in header.shape):
        raise DataError(
            f"Truncated: {name}" if held < said else f"More data than the header says: {name}",
            f"shape {header.shape} of {header.dtype} are {said} bytes, the file has {held}",
            "write it again" if held < said else "keep one array per file",
        )
    check_shape(header.shape, name)
    if header.shape[0] and header.sample_bytes > _SAMPLE:
        raise DataError(
            f"Samples too large: {name}",
            f"shape {header.shape} of {header.dtype}: {header.sample_bytes:,} bytes a sample, at most 4 GiB",
            "put the samples along the first axis, and cut each to pieces",
        )


def _read_whole(file: IO[bytes], header: Header, name: str) -> np.ndarray:
    """Return a whole array in Fortran order, as each of its rows is scattered over all of it."""
    size = header.sample_bytes * header.shape[0]
    if size > _WHOLE:
        raise DataError(
            f"Too large an array in Fortran order: {name}",
            f"{size:,} bytes; in an npz file it is loaded whole, and has at most 1 GiB",
            "save it as .npy, or in C order, as with numpy.ascontiguousarray",
        )
    data = _read_exactly(file, size, name, 0)
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F")


def read_rows(file: IO[bytes], header: Header, name: str, first: int, last: int) -> Iterator[np.ndarray]:
    """Yield rows in C order, a few at a time, from a file that stands behind its header.

    Raises:
        DataError: the file ends before the last of them.
    """
    row = header.sample_bytes
    rows = max(1, BLOCK_BYTES // row)
    if first:
        file.seek(first * row, os.SEEK_CUR)
    for start in range(first, max(first + 1, last), rows):
        wanted = min(rows, last - start)
        data = _read_exactly(file, wanted * row, name, start)
        yield np.frombuffer(data, header.dtype).reshape(wanted, *header.shape[1:])


def _read_exactly(file: IO[bytes], size: int, name: str, row: int) -> bytes:
    try:
        data = file.read(size)
    except MemoryError as error:
        problem = f"Not enough memory to read {name}"
        raise DataError(problem, f"{size:,} bytes at once", "cut the samples to pieces") from error
    if len(data) < size:
        raise DataError(
            f"Truncated while it was read: {name}", f"row {row} and after are missing", "write the file again"
        )
    return data


def unreadable(name: str, error: OSError) -> DataError:
    """Return the error of a file that the system does not let us read."""
    return DataError(f"Cannot read {name}", str(error.strerror or error), "check path and rights")
