"""CSV to CSV: the columns of the features normalised, the text of everything else as it was."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from slabnorm.errors import DataError, OptionError
from slabnorm.extras import extra
from slabnorm.files import replacing
from slabnorm.inputs.apply.tables import normalise_rows
from slabnorm.inputs.fitting import Progress
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.sources.open import check_delimiter
from slabnorm.text import did_you_mean, listing, printable

FLAGS = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
BATCH_BYTES = 8 << 20  # of a batch by default: of all its values as float64, and of its text
LONGEST = 16 << 20  # characters of a row
Step = Callable[[Tensor], Tensor]


def write_csv(
    norm: InputNorm,
    step: Step,
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
    extra("pyarrow", "reading CSV files", "'slabnorm[tables]'")
    check_delimiter(delimiter)
    names = norm.record.names
    if not names:
        raise OptionError(
            "The statistics name no columns",
            "the columns of a CSV file are found by these names",
            "fit on a table",
        )
    with _reading(path) as (lines, end), replacing(out) as target:
        text = io.TextIOWrapper(target, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
        table = csv.reader(lines, delimiter=delimiter, strict=True)
        head = next(filter(None, table), [])
        if not head:
            raise _damaged(path, "it is empty")
        places = _places(names, head, path)
        writer.writerow(head)
        total = done = 0
        for batch in _batches(table, lines, len(head), batch_rows):
            _normalise(batch, places, len(head), lambda x: normalise_rows(norm, step, x), path, total)
            writer.writerows(batch)
            total += len(batch)
            if progress:
                done, before = lines.place(), done
                progress(done - before, lines.size)
        text.detach()
    return total


def _batches(
    table: Iterator[list[str]], lines: _Lines, width: int, rows: int | None
) -> Iterator[list[list[str]]]:
    """Yield the rows some at a time; by default few enough that neither values nor text take much memory."""
    most, longest = rows or max(1, BATCH_BYTES // (8 * width)), None if rows else BATCH_BYTES
    batch, held = list[list[str]](), 0
    for row in table:
        held += lines.begin_row()
        if row:
            batch.append(row)
        if len(batch) == most or (batch and longest and held >= longest):
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _normalise(
    batch: list[list[str]],
    places: list[int],
    width: int,
    normalise: Callable[[np.ndarray], np.ndarray],
    path: Path,
    first: int,
) -> None:
    """Replace the features' values in some rows."""
    from slabnorm.inputs.sources.csv import NULLS

    for row, values in enumerate(batch, first):
        if len(values) != width:
            raise _damaged(path, f"row {row} has {len(values)} values for {width} columns")
    x = np.zeros((len(batch), len(places)))
    for at, place in enumerate(places):
        for row, values in enumerate(batch):
            try:
                if "_" in values[place] or not values[place].isascii():  # which Python takes within numbers
                    raise ValueError
                if values[place] not in NULLS:
                    x[row, at] = FLAGS[values[place]] if values[place] in FLAGS else float(values[place])
            except ValueError:
                why = f"{printable(values[place], 40)} at row {first + row}, column {places[at] + 1}"
                raise _damaged(path, f"{why}, which is no number") from None
    for values, new in zip(batch, normalise(x).tolist(), strict=True):
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
            problem = f"{count} columns" if count else "No column"
            raise DataError(
                f"{problem} {printable(name)!r} in {printable(path)}",
                f"its columns are {listing([printable(found, 40) for found in head[:20]])}",
                did_you_mean(name, head) if not count else "rename them",
            )
    return [places[name][0] for name in names]


class _Lines:
    """The lines of a file of text, as they are asked for.

    Attributes:
        size: of the file, in bytes.
        place: returns how many of its bytes have been read.
    """

    def __init__(self, path: Path, raw: Any) -> None:
        content = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
        self._text = io.TextIOWrapper(content, "utf-8-sig", newline="")
        self._path, self._row = path, 0
        self.size, self.place = path.stat().st_size, raw.tell

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        # Not iter(text): a file of 3 MB can unpack to a line of 3 GB, and a row goes on over lines.
        line = self._readline(LONGEST + 1 - self._row)
        self._row += len(line)
        if self._row > LONGEST:
            raise _damaged(self._path, f"a row of more than {LONGEST:,} characters")
        if not line:
            raise StopIteration
        return line

    def begin_row(self) -> int:
        """Return the characters of the row that is whole; the next one begins."""
        length, self._row = self._row, 0
        return length

    def end(self) -> str:
        """Return how the first line ends; what is read goes on from the start."""
        first = self._readline(LONGEST)
        try:
            self._text.seek(0)
        except OSError as error:  # a pipe, which is not read twice
            raise _damaged(self._path, "it is no regular file") from error
        return "\r\n" if first.endswith("\r\n") else "\n"

    def _readline(self, most: int) -> str:
        # Here, and not where the output is written: its errors are OSErrors, too.
        try:
            return self._text.readline(most)
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise _damaged(self._path, str(error)) from error


@contextmanager
def _reading(path: Path) -> Iterator[tuple[_Lines, str]]:
    """Open a file of text; yield its lines, and how the first one ends."""
    with ExitStack() as stack:
        try:
            lines = _Lines(path, stack.enter_context(open(path, "rb")))
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        end = lines.end()
        try:
            yield lines, end
        except csv.Error as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"Damaged CSV file: {printable(path)}", why, "mend it")
