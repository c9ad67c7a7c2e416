"""Kinds of data, one file each; `open_source` tells which."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError, OptionError
from slabnorm.extras import extra
from slabnorm.inputs.sources.base import Bad, Block, BrokenShard, Columns, Named, Shard, Source, Stream, pick
from slabnorm.inputs.sources.memory import ArraySource, BatchSource, DatasetSource, IterableSource, is_array
from slabnorm.inputs.sources.npy import open_npz
from slabnorm.inputs.sources.paths import open_path
from slabnorm.inputs.sources.zarr import ZarrSource, is_zarr
from slabnorm.inputs.split import Hint, held_out

FRAMES = {("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "Table"), ("pyarrow", "RecordBatch")}
__all__ = [
    "Bad",
    "Block",
    "BrokenShard",
    "Columns",
    "Named",
    "Shard",
    "Source",
    "Stream",
    "is_frame",
    "open_source",
]


def open_source(
    source: Any,
    key: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    missing_chunks: str = "raise",
    convert: str | None = None,
    weights: str | None = None,
    delimiter: str = ",",
) -> Source | Stream:
    """Return the Source that reads this kind of data.

    Args:
        source: a path or URL (see paths.py), an opened npz, Zarr array or group, an array or tensor, a frame
            (pandas, polars, pyarrow), a torch Dataset (items are samples), or any other iterable, such as a
            DataLoader (items are batches); or a Source, which is returned.
        key: the array of an npz or a Zarr group, or the entry of dict items, that is x.
        columns: of a table, the names of those that are counted.
        missing_chunks: "raise", or "fill": a chunk that a Zarr array does not have is its fill value.
        convert: the mode that images are converted to.
        weights: of a table, the name of the column of weights.
        delimiter: of CSV, what stands between values.

    Raises:
        DataError: it is of no known kind, or the file cannot be read.
        OptionError: an option that this kind of data does not have.
        ExtraError: it is read by a package that is not installed.
    """
    if isinstance(source, Source | Stream):
        return source
    if missing_chunks not in ("raise", "fill"):
        raise OptionError('missing_chunks is "raise" or "fill"', repr(missing_chunks))
    if isinstance(source, str | os.PathLike):
        return open_path(os.fspath(source), key, columns, missing_chunks, convert, weights, delimiter)
    if delimiter != ",":
        raise OptionError("delimiter= is for CSV files", f"{delimiter!r:.50} for other data", "leave it out")
    if weights is not None and not is_frame(source):
        raise DataError(
            "weights= names a column of a table", f"{weights!r:.200} for other data", "give an array"
        )
    if is_zarr(source):
        return ZarrSource(source, key, missing_chunks)
    if columns is not None and not is_frame(source):
        raise DataError("columns= names columns of a table", f"columns={columns!r:.200} for other data")
    if missing_chunks == "fill":
        raise OptionError('missing_chunks="fill" is for Zarr arrays', f"{source!r:.200}", "leave it out")
    if convert is not None:
        raise OptionError("convert= is for folders and tars of images", f"convert={convert!r}")
    if is_frame(source):
        _no_key(key, "a frame; columns= names its columns")
        return _frame(source, columns, weights)
    if isinstance(source, np.lib.npyio.NpzFile):
        name, array = open_npz(source, key)
        word = held_out(name)
        return ArraySource(array, f"npz[{name!r}]", (Hint(f"the array {name!r}", word),) if word else ())
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
        hints = (Hint(f"the entry {name!r}", word),) if word else ()
        if is_frame(source[name]):
            found = _frame(source[name], None, None, f"dict[{name!r}]")
            found.hints = hints
            return found
        return ArraySource(source[name], f"dict[{name!r}]", hints)
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


def is_frame(value: Any) -> bool:
    """Whether a value is a pandas or polars DataFrame, or a pyarrow Table or RecordBatch."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(value).__mro__}
    return not kinds.isdisjoint(FRAMES)


def _frame(frame: Any, columns: Sequence[str] | None, weights: str | None, name: str = "") -> Source:
    extra("pyarrow", "a frame, whose columns have names,", "'slabnorm[tables]', or give frame.to_numpy()")
    from slabnorm.inputs.sources.tables import FrameSource

    return FrameSource(frame, columns, weights, name)


def _no_key(key: str | None, what: str) -> None:
    if key is not None:
        raise DataError("key= names an array of several, or an entry of a dict", f"key={key!r} for {what}")


def _holds_batches(items: list[Any] | tuple[Any, ...]) -> bool:
    return not isinstance(items[0], bool | int | float | complex | str)
