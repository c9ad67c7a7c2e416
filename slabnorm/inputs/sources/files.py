"""Where files lie: filesystems behind URLs, and the files of a table. pyarrow is imported for a URL alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slabnorm.errors import DataError, ExtraError
from slabnorm.inputs.split import Hint, path_hints

# Filesystems behind URLs, through pyarrow or fsspec, and when a file in one was changed.

_WITH_ARROW = ("s3", "gs", "gcs", "hdfs", "abfs", "abfss")  # filesystems that pyarrow has itself
_MARKS = (
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


def local_path(source: str) -> str:
    """Return the path of a file:// URL; any other source as it is.

    Raises:
        DataError: the URL leads to another machine, or is of a relative path.

    >>> local_path("file:///data/a%20b.npy"), local_path("s3://bucket/a.csv")
    ('/data/a b.npy', 's3://bucket/a.csv')
    """
    if not source.lower().startswith("file://"):
        return source
    # Not by urlsplit, which cuts names at # and ?.
    host, slash, path = source[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise DataError(
            "a file:// URL holds a whole path after three slashes",
            f"{source:.200}",
            "as file:///data/train.npy, or give the path itself",
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
        if urlsplit(url).scheme in _WITH_ARROW:
            system, path = fs.FileSystem.from_uri(url)
            return system, str(path)
        from fsspec.core import url_to_fs

        inner, path = url_to_fs(url)
        return fs.PyFileSystem(fs.FSSpecHandler(inner)), str(path)
    except ImportError as error:
        raise ExtraError(
            f"URLs of {urlsplit(url).scheme}:// are read by fsspec",
            str(error),
            "pip install 'slabnorm[tables]', and the package of that filesystem",
        ) from error
    except Exception as error:  # every filesystem raises errors of its own
        raise DataError(
            "a URL leads to a filesystem", f"{url}: {error}", "check the URL and rights"
        ) from error


def mark_of(url: str, path: str) -> str:
    """Return a file's mark as of now: its size, and its time or what else its filesystem has.

    Raises:
        OSError: the file is gone; or what else its filesystem raises.
    """
    if not url:
        return local_mark(os.stat(path))
    system = filesystem(url)[0]
    return remote_mark(system, system.get_file_info(path))


def local_mark(status: os.stat_result) -> str:
    """Return the mark of a file of this machine."""
    return f"{status.st_size}:{status.st_mtime_ns}"


def remote_mark(system: Any, info: Any) -> str:
    """Return the mark of a file by what its filesystem says of it."""
    if not info.is_file:
        raise FileNotFoundError("no such file")
    if info.mtime_ns is not None or not hasattr(system, "handler"):
        return f"{info.size}:{info.mtime_ns}"
    said = system.handler.fs.info(info.path)
    return f"{info.size}:{next((said[mark] for mark in _MARKS if said.get(mark)), '')}"


# Where the files of a table lie: a file, a folder, a glob, or a URL of these. Imports no pyarrow.

KINDS = {
    ".parquet": "parquet", ".parq": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv",
    ".arrow": "ipc", ".arrows": "ipc", ".feather": "ipc", ".ipc": "ipc",
}  # fmt: skip


@dataclass(frozen=True)
class TableFile:
    """A file of a table; plain data.

    Attributes:
        url: the data set's, which tells the filesystem; empty for the machine's own.
        path: the file's, in that filesystem.
        kind: "parquet", "ipc" or "csv".
        size: bytes.
        mark: changes when the file does: its size with its time, or what else its filesystem has.
    """

    url: str
    path: str
    kind: str
    size: int
    mark: str

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{urlsplit(self.url).scheme}://{self.path.lstrip('/')}" if self.url else self.path


@dataclass(frozen=True)
class Found:
    """The files of a table in their order, what was left out, and what their names say about the split."""

    files: list[TableFile]
    left_out: list[str]
    hints: tuple[Hint, ...]


def kind_of(path: str) -> str:
    """Return what kind of table a file is by its name's end; "" if none."""
    name = path.lower()
    return next((kind for end, kind in KINDS.items() if name.endswith(end)), "")


def is_table(source: str) -> bool:
    """Whether a path or URL is one that `find` takes."""
    return "://" in source or bool(kind_of(source)) or os.path.isdir(source) or is_glob(source)


def find(source: str) -> Found:
    """Return the files of a data set, sorted by path.

    Raises:
        DataError: there are none, or they cannot be listed.
        ExtraError: the URL's filesystem wants a package that is not installed.
    """
    left_out: list[str] = []
    if "://" in source:
        base, files = _find_remote(source, left_out)
    else:
        base, files = _find_local(source, left_out)
    if not files:
        more = f"; left out: {listed(left_out)}" if left_out else ""
        raise DataError(
            f"a table is files that end in {', '.join(KINDS)}",
            f"none in {source}{more}",
            "check the path; files and folders whose names begin with . or _ are not read",
        )
    files.sort(key=lambda file: file.path)
    return Found(files, left_out, _hints(source, base, files))


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return a few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _find_local(source: str, left_out: list[str]) -> tuple[str, list[TableFile]]:
    if os.path.isfile(source):
        return source, [_local(source, os.stat(source))]
    if os.path.isdir(source):
        return source, [_local(path, status) for path, status in _walk(source, left_out)]
    if not is_glob(source):
        raise DataError("a data file exists", f"no file {source}", "check the path")
    base, pattern = _base(source)
    if not os.path.isdir(base or "."):
        raise DataError("a data file exists", f"no folder {base}, of {source}", "check the path")
    found = _walk(base or ".", left_out, pattern)
    return base, [_local(path, status) for path, status in found]


def _walk(
    base: str, left_out: list[str], pattern: tuple[str, ...] = ("**",)
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the table files below a folder whose path is of a pattern; each folder is read once."""
    waiting, seen = [base], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                "folders can be read", f"{folder}: {error.strerror}", "check its rights"
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            left_out.append(f"{folder} (a link to a folder that is read already)")
            continue
        seen.add((status.st_dev, status.st_ino))
        below: list[str] = []
        for entry in entries:
            path = entry.path.removeprefix("./") if base == "." else entry.path
            try:
                status = entry.stat()
            except OSError as error:
                left_out.append(f"{path} ({error.strerror})")
                continue
            if stat.S_ISDIR(status.st_mode):
                below += [] if _hidden(entry.name) else [entry.path]
            elif _matches(os.path.relpath(entry.path, base).split(os.sep), pattern):
                problem = "" if stat.S_ISREG(status.st_mode) else "no regular file"
                if _takes(entry.name, path, problem, left_out):
                    yield path, status
        waiting += reversed(below)


def _find_remote(source: str, left_out: list[str]) -> tuple[str, list[TableFile]]:
    url, pattern = _base(source) if is_glob(source) else (source, ("**",))
    system, path = filesystem(url)
    from pyarrow import fs

    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.File:
            return path, [_remote(url, system, info)]
        below = system.get_file_info(fs.FileSelector(path, recursive=True))
        files = []
        for info in below:
            parts = PurePosixPath(info.path).relative_to(path).parts
            if info.type == fs.FileType.Directory or any(map(_hidden, parts[:-1])):
                continue
            if not _matches(parts, pattern):
                continue
            if _takes(parts[-1], info.path, "" if info.is_file else "no regular file", left_out):
                files.append(_remote(url, system, info))
        return path, files
    except Exception as error:  # every filesystem raises errors of its own
        raise DataError("data can be listed", f"{source}: {error}", "check the URL and rights") from error


def _local(path: str, status: os.stat_result) -> TableFile:
    return TableFile("", path, kind_of(path), status.st_size, local_mark(status))


def _remote(url: str, system: Any, info: Any) -> TableFile:
    return TableFile(url, info.path, kind_of(info.path), info.size or 0, remote_mark(system, info))


def _takes(name: str, path: str, problem: str, left_out: list[str]) -> bool:
    """Whether a file of this name is read; if it is not, and not hidden, note why."""
    if _hidden(name):
        return False
    problem = problem or ("" if kind_of(name) else "no table by its name")
    if problem:
        left_out.append(f"{path} ({problem})")
    return not problem


def _hidden(name: str) -> bool:
    # As everyone does who writes folders of tables: _SUCCESS, _metadata, .part-0.parquet.crc.
    return name.startswith((".", "_"))


def is_glob(source: str) -> bool:
    """Whether a path or URL names several files."""
    # In a URL ? begins a query.
    return any(sign in source for sign in ("*[" if "://" in source else "*?["))


def _base(source: str) -> tuple[str, tuple[str, ...]]:
    """Split a glob into the folder that it looks in, and the pattern of paths from there."""
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


def fits(path: str, pattern: str) -> bool:
    """Whether a glob names a file, which need not be there."""
    base, parts = _base(pattern)
    inside = os.path.relpath(path, os.path.realpath(base or ".")).split(os.sep)
    return bool(kind_of(path)) and not any(map(_hidden, inside)) and _matches(inside, parts)


def _hints(source: str, base: str, files: list[TableFile]) -> tuple[Hint, ...]:
    if is_glob(source):
        base = f"{base}/*" if base else "*"
    if "://" in source:
        base = f"{urlsplit(source).scheme}://{base.lstrip('/')}"
    names = [file.name for file in files]
    # Of zip://part.csv::s3://test/a.zip the files' paths have the first half only.
    return (*path_hints(names, base), *(path_hints([source]) if "::" in source else ()))
