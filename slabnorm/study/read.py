"""Data sets from files: an npz archive, or a folder of images."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.errors import DataError
from slabnorm.study.data import Dataset, digits, from_arrays
from slabnorm.study.images import is_image, read_images
from slabnorm.text import printable

# The study holds its data in memory, several times over.
MOST_BYTES = 4 << 30


def read_data(source: Any) -> Dataset:
    """Return a data set from whatever names one.

    Args:
        source: a Dataset, a pair (x, y) of arrays, "digits", an `.npz` file with arrays `x` and `y`, or
            a folder with one folder of images for each class.

    Raises:
        DataError: there is no such file, or it cannot be read or used.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        return from_arrays(source[0], source[1])
    if isinstance(source, str) and source == "digits":
        return digits()
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise DataError(
            "data is a path, a pair (x, y) or 'digits'", f"{type(source).__name__} {source!r:.80}", "name one"
        )
    try:
        return read_path(Path(source))
    except OSError as error:
        raise DataError("the data can be read", printable(error), "check the path and its rights") from error


def read_path(path: Path) -> Dataset:
    """Return the data set in a file or folder.

    Raises:
        DataError: there is none, or it cannot be used.
        OSError: no right to look.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise DataError(
            "the data exists", f"no such file or folder: {printable(path)}", "check the path given as data"
        )
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise DataError(
            "data is an .npz file or a folder of images",
            printable(path),
            "save it with numpy.savez(path, x=x, y=y)",
        )
    return read_npz(path)


def read_npz(path: Path) -> Dataset:
    """Return the arrays `x` and `y` of an npz archive. Nothing in it is unpickled.

    Raises:
        DataError: no archive, an array missing, object arrays, a damaged or oversized member.
    """
    shown = printable(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise DataError(
                f"the data fits in memory: {MOST_BYTES >> 30} GiB at most",
                f"{shown}: {size / 2**30:.1f} GiB unpacked",
                "give a subset",
            )
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {name: archive[name] for name in ("x", "y") if name in names}
    except DataError:
        raise
    # Damaged archives raise a dozen types, from zlib.error to SyntaxError; all mean the same to the user.
    except Exception as error:
        pickled = "allow_pickle" in str(error)
        raise DataError(
            "arrays hold numbers or text, and are never unpickled" if pickled else "an npz file can be read",
            f"{shown}: {'an object array' if pickled else printable(error)}",
            "save x and y as plain arrays" if pickled else "save it again with numpy.savez(path, x=x, y=y)",
        ) from error
    for name in ("x", "y"):
        if name not in arrays:
            held = ", ".join(printable(n) for n in names) or "nothing"
            raise DataError(
                f"an npz file has an array {name!r}", f"{shown} holds {held}", "numpy.savez(path, x=x, y=y)"
            )
    return from_arrays(arrays["x"], arrays["y"], path.name)


def read_folder(path: Path) -> Dataset:
    """Return the images of a folder that has one folder for each class.

    Raises:
        DataError: no class folders, no images, images that differ in size or mode or cannot be decoded.
    """
    shown = printable(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [p for folder in folders for p in images_in(folder)]
    if not files:
        raise DataError(
            "a folder of images has one folder for each class",
            f"{shown}: {len(folders)} folders, no image in them",
            "put the images of class a in a/, those of class b in b/",
        )
    pixels, notes = read_images(files, MOST_BYTES)
    left_out = sum(1 for folder in folders for p in folder.iterdir() if not is_image(p))
    if left_out:
        notes += (f"{left_out} entries in the class folders are no images and were left out",)
    data = from_arrays(pixels, [p.parent.name for p in files], path.resolve().name or str(path), notes)
    axes = f"{len(files)} images of {pixels.shape[3]}x{pixels.shape[2]} pixels, {pixels.shape[1]} channels"
    # from_arrays has to guess which axis is the channels; here it is known.
    return replace(data, x=pixels, axes=axes)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of one class, sorted by name so that every run sees one order."""
    return sorted(p for p in folder.iterdir() if is_image(p))
