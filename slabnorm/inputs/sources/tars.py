"""Tars of images, as WebDataset writes them: image members are samples, all others are ignored.

Of an uncompressed tar the headers are read once; then its members are read from where they lie, by any
worker. A compressed one is a stream, and one shard. Nothing is extracted: a name is a label, wherever
it points.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources.base import BrokenShard, Unreadable
from slabnorm.inputs.sources.files import (
    HIDDEN,
    drop_special_files,
    expand_braces,
    file_mark,
    is_glob,
    list_pattern,
    listed,
)
from slabnorm.inputs.sources.images import (
    MOST_BYTES,
    ImageShard,
    ImageSource,
    decoding_bytes,
    is_image,
    label_of,
    shard_runs,
)
from slabnorm.inputs.split import Hint, inner_hints, path_hints

SUFFIXES = (".tar", ".tar.gz", ".tgz")


def is_tar(path: str) -> bool:
    """Whether a file's name is that of a tar; names that begin with a dot are hidden."""
    name = path.rpartition("/")[2]
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_pattern(path: str) -> bool:
    """Whether a path names several tars, by braces or wildcards."""
    return path.lower().endswith(SUFFIXES) and bool(re.search(r"[{*?\[]", path))


def expand(pattern: str) -> list[Path]:
    """Return the files that a pattern names: braces in their order, wildcards sorted.

    >>> [path.name for path in expand("train-{008..010}.tar")]
    ['train-008.tar', 'train-009.tar', 'train-010.tar']

    Raises:
        DataError: wildcards that no file fits, or too many files.

    Warns:
        DataWarning: what is no file was left out, and folders that links lead to a second time.
    """
    paths: list[str] = []
    left_out: list[str] = []
    for text in expand_braces(pattern):
        if not is_glob(text) or os.path.exists(text):
            paths.append(text)
            continue
        base, found = list_pattern(text, HIDDEN, left_out)
        files = drop_special_files(base, found, left_out)
        names = [os.path.join(base, file.name) for file in files]
        if not any(map(is_tar, names)):
            raise DataError(f"No file fits {label_of(text)}", fix="check the path")
        paths += filter(is_tar, names)
    if left_out:
        warnings.warn(f"{label_of(pattern)}: left out {listed(left_out)}", DataWarning, stacklevel=5)
    return [Path(path) for path in paths]


def open_tars(paths: Sequence[Path], name: str, convert: str | None) -> ImageSource:
    """Return the source of some tars. A tar that cannot be read becomes a broken shard.

    Raises:
        DataError: a tar that is not there.

    Warns:
        DataWarning: members called like images that are no files were left out.
    """
    shards: list[ImageShard] = []
    hints: dict[Hint, None] = dict.fromkeys(path_hints(paths))
    links: list[str] = []
    for path in paths:
        try:
            mark, size = file_mark(path), os.path.getsize(path)
        except FileNotFoundError as error:
            raise DataError(f"No such data file: {label_of(path)}", fix="check the path") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise DataError(f"Cannot read {label_of(path)}", why, "check the path") from error
        if not path.name.lower().endswith(".tar"):
            shards.append(StreamShard(len(shards), label_of(path), mark, size, path=path))
            continue
        try:
            members = list(_members(path, links))
        except DataError as error:
            shards.append(BrokenTar(len(shards), label_of(path), mark, size, error=error))
            continue
        hints |= dict.fromkeys(inner_hints(member.name for member in members))
        shards += _tar_shards(path, members, mark, len(shards))
    if links:
        text = f"{label_of(name)}: left out members that are links: {listed(links, 1)}"
        warnings.warn(text, DataWarning, stacklevel=5)
    return ImageSource(label_of(name), shards, tuple(hints), convert)


class Member(NamedTuple):
    """An image in a tar: where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarShard(ImageShard):
    """Some members of an uncompressed tar."""

    path: Path = Path()
    members: tuple[Member, ...] = ()

    def files(self) -> Iterator[tuple[str, bytes | Unreadable]]:
        """Yield each member's name and bytes."""
        with _tar_errors(self.path), open(self.path, "rb", buffering=0) as file:
            for member in self.members:
                yield _member_label(self.path, member.name), _read_member(file, self.path, member)


@dataclass(frozen=True)
class StreamShard(ImageShard):
    """A compressed tar."""

    path: Path = Path()

    def files(self) -> Iterator[tuple[str, bytes | Unreadable]]:
        """Yield each member's name and bytes."""
        with _tar_errors(self.path), gzip.open(self.path) as stream:
            for member in _image_members(_TarFile(stream), self.path, []):
                yield _member_label(self.path, member.name), _read_member(stream, self.path, member)


@dataclass(frozen=True)
class BrokenTar(BrokenShard, ImageShard):
    """A tar whose headers cannot be read."""

    def files(self) -> Iterator[tuple[str, bytes | Unreadable]]:
        """Raise the error that reading the headers gave."""
        raise self.error


def _members(path: Path, links: list[str]) -> Iterator[Member]:
    """Yield the images of an uncompressed tar, and add members that are links to `links`."""
    with _tar_errors(path), open(path, "rb") as file:
        yield from _image_members(_TarFile(file), path, links)


def _image_members(blocks: _TarFile, path: Path, links: list[str]) -> Iterator[Member]:
    try:
        # Not closed here, as the caller closes the file.
        tar = tarfile.TarFile(fileobj=blocks, errors="surrogateescape")  # type: ignore[arg-type]
    except tarfile.ReadError as error:
        if blocks.ended:  # no member at all
            return
        raise _damaged(path, str(error)) from error
    while (found := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if found.size < 0:
            raise _damaged(path, f"a member of {found.size} bytes")
        if not is_image(found.name.replace("\\", "/")):
            continue
        if not found.isreg() or found.issparse():
            links.append(_member_label(path, found.name))
            continue
        yield Member(found.name, found.offset_data, found.size)
    blocks.finish(path)


class _TarFile:
    """A tar as a file that keeps what was read last, as tarfile takes a damaged header for the end."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file, self._last = file, b""
        self.tell, self.seek, self.close = file.tell, file.seek, file.close

    def read(self, size: int = -1) -> bytes:
        self._last = self._file.read(size)
        return self._last

    @property
    def ended(self) -> bool:
        """Whether the block read last is the one that ends a tar."""
        return self._last == bytes(512)

    def finish(self, path: Path) -> None:
        """Raise DataError unless the tar has ended and nothing follows; reading on compares checksums."""
        if not self.ended:
            why = "a damaged header" if self._last else "it does not end as a tar does"
            raise _damaged(path, f"{why} at byte {self.tell() - len(self._last):,}")
        while rest := self._file.read(1 << 20):
            if rest.count(0) < len(rest):
                raise _damaged(
                    path, f"data after its end, before byte {self.tell():,}: tars joined into one?"
                )


@contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, str(error)) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"Cannot read {label_of(path)}", why, "check path and rights") from error


def _read_member(file: IO[bytes] | gzip.GzipFile, path: Path, member: Member) -> bytes | Unreadable:
    if member.size > MOST_BYTES:
        why = f"{member.size:,} bytes, and the most for one image is {MOST_BYTES:,}"
        return Unreadable(_member_label(path, member.name), why)
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise _damaged(path, f"it ends within {label_of(member.name)}")
    return data


def _tar_shards(path: Path, members: list[Member], mark: str, number: int) -> list[ImageShard]:
    shards: list[ImageShard] = []
    for first, last in shard_runs([member.size for member in members]):
        some = members[first:last]
        more = f" and {len(some) - 1} more" if len(some) > 1 else ""
        sizes = [member.size for member in some]
        shards.append(
            TarShard(
                number + len(shards),
                _member_label(path, some[0].name) + more,
                f"{mark}:{first}:{last}",
                sum(sizes),
                decoding_bytes(sizes),
                path=path,
                members=tuple(some),
            )
        )
    return shards


def _member_label(path: Path, name: str) -> str:
    return f"{label_of(path)}/{label_of(name)}"


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"Damaged tar: {label_of(path)}", label_of(why), "write or fetch it again")
