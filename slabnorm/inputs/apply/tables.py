"""Parquet to Parquet: the columns of the features normalised, everything else as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError
from slabnorm.inputs.count import Progress
from slabnorm.inputs.extras import extra
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.report.names import listing, printable
from slabnorm.report.write import replacing

BATCH_BYTES = 8 << 20  # of a batch as float64, by default
Step = Callable[[Tensor], Tensor]


def write_parquet(
    norm: InputNorm, step: Step, path: Path, out: Path, batch_rows: int | None, progress: Progress | None
) -> int:
    """Write a table with its features normalised, row group by row group; return how many rows.

    Raises:
        DataError: the file cannot be read, or lacks a feature.
        OptionError: the statistics are not of a table, or the output cannot be written.
        ExtraError: pyarrow is not installed.
    """
    arrow, parquet = (extra(name, "a Parquet file", "pyarrow") for name in ("pyarrow", "pyarrow.parquet"))
    with _reading(path, arrow):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    with file:
        fields = list(file.schema_arrow)
        places = _features(norm, fields, arrow, path)
        work = _common([fields[place].type for place in places])
        kind = arrow.from_numpy_dtype(through(norm, step, np.empty((0, len(places)), work)).dtype)
        for place in places:
            fields[place] = fields[place].with_type(kind)
        schema = arrow.schema(fields, file.schema_arrow.metadata)
        total = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        rows = batch_rows or max(1, BATCH_BYTES // (8 * len(places)))
        with _reading(path, arrow):
            # What was read has metadata that can be asked for; of damaged ones this ends the process.
            for _ in range(min(1, file.num_row_groups)):
                next(file.iter_batches(1, [0]), None)
            compression = _compression(file)
        with (
            replacing(out) as target,
            parquet.ParquetWriter(target, schema, compression=compression) as writer,
        ):
            for number in range(file.num_row_groups):
                with _reading(path, arrow):
                    table = file.read_row_group(number)
                table = _replaced(table, places, work, lambda x: through(norm, step, x), rows, schema, arrow)
                writer.write_table(table, row_group_size=max(1, len(table)))
                if progress:
                    progress(file.metadata.row_group(number).total_byte_size, total)
        return int(file.metadata.num_rows)


def _replaced(
    table: Any,
    places: list[int],
    work: np.dtype,
    normalise: Callable[[np.ndarray], np.ndarray],
    rows: int,
    schema: Any,
    arrow: Any,
) -> Any:
    """Return the table with the features' columns normalised; what is null stays null."""
    old = [table.column(place).combine_chunks() for place in places]
    new = [np.empty(0)] * len(places)
    for start in range(0, max(1, len(table)), rows):
        x = np.empty((min(rows, len(table) - start), len(places)), work)
        for at, column in enumerate(old):
            x[:, at] = _values(column.slice(start, len(x)))
        y = normalise(x)
        if not start:
            new = [np.empty(len(table), y.dtype) for _ in places]
        for at, column in enumerate(new):
            column[start : start + len(x)] = y[:, at]
    columns = table.columns
    for place, column, values in zip(places, old, new, strict=True):
        missing = np.asarray(column.is_null()) if column.null_count else None
        columns[place] = arrow.array(values, mask=missing)
    return arrow.table(columns, schema=schema)


def _values(column: Any) -> np.ndarray:
    """Return the values of a column, 0 where it is null."""
    # Not NaN: integers with nulls would go through float64, which has fewer digits than int64.
    whole = column.fill_null(False if str(column.type) == "bool" else 0) if column.null_count else column
    return np.asarray(whole.to_numpy(zero_copy_only=False))


def through(norm: InputNorm, step: Step, x: np.ndarray) -> np.ndarray:
    """Return rows of features, normalised."""
    rows = x if norm.record.sample else x[:, 0]
    with torch.no_grad():
        y = step(torch.from_numpy(rows).to(norm.scale.device)).cpu().numpy()
    return y.reshape(x.shape)


def _features(norm: InputNorm, fields: list[Any], arrow: Any, path: Path) -> list[int]:
    """Return the places of the features' columns."""
    sample, names = norm.record.sample, norm.record.names
    if len(sample) > 1 or None in sample:
        raise OptionError(
            "a table holds samples of one axis, as of the pattern 'n c -> c'",
            f"statistics of samples of shape {sample}",
            "fit on tables",
        )
    number = math.prod(size or 1 for size in sample)
    numeric = [place for place, field in enumerate(fields) if _is_number(field.type, arrow.types)]
    if names and len(names) == number:
        places: dict[str, list[int]] = {}
        for place, field in enumerate(fields):
            places.setdefault(field.name, []).append(place)
        return [_place(name, places, fields, arrow, path) for name in names]
    if len(numeric) != number:
        found = listing([printable(fields[place].name, 40) for place in numeric[:20]]) or "none"
        raise DataError(
            f"the statistics name no columns, so that a table has as many numeric ones as features: {number}",
            f"{printable(path)} has {len(numeric)}: {found}",
            "leave out the other columns, or fit on a table, whose names the statistics then have",
        )
    return numeric


def _place(name: str, places: dict[str, list[int]], fields: list[Any], arrow: Any, path: Path) -> int:
    found = places.get(name, [])
    kind = fields[found[0]].type if found else None
    if len(found) == 1 and (_is_number(kind, arrow.types) or arrow.types.is_boolean(kind)):
        return found[0]
    if len(found) == 1:
        why = f"{printable(name)} of type {kind}"
    else:
        why = f"{len(found)} columns {printable(name)}" if found else f"no column {printable(name)}"
    raise DataError(
        "a table has one numeric column for every feature of the statistics",
        f"{printable(path)}: {why}",
        f"its columns are {listing([printable(field.name, 40) for field in fields[:20]])}",
    )


def _is_number(kind: Any, types: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _common(kinds: list[Any]) -> np.dtype:
    return np.result_type(*(kind.to_pandas_dtype() for kind in kinds))


def _compression(file: Any) -> str:
    if not file.num_row_groups or not file.metadata.num_columns:
        return "snappy"
    name = str(file.metadata.row_group(0).column(0).compression)
    return "none" if name == "UNCOMPRESSED" else name.lower()


@contextmanager
def _reading(path: Path, arrow: Any) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        why = str(error).partition("\n")[0][:300]
        raise DataError(
            "a Parquet file can be read whole", f"{printable(path)}: {why}", "write the file again"
        ) from error
