"""Kinds of data, one file each; `open_source` tells which."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError, ExtraError, OptionError
from slabnorm.inputs.sources.arrays import ArraySource, is_array
from slabnorm.inputs.sources.base import Bad, Block, Columns, Shard, Source, Stream
from slabnorm.inputs.sources.batches import BatchSource
from slabnorm.inputs.sources.chunked import ZarrSource, is_zarr, is_zarr_path
from slabnorm.inputs.sources.datasets import DatasetSource, IterableSource
from slabnorm.inputs.sources.npy import NpySource, NpzSource
from slabnorm.inputs.sources.samples import pick
from slabnorm.inputs.sources.table_files import KINDS, is_table
from slabnorm.inputs.split import Hint, held_out

__all__ = ["Bad", "Block", "Columns", "Shard", "Source", "Stream", "open_source"]


def open_source(
    source: Any,
    key: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    missing_chunks: str = "raise",
) -> Source | Stream:
    """Return the Source that reads this kind of data.

    Args:
        source: a path ending in .npy or .npz, an opened npz, a Zarr array or group or its path or URL, the
            path, folder, glob or URL of a table (see TableSource), an array or tensor, a torch Dataset (items
            are samples), or any other iterable, such as a DataLoader (items are batches).
        key: the array of an npz or a Zarr group, or the entry of dict items, that is x.
        columns: of a table, the names of those that are counted.
        missing_chunks: "raise", or "fill": a chunk that a Zarr array does not have is its fill value.

    Raises:
        DataError: it is of no known kind, or the file cannot be read.
        OptionError: `missing_chunks` is neither, or "fill" for data without chunks.
        ExtraError: it is read by a package that is not installed.
    """
    if missing_chunks not in ("raise", "fill"):
        raise OptionError('missing_chunks is "raise" or "fill"', repr(missing_chunks))
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    zarr = is_zarr(source) if path is None else is_zarr_path(path)
    table = path is not None and not zarr and is_table(path)
    if columns is not None and not table:
        raise DataError("columns= names columns of a table", f"columns={columns!r:.200} for other data")
    if missing_chunks == "fill" and not zarr:
        raise OptionError('missing_chunks="fill" is for Zarr arrays', f"{source!r:.200}", "leave it out")
    if zarr:
        if path is not None:
            _check_exists(path)
        return ZarrSource(source, key, missing_chunks)
    if table:
        _no_key(key, str(source))
        return _open_table(str(path), columns)
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), key)
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
        "data are a .npy or .npz file, a Zarr array, an array, a tensor, a Dataset, or iterable batches",
        f"a {type(source).__name__}",
        "convert it to an array or a tensor",
    )


def _check_exists(text: str) -> None:
    try:
        exists = "://" in text or Path(text).exists()
    except OSError as error:  # such as a name that no file system takes
        raise DataError("a data file exists", f"{text:.200}: {error.strerror}", "check the path") from error
    if not exists:
        raise DataError("a data file exists", f"no file {text}", "check the path")


def _open_path(path: Path, key: str | None) -> Source | Stream:
    _check_exists(str(path))
    if not path.is_file():
        raise DataError("a path leads to one file", f"{path} is a folder or no regular file")
    kind = path.suffix.lower()
    if kind == ".npz":
        return NpzSource(path, key)
    if kind == ".npy":
        _no_key(key, str(path))
        return NpySource(path)
    raise DataError(
        f"a data file ends in .npy, .npz, .zarr, .zarr.zip, {', '.join(KINDS)}",
        str(path),
        "convert it, or give an iterable of batches read from it",
    )


def _open_table(source: str, columns: Sequence[str] | None) -> Source:
    try:
        from slabnorm.inputs.sources.tables import TableSource
    except ImportError as error:
        raise ExtraError(
            "tables are read by pyarrow", f"{source}: {error}", "pip install 'slabnorm[tables]'"
        ) from error
    return TableSource(source, columns)


def _no_key(key: str | None, what: str) -> None:
    if key is not None:
        raise DataError("key= names an array of several, or an entry of a dict", f"key={key!r} for {what}")


def _holds_batches(items: list[Any] | tuple[Any, ...]) -> bool:
    return not isinstance(items[0], bool | int | float | complex | str)
