"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from slabnorm.errors import OptionError
from slabnorm.report.names import printable

OURS = (".safetensors", ".html", ".json")  # what is written again, also beside data


def check_writable(path: Path) -> None:
    """Raise OptionError unless a file can be written at `path`; ask before the work, not after it.

    Raises:
        OptionError: the folder does not exist or takes no files, or `path` is no regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OptionError(
            "an output is a regular file", printable(path), "name a file, not a folder or device"
        )
    if target.exists() and not os.access(target, os.W_OK):
        raise OptionError("an output can be written", f"{printable(path)} is read-only", "name another file")
    try:
        probe = open_beside(target)
        os.close(probe[0])
        os.unlink(probe[1])
    except OSError as error:
        raise OptionError(
            "an output can be written",
            f"{printable(path)}: {error.strerror or error}",
            "name a file in a folder that exists and that you may write to",
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a new file beside `path` and move it there; on any failure the old file stays.

    Args:
        path: a symbolic link is followed, not replaced.
        content: text is written as UTF-8.

    Raises:
        OptionError: the disk is full, or the folder is gone.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `path`, and move it there when the block is done; else the old file stays.

    Args:
        path: a symbolic link is followed, not replaced.

    Raises:
        OptionError: the disk is full, or the folder is gone.
    """
    target = Path(os.path.realpath(path))
    with _writing(path):
        descriptor, beside = open_beside(target)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path`, and move it there when the block is done; else nothing is left of it.

    Nothing may be at `path`: a folder cannot take another's place in one step.

    Raises:
        OptionError: there is something at `path`, the disk is full, or the folder above is gone.
    """
    check_new(path)
    beside = path.with_name(f".{path.name.encode()[:100].decode(errors='ignore')}.{secrets.token_hex(6)}")
    with _writing(path):
        beside.mkdir()
        try:
            yield beside
            for folder, _, files in os.walk(beside):
                for name in files:
                    with open(os.path.join(folder, name), "rb") as file:
                        os.fsync(file.fileno())
            os.rename(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def check_apart(source: str, target: Path, within: bool = False) -> None:
    """Raise OptionError if an output would take the place of what is read.

    Args:
        source: a path, or a URL, which is never the output.
        target: the output.
        within: whether nothing may be written into a folder that is read, either; else no file there that is
            none of ours.
    """
    if source.lower().startswith("file://"):
        source = url2pathname(urlsplit(source).path)
    if "://" in source:
        return
    a, b = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    try:
        same = a == b or (b.exists() and b.samefile(a))
    except OSError:  # one is not there
        same = False
    inside = a in b.parents and (within or (b.exists() and b.suffix.lower() not in OURS))
    if same or inside:
        raise OptionError(
            "the output is no part of the data that are read",
            f"{printable(target)} {'for both' if same else f'in {printable(source)}'}",
            "name another output",
        )


def check_new(path: Path) -> None:
    """Raise OptionError if there is anything at `path`."""
    if os.path.lexists(path):
        raise OptionError(
            "an output that is a folder is new",
            f"{printable(path)} is there",
            "remove it, or name another one",
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(
            "an output can be written",
            f"{printable(path)}: {error.strerror or error}",
            "free space, or move it",
        ) from error


def open_beside(target: Path) -> tuple[int, Path]:
    """Open a new file in the folder of `target`, with the permissions any new file gets."""
    beside = target.with_name(f".{target.name.encode()[:100].decode(errors='ignore')}.{secrets.token_hex(6)}")
    return os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), beside
