"""Parquet to Parquet: the columns of the features normalised, everything else as it was.

A column of lists is read as rows of an array, and written as lists of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError
from slabnorm.extras import extra
from slabnorm.files import replacing
from slabnorm.inputs.fitting import Progress
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.text import did_you_mean, listing, printable

if TYPE_CHECKING:  # it imports pyarrow
    from slabnorm.inputs.sources.columns import FeaturePlace

BATCH_BYTES = 8 << 20  # of a batch as float64, by default
Step = Callable[[Tensor], Tensor]
# By a column's number and a feature's: where its values stand.
Features = dict[int, dict[int, "FeaturePlace"]]


def write_parquet(
    norm: InputNorm, step: Step, path: Path, out: Path, batch_rows: int | None, progress: Progress | None
) -> int:
    """Write a table with its features normalised, row group by row group; return how many rows.

    Raises:
        DataError: the file cannot be read, or lacks a feature.
        OptionError: the statistics are not of a table, or the output cannot be written.
        ExtraError: pyarrow is not installed.
    """
    packages = ("pyarrow", "pyarrow.parquet")
    arrow, parquet = (extra(package, "reading Parquet files", "'slabnorm[tables]'") for package in packages)
    with _reading(path, arrow):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    with file:
        fields = list(file.schema_arrow)
        with _reading(path, arrow):
            features = _features(norm, fields, file, path)
        count = sum(map(len, features.values()))
        work = _common([_number(fields[column].type) for column in features])
        kind = arrow.from_numpy_dtype(normalise_rows(norm, step, np.empty((0, count), work)).dtype)
        for column in features:
            fields[column] = fields[column].with_type(_with_number(fields[column].type, kind, arrow))
        schema = arrow.schema(fields, file.schema_arrow.metadata)
        total = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        rows, first = batch_rows or max(1, BATCH_BYTES // (8 * count)), 0
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
                _check_lists(table, features, path, first)
                table = _replaced(
                    table, features, work, lambda x: normalise_rows(norm, step, x), rows, schema, arrow
                )
                first += len(table)
                writer.write_table(table, row_group_size=max(1, len(table)))
                if progress:
                    progress(file.metadata.row_group(number).total_byte_size, total)
        return int(file.metadata.num_rows)


def _check_lists(table: Any, features: Features, path: Path, first: int) -> None:
    """Raise DataError for a list of another length than the statistics have values."""
    from slabnorm.inputs.sources.columns import check_lengths

    for column, places in features.items():
        if many := _length(places):
            array = table.column(column).combine_chunks()
            check_lengths(array, printable(table.column_names[column]), many, printable(path), first)


def _replaced(
    table: Any,
    features: Features,
    work: np.dtype,
    normalise: Callable[[np.ndarray], np.ndarray],
    rows: int,
    schema: Any,
    arrow: Any,
) -> Any:
    """Return the table with the features' columns normalised; what is null stays null."""
    old = {column: table.column(column).combine_chunks() for column in features}
    count = sum(map(len, features.values()))
    new = np.empty((0, count))
    for start in range(0, max(1, len(table)), rows):
        x = np.empty((min(rows, len(table) - start), count), work)
        for column, places in features.items():
            part = old[column].slice(start, len(x))
            many = _length(places)
            values = _rows(part, many)[0] if many else _values(part)[:, None]
            for feature, place in places.items():
                x[:, feature] = values[:, place.at]
        y = normalise(x)
        if not start:
            new = np.empty((len(table), count), y.dtype, order="F")  # columns are written one by one
        new[start : start + len(x)] = y
    columns = table.columns
    for column, places in features.items():
        order = sorted(places, key=lambda feature: places[feature].at)
        if _length(places):
            columns[column] = _lists(new[:, order], old[column], schema.field(column).type, arrow)
        else:
            missing = np.asarray(old[column].is_null()) if old[column].null_count else None
            columns[column] = arrow.array(new[:, order[0]], mask=missing)
    return arrow.table(columns, schema=schema)


def _length(places: dict[int, FeaturePlace]) -> int:
    """Return how many values the lists of a column have, 0 where it has plain numbers."""
    return next(iter(places.values())).of


def _rows(array: Any, many: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return lists of one length as rows, 0 where something is null, and what is."""
    from slabnorm.inputs.sources.columns import in_rows

    dtype = np.dtype(array.type.value_type.to_pandas_dtype())
    values, gone = in_rows(array, dtype, many)
    return values if gone is None else np.where(gone, dtype.type(0), values), gone


def _lists(values: np.ndarray, old: Any, kind: Any, arrow: Any) -> Any:
    """Return rows as lists of a type, null where the old ones and the values in them are."""
    there = np.asarray(old.is_valid())
    gone = _rows(old, values.shape[1])[1]
    absent = None if there.all() else ~there
    if arrow.types.is_fixed_size_list(kind):
        # What stands in a list that is null is no null of its own: the values may be declared to have none.
        missing = None if gone is None else (gone & there[:, None]).ravel()
        child = arrow.array(values.ravel(), mask=missing)
        return arrow.FixedSizeListArray.from_arrays(child, type=kind, mask=_mask(absent, arrow))
    child = arrow.array(values[there].ravel(), mask=None if gone is None else gone[there].ravel())
    sizes = np.where(there, values.shape[1], 0)
    name = str(kind).partition("<")[0]
    wide = name.startswith("large")
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64 if wide else np.int32)
    if name.endswith("view"):
        views = arrow.LargeListViewArray if wide else arrow.ListViewArray
        sizes = arrow.array(sizes.astype(ends.dtype))
        return views.from_arrays(arrow.array(ends[:-1]), sizes, child, type=kind, mask=_mask(absent, arrow))
    lists = arrow.LargeListArray if wide else arrow.ListArray
    return lists.from_arrays(arrow.array(ends), child, type=kind, mask=_mask(absent, arrow))


def _mask(absent: np.ndarray | None, arrow: Any) -> Any:
    return None if absent is None else arrow.array(absent)


def _values(column: Any) -> np.ndarray:
    """Return the values of a column, 0 where it is null."""
    # Not NaN: integers with nulls would go through float64, which has fewer digits than int64.
    whole = column.fill_null(False if str(column.type) == "bool" else 0) if column.null_count else column
    return np.asarray(whole.to_numpy(zero_copy_only=False))


def normalise_rows(norm: InputNorm, step: Step, x: np.ndarray) -> np.ndarray:
    """Return rows of features, normalised."""
    rows = x if norm.record.sample else x[:, 0]
    with torch.no_grad():
        y = step(torch.from_numpy(rows).to(norm.scale.device)).cpu().numpy()
    return y.reshape(x.shape)


def _features(norm: InputNorm, fields: list[Any], file: Any, path: Path) -> Features:
    """Return where the values of the features stand."""
    from slabnorm.inputs.sources.columns import FeaturePlace

    sample, names = norm.record.sample, norm.record.names
    if len(sample) > 1 or None in sample:
        raise OptionError(
            f"No statistics of a table: of samples of shape {sample}",
            "a table holds samples of one axis, as of the pattern 'n c -> c'",
            "fit on tables",
        )
    number = math.prod(size or 1 for size in sample)
    found: list[tuple[int, FeaturePlace]]
    if names and len(names) == number:
        found = _named(names, fields, path)
    else:
        found = [(at, FeaturePlace(field.name)) for at, field in enumerate(fields) if _is_number(field.type)]
        if len(found) != number:
            found = [pair for at in range(len(fields)) for pair in _places(at, fields, file)]
    if len(found) != number:
        some = listing([printable(place.name, 40) for _, place in found[:20]]) or "none"
        raise DataError(
            f"{len(found)} columns of numbers for {number} features: {printable(path)}",
            f"{some}; the statistics name no columns",
            "leave out the other columns, or fit on a table, whose names the statistics then have",
        )
    features: Features = {}
    for feature, (column, place) in enumerate(found):
        features.setdefault(column, {})[feature] = place
    return features


def _places(column: int, fields: list[Any], file: Any) -> list[tuple[int, FeaturePlace]]:
    """Return the places of a column's numbers: one, or one for each value of lists."""
    from slabnorm.inputs.sources.columns import FeaturePlace, first_length, is_list

    name, kind = fields[column].name, fields[column].type
    if not is_list(kind):
        return [(column, FeaturePlace(name))] if _is_number(kind) else []
    if not _is_number(kind.value_type):
        return []
    batches = file.iter_batches(1 << 10, columns=[name])
    many = getattr(kind, "list_size", None) or first_length(batch.column(name) for batch in batches) or 0
    return [(column, FeaturePlace(name, at, many)) for at in range(many)]


def _named(names: tuple[str, ...], fields: list[Any], path: Path) -> list[tuple[int, FeaturePlace]]:
    """Return the places of features by their names; a column of lists has those of all its values."""
    from slabnorm.inputs.sources.columns import FeaturePlace

    columns: dict[str, list[int]] = {}
    for at, field in enumerate(fields):
        columns.setdefault(field.name, []).append(at)
    found = [_place(name, columns, fields, path) for name in names]
    taken: dict[int, list[int]] = {}
    for column, place in found:
        if place is not None:
            taken.setdefault(column, []).append(place)
    for column, places in taken.items():
        kind = fields[column].type
        many = getattr(kind, "list_size", len(places))
        if sorted(places) != list(range(many)):
            raise DataError(
                f"Column {printable(fields[column].name)!r} has lists of another length: {printable(path)}",
                f"type {kind}, and the statistics have {len(places)} values of it",
                "fit on tables with lists of this length",
            )
    return [
        (column, FeaturePlace(fields[column].name, place or 0, 0 if place is None else len(taken[column])))
        for column, place in found
    ]


def _place(name: str, columns: dict[str, list[int]], fields: list[Any], path: Path) -> tuple[int, int | None]:
    """Return the number of the column of a feature, and its place in lists, None of plain numbers."""
    from slabnorm.inputs.sources.columns import element_of, is_list

    base, at = element_of(name) or (name, 0)
    found, lists = columns.get(name, []), [one for one in columns.get(base, []) if is_list(fields[one].type)]
    kind = fields[found[0]].type if found else None
    if len(found) == 1 and not lists and (_is_number(kind) or str(kind) == "bool"):
        return found[0], None
    if not found and len(lists) == 1 and len(columns[base]) == 1:
        value = fields[lists[0]].type.value_type
        if _is_number(value) or str(value) == "bool":
            return lists[0], at
        found, kind = lists, fields[lists[0]].type
    shown = printable(name)
    if len(found) == 1 and lists and found != lists:
        problem, why = (
            "Two features of one name",
            f"{shown} is a column, and also a value of {printable(base)}",
        )
    elif len(found) == 1:
        problem, why = f"No numbers in column {shown!r}", f"type {kind}"
    elif found:
        problem, why = f"{len(found)} columns {shown!r}", ""
    else:
        problem = f"No column {shown!r}"
        why = f"its columns are {listing([printable(field.name, 40) for field in fields[:20]])}"
    fix = did_you_mean(name, columns) if not found else ""
    raise DataError(f"{problem} in {printable(path)}", why, fix or "give the columns the statistics are of")


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind))


def _number(kind: Any) -> Any:
    """Return the type of a column's numbers, or of those in its lists."""
    from slabnorm.inputs.sources.columns import is_list

    return kind.value_type if is_list(kind) else kind


def _with_number(kind: Any, number: Any, arrow: Any) -> Any:
    """Return a column's type with another type of numbers."""
    if _number(kind) is kind:
        return number
    value = kind.value_field.with_type(number)
    if arrow.types.is_fixed_size_list(kind):
        return arrow.list_(value, kind.list_size)
    make = {"list": arrow.list_, "large_list": arrow.large_list}
    make |= {name: getattr(arrow, name, None) for name in ("list_view", "large_list_view")}
    return make[str(kind).partition("<")[0]](value)


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
        raise DataError(f"Cannot read the table {printable(path)}", why, "write the file again") from error
