"""Filesystems behind URLs, through pyarrow or fsspec, and when a file in one was changed."""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slabnorm.errors import DataError, ExtraError

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
