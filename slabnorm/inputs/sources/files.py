"""Where data files lie: found in folders, by patterns and behind URLs, and how a change of one is noticed.

pyarrow is imported for a URL alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slabnorm.errors import DataError, ExtraError
from slabnorm.inputs.split import Hint, path_hints
from slabnorm.text import printable

# The first characters of names that are not read. In folders of tables "_" marks what is not data, such as
# _SUCCESS and _metadata.
HIDDEN, HIDDEN_FROM_TABLES = (".",), (".", "_")

# A mark is a text that changes when a file does. Marks are the fingerprints in ledgers.


def file_mark(path: str | os.PathLike[str]) -> str:
    """Return the mark of a file of this machine: its size and the time of its last change."""
    status = os.stat(path)
    return f"{status.st_size}:{status.st_mtime_ns}"


# Keys of fsspec's file information that change with a file's content, the best first.
_CHANGES = (
    "ETag",
    "etag",
    "md5Hash",
    "contentHash",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)


def remote_mark(info: Mapping[str, Any]) -> str:
    """Return the mark of a file from fsspec's information; it ends in ":" if that has no such key."""
    return f"{info.get('size')}:{next((info[name] for name in _CHANGES if info.get(name)), '')}"


# Filesystems behind URLs, through pyarrow or fsspec.

_IN_ARROW = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")  # filesystems that pyarrow has itself


def local_path(source: str) -> str:
    """Return the path of a file:// URL; any other source as it is.

    Raises:
        DataError: the URL leads to another machine, or is of a relative path.

    >>> local_path("file:///data/a%20b.npy"), local_path("s3://bucket/a.csv")
    ('/data/a b.npy', 's3://bucket/a.csv')
    """
    if not source.lower().startswith("file://"):
        return source
    # Not with urlsplit, which cuts names at # and ?.
    host, slash, path = source[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise DataError(
            f"Not a file:// URL of this machine: {source:.200}",
            fix="write the whole path after three slashes, as file:///data/train.npy, or give the path",
        )
    return url2pathname(slash + path)


@cache
def filesystem(url: str) -> tuple[Any, str]:
    """Return the pyarrow filesystem of a URL, "" for the machine's own, and the URL's path in it.

    Raises:
        DataError: there is no such filesystem, or it cannot be reached.
        ExtraError: it wants a package that is not installed.
    """
    from pyarrow import fs

    if not url:
        return fs.LocalFileSystem(), ""
    try:
        if urlsplit(url).scheme in _IN_ARROW:
            system, path = fs.FileSystem.from_uri(url)
            return system, str(path)
        from fsspec.core import url_to_fs

        inner, path = url_to_fs(url)
        return fs.PyFileSystem(fs.FSSpecHandler(inner)), str(path)
    except ImportError as error:
        raise ExtraError(
            f"URLs of {urlsplit(url).scheme}:// need a package that is not installed",
            str(error),
            "pip install 'slabnorm[tables]', and the package of that filesystem",
        ) from error
    except Exception as error:  # every filesystem raises errors of its own
        raise DataError(
            f"Cannot reach the filesystem of {url}", str(error), "check the URL and rights"
        ) from error


@dataclass(frozen=True)
class DataFile:
    """One file of a data set; plain data.

    Attributes:
        url: the data set's, which tells the filesystem; empty for the machine's own.
        path: the file's, in that filesystem.
        size: bytes.
        mark: what changes when the file does.
    """

    url: str
    path: str
    size: int
    mark: str

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{urlsplit(self.url).scheme}://{self.path.lstrip('/')}" if self.url else self.path

    def current_mark(self) -> str:
        """Return the file's mark as of now.

        Raises:
            OSError: the file is gone; or what else its filesystem raises.
        """
        if not self.url:
            return file_mark(self.path)
        system = filesystem(self.url)[0]
        return _mark_in(system, system.get_file_info(self.path))


def _mark_in(system: Any, info: Any) -> str:
    """Return the mark of a file from the information of its pyarrow filesystem."""
    if not info.is_file:
        raise FileNotFoundError("no such file")
    if info.mtime_ns is not None or not hasattr(system, "handler"):
        return f"{info.size}:{info.mtime_ns}"
    return remote_mark({**system.handler.fs.info(info.path), "size": info.size})


# Which files there are in a folder, at any depth.


class FoundFile(NamedTuple):
    """A file found below a folder.

    Attributes:
        name: its path from that folder on.
        size: bytes; -1 where the system says nothing of it, as of a link to nothing.
        changed: when, in nanoseconds.
        problem: why it cannot be read; "" where it can.
        is_link: whether it is a symbolic link.
    """

    name: str
    size: int
    changed: int
    problem: str
    is_link: bool

    @property
    def mark(self) -> str:
        """What changes when the file does, as `file_mark` returns it."""
        return f"{self.size}:{self.changed}"


def walk(
    folder: str, hidden: tuple[str, ...], left_out: list[str], pattern: Sequence[str] = ("**",)
) -> Iterator[FoundFile]:
    """Yield the files in a folder and in the folders below, by name; those of a folder before its folders'.

    Each real folder is read once: links that lead back would never end, and others count files twice.

    Args:
        folder: where to begin; "" for the working directory.
        hidden: what the names of files and folders begin with that are not read.
        left_out: to which folders are added that were read already.
        pattern: of the files' paths, part by part, as of `split_pattern`.

    Raises:
        DataError: a folder cannot be listed.
    """
    waiting, seen = [""], set[tuple[int, int]]()
    while waiting:
        inside = waiting.pop()
        path = os.path.join(folder, inside) if inside else folder or "."
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                left_out.append(f"{path} (a link to a folder that is read already)")
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                visible = sorted((e for e in entries if not e.name.startswith(hidden)), key=lambda e: e.name)
        except OSError as error:
            why = error.strerror or str(error)
            raise DataError(
                f"Cannot list the folder {printable(path)}", why, "check path and rights"
            ) from error
        folders: list[tuple[bool, str]] = []
        for entry in visible:
            name, is_link = os.path.join(inside, entry.name), entry.is_symlink()
            try:
                status = entry.stat()
            except OSError as error:
                found, mode = FoundFile(name, -1, 0, error.strerror or str(error), is_link), stat.S_IFREG
            else:
                mode = status.st_mode
                problem = "" if stat.S_ISREG(mode) else "not a regular file"
                found = FoundFile(name, status.st_size, status.st_mtime_ns, problem, is_link)
            parts = name.split(os.sep) if pattern != ("**",) else []
            if stat.S_ISDIR(mode):
                if not parts or _may_hold(parts, pattern):
                    folders.append((is_link, name))
            elif not parts or _matches(parts, pattern):
                yield found
        # Folders before links to them, so that what is read is called by its own name.
        waiting += [name for _, name in sorted(folders, reverse=True)]


def drop_special_files(folder: str, files: Iterable[FoundFile], left_out: list[str]) -> list[FoundFile]:
    """Return the files that are read, by name, and add the others, such as sockets, to what is left out.

    A link to nothing stays: counting it says what is wrong.
    """
    found = sorted(files)
    left_out += [f"{os.path.join(folder, file.name)} ({file.problem})" for file in found if _is_special(file)]
    return [file for file in found if not _is_special(file)]


def _is_special(file: FoundFile) -> bool:
    return bool(file.problem) and file.size >= 0


def is_glob(source: str) -> bool:
    """Whether a path or URL names several files by wildcards."""
    # In a URL ? begins a query.
    return any(sign in source for sign in ("*[" if "://" in source else "*?["))


def split_pattern(source: str) -> tuple[str, tuple[str, ...]]:
    """Split a path or URL with wildcards into the folder to look in, and the pattern of paths from there."""
    parts = source.split("/")
    first = next(at for at, part in enumerate(parts) if any(sign in part for sign in "*?["))
    base = "/".join(parts[:first])
    return base or ("/" if source.startswith("/") else ""), tuple(parts[first:])


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is of a pattern, whose last part may also be a folder; ** is any folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[at:], pattern[1:]) for at in range(len(parts) + (len(pattern) == 1)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _may_hold(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the paths of files in a folder may be of a pattern."""
    if not parts or not pattern or pattern[0] == "**":
        return True
    return fnmatchcase(parts[0], pattern[0]) and _may_hold(parts[1:], pattern[1:])


def would_match(path: str, pattern: str) -> bool:
    """Whether wildcards name the path of a table's file, which need not be there."""
    base, parts = split_pattern(pattern)
    inside = os.path.relpath(path, os.path.realpath(base or ".")).split(os.sep)
    return not any(part.startswith(HIDDEN_FROM_TABLES) for part in inside) and _matches(inside, parts)


def list_pattern(source: str, hidden: tuple[str, ...], left_out: list[str]) -> tuple[str, list[FoundFile]]:
    """Return the folder that a local path with wildcards looks in, and what files there are of its pattern.

    Raises:
        DataError: there is no such folder, or one cannot be listed.
    """
    base, pattern = split_pattern(source)
    if not os.path.isdir(base or "."):
        raise DataError(
            f"No such folder: {printable(base)}", f"the pattern {printable(source)}", "check the path"
        )
    return base, list(walk(base, hidden, left_out, pattern))


# Braces, as in train-{000..009}.tar.

MOST_NAMES = 1_000_000  # that braces may stand for
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand_braces(text: str) -> list[str]:
    """Return the texts that one with braces stands for: {000..009} and {a,b}.

    >>> expand_braces("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']

    Raises:
        DataError: there are too many.
    """
    choices: list[Sequence[str]] = []
    total = 1
    for number, part in enumerate(_BRACES.split(text)):
        limits = _RANGE.fullmatch(part) if number % 2 else None
        if limits:
            low, high = map(int, limits.groups())
            total *= abs(high - low) + 1
            if total > MOST_NAMES:
                break
            padded = any(len(digits) > 1 and digits[0] == "0" for digits in limits.groups())
            width = max(map(len, limits.groups())) if padded else 0
            step = 1 if low <= high else -1
            choices.append([f"{value:0{width}}" for value in range(low, high + step, step)])
        elif number % 2:
            choices.append(part.split(",") if "," in part else ["{" + part + "}"])
            total *= len(choices[-1])
        else:
            choices.append([part])
    if total > MOST_NAMES:
        raise DataError(
            f"The braces stand for more than {MOST_NAMES:,} names: {printable(text)}",
            fix="check the numbers in them",
        )
    return ["".join(parts) for parts in product(*choices)]


# The files of a table: one, those in a folder or of a pattern, or behind a URL of these.


@dataclass
class Listing:
    """The files of a table by path, what else there is and was left out, and what paths say of the split."""

    files: list[DataFile] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    hints: tuple[Hint, ...] = ()


def list_tables(source: str, is_table: Callable[[str], bool]) -> Listing:
    """Return the files of a table.

    Args:
        source: a file, a folder, wildcards, or a URL of these.
        is_table: whether a file of this name is part of a table.

    Raises:
        DataError: there are none, or they cannot be listed.
        ExtraError: the URL's filesystem wants a package that is not installed.
    """
    listing = Listing()
    list_them = _list_remote if "://" in source else _list_local
    base = list_them(source, is_table, listing)
    if not listing.files:
        raise DataError(
            f"No tables in {printable(source)}",
            f"left out: {listed(listing.left_out)}" if listing.left_out else "",
            "check the path; files and folders whose names begin with . or _ are not read",
        )
    listing.files.sort(key=lambda file: file.path)
    listing.hints = _table_hints(source, base, listing.files)
    return listing


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return a few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _list_local(source: str, is_table: Callable[[str], bool], listing: Listing) -> str:
    """Add the files of a table; return the folder that they lie in, or the file."""
    if os.path.isfile(source):
        listing.files.append(DataFile("", source, os.path.getsize(source), file_mark(source)))
        return source
    if os.path.isdir(source):
        base = "" if source == "." else source
        found = walk(base, HIDDEN_FROM_TABLES, listing.left_out)
    else:
        base, several = list_pattern(source, HIDDEN_FROM_TABLES, listing.left_out)
        found = iter(several)
    for file in found:
        path = os.path.join(base, file.name)
        problem = file.problem or ("" if is_table(file.name) else "no table by its name")
        if problem:
            listing.left_out.append(f"{path} ({problem})")
        else:
            listing.files.append(DataFile("", path, file.size, file.mark))
    return source if os.path.isdir(source) else base


def _list_remote(source: str, is_table: Callable[[str], bool], listing: Listing) -> str:
    url, pattern = split_pattern(source) if is_glob(source) else (source, ("**",))
    system, base = filesystem(url)
    from pyarrow import fs

    try:
        infos = [system.get_file_info(base)]
        is_file = infos[0].type == fs.FileType.File
        if not is_file:
            infos = system.get_file_info(fs.FileSelector(base, recursive=True))
        for info in infos:
            if not is_file:
                parts = PurePosixPath(info.path).relative_to(base).parts
                hidden = any(part.startswith(HIDDEN_FROM_TABLES) for part in parts)
                if hidden or info.type == fs.FileType.Directory or not _matches(parts, pattern):
                    continue
            if not info.is_file or not is_table(info.path):
                why = "no table by its name" if info.is_file else "not a regular file"
                listing.left_out.append(f"{info.path} ({why})")
                continue
            listing.files.append(DataFile(url, info.path, info.size or 0, _mark_in(system, info)))
        return base
    except Exception as error:  # every filesystem raises errors of its own
        raise DataError(f"Cannot list {printable(source)}", str(error), "check the URL and rights") from error


def _table_hints(source: str, base: str, files: list[DataFile]) -> tuple[Hint, ...]:
    if is_glob(source):
        base = f"{base}/*" if base else "*"
    if "://" in source:
        base = f"{urlsplit(source).scheme}://{base.lstrip('/')}"
    names = [file.name for file in files]
    # Of zip://part.csv::s3://test/a.zip the files' paths have the first half only.
    return (*path_hints(names, base), *(path_hints([source]) if "::" in source else ()))
