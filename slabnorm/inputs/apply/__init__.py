"""Normalised data as files: a whole data set through an InputNorm, a few rows at a time.

read -> batches -> InputNorm -> write beside the output -> move it there
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError, DtypeError, OptionError
from slabnorm.files import check_new, check_writable, output_path
from slabnorm.inputs.accumulator import table_values
from slabnorm.inputs.apply.writers import write_npy, write_zarr
from slabnorm.inputs.fitting import Progress
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.outputs import check_apart
from slabnorm.inputs.sources import (
    Block,
    Columns,
    NamedBlock,
    Source,
    Stream,
    Unreadable,
    is_frame,
    open_source,
)
from slabnorm.inputs.sources.base import check_schema, empty, schema_of
from slabnorm.inputs.sources.files import local_path
from slabnorm.inputs.sources.open import CSV, PARQUET, check_options, format_of_name
from slabnorm.inputs.sources.open import TABLES as SEVERAL_TABLES
from slabnorm.inputs.sources.zarr import ZarrSource
from slabnorm.text import listing, printable

__all__ = ["apply"]

BATCH_BYTES = 8 << 20  # of a batch as float64, by default
# The endings of an output, by the format of a table that is read; of arrays and all else these two.
TABLES = {PARQUET.name: PARQUET.endings, CSV.name: (".csv",)}
ARRAYS = (".npy", ".zarr")
Step = Callable[[Tensor], Tensor]


def apply(
    norm: InputNorm,
    source: Any,
    out: str | os.PathLike[str],
    *,
    inverse: bool = False,
    key: str | None = None,
    missing_chunks: str = "raise",
    delimiter: str = ",",
    batch_rows: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write normalised data to a file, exactly the values that `norm(x)` returns; return how many samples.

    The suffix of `out` says what is written: `.npy`; `.zarr`, with the chunks, shards, compression and
    attributes of the array if one is read; or `.parquet`, from a Parquet file only, whose columns that are
    no features and whose row groups and nulls stay as they are; or `.csv`, from a CSV file only, whose other
    columns keep their text. The features are the columns that the
    statistics name; if they name none, the table must have as many numeric columns as there are features.
    Numbers in lists are features by their places, `state[0]`, `state[1]`, and Parquet's lists stay lists.

    `.npy` and Parquet are written beside `out` and moved there, so that on any failure the old file stays;
    a Zarr folder must be new. In memory are a batch; for Zarr, a row of chunks; for Parquet, a row group.

    Args:
        norm: from `slabnorm.fit` or `slabnorm.load`.
        source: what `fit` takes, or a path to a `.parquet`, `.csv` or `.csv.gz` file.
        out: a local path, not that of the source.
        inverse: whether to undo the normalisation instead: `norm.inverse(x)`.
        key: the array of an npz file or a Zarr group, or the entry of dicts.
        missing_chunks: "raise", or "fill": a chunk that a Zarr array lacks is its fill value.
        delimiter: what stands between the values of CSV, in and out.
        batch_rows: samples normalised at once; by default about 8 MiB. It changes no value.
        progress: called with the bytes done since the last call, and in all, 0 if that is not known.

    Raises:
        OptionError: `out` has another suffix, is the source or cannot be written, as on a full disk; or a
            table is to become an array, or an array a table.
        DataError: the data cannot be read, are empty, or a table lacks a feature.
        ShapeError, DtypeError: the data do not have the fitted features, or are no real numbers.
        ExtraError: zarr or pyarrow is not installed.

    >>> import tempfile, pathlib, torch, numpy as np, slabnorm as sn
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> norm = sn.fit(x, split="train")
    >>> apply(norm, x, folder / "normalised.npy")
    2
    >>> np.load(folder / "normalised.npy")
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> apply(norm, folder / "normalised.npy", folder / "raw.npy", inverse=True)
    2
    >>> bool((np.load(folder / "raw.npy") == x).all())
    True
    """
    target = Path(out)
    table = _table_format(source)
    suffix = _check_out(target, os.fsdecode(out), TABLES.get(table, ARRAYS), table or "arrays")
    _check_batch(batch_rows)
    check_apart([target], (source, norm.loaded_from), within=True)
    if isinstance(source, str | os.PathLike):
        source = local_path(os.fspath(source))
    step: Step = norm.inverse if inverse else norm
    options = {"key": key, "missing_chunks": missing_chunks, "delimiter": delimiter}
    found = check_options(source, options)
    if table and (found is SEVERAL_TABLES or "://" in source):
        raise DataError("apply takes one local table at a time", f"{source:.200}", "give the path of a file")
    if table == CSV.name:
        from slabnorm.inputs.apply.text import write_csv

        return write_csv(norm, step, Path(source), target, delimiter, batch_rows, progress)
    if table == PARQUET.name:
        from slabnorm.inputs.apply.tables import write_parquet

        return write_parquet(norm, step, Path(source), target, batch_rows, progress)
    columns = norm.record.names or None if is_frame(source) else None
    opened = open_source(source, key, columns=columns, missing_chunks=missing_chunks)
    rows = _normalised(opened, norm, step, batch_rows, progress)
    if suffix == ".zarr":
        return write_zarr(rows, target, opened.location if isinstance(opened, ZarrSource) else None)
    return write_npy(rows, target)


def _normalised(
    source: Source | Stream, norm: InputNorm, step: Step, batch_rows: int | None, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Yield the normalised samples in order, a batch at a time; at least one batch, which may be empty."""
    schema = None
    for block, done, total in _blocks(source):
        if schema is None:
            schema = schema_of(block, source.name)
        check_schema(schema, block, source.name, source.name)
        rows = batch_rows or max(1, BATCH_BYTES // (8 * schema.values))
        for start in range(0, max(1, len(block)), rows):
            yield _as_array(_through(step, _as_tensor(block[start : start + rows]), norm))
        if progress:
            progress(done, total)
    if schema is None:
        raise empty(source.name)


def _blocks(source: Source | Stream) -> Iterator[tuple[Block, int, int]]:
    """Yield the samples in order, with the bytes of each block and of all, 0 if that is not known."""
    if not isinstance(source, Source):
        for block in source.blocks():
            yield block, block.nbytes, 0
        return
    shards = source.shards()
    total = sum(shard.size for shard in shards)
    for shard in shards:
        for part in shard.blocks():
            if isinstance(part, Unreadable):
                raise part.error()
            if isinstance(part, NamedBlock):
                part = part.block
            if isinstance(part, Columns) and not shard.fingerprint:  # of a frame in memory
                part = table_values(part)
            if isinstance(part, Columns):
                raise OptionError(
                    f"No writing of tables like this one: {source.name}",
                    "single Parquet and CSV files are written back",
                    "convert it to Parquet first",
                )
            yield part, part.nbytes, total


def _through(step: Step, x: Tensor, norm: InputNorm) -> Tensor:
    with torch.no_grad():
        return step(x.to(norm.scale.device)).cpu()


def _as_tensor(block: Block) -> Tensor:
    if isinstance(block, Tensor):
        return block
    if not block.dtype.isnative:
        block = block.astype(block.dtype.newbyteorder("="))
    # PyTorch takes no negative strides, and warns of what it may not write to.
    usual = block.flags.writeable and all(stride >= 0 for stride in block.strides)
    return torch.from_numpy(block if usual else block.copy())


def _as_array(y: Tensor) -> np.ndarray:
    if y.dtype == torch.bfloat16:
        raise DtypeError("Files of arrays hold no bfloat16", fix="convert the data to float32")
    return np.ascontiguousarray(y.numpy())


def _table_format(source: Any) -> str:
    """Return the name of a table's format that is written back, by the end of a path; "" for all else."""
    found = format_of_name(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else None
    return found.name if found is not None and found.name in TABLES else ""


def _check_batch(rows: int | None) -> None:
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        raise OptionError("batch_rows must be an integer, 1 or more", repr(rows))


def _check_out(target: Path, text: str, suffixes: tuple[str, ...], what: str) -> str:
    """Return the suffix of the output, which can be written now."""
    suffix = target.suffix.lower()
    if suffix not in suffixes or "://" in text:
        raise OptionError(
            f"An output of {what} must be a local path that ends in {listing(list(suffixes), 'or')}",
            printable(text),
            "name such a file",
        )
    if suffix == ".zarr":
        check_new(target)
    else:
        output_path(text)
    check_writable(target)
    return suffix
