"""Tars of images, as WebDataset writes them: image members are samples, all others are ignored.

Of an uncompressed tar the headers are read once; then its members are read from where they lie, by any
worker. A compressed one is a stream, and one shard. Nothing is extracted: a name is a label, wherever
it points.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, NamedTuple

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources.base import Bad, BrokenShard, fingerprint
from slabnorm.inputs.sources.images import (
    BYTES,
    Form,
    ImageShard,
    ImageSource,
    cut,
    is_image,
    memory,
    shown,
)
from slabnorm.inputs.split import Hint, inner_hints, path_hints

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MOST = 1_000_000  # tars that a pattern may name
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def is_tar(name: str) -> bool:
    """Whether a file's name is that of a tar; names that begin with a dot are hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def is_pattern(path: Path) -> bool:
    """Whether a path names several tars, by braces or wildcards."""
    return is_tar(path.name.lstrip(".")) and bool(re.search(r"[{*?\[]", str(path)))


def expand(path: Path) -> list[Path]:
    """Return the files that a pattern names: braces in their order, wildcards sorted.

    >>> [path.name for path in expand(Path("train-{008..010}.tar"))]
    ['train-008.tar', 'train-009.tar', 'train-010.tar']

    Raises:
        DataError: wildcards that no file fits, or too many files.
    """
    found: list[Path] = []
    for text in opened(str(path)):
        names = sorted(glob.glob(text)) if glob.has_magic(text) and not os.path.exists(text) else [text]
        if not names:
            raise DataError("a pattern names files", f"no file fits {shown(text)}", "check the path")
        found += map(Path, names)
    return found


def open_tars(paths: Sequence[Path], name: str, form: Form) -> ImageSource:
    """Return the source of some tars. One that cannot be read is known as a whole, when it is counted.

    Raises:
        DataError: a tar that is not there.

    Warns:
        DataWarning: members called like images that are no files were left out.
    """
    parts: list[ImageShard] = []
    hints: dict[Hint, None] = dict.fromkeys(path_hints(paths))
    links: list[str] = []
    for path in paths:
        try:
            mark, size = fingerprint(path), os.path.getsize(path)
        except OSError as error:
            raise DataError(
                "a data file exists and can be read", f"{shown(path)}: {error.strerror}", "check the path"
            ) from error
        if not path.name.lower().endswith(".tar"):
            parts.append(StreamShard(len(parts), shown(path), mark, size, path=path))
            continue
        try:
            members = list(_members(path, links))
        except DataError as error:
            parts.append(BrokenTar(len(parts), shown(path), mark, size, error=error))
            continue
        hints |= dict.fromkeys(inner_hints(member.name for member in members))
        parts += _shards(path, members, mark, len(parts))
    if links:
        warnings.warn(f"members of tars that are links were left out: {len(links)}: {links[0]}", DataWarning,
                      stacklevel=6)  # fmt: skip
    return ImageSource(shown(name), parts, tuple(hints), form)


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

    def files(self) -> Iterator[tuple[str, bytes | Bad]]:
        """Yield each member's name and bytes."""
        with _readable(self.path), open(self.path, "rb", buffering=0) as file:
            for member in self.members:
                yield _label(self.path, member.name), _take(file, self.path, member)


@dataclass(frozen=True)
class StreamShard(ImageShard):
    """A compressed tar."""

    path: Path = Path()

    def files(self) -> Iterator[tuple[str, bytes | Bad]]:
        """Yield each member's name and bytes."""
        with _readable(self.path), gzip.open(self.path) as stream:
            for member in _images(_Blocks(stream), self.path, []):
                yield _label(self.path, member.name), _take(stream, self.path, member)


@dataclass(frozen=True)
class BrokenTar(BrokenShard, ImageShard):
    """A tar whose headers cannot be read."""

    def files(self) -> Iterator[tuple[str, bytes | Bad]]:
        """Raise what is wrong with it."""
        raise self.error


def _members(path: Path, links: list[str]) -> Iterator[Member]:
    """Yield the images of an uncompressed tar; note those called like images that are links and such."""
    with _readable(path), open(path, "rb") as file:
        yield from _images(_Blocks(file), path, links)


def _images(blocks: _Blocks, path: Path, links: list[str]) -> Iterator[Member]:
    try:
        # Not closed: the file is the caller's.
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
            links.append(_label(path, found.name))
            continue
        yield Member(found.name, found.offset_data, found.size)
    blocks.finish(path)


class _Blocks:
    """A tar as a file that knows how it ended: tarfile takes a damaged header for the end."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file, self._last = file, b""
        self.tell, self.seek, self.close = file.tell, file.seek, file.close

    def read(self, size: int = -1) -> bytes:
        self._last = self._file.read(size)
        return self._last

    @property
    def ended(self) -> bool:
        """Whether what was read last is what a tar ends with."""
        return self._last == bytes(512)

    def finish(self, path: Path) -> None:
        """Raise DataError unless the tar has ended, and nothing comes after it; read on to a checksum."""
        if not self.ended:
            why = "a damaged header" if self._last else "it does not end as a tar does"
            raise _damaged(path, f"{why} at byte {self.tell() - len(self._last):,}")
        while rest := self._file.read(1 << 20):
            if rest.count(0) < len(rest):
                raise _damaged(
                    path, f"data after its end, before byte {self.tell():,}: tars joined into one?"
                )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise DataError(
            "a data file can be read", f"{shown(path)}: {error.strerror or error}", "check path and rights"
        ) from error


def _take(file: IO[bytes] | gzip.GzipFile, path: Path, member: Member) -> bytes | Bad:
    if member.size > BYTES:
        return Bad(
            _label(path, member.name), f"{member.size:,} bytes, and the most for one image is {BYTES:,}"
        )
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise _damaged(path, f"it ends within {shown(member.name)}")
    return data


def _shards(path: Path, members: list[Member], mark: str, number: int) -> list[ImageShard]:
    parts: list[ImageShard] = []
    for first, last in cut([member.size for member in members]):
        some = members[first:last]
        more = f" and {len(some) - 1} more" if len(some) > 1 else ""
        sizes = [member.size for member in some]
        parts.append(
            TarShard(
                number + len(parts),
                _label(path, some[0].name) + more,
                f"{mark}:{first}:{last}",
                sum(sizes),
                memory(sizes),
                path=path,
                members=tuple(some),
            )
        )
    return parts


def opened(text: str) -> list[str]:
    """Return a text with its braces opened: {000..009} and {a,b}."""
    choices: list[list[str]] = []
    total = 1
    for number, part in enumerate(_BRACES.split(text)):
        span = _RANGE.fullmatch(part) if number % 2 else None
        if span:
            low, high = map(int, span.groups())
            total *= abs(high - low) + 1
            if total > MOST:
                break
            steps = range(low, high + 1) if low <= high else range(low, high - 1, -1)
            width = (
                max(map(len, span.groups())) if any(len(n) > 1 and n[0] == "0" for n in span.groups()) else 0
            )
            choices.append([f"{step:0{width}}" for step in steps])
        elif number % 2:
            choices.append(part.split(",") if "," in part else ["{" + part + "}"])
            total *= len(choices[-1])
        else:
            choices.append([part])
    if total > MOST:
        raise DataError(f"a pattern names at most {MOST:,} files", shown(text), "check the numbers in braces")
    return ["".join(parts) for parts in product(*choices)]


def _label(path: Path, name: str) -> str:
    return f"{shown(path)}/{shown(name)}"


def _damaged(path: Path, why: str) -> DataError:
    return DataError("a tar is whole", f"{shown(path)}: {shown(why)}", "write or fetch it again")
