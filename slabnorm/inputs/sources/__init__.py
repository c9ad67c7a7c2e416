"""Kinds of data, one file each; `open_source` tells which."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError, OptionError
from slabnorm.inputs.sources import archives, images
from slabnorm.inputs.sources.arrays import ArraySource, is_array
from slabnorm.inputs.sources.base import Bad, Block, Named, Shard, Source, Stream
from slabnorm.inputs.sources.batches import BatchSource
from slabnorm.inputs.sources.datasets import DatasetSource, IterableSource
from slabnorm.inputs.sources.npy import NpySource, NpzSource
from slabnorm.inputs.sources.pictures import Form, ImageSource
from slabnorm.inputs.sources.samples import pick
from slabnorm.inputs.split import Hint, held_out

__all__ = ["Bad", "Block", "Named", "Shard", "Source", "Stream", "open_source"]


def open_source(source: Any, key: str | None = None, convert: str | None = None) -> Source | Stream:
    """Return the Source that reads this kind of data.

    Args:
        source: a path ending in .npy or .npz, a folder of images, tars of images, an opened npz, an array or
            tensor, a torch Dataset (items are samples), or any other iterable, such as a DataLoader (items
            are batches).
        key: the array of an npz, or the entry of dict items, that is x.
        convert: the mode that images are converted to.

    Raises:
        DataError: it is of no known kind, or the file cannot be read.
        OptionError: `convert` is no such mode, or the data are no images.
    """
    form = Form.of(convert)
    opened = _open(source, key, form)
    if convert is not None and not isinstance(opened, ImageSource):
        raise OptionError(
            "convert= is for folders and tars of images", f"convert={convert!r} for {opened.name}"
        )
    return opened


def _open(source: Any, key: str | None, form: Form) -> Source | Stream:
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source):  # which Path takes for the folder that one is in
            raise DataError("a data file exists", "no file: the path is empty", "give a path")
        return _open_path(Path(source), key, form)
    if isinstance(source, np.lib.npyio.NpzFile):
        name = pick(source.files, key, "the npz file")
        word = held_out(name)
        return ArraySource(
            source[name], f"npz[{name!r}]", (Hint(f"the array {name!r}", word),) if word else ()
        )
    if isinstance(source, IterableDataset):
        return IterableSource(source, key)
    if isinstance(source, Dataset):
        return DatasetSource(source, key)
    if is_array(source):
        _no_key(key, "one array")
        return ArraySource(source)
    if isinstance(source, Mapping):
        name = pick(list(source), key, "the dict")
        word = held_out(str(name))
        return ArraySource(
            source[name], f"dict[{name!r}]", (Hint(f"the entry {name!r}", word),) if word else ()
        )
    if isinstance(source, list | tuple) and source and not _holds_batches(source):
        raise DataError(
            "a list or tuple is read as batches, each an array or tensor",
            f"a {type(source).__name__} whose first item is {type(source[0]).__name__}",
            "make it one array, as with numpy.asarray(source)",
        )
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        return BatchSource(source, key)
    raise DataError(
        "data are a .npy or .npz file, an array, a tensor, a Dataset, a DataLoader or an iterable of batches",
        f"a {type(source).__name__}",
        "convert it to an array or a tensor",
    )


def _open_path(path: Path, key: str | None, form: Form) -> Source | Stream:
    try:
        exists, regular = path.exists(), path.is_file()
    except OSError as error:  # such as a name that no file system takes
        raise DataError("a data file exists", f"{path!s:.200}: {error.strerror}", "check the path") from error
    if not exists and archives.is_pattern(path):
        _no_key(key, str(path))
        return archives.open_tars(archives.expand(path), str(path), form)
    if not exists:
        raise DataError("a data file exists", f"no file {path}", "check the path")
    if path.is_dir():
        _no_key(key, str(path))
        return images.open_folder(path, form)
    if not regular:
        raise DataError("a path leads to a file or a folder", f"{path} is neither")
    kind = path.suffix.lower()
    if archives.is_tar(path.name):
        _no_key(key, str(path))
        return archives.open_tars([path], str(path), form)
    if kind == ".npz":
        return NpzSource(path, key)
    if kind == ".npy":
        _no_key(key, str(path))
        return NpySource(path)
    raise DataError(
        "a data file ends in .npy, .npz, .tar, .tar.gz or .tgz; images lie in a folder",
        str(path),
        "convert it, or give an iterable of batches read from it",
    )


def _no_key(key: str | None, what: str) -> None:
    if key is not None:
        raise DataError("key= names an array of an npz file or an entry of a dict", f"key={key!r} for {what}")


def _holds_batches(items: list[Any] | tuple[Any, ...]) -> bool:
    return not isinstance(items[0], bool | int | float | complex | str)
