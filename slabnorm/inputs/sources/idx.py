"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST, plain or compressed with gzip.

Two zero bytes, a code for the type, the number of axes, their sizes as big-endian 32-bit integers, and the
values, also big-endian. A plain file is read as a `.npy` file is: in shards, from any row on. A compressed
one is read once, from its start to its checksum, a few rows at a time: to begin at a later row, gzip would
have to unpack all before it again, and one buffer for all of it would hold what nobody needs at once.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from slabnorm.errors import DataError, DataWarning, OptionError
from slabnorm.inputs.sources.base import Block, Schema, Source, Stream, pick
from slabnorm.inputs.sources.files import HIDDEN_FROM_TABLES, listed, walk
from slabnorm.inputs.sources.npy import Header, NpySource, check_size, read_rows, unreadable
from slabnorm.inputs.split import held_out, path_hints, says_train
from slabnorm.text import printable

ENDINGS = ("-ubyte", "-ubyte.gz")  # as in train-images-idx3-ubyte and train-images.idx3-ubyte
# Of single files alone: in folders, .idx is mostly what other programs call the index of an archive.
OTHER_ENDINGS = (".idx", ".idx.gz")
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_DEFLATE = 1032  # bytes that one byte can unpack to
_AGAIN = "fetch or write the file again"
_SUFFIX = re.compile(r"([-._]images)?[-._](idx\d-)?ubyte(\.gz)?$", re.IGNORECASE)


def open_idx(path: str, key: str | None = None) -> Source | Stream:
    """Return the source of an IDX file, or of one in a folder.

    Args:
        path: a file or a folder.
        key: which file of a folder, as in `list_folder`; by default its only one, or its only training data.

    Raises:
        OptionError: `key` is given for a file.
        DataError: the folder has no such file, or several that could be meant; or one cannot be opened.

    Warns:
        DataWarning: the folder has other files, which are not read.
    """
    if os.path.isdir(path):
        files = list_folder(path)
        chosen = _choose(files, key, path)
        if key is None and len(files) > 1:
            others = [printable(files[name]) for name in files if name != chosen]
            text = f"{printable(files[chosen])} is read, and not {listed(others)}, which key= would name"
            warnings.warn(text, DataWarning, stacklevel=4)
        return _open_file(files[chosen], path)
    if key is not None:
        problem = "key= is for a folder of IDX files, and this is one file"
        raise OptionError(problem, f"key={key!r:.200} for {printable(path)}", "leave it out")
    return _open_file(Path(path), "")


def is_compressed(path: str, key: str | None = None) -> bool:
    """Whether the file that `open_idx` reads is compressed, and so is read once. Raises as `open_idx`."""
    if not os.path.isdir(path):
        return _is_gzip(Path(path))
    files = list_folder(path)
    return _is_gzip(files[_choose(files, key, path)])


def list_folder(folder: str) -> dict[str, Path]:
    """Return the IDX files in a folder and below, but for labels, by name.

    The name is what stands before "-images" or "-idx": "train" of train-images-idx3-ubyte. Of a file that is
    there plain and compressed, as torchvision leaves them, the plain one is taken.

    Raises:
        DataError: the folder cannot be listed.
    """
    names = [file.name for file in walk(folder, HIDDEN_FROM_TABLES, [])]
    found: dict[str, Path] = {}
    for name in sorted(names, key=lambda name: (name.lower().endswith(".gz"), name)):
        if name.lower().endswith(ENDINGS) and not _is_labels(name):
            found.setdefault(_SUFFIX.sub("", name), Path(folder, name))
    return dict(sorted(found.items()))


def role_of(entry: str) -> str:
    """Return "train" or "test", as the nearest name in the path of a file says that says anything; else "".

    >>> role_of("t10k"), role_of("emnist-letters-train"), role_of("test/images")
    ('test', 'train', 'test')
    """
    for name in reversed(entry.split(os.sep)):
        if held_out(name):
            return "test"
        if says_train(name):
            return "train"
    return ""


def labels_beside(images: Path) -> Path:
    """Return the file of the labels that belong to a file of images, plain or compressed.

    Raises:
        DataError: there is none.
    """
    name = images.name.removesuffix(".gz").replace("images", "labels")
    name = re.sub(r"idx\d", "idx1", name)
    for path in (images.with_name(name), images.with_name(f"{name}.gz")):
        if path.is_file() and path != images:
            return path
    raise DataError(
        f"No labels beside {printable(images)}",
        f"no {printable(name)} or {printable(name)}.gz",
        "put them into the same folder",
    )


def read_idx(path: Path, most: int) -> np.ndarray:
    """Return the whole array of an IDX file, in this machine's byte order.

    Raises:
        DataError: it is none, is damaged, or has more than `most` bytes.
    """
    name = printable(path)
    with _opened(path, name) as (file, header):
        size = math.prod(header.shape) * header.dtype.itemsize
        if size > most:
            fix = "give a part of it"
            raise DataError(f"Too large for memory: {name}", f"{size:,} bytes, at most {most:,}", fix)
        array = np.empty(header.shape, header.dtype.newbyteorder("="))
        done = 0
        for rows in read_rows(file, header, name, 0, header.shape[0]):
            array[done : done + len(rows)] = rows
            done += len(rows)
        _check_end(file, header, name)
    return array


class IdxSource(NpySource):
    """One IDX file that is not compressed."""

    def __init__(self, path: Path, folder: str) -> None:
        super().__init__(path)
        self.hints = path_hints([path], folder)

    def _read_header(self, file: IO[bytes], name: str) -> Header:
        return _read_header(file, name)


class IdxStream(Stream):
    """One IDX file that is compressed."""

    unit = "rows"

    def __init__(self, path: Path, folder: str) -> None:
        self.name = str(path)
        self.hints = path_hints([path], folder)
        self._path = path

    def schema(self) -> Schema:
        """Return shape and dtype of the samples, from the header."""
        with _opened(self._path, self.name) as (_, header):
            return header.schema(self.name)

    def blocks(self) -> Iterator[Block]:
        """Yield a few rows at a time, and compare the checksum at the end."""
        with _opened(self._path, self.name) as (file, header):
            yield from read_rows(file, header, self.name, 0, header.shape[0])
            _check_end(file, header, self.name)


def _open_file(path: Path, folder: str) -> Source | Stream:
    return IdxStream(path, folder) if _is_gzip(path) else IdxSource(path, folder)


def _choose(files: dict[str, Path], key: str | None, folder: str) -> str:
    """Return the name of one of these files."""
    names = list(files)
    training = [name for name in names if role_of(name) == "train"]
    if key is None and len(training) == 1:
        return training[0]
    if not names:
        fix = "put the images beside them"
        raise DataError(f"No IDX file but labels in the folder {printable(folder)}", "", fix)
    names.sort(key=lambda name: role_of(name) != "train")  # the first is what the message proposes
    return pick(names, key, f"the folder {printable(folder)}")


def _is_labels(name: str) -> bool:
    name = os.path.basename(name).lower()
    return "label" in name or "idx1-" in name


def _is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes: some servers unpack it, and leave its name."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == _GZIP
    except OSError as error:
        raise unreadable(str(path), error) from error


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], Header]]:
    """Open a file, compressed or not, and give it behind its header, which has been checked.

    Raises:
        DataError: also for damage to what gzip reads meanwhile.
    """
    packed = _is_gzip(path)
    try:
        opened: Any = gzip.open if packed else open
        with opened(path, "rb") as file:
            header, held = _read_header(file, name), os.path.getsize(path)
            if packed:
                _check_claim(header, held, name)
            else:
                check_size(header, held - file.tell(), name)
            yield file, header
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"Damaged gzip file: {name}", str(error), _AGAIN) from error
    except OSError as error:
        raise unreadable(name, error) from error
    except MemoryError as error:
        raise DataError(f"Not enough memory to read {name}", fix="give a part of it") from error


def _read_header(file: IO[bytes], name: str) -> Header:
    """Return what the header says.

    Raises:
        DataError: it is none.
    """
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        begins = f"it begins with the bytes {magic.hex(' ')}" if magic else "it is empty"
        raise DataError(f"Not an IDX file: {name}", f"{begins}, and not with 00 00, type, axes", _AGAIN)
    code, axes = magic[2], magic[3]
    if code not in TYPES:
        known = ", ".join(f"0x{known:02X}" for known in TYPES)
        raise DataError(f"Unknown type of values: {name}", f"code 0x{code:02X}; known are {known}", _AGAIN)
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        got = f"{len(sizes)} bytes for the sizes of {axes} axes, which take {4 * axes}"
        raise DataError(f"Truncated header: {name}", got, _AGAIN)
    return Header(tuple(np.frombuffer(sizes, ">u4").tolist()), False, np.dtype(TYPES[code]))


def _check_claim(header: Header, packed: int, name: str) -> None:
    """Raise DataError unless a compressed file of so many bytes can hold what its header says."""
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > packed * _DEFLATE:
        raise DataError(
            f"Truncated, or a damaged header: {name}",
            f"shape {header.shape} of {header.dtype} are {size:,} bytes, to which {packed:,} cannot unpack",
            _AGAIN,
        )
    check_size(header, size, name)


def _check_end(file: IO[bytes], header: Header, name: str) -> None:
    """Raise DataError if there is more. Reading on also makes gzip compare its checksum."""
    if file.read(1):
        raise DataError(
            f"More data than the header says: {name}",
            f"bytes behind those of shape {header.shape} of {header.dtype}",
            "keep one array per file",
        )
