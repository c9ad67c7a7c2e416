"""`.npy` and `.npz` files, streamed: a few rows at a time, whatever the size of the file.

Read, not memory-mapped: a map of a file that shrinks meanwhile ends the process with SIGBUS, a read
ends in an error. Only arrays in Fortran order, whose rows are scattered, are mapped (`.npy`) or
loaded whole (`.npz`).
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import BLOCK_BYTES, Block, Shard, Source, Stream, check_array
from slabnorm.inputs.sources.parts import bounds, fingerprint
from slabnorm.inputs.sources.samples import pick
from slabnorm.inputs.split import Hint, held_out, path_hints

# What numpy lets through from its reading of a header as Python text.
_BROKEN = (ValueError, SyntaxError, EOFError, RecursionError, MemoryError, TypeError, TokenError)
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


@dataclass(frozen=True)
class NpyShard(Shard):
    """Some rows of a `.npy` file.

    Its header has been read: in threads, Python 3.11, which parses it, raises SystemError now and then.
    """

    path: Path = Path()
    start: int = 0
    header: _Header | None = None

    def blocks(self) -> Iterator[Block]:
        """Yield a few rows at a time."""
        header = self.header
        assert header is not None
        try:
            with open(self.path, "rb") as file:
                _check_size(header, self.path.stat().st_size - self.start, self.name)
                if not header.fortran:
                    file.seek(self.start)
                    yield from _rows(file, header, self.name, self.first, self.last)
                    return
            shape, start = header.shape, self.start
            yield np.memmap(self.path, header.dtype, "r", start, shape, "F")[self.first : self.last]
        except OSError as error:
            raise _unreadable(self.name, error) from error


class NpySource(Source):
    """One `.npy` file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.hints = path_hints([path])
        self._path = path

    def shards(self) -> list[Shard]:
        """Return runs of rows."""
        try:
            with open(self._path, "rb") as file:
                header = _read_header(file, self.name)
                start = file.tell()
                _check_size(header, self._path.stat().st_size - start, self.name)
                mark = fingerprint(self._path)
        except OSError as error:
            raise _unreadable(self.name, error) from error
        row = math.prod(header.shape[1:]) * header.dtype.itemsize
        return [
            NpyShard(
                number, self.name, mark, row * (last - first), 2 * max(BLOCK_BYTES, row), first,
                last - first, self._path, start, header,
            )
            for number, (first, last) in enumerate(bounds(header.shape))
        ]  # fmt: skip


class NpzSource(Stream):
    """One array of an `.npz` file: that named by `key`, else `x`, else the only one."""

    unit = "rows"

    def __init__(self, path: Path, key: str | None) -> None:
        self._path = path
        with self._open() as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        self._key = pick(members, key, str(path))
        self.name = f"{path}[{self._key!r}]"
        word = held_out(self._key)
        self.hints = (
            *path_hints([path]),
            *((Hint(f"the array {self._key!r} of {path}", word),) if word else ()),
        )

    def blocks(self) -> Iterator[Block]:
        """Yield a few rows at a time: a compressed file is read from the start."""
        with self._open() as archive:
            try:
                info = archive.getinfo(f"{self._key}.npy")
                with archive.open(info) as file:
                    header = _read_header(file, self.name)
                    _check_size(header, info.file_size - file.tell(), self.name)
                    if header.fortran:
                        data = np.frombuffer(file.read(), header.dtype)
                        yield data.reshape(header.shape, order="F")
                    else:
                        count = header.shape[0] if header.shape else 0
                        yield from _rows(file, header, self.name, 0, count)
            except _BROKEN_ZIP as error:
                raise DataError(
                    "an npz file is a zip archive without damage",
                    f"{self.name}: {error}",
                    "write the file again",
                ) from error
            except OSError as error:
                raise _unreadable(self.name, error) from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except zipfile.BadZipFile as error:
            raise DataError(
                "an npz file is a whole zip archive", f"{self._path}: {error}", "write the file again"
            ) from error
        except OSError as error:
            raise _unreadable(str(self._path), error) from error


def _read_header(file: IO[bytes], name: str) -> _Header:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        # Version 3.0 exists for field names of structured arrays, which are refused anyway.
        if version not in readers:
            raise ValueError(f"format version {version[0]}.{version[1]}")
        header = _Header(*readers[version](file))
    except _BROKEN as error:
        raise DataError(
            "an npy file begins with a whole header", f"{name}: {error}", "write it again with numpy.save"
        ) from error
    if any(size < 0 for size in header.shape):
        raise DataError("sizes in an npy header are not negative", f"{name}: shape {header.shape}")
    check_array(np.empty(0, header.dtype), name)
    return header


def _check_size(header: _Header, held: int, name: str) -> None:
    said = math.prod(header.shape) * header.dtype.itemsize
    if said != held:
        raise DataError(
            "an npy file holds as much data as its header says",
            f"{name}: shape {header.shape} of {header.dtype} are {said} bytes, the file has {held}",
            "the file is truncated: write it again" if held < said else "keep one array per file",
        )


def _rows(file: IO[bytes], header: _Header, name: str, first: int, last: int) -> Iterator[np.ndarray]:
    if not header.shape:
        yield np.frombuffer(file.read(), header.dtype).reshape(())
        return
    rest = header.shape[1:]
    row = math.prod(rest) * header.dtype.itemsize
    rows = max(1, BLOCK_BYTES // max(1, row))
    if first:
        file.seek(first * row, os.SEEK_CUR)
    for start in range(first, max(first + 1, last), rows):
        wanted = min(rows, last - start)
        data = file.read(wanted * row)
        if len(data) < wanted * row:
            raise DataError(
                "an npy file does not shrink while it is read",
                f"{name}: row {start} and after are missing",
                "write the file again",
            )
        yield np.frombuffer(data, header.dtype).reshape(wanted, *rest)


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError("a data file can be read", f"{name}: {error.strerror or error}", "check path and rights")
