"""Arrays to files, batch by batch: the number of samples need not be known before the last one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np

from slabnorm.errors import OptionError
from slabnorm.files import new_folder, replacing
from slabnorm.inputs.accumulator import chunks
from slabnorm.inputs.sources.zarr import ArrayLocation, import_zarr, open_array

CHUNK_BYTES = 8 << 20  # of a Zarr chunk, where nothing says how long it is


def write_npy(batches: Iterator[np.ndarray], out: Path) -> int:
    """Write batches of one shape and dtype to a `.npy` file; return how many samples.

    Raises:
        OptionError: it cannot be written; the old file stays.
    """
    first = next(batches)
    with replacing(out) as file:
        head = _header(first, 0)
        file.write(head)
        rows = 0
        for batch in chain([first], batches):
            file.write(batch.reshape(-1).view(np.uint8).data)
            rows += len(batch)
        last = _header(first, rows)
        # numpy leaves room for the length to grow, so that the header can be written again.
        if len(last) != len(head):
            raise OptionError(f"Too many samples for a .npy file: {rows:,}", fix="write a .zarr instead")
        file.seek(0)
        file.write(last)
    return rows


def write_zarr(batches: Iterator[np.ndarray], out: Path, like: ArrayLocation | None) -> int:
    """Write batches of one shape and dtype to a new Zarr array; return how many samples.

    Args:
        batches: at least one.
        out: the folder.
        like: an array whose version, chunks, shards, compression and attributes it gets.

    Raises:
        OptionError: it cannot be written; nothing is left of it.
    """
    zarr = import_zarr()
    first = next(batches)
    layout = _layout(first) if like is None else _layout_of(like)
    size = layout["shards"] or layout["chunks"]
    row = max(1, first[:1].nbytes)
    step = max(1, CHUNK_BYTES // (row * size[0])) * size[0]
    # Written in a thread that is waited for, so that nothing is written while an interrupt clears the folder.
    with new_folder(out) as folder, ThreadPoolExecutor(1) as hand:
        array = zarr.create_array(
            zarr.storage.LocalStore(folder),
            shape=(layout.pop("rows", size[0]), *first.shape[1:]),
            dtype=first.dtype,
            config={"write_empty_chunks": True},  # so that a missing chunk is always a lost one
            **layout,
        )
        rows = 0
        # Whole chunks at a time: part of one would have to be read again.
        for part in chunks(chain([first], batches), step):
            if rows + len(part) > array.shape[0]:
                array.resize((max(2 * array.shape[0], rows + len(part)), *array.shape[1:]))
            hand.submit(array.__setitem__, slice(rows, rows + len(part)), part).result()
            rows += len(part)
        if array.shape[0] != rows:
            array.resize((rows, *array.shape[1:]))
    return rows


def _layout(first: np.ndarray) -> dict[str, Any]:
    rows = max(1, CHUNK_BYTES // max(1, first[:1].nbytes))
    return {"chunks": (rows, *first.shape[1:]), "shards": None}


def _layout_of(location: ArrayLocation) -> dict[str, Any]:
    with open_array(location) as array:
        plain = array.metadata.to_dict()
        layout = {
            "rows": array.shape[0],
            "chunks": array.chunks,
            "shards": array.shards,
            "zarr_format": array.metadata.zarr_format,
            "compressors": [_retuned(codec) for codec in array.compressors] or None,
            "attributes": dict(array.attrs),
        }
        if plain.get("dimension_names"):
            layout["dimension_names"] = plain["dimension_names"]
        return layout


def _retuned(codec: Any) -> Any:
    """Return a codec for values of another width."""
    from zarr.codecs import BloscCodec

    if not isinstance(codec, BloscCodec):
        return codec
    return BloscCodec(
        cname=codec.cname, clevel=codec.clevel, shuffle=codec.shuffle, blocksize=codec.blocksize
    )


def _header(batch: np.ndarray, rows: int) -> bytes:
    file = io.BytesIO()
    plain = {
        "descr": np.lib.format.dtype_to_descr(batch.dtype),
        "fortran_order": False,
        "shape": (rows, *batch.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(cast(Any, file), plain)
    return file.getvalue()
