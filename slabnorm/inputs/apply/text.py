"""CSV to CSV: the columns of the features normalised, the text of everything else as it was."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.errors import DataError, OptionError
from slabnorm.inputs.count import Progress
from slabnorm.inputs.extras import extra
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.report.names import listing, printable
from slabnorm.report.write import replacing

FLAGS = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
BATCH_BYTES = 8 << 20  # of a batch as float64, by default
Through = Callable[[np.ndarray], np.ndarray]


def write_csv(
    norm: InputNorm,
    through: Through,
    path: Path,
    out: Path,
    delimiter: str,
    batch_rows: int | None,
    progress: Progress | None,
) -> int:
    """Write a table with its features normalised, some rows at a time; return how many rows.

    Numbers are read as `fit` reads them, as float64, and written with the digits that give them back; what is
    null stays the text that it was.

    Raises:
        DataError: the file cannot be read, lacks a feature, or a feature's value is no number.
        OptionError: the statistics name no columns, or the output cannot be written.
        ExtraError: pyarrow is not installed.
    """
    extra("pyarrow", "a CSV file", "'slabnorm[tables]'")
    from slabnorm.inputs.sources.table_columns import check_delimiter

    check_delimiter(delimiter)
    names = norm.record.names
    if not names:
        raise OptionError(
            "columns of CSV are normalised by the names in the statistics",
            "statistics without names",
            "fit on a table",
        )
    rows, size = batch_rows or max(1, BATCH_BYTES // (8 * len(names))), path.stat().st_size
    with _reading(path) as (lines, end, place), replacing(out) as target:
        text = io.TextIOWrapper(target, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
        table = csv.reader(lines, delimiter=delimiter, strict=True)
        head = next(filter(None, table), [])
        places = _places(names, head, path)
        writer.writerow(head)
        total = done = 0
        while batch := list(islice(filter(None, table), rows)):
            _normalise(batch, places, len(head), through, path, total)
            writer.writerows(batch)
            total += len(batch)
            if progress:
                done, before = place(), done
                progress(done - before, size)
        text.detach()
    return total


def _normalise(
    batch: list[list[str]], places: list[int], width: int, through: Through, path: Path, first: int
) -> None:
    """Replace the features' values in some rows."""
    from slabnorm.inputs.sources.table_text import NULLS

    for row, values in enumerate(batch, first):
        if len(values) != width:
            raise _damaged(path, f"row {row} has {len(values)} values for {width} columns")
    x = np.zeros((len(batch), len(places)))
    for at, place in enumerate(places):
        for row, values in enumerate(batch):
            try:
                if "_" in values[place]:  # which Python takes within numbers
                    raise ValueError
                if values[place] not in NULLS:
                    x[row, at] = FLAGS[values[place]] if values[place] in FLAGS else float(values[place])
            except ValueError:
                why = f"{printable(values[place], 40)} at row {first + row}, column {places[at] + 1}"
                raise _damaged(path, f"{why}, which is no number") from None
    for values, new in zip(batch, through(x).tolist(), strict=True):
        for place, value in zip(places, new, strict=True):
            if values[place] not in NULLS:
                values[place] = repr(value)


def _places(names: tuple[str, ...], head: list[str], path: Path) -> list[int]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(head):
        places.setdefault(name, []).append(place)
    for name in names:
        count = len(places.get(name, ()))
        if count != 1:
            what = f"{count} columns" if count else "no column"
            raise DataError(
                "a table has one column for every feature of the statistics",
                f"{printable(path)}: {what} {printable(name)}",
                f"its columns are {listing([printable(found, 40) for found in head[:20]])}",
            )
    return [places[name][0] for name in names]


@contextmanager
def _reading(path: Path) -> Iterator[tuple[Any, str, Callable[[], int]]]:
    """Open text; yield its lines, how the first one ends, and what says how many bytes have been read."""
    try:
        with open(path, "rb") as raw:
            content = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            lines = io.TextIOWrapper(content, "utf-8-sig", newline="")
            first = lines.readline()
            lines.seek(0)
            yield lines, "\r\n" if first.endswith("\r\n") else "\n", raw.tell
    except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError("a CSV file can be read whole", f"{printable(path)}: {why}", "mend it")
