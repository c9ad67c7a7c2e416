"""No output takes the place of what is read: outputs are compared with all files before either is opened.

Files are compared by what they are (device and inode), not by what they are called, so that links, other
spellings of a path and file systems that ignore case hide nothing.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from slabnorm.errors import DataError, OptionError
from slabnorm.files import check_writable
from slabnorm.inputs import ledger
from slabnorm.inputs.sources import tars
from slabnorm.inputs.sources.files import expand_braces, is_glob, list_tables, local_path, would_match
from slabnorm.inputs.sources.open import is_read_in_folders, is_table
from slabnorm.inputs.sources.zarr import is_zarr_folder
from slabnorm.text import printable

OURS = (".safetensors", ".html", ".json", ".ledger")  # what is written again, also beside data

Mark = tuple[int, int]  # device and inode


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Any], within: bool = False) -> None:
    """Raise OptionError unless every output can be written and none takes the place of what is read.

    Args:
        outputs: files that will be written.
        inputs: what is read: paths, patterns, folders, URLs, or what fit takes else.
        within: whether nothing at all may be written into a folder that is read.
    """
    outputs = list(outputs)
    for output in outputs:
        check_writable(output)
    check_distinct(outputs)
    check_apart(outputs, inputs, within)


def check_distinct(outputs: Iterable[Path]) -> None:
    """Raise OptionError if two outputs are one file, be it only on a file system that ignores case."""
    for one, other in combinations(outputs, 2):
        a, b = Path(os.path.realpath(one)), Path(os.path.realpath(other))
        alike = a.parent == b.parent and _folded(a.name) == _folded(b.name)
        if alike or (_mark(a) is not None and _mark(a) == _mark(b)):
            raise OptionError(
                f"Two outputs would go to one file: {printable(one)}",
                ""
                if a == b or not alike
                else f"{printable(one)} and {printable(other)} differ in case or accents alone",
                "give one of them another name",
            )


def check_apart(outputs: Iterable[Path], inputs: Iterable[Any], within: bool = False) -> None:
    """Raise OptionError if an output is a file that is read, or would be read with the same data next time.

    Args:
        outputs, inputs, within: as of `check_outputs`.
    """
    paths = [path for source in inputs if source is not None for path in paths_of(source)]
    for output in outputs:
        target = _Target(output)
        for path in paths:
            why = target.clash(path, within)
            if why:
                raise OptionError(
                    f"The output {printable(output)} must be no part of the data that are read",
                    f"it {why}",
                    "name another output",
                )


def paths_of(source: Any) -> Iterator[str]:
    """Yield the local paths and patterns that data come from, as far as that can be known.

    >>> list(paths_of("zip://part.csv::file:///data/parts.zip")), list(paths_of("s3://bucket/a.parquet"))
    (['/data/parts.zip'], [])
    """
    if isinstance(source, str | os.PathLike):
        text = os.fsdecode(source)
        for part in text.split("::") if "://" in text else [text]:
            path = part[len("local://") :] if part.lower().startswith("local://") else local_path(part)
            if path and "://" not in path:
                yield path
        return
    # A memory map, or a view of one; an opened npz, HDF5 or Zarr file.
    seen = source
    while seen is not None:
        name = getattr(seen, "filename", None)
        if isinstance(name, str | os.PathLike):
            yield os.fsdecode(name)
        seen = getattr(seen, "base", None) if hasattr(seen, "__array__") else None
    for name in (
        getattr(getattr(source, "zip", None), "filename", None),
        getattr(getattr(source, "file", None), "filename", None),
        getattr(getattr(source, "store", None), "root", None),
    ):
        if isinstance(name, str | Path):
            yield str(name)


class _Target:
    """An output, by what is at its place now."""

    def __init__(self, path: Path) -> None:
        self.real = _real(path)
        self.mark = _mark(self.real)
        self._above = {_mark(folder) for folder in self.real.parents}

    def clash(self, path: str, within: bool) -> str:
        """Return how the output meets what a path or pattern names; "" if it does not."""
        found = _mark(path)
        if found is not None and os.path.isdir(path):
            return self._in_folder(path, within)
        if found is not None and found == self.mark:
            return "is a file that is read"
        if found is None and _real(path) == self.real:
            return "is a file that is read"
        try:
            if tars.is_pattern(path):
                return self._in_tars(path)
            if found is None and is_glob(path):
                return self._in_glob(path)
        except DataError:  # nothing fits it, which whoever reads it will say
            return ""
        return ""

    def _in_tars(self, pattern: str) -> str:
        if self.mark is None:
            fits = any(self.real.match(os.path.abspath(text)) for text in expand_braces(pattern))
            return f"would be read as one of {printable(pattern)}" if fits else ""
        same = any(_mark(path) == self.mark for path in tars.expand(pattern))
        return f"is read as one of {printable(pattern)}" if same else ""

    def _in_glob(self, pattern: str) -> str:
        if self.mark is None:
            real = os.path.realpath(self.real)
            fits = is_table(real) and would_match(real, pattern)
            return f"would be read as one of {printable(pattern)}" if fits else ""
        same = any(_mark(file.path) == self.mark for file in list_tables(pattern, is_table).files)
        return f"is read as one of {printable(pattern)}" if same else ""

    def _in_folder(self, folder: str, within: bool) -> str:
        inside = _mark(folder) in self._above
        if inside and (within or is_zarr_folder(folder)):
            return f"lies in {printable(folder)}"
        if self.mark is None:
            if inside and is_read_in_folders(self.real.name):
                return f"would be read from {printable(folder)} next time"
            return ""
        if inside and not _is_ours(self.real):
            return f"lies in {printable(folder)}"
        found = _name_in(folder, self.mark)
        return f"is read as {printable(found)}" if found else ""


def _name_in(folder: str, wanted: Mark) -> str:
    """Return what a file of data is called in a folder, at any depth, behind links; "" if there is none."""
    waiting, seen = [folder], set[Mark | None]()
    while waiting:
        here = waiting.pop()
        mark = _mark(here)
        if mark in seen:
            continue
        seen.add(mark)
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    # A number of readdir's own costs nothing; asking for each file's status, 2 us.
                    alike = entry.inode() == wanted[1] or entry.is_symlink()
                    if alike and is_read_in_folders(entry.name) and _mark(entry.path) == wanted:
                        return entry.path
                    if entry.is_dir():
                        waiting.append(entry.path)
        except OSError:  # which whoever reads it will say
            continue
    return ""


def _is_ours(path: Path) -> bool:
    """Whether a file is written again: one of slabnorm's kinds, a ledger, or what SQLite has beside one."""
    base = ledger.base_of(path)
    return base.suffix.lower() in OURS or ledger.is_ledger(base)


def _mark(path: str | Path) -> Mark | None:
    """Return what tells a file from all others; None where there is none, and for devices."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if plain else None


def _real(path: str | Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL: no file has such a name, as whoever opens it will say
        return Path(path)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
