"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from slabnorm.errors import OptionError
from slabnorm.interrupt import temporary
from slabnorm.text import printable

# O_EXCL: never a file that somebody else has put there, nor what a link leads to.
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check_writable(path: Path) -> None:
    """Raise OptionError unless a file can be written at `path`; ask before the work, not after it.

    Raises:
        OptionError: the folder does not exist or takes no files, or `path` is no regular file.
    """
    try:
        target = Path(os.path.realpath(path))
        exists = _exists(target)
        if exists and not target.is_file():
            raise OptionError(
                "an output is a regular file", printable(path), "name a file, not a folder or device"
            )
        if exists and not os.access(target, os.W_OK):
            raise OptionError(
                "an output can be written", f"{printable(path)} is read-only", "name another file"
            )
        with temporary(_beside(target)) as probe:
            os.close(os.open(probe, _NEW, 0o600))
    except OptionError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OptionError(
            "an output can be written",
            f"{printable(path)}: {getattr(error, 'strerror', None) or error}",
            "name a file in a folder that exists and that you may write to",
        ) from error


def output_path(path: object) -> Path:
    """Return the path of a file to write.

    Raises:
        OptionError: it is no path, or names no file: it is empty, or ends as a folder does.
    """
    if not isinstance(path, str | os.PathLike):
        fix = "give a str or a Path, such as 'inputs.safetensors'"
        raise OptionError("an output has a path", type(path).__name__, fix)
    text = os.fsdecode(path)
    if not text or text.endswith(("/", os.sep)):
        raise OptionError("an output is a file", repr(printable(text)), "name a file, not a folder")
    return Path(text)


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
    with _writing(path):
        target = Path(os.path.realpath(path))
        with temporary(_beside(target)) as beside:
            # Who may not read the file that is there must not read the new one either.
            mode = stat.S_IMODE(os.stat(target).st_mode) & 0o777 if _exists(target) else None
            with open(os.open(beside, _NEW, 0o666 if mode is None else 0o600), "wb") as file:
                if mode is not None:
                    os.chmod(beside, mode)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path`, and move it there when the block is done; else nothing is left of it.

    Nothing may be at `path`: a folder cannot take another's place in one step.

    Raises:
        OptionError: there is something at `path`, the disk is full, or the folder above is gone.
    """
    check_new(path)
    with _writing(path), temporary(_beside(path)) as beside:
        beside.mkdir()
        yield beside
        for folder, _, files in os.walk(beside):
            for name in files:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
        os.rename(beside, path)


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


def _beside(target: Path) -> Path:
    """Return a name in the folder of `target` that nobody can foretell."""
    # By bytes, of which a file system takes 255, and some of which may be no text.
    start = os.fsencode(target.name)[:100].decode(errors="ignore")
    return target.with_name(f".{start}.{secrets.token_hex(6)}")


def _exists(path: Path) -> bool:
    """Whether a file is there; raise OSError where its name cannot be, as one that is too long."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True
