"""Folders of images, searched recursively; and which folders hold tars of them instead."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources import tars
from slabnorm.inputs.sources.base import Bad
from slabnorm.inputs.sources.images import (
    BYTES,
    SUFFIXES,
    Form,
    ImageShard,
    ImageSource,
    cut,
    is_image,
    memory,
    shown,
)
from slabnorm.inputs.split import path_hints


def open_folder(folder: Path, form: Form) -> ImageSource:
    """Return the source of a folder of images, or of tars of images.

    Raises:
        DataError: it holds neither, or both, or cannot be listed.

    Warns:
        DataWarning: what is no file and no folder was left out, and folders that links lead to a second time.
    """
    found = _Listing(folder)
    if found.tars and found.images:
        raise DataError(
            "a folder holds images, or tars of images",
            f"{shown(folder)}: {len(found.images)} images, and tars such as {shown(found.tars[0])}",
            "give them one by one, or move the tars away",
        )
    if found.skipped:
        names = ", ".join(found.skipped[:3]) + (", ..." if len(found.skipped) > 3 else "")
        warnings.warn(
            f"left out, as no files or as folders read already: {len(found.skipped)}: {names}",
            DataWarning,
            stacklevel=6,
        )
    if found.tars:
        return tars.open_tars([folder / name for name in found.tars], str(folder), form)
    if not found.images:
        raise DataError(
            f"a folder of data holds images ({', '.join(sorted(SUFFIXES))}) or tars of them",
            f"{shown(folder)}: {found.files} files, no image",
            "check the path",
        )
    inside = {os.path.dirname(os.path.join(folder, name)) for name, _, _ in found.images} | found.led_to
    hints = (*path_hints([folder]), *path_hints((f"{path}/" for path in sorted(inside)), str(folder)))
    return ImageSource(shown(folder), list(_shards(folder, found.images)), hints, form)


@dataclass(frozen=True)
class FolderShard(ImageShard):
    """Some images of a folder."""

    folder: str = ""
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def files(self) -> Iterator[tuple[str, bytes | Bad]]:
        """Yield each file's name and bytes."""
        for name, size in zip(self.names, self.sizes, strict=True):
            path = os.path.join(self.folder, name)
            label = shown(path)
            yield label, _read(path, label, size)


@dataclass
class _Listing:
    """What a folder holds: images with size and time, and tars, sorted; folders of images that links lead to;
    and how many files in all."""

    folder: Path
    images: list[tuple[str, int, int]] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    led_to: set[str] = field(default_factory=set)
    files: int = 0

    def __post_init__(self) -> None:
        # Each real folder once: links that lead back would never end, and others count images twice.
        self._seen: set[tuple[int, int]] = set()
        waiting = [""]
        while waiting:
            waiting += self._list(waiting.pop())
        self.images.sort()
        self.tars.sort()
        self.skipped.sort()

    def _list(self, inside: str) -> list[str]:
        """Note the files of a folder; return the folders in it, last to first."""
        path = os.path.join(self.folder, inside) if inside else os.fspath(self.folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in self._seen:
                self.skipped.append(shown(inside))
                return []
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                known = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                "folders of data can be listed", f"{shown(path)}: {error.strerror}", "check path and rights"
            ) from error
        folders: list[str] = []
        for entry in known:
            name = os.path.join(inside, entry.name)
            if not entry.name.startswith("."):
                self._note(entry, name, folders)
        # Folders before links to them, so that what is read is called by its own name.
        return sorted(folders, key=lambda name: (not os.path.islink(os.path.join(self.folder, name)), name))[
            ::-1
        ]

    def _note(self, entry: os.DirEntry[str], name: str, folders: list[str]) -> None:
        try:
            status = entry.stat()
        except OSError:  # a link to nothing, or to itself: whoever reads it will say so
            status = None
        mode = status.st_mode if status else stat.S_IFREG
        if stat.S_ISDIR(mode):
            folders.append(name)
        elif not stat.S_ISREG(mode):
            self.skipped.append(shown(name))
        else:
            self.files += 1
            if is_image(entry.name):
                self.images.append((name, status.st_size, status.st_mtime_ns) if status else (name, -1, 0))
                if entry.is_symlink():
                    self.led_to.add(os.path.dirname(os.path.realpath(entry.path)))
            elif tars.is_tar(entry.name):
                self.tars.append(name)


def _shards(folder: Path, images: list[tuple[str, int, int]]) -> Iterator[FolderShard]:
    for number, (first, last) in enumerate(cut([size for _, size, _ in images])):
        names, sizes, _ = zip(*images[first:last], strict=True)
        digest = blake2b(digest_size=16)
        for name, size, time in images[first:last]:
            digest.update(f"{name}\0{size}\0{time}\n".encode("utf-8", "surrogateescape"))
        more = f" and {last - first - 1} more" if last - first > 1 else ""
        yield FolderShard(
            number, shown(folder / names[0]) + more, digest.hexdigest(), sum(map(abs, sizes)), memory(sizes),
            folder=os.fspath(folder), names=names, sizes=sizes,
        )  # fmt: skip


def _read(path: str, label: str, size: int) -> bytes | Bad:
    if size > BYTES:
        return Bad(label, f"{size:,} bytes, and the most for one image is {BYTES:,}")
    try:
        # Read, not mapped: a map of a file that shrinks meanwhile ends the process.
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        return Bad(label, error.strerror or str(error))
    if len(data) != size:
        return Bad(label, f"{len(data):,} bytes, {size:,} when the folder was listed")
    return data
