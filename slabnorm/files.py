"""Files that are written whole or not at all."""

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

# O_EXCL refuses a file that somebody else has put there, and the target of a link.
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check_writable(path: Path) -> None:
    """Raise OptionError unless a file can be written at `path`. Called before the work, not after it.

    Raises:
        OptionError: the folder does not exist or cannot be written to, or `path` is a folder or a device.
    """
    try:
        target = Path(os.path.realpath(path))
        exists = _exists(target)
        if exists and not target.is_file():
            raise _not_written(path, "not a regular file but a folder or a device", "name a file")
        if exists and not os.access(target, os.W_OK):
            raise _not_written(path, "the file is read-only", "name another file")
        with temporary(_beside(target)) as probe:
            os.close(os.open(probe, _NEW, 0o600))
    except OptionError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        fix = "name a file in a folder that exists and that you may write to"
        raise _not_written(path, why, fix) from error


def output_path(path: object) -> Path:
    """Return the path of a file to write.

    Raises:
        OptionError: it is not a path, is empty, or ends in a slash as the name of a folder does.
    """
    if not isinstance(path, str | os.PathLike):
        fix = "give a str or a Path, such as 'inputs.safetensors'"
        raise OptionError("The output must be a path", type(path).__name__, fix)
    text = os.fsdecode(path)
    if not text or text.endswith(("/", os.sep)):
        fix = "name a file, such as 'inputs.safetensors'"
        raise OptionError("The output must be a file, not a folder", repr(printable(text)), fix)
    return Path(text)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a new file beside `path` and move it there; if anything fails, the old file stays.

    Args:
        path: where to; a symbolic link is followed, not replaced.
        content: what to write; text is written as UTF-8.

    Raises:
        OptionError: the disk is full, or the folder is gone.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `path`, and move it there at the end; if anything fails, the old file stays.

    Args:
        path: where to; a symbolic link is followed, not replaced.

    Raises:
        OptionError: the disk is full, or the folder is gone.
    """
    with _writing(path):
        target = Path(os.path.realpath(path))
        with temporary(_beside(target)) as beside:
            # Whoever may not read the old file must not be able to read the new one either.
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
    """Make a folder beside `path`, and move it there at the end; if anything fails, nothing is left of it.

    There must be nothing at `path`, because a folder cannot take the place of another in one step.

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
        raise OptionError(f"{printable(path)} exists already", "", "remove it, or name another output")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "free some space, or name a file on another disk"
        raise _not_written(path, error.strerror or str(error), fix) from error


def _not_written(path: Path, why: str, fix: str) -> OptionError:
    return OptionError(f"Cannot write {printable(path)}", why, fix)


def _beside(target: Path) -> Path:
    """Return a name in the folder of `target` that nobody can guess."""
    # Cut by bytes: a file system takes 255 of them, and some may not be text.
    start = os.fsencode(target.name)[:100].decode(errors="ignore")
    return target.with_name(f".{start}.{secrets.token_hex(6)}")


def _exists(path: Path) -> bool:
    """Return whether there is a file; raise OSError where its name is impossible, such as too long."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True
