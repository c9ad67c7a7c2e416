"""Data sets by name, from files, folders and torch Datasets. Nothing is padded, resized or guessed."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from slabnorm.errors import DataError
from slabnorm.extras import extra
from slabnorm.inputs.features import as_numpy
from slabnorm.inputs.sources import Unreadable
from slabnorm.inputs.sources.base import as_block
from slabnorm.inputs.sources.idx import ENDINGS, labels_beside, list_folder, read_idx, role_of
from slabnorm.inputs.sources.images import DamageError, decode_named, is_image, read_image_file
from slabnorm.inputs.sources.npy import read_labelled
from slabnorm.study.data import Dataset, digits, from_arrays, from_splits, photos
from slabnorm.text import did_you_mean, listing, printable

# The study holds its data in memory, several times over.
MOST_BYTES = 4 << 30
# Where Debian's and Ubuntu's package dataset-fashion-mnist puts it, and what its classes 0 to 9 are.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FOUR_FILES = (
    "give a folder with the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz, packed or not"
)
NAMES = ("digits", "photos", "fashion-mnist")  # a folder of that name is given as ./photos
ROLES = ("train", "test")
MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")  # of images, by Pillow's names


def read_data(source: Any) -> Dataset:
    """Return a data set from whatever names one.

    Args:
        source: one of:
            "digits" or "photos", which scikit-learn brings, or "fashion-mnist", where it is installed;
            a pair (x, y) of arrays or tensors, or an `.npz` file with arrays `x` and `y`;
            a folder with one folder of images for each class;
            a folder with the four IDX files of MNIST and its like, whose test split is kept;
            a torch `Dataset` with a length, whose items are pairs (x, y); each is read once;
            a Dataset of this module, which is returned.

    Raises:
        DataError: there is no such file, or it cannot be read or used.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str) and source in NAMES:
        return {"digits": digits, "photos": photos, "fashion-mnist": fashion_mnist}[source]()
    if isinstance(source, torch.utils.data.Dataset):
        return read_items(source)
    if isinstance(source, tuple | list) and len(source) == 2:
        return from_arrays(source[0], source[1])
    if isinstance(source, str | os.PathLike) and not str(source):
        raise DataError(
            "The data have no name", fix=f"name a file, a folder, or {listing(list(NAMES), 'or')}"
        )
    if not isinstance(source, str | os.PathLike):
        names = ", ".join(map(repr, NAMES))
        raise DataError(
            f"data must be a path, a pair (x, y), a torch Dataset, or one of the names {names}",
            f"{type(source).__name__} {source!r:.80}",
        )
    try:
        return read_path(Path(source))
    except OSError as error:
        raise DataError("Cannot read the data", printable(error), "check the path and its rights") from error


def read_path(path: Path) -> Dataset:
    """Return the data set in a file or a folder."""
    if path.is_dir():
        return read_idx_folder(path) if list_folder(str(path)) else read_folder(path)
    if not path.exists():
        named = listing(list(map(repr, NAMES)), "or")
        fix = did_you_mean(str(path), NAMES) or f"check the path given as data, or give {named}"
        raise DataError(f"No such file or folder: {printable(path)}", fix=fix)
    if path.name.lower().endswith(ENDINGS):
        raise DataError(f"One IDX file is no labelled data set: {printable(path)}", fix=FOUR_FILES)
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise DataError(
            f"Neither an .npz file nor a folder of images: {printable(path)}",
            fix="save it with numpy.savez(path, x=x, y=y)",
        )
    return from_arrays(*read_labelled(path, MOST_BYTES), path.name)


def fashion_mnist() -> Dataset:
    """Return Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of clothes, 28x28, 0 to 255, ten classes.

    It is read where Debian's and Ubuntu's package dataset-fashion-mnist puts it.

    Raises:
        DataError: it is not there, or damaged.
    """
    if not FASHION_MNIST.is_dir():
        raise DataError(
            "Fashion-MNIST is not installed",
            f"no folder {FASHION_MNIST}",
            f"apt install dataset-fashion-mnist, or {FOUR_FILES}",
        )
    data = read_idx_folder(FASHION_MNIST, "Fashion-MNIST")
    if len(data.classes) != len(CLOTHES):
        got = f"{len(data.classes)} classes, not {len(CLOTHES)}"
        raise DataError(f"Not Fashion-MNIST in {FASHION_MNIST}", got, "install dataset-fashion-mnist again")
    return replace(data, classes=CLOTHES)


def read_idx_folder(path: Path, name: str = "") -> Dataset:
    """Return the labelled images of a folder of IDX files, and keep which are the test split.

    Raises:
        DataError: not one file of training images and one of test images, each with its labels; or damage.
    """
    files = list_folder(str(path))
    train, test = ([file for entry, file in files.items() if role_of(entry) == role] for role in ROLES)
    if len(train) != 1 or len(test) != 1:
        found = ", ".join(printable(file.relative_to(path)) for file in files.values())
        raise DataError(
            f"Not one file of training images and one of test images in {printable(path)}",
            f"{len(train)} and {len(test)}, by the words train and t10k or test in their names: {found:.500}",
            FOUR_FILES,
        )
    return from_splits(read_idx_pair(train[0]), read_idx_pair(test[0]), name or path.resolve().name)


def read_idx_pair(images: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the images of an IDX file, and their labels from the file beside it.

    Raises:
        DataError: a file is missing or damaged, or there are not as many labels as images.
    """
    labels = labels_beside(images)
    y = read_idx(labels, MOST_BYTES)
    x = read_idx(images, MOST_BYTES)
    if len(x) != len(y) or y.ndim != 1:
        raise DataError(
            f"Not one label for each image: {printable(labels)}",
            f"shape {y.shape}, and {x.shape} of {printable(images)}",
            "fetch both files from one place",
        )
    return x, y


def read_items(items: Any) -> Dataset:
    """Return the items of a map-style torch Dataset; each is read once, as its transforms make it.

    Raises:
        DataError: it has no length or no items; an item is no pair (x, y), of another size than the first,
            or raises an error; or all together do not fit in memory.
    """
    name = type(items).__name__
    if isinstance(items, IterableDataset) or not hasattr(items, "__len__"):
        fix = "give a map-style Dataset, which has __len__ and __getitem__, or a pair (x, y)"
        problem = "Not a map-style Dataset" if hasattr(items, "__len__") else "A Dataset without a length"
        raise DataError(f"{problem}: {name}", "its items cannot be counted and chosen", fix)
    count = len(items)
    if not count:
        raise DataError(f"No samples: {name} is empty", fix="check what was selected or filtered")
    first, label = read_item(items, 0, name)
    if first.nbytes * count > MOST_BYTES:
        size = f"{count:,} items of {first.nbytes:,} bytes, at most {MOST_BYTES >> 30} GiB"
        raise DataError(f"Too large for memory: {name}", size, "give a torch.utils.data.Subset")
    x, y = np.empty((count, *first.shape), first.dtype), [label]
    x[0] = first
    for number in range(1, count):
        value, label = read_item(items, number, name)
        if (value.shape, value.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"Items of different sizes or dtypes: item {number} of {name}",
                f"{value.dtype} of shape {value.shape}, and {first.dtype} of shape {first.shape} of item 0",
                "resize or convert them to one size and dtype",
            )
        x[number] = value
        y.append(label)
    data = from_arrays(x, y, name)
    said: Any = getattr(items, "classes", None)  # as torchvision's data sets have them, by number
    named = isinstance(said, list | tuple) and all(isinstance(text, str) for text in said)
    if named and data.classes == tuple(map(str, range(len(said)))):
        return replace(data, classes=tuple(map(printable, said)))
    return data


def read_item(items: Any, number: int, name: str) -> tuple[NDArray[Any], Any]:
    """Return x of an item as an array, and its label."""
    where = f"item {number} of {name}"
    try:
        item = items[number]
    except Exception as error:  # items are made by the user's code
        why = f"{type(error).__name__}: {printable(error)}"
        raise DataError(
            f"Reading {where} raised an error", why, "mend the Dataset, or leave it out"
        ) from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        several = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        got = f"{type(item).__name__}{several}"
        raise DataError(f"Not a pair (x, y): {where}", got, "return the sample and its label")
    x, y = as_numpy(as_block(item[0], f"x of {where}")), item[1]
    if not isinstance(y, str):
        label = as_numpy(as_block(y, f"y of {where}"))
        y = label.item() if label.size == 1 else label
    return x, y


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
