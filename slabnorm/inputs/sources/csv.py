"""CSV files, read by pyarrow; and a check for quotes that are not closed, which pyarrow does not report."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from csv import reader
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources.columns import ColumnChoice
from slabnorm.inputs.sources.files import DataFile, filesystem

PEEK_BYTES = 1 << 20  # of text from which the types of columns are guessed
CSV_BYTES = 4 << 20  # of text that is parsed at once
# The texts of a missing number. "nan" is not one: it is a number, and counts as NaN.
NULLS = ("", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "<NA>")
_PIECE_BYTES = 1 << 16  # bytes that are counted at once: they stay in cache, 0.25 ns a byte, with 4 MiB 0.9


def schema_of(file: DataFile, delimiter: str = ",") -> Any:
    """Return a text file's schema, guessed from its first lines."""
    with _short_lines(file), _stream(file) as stream, _reader(stream, PEEK_BYTES, None, delimiter) as lines:
        return lines.schema


def read(file: DataFile, choice: ColumnChoice, with_others: bool) -> Iterator[Any]:
    """Yield the chosen columns of a text file as record batches.

    Args:
        file: of text.
        choice: the columns.
        with_others: whether the file has other columns: a quote that is open there swallows lines without an
            error, where a chosen column would hold what is no number.

    Raises:
        DataError: a quote is open where the file ends.

    Warns:
        DataWarning: there are fewer rows than lines.
    """
    rows = 0
    # Counted from a stream of its own: pyarrow would call a stream made in Python from its threads, and
    # these end the process by abort() if they do so, or only let go of it, while Python exits.
    with _stream(file) as stream, _stream(file) if with_others else nullcontext() as again:
        counted = LineCounter(again, choice.delimiter)
        with _short_lines(file), _reader(stream, CSV_BYTES, choice, choice.delimiter) as batches:
            for batch in batches:
                rows += len(batch)
                yield batch
                if with_others:
                    counted.read(CSV_BYTES)  # now, while it is still in the system's file cache
        if with_others:
            while counted.read(CSV_BYTES):
                pass
            counted.check(rows, file.name)


class LineCounter:
    """Counts the lines and quotes of a text as it is read, to tell whether each line is a row.

    Attributes:
        quotes: how many quote characters there are.
        lines: how many lines are not empty.
    """

    def __init__(self, stream: Any, delimiter: str = ",") -> None:
        self._delimiter = delimiter
        self.quotes = self.lines = 0
        self._stream, self._buffer = stream, np.empty(_PIECE_BYTES, np.uint8)
        self._ended = True  # whether the next byte begins a line
        self._held: deque[bytes] = deque(maxlen=2)  # what was read last; it holds the last line

    def read(self, size: int) -> bool:
        """Read some bytes; return whether there may be more."""
        for _ in range(size // _PIECE_BYTES):
            count = self._stream.readinto(self._buffer)
            if not count:
                return False
            self._count(self._buffer[:count])
        return True

    def _count(self, piece: np.ndarray) -> None:
        text = piece.tobytes()
        self._held.append(text)
        ends = piece == ord("\n")
        if b"\r" in text:  # rare, and quick to find
            ends |= piece == ord("\r")
        # A line begins where a byte that ends no line follows one that does; empty lines do not count.
        self.lines += int(np.count_nonzero(ends[:-1] > ends[1:])) + int(self._ended and not ends[0])
        self._ended = bool(ends[-1])
        if b'"' in text:
            self.quotes += int(np.count_nonzero(piece == ord('"')))

    def check(self, rows: int, name: str) -> None:
        """Raise or warn if a quote has swallowed lines: there are fewer `rows` than lines below the names."""
        lines = self.lines - 1
        # A quote inside a value, as in 5" pipe, opens nothing, and each line is still a row.
        if self.quotes % 2 and (rows < lines or self._open_at_end()):
            raise DataError(
                f"A quote is open at the end of {name}",
                f"{rows:,} rows from {lines:,} lines below the names, {self.quotes:,} quote characters",
                "close the quote, or leave out and list such files with skip_bad=True",
            )
        if rows < lines:
            warnings.warn(
                f"{name}: {rows:,} rows from {lines:,} lines below the names: values in quotes span lines,"
                " or quotes are not closed",
                DataWarning,
                stacklevel=2,
            )

    def _open_at_end(self) -> bool:
        """Whether a quote is open at the end of the last line."""
        lines = b"".join(self._held).rstrip(b"\r\n").splitlines() or [b""]
        last = lines[-1].decode("latin-1")
        return next(reader([last + "\n"], delimiter=self._delimiter))[-1].endswith("\n")


@contextmanager
def _stream(file: DataFile) -> Iterator[Any]:
    system, _ = filesystem(file.url)
    packed = "gzip" if file.path.lower().endswith(".gz") else None
    with system.open_input_stream(file.path, compression=packed) as stream:
        yield stream


@contextmanager
def _short_lines(file: DataFile) -> Iterator[None]:
    """Raise DataError for a line longer than a block; pyarrow advises a setting callers cannot change."""
    try:
        yield
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise DataError(
            f"Too long a line, or a quote that is not closed: {file.name}",
            f"a line has at most {CSV_BYTES >> 20} MiB, and {PEEK_BYTES >> 20} MiB at the beginning",
            "close the quote, leave out the column of long texts, or write the table as Parquet",
        ) from error


def _reader(stream: Any, block: int, choice: ColumnChoice | None, delimiter: str) -> Any:
    """Return a reader of record batches; without a choice it guesses the types from the first block."""
    yes, no = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
    convert = csv.ConvertOptions(null_values=list(NULLS), true_values=yes, false_values=no)
    if choice:
        convert.include_columns = list(choice.names)
        convert.column_types = {
            name: pa.from_numpy_dtype(np.dtype(dtype))
            for name, dtype in zip(choice.names, choice.dtypes, strict=True)
        }
    return csv.open_csv(
        stream,
        csv.ReadOptions(use_threads=False, block_size=block),
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert,
    )
