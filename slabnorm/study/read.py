"""Data sets from files: an npz archive, or a folder of images. Nothing is padded, resized or guessed."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slabnorm.errors import DataError
from slabnorm.extras import extra
from slabnorm.inputs.sources import Unreadable
from slabnorm.inputs.sources.images import DamageError, decode_named, is_image, read_image_file
from slabnorm.inputs.sources.npy import read_labelled
from slabnorm.study.data import Dataset, digits, from_arrays
from slabnorm.text import printable

# The study holds its data in memory, several times over.
MOST_BYTES = 4 << 30
MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")  # of images, by Pillow's names


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
            "data must be a path, a pair (x, y) or 'digits'", f"{type(source).__name__} {source!r:.80}"
        )
    path = Path(source)
    try:
        if path.is_dir():
            return read_folder(path)
        if not path.exists():
            raise DataError(f"No such file or folder: {printable(path)}", fix="check the path given as data")
        if path.suffix.lower() != ".npz" or not path.is_file():
            raise DataError(
                f"Neither an .npz file nor a folder of images: {printable(path)}",
                fix="save it with numpy.savez(path, x=x, y=y)",
            )
        return from_arrays(*read_labelled(path, MOST_BYTES), path.name)
    except OSError as error:
        raise DataError("Cannot read the data", printable(error), "check the path and its rights") from error


def read_folder(path: Path) -> Dataset:
    """Return the images of a folder that has one folder for each class.

    Raises:
        DataError: no class folders, no images, images that differ in size or mode or cannot be decoded.
    """
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    # Sorted by name, so that every run sees one order.
    entries = [p for folder in folders for p in sorted(folder.iterdir())]
    files = [p for p in entries if is_image(p.name) and p.is_file()]
    if not files:
        raise DataError(
            f"No images in folders of {printable(path)}",
            f"{len(folders)} folders, no image in them",
            "put the images of class a in a/, those of class b in b/",
        )
    pixels, notes = read_images(files)
    if len(files) < len(entries):
        left_out = len(entries) - len(files)
        notes += (f"{left_out} entries in the class folders are no images and were left out",)
    data = from_arrays(pixels, [p.parent.name for p in files], path.resolve().name or str(path), notes)
    axes = f"{len(files)} images of {pixels.shape[3]}x{pixels.shape[2]} pixels, {pixels.shape[1]} channels"
    # from_arrays has to guess which axis is the channels; here it is known.
    return replace(data, x=pixels, axes=axes)


def read_images(paths: list[Path]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return images of one size and one mode as (n, channels, height, width), and what was converted.

    Raises:
        DataError: a file that cannot be decoded whole, a decompression bomb, several frames, or the
            first file whose size or mode differs from the first image's; more than fit in memory.
    """
    extra("PIL", "reading images", "'slabnorm[images]'")
    first_mode, first = read_image(paths[0])
    if first.nbytes * len(paths) > MOST_BYTES:
        raise DataError(
            f"Too large for memory: {len(paths)} images of {first.nbytes / 2**20:.0f} MiB",
            f"at most {MOST_BYTES >> 30} GiB",
            "give fewer or smaller images",
        )
    pixels = np.empty((len(paths), *first.shape), first.dtype)
    for number, path in enumerate(paths):
        mode, image = read_image(path)
        if (mode, image.shape) != (first_mode, first.shape):
            raise DataError(
                f"Images of different sizes or modes: {printable(path)}",
                f"{_size_of(mode, image)}, and {_size_of(first_mode, first)} of {printable(paths[0])}",
                "resize or convert the images to one size and mode first",
            )
        pixels[number] = image
    return pixels, ("palette images were read as RGB",) if first_mode == "P" else ()


def read_image(path: Path) -> tuple[str, NDArray[Any]]:
    """Return an image's mode and its pixels, (channels, height, width).

    Raises:
        DataError: it cannot be decoded whole, is a decompression bomb, or has several frames.
    """
    name = printable(path)
    data = read_image_file(str(path), name, path.stat().st_size)
    if isinstance(data, Unreadable):
        raise data.error()
    try:
        image = decode_named(data, name)
    except DamageError as error:
        raise DataError(f"Damaged image: {name}", str(error), "replace the file or leave it out") from error
    if image.mode not in MODES:
        raise DataError(
            f"No reading of images of mode {image.mode}: {name}",
            f"those of the modes {', '.join(MODES)} are read",
            "convert it, or leave it out",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transparency, which the conversion drops
        pixels = np.asarray(image.convert({"P": "RGB", "1": "L"}.get(image.mode, image.mode)))
    return image.mode, pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)


def _size_of(mode: str, image: NDArray[Any]) -> str:
    """Return `28x14 RGB`: width, height and mode."""
    return f"{image.shape[2]}x{image.shape[1]} {mode}"
