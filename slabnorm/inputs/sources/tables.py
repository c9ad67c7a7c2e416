"""Columns of numbers from Parquet, Arrow IPC (Feather) and CSV files, and from frames, read by pyarrow."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet, types

from slabnorm.errors import DataError, DataWarning, OptionError, SlabError, SlabWarning
from slabnorm.inputs.sources import csv
from slabnorm.inputs.sources.base import MIXED, BrokenShard, Columns, Schema, Shard, Source, empty
from slabnorm.inputs.sources.columns import (
    ColumnChoice,
    as_columns,
    check_same,
    choose_columns,
    element_of,
    first_length,
    is_list,
    no_lists,
    warn_of_columns,
)
from slabnorm.inputs.sources.files import DataFile, filesystem, list_tables, listed
from slabnorm.inputs.sources.open import ARROW, CSV, PARQUET, format_of_name, is_table

# Shards of tables: runs of row groups or record batches of a file, read a few rows at a time.

SHARD_BYTES = 64 << 20  # of a run, in memory
BATCH_ROWS = 1 << 17  # read at once; a fit of 64 float32 columns takes 1.20 s of CPU, with 2^16 1.40
BATCH_BYTES = 32 << 20  # the most that is read at once
PEEK_ROWS = 1 << 10  # read of a column of lists, to find their length


@dataclass(frozen=True)
class RowRun:
    """A run of row groups or record batches; (0, 0) where a file is read as a whole.

    Attributes:
        first, last: the run.
        row: the number of its first row in the file.
        rows: how many it has; -1 where nobody knows before reading.
        size: about how many bytes are read for it.
        memory: about how many it takes.
        with_others: of a text file, whether it has columns that are not read.
    """

    first: int = 0
    last: int = 0
    row: int = 0
    rows: int = -1
    size: int = 0
    memory: int = 0
    with_others: bool = False


# Returns the runs of rows of a file, once the columns are chosen.
Runs = Callable[[ColumnChoice], list[RowRun]]


@dataclass(frozen=True)
class TableShard(Shard):
    """Some rows of a file of a table."""

    file: DataFile = field(kw_only=True)
    run: RowRun = field(kw_only=True)
    choice: ColumnChoice = field(kw_only=True)

    @property
    def numbered_in(self) -> str:
        """The file's name, as rows are numbered from the first of their file."""
        return self.file.name

    def blocks(self) -> Iterator[Columns]:
        """Yield a few rows at a time."""
        _check_unchanged(self.file)
        batches = _join_batches(
            _BATCHES[_format_name(self.file)](self.file, self.run, self.choice), self.choice
        )
        rows = 0
        while True:
            with table_errors(self.name):
                batch = next(batches, None)
                block = None
                if batch is not None:
                    block = as_columns(batch, self.choice, self.file.name, self.run.row + rows)
            if block is None:
                break
            rows += len(block)
            yield block
        if self.run.rows not in (-1, rows):
            raise DataError(
                f"Not as many rows as the footer says: {self.name}",
                f"{rows}, not {self.run.rows}",
                "write it again",
            )
        _check_unchanged(self.file)


@contextmanager
def table_errors(name: str) -> Iterator[None]:
    """Turn the errors of pyarrow and of filesystems into a DataError that names the file."""
    try:
        yield
    except (SlabError, SlabWarning):  # a warning is raised where warnings are errors
        raise
    except FileNotFoundError as error:
        raise DataError(f"Gone while it was read: {name}", fix="bring it back") from error
    except Exception as error:  # every filesystem raises errors of its own, and damaged files anything
        raise DataError(
            f"Cannot read the table {name}",
            " ".join(str(error).split())[:500] or type(error).__name__,
            "write it again, or leave out and list such files with skip_bad=True",
        ) from error


def read_schema(file: DataFile, delimiter: str = ",") -> tuple[Any, Runs]:
    """Return a file's schema, and a function that returns its runs of rows.

    Raises:
        DataError: it cannot be read.
    """
    with table_errors(file.name):
        schema, runs = _SCHEMAS[_format_name(file)](file, delimiter)
        try:
            _ = schema.names  # pyarrow decodes the names when they are first asked for
        except UnicodeDecodeError as error:
            raise DataError(
                f"A name of a column is not UTF-8: {file.name}",
                f"it holds {error.object[:100]!r}",
                "write it as UTF-8, or leave out and list such files with skip_bad=True",
            ) from error
        return schema, runs


def _schema_of_parquet(file: DataFile, _: str) -> tuple[Any, Runs]:
    with _open(file) as handle:
        meta = _parquet(handle).metadata
    schema = meta.schema.to_arrow_schema()
    return schema, lambda choice: _parquet_runs(meta, file, choice)


def _parquet_runs(meta: Any, file: DataFile, choice: ColumnChoice) -> list[RowRun]:
    # Not by the sizes of column chunks: where their metadata are damaged, asking for one ends the process
    # (RowGroupMetaData.column() of pyarrow 26 lets C++'s ParquetException through): 1 of 600 mutants did.
    with table_errors(file.name):
        lengths = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        if min(lengths, default=0) < 0:
            raise ValueError("a row group of fewer than no rows")
    width, rows = row_bytes(choice), max(1, sum(lengths))
    return join_runs([(at, n, file.size * n // rows, width * n) for at, n in enumerate(lengths)])


def _schema_of_ipc(file: DataFile, _: str) -> tuple[Any, Runs]:
    with _open(file) as handle:
        if not _is_ipc_file(handle):
            _check_end(handle, file)
            return ipc.open_stream(handle).schema, lambda _: [RowRun(size=file.size, memory=2 * BATCH_BYTES)]
        reader = ipc.open_file(handle, options=_ipc_options([]))
        schema, count = ipc.open_file(handle).schema, reader.num_record_batches
        # Without their columns, only the lengths of batches are read.
        rows = [reader.get_batch(number).num_rows for number in range(count)]
    size = file.size // max(1, count)
    return schema, lambda _: join_runs([(number, n, size, size) for number, n in enumerate(rows)])


def _schema_of_csv(file: DataFile, delimiter: str) -> tuple[Any, Runs]:
    schema, memory = csv.schema_of(file, delimiter), 4 * csv.CSV_BYTES + BATCH_BYTES
    return schema, lambda choice: [
        RowRun(size=file.size, memory=memory, with_others=len(choice.columns) < len(schema))
    ]


def join_runs(pieces: Sequence[tuple[int, int, int, int]]) -> list[RowRun]:
    """Join row groups, each with its number, rows, size and memory, to runs of about SHARD_BYTES."""
    runs: list[RowRun] = []
    row = 0
    for number, rows, size, memory in pieces:
        last = runs[-1] if runs else None
        if last and last.memory + memory <= SHARD_BYTES:
            size, memory = last.size + size, last.memory + memory
            runs[-1] = RowRun(last.first, number + 1, last.row, last.rows + rows, size, memory)
        else:
            runs.append(RowRun(number, number + 1, row, rows, size, memory))
        row += rows
    return runs


def length_of_lists(file: DataFile, column: str) -> int | None:
    """Return how many values the first list of a column has that is not null; None if there is none.

    Raises:
        DataError: the file cannot be read.
    """
    with table_errors(file.name), _open(file) as handle:
        if format_of_name(file.path) is PARQUET:
            batches = _parquet(handle).iter_batches(PEEK_ROWS, columns=[column], use_threads=False)
        elif _is_ipc_file(handle):
            reader = ipc.open_file(handle)
            reader = ipc.open_file(handle, options=_ipc_options([reader.schema.get_field_index(column)]))
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = ipc.open_stream(handle)
        arrays = (batch.column(column) for batch in map(_validated, batches))
        return first_length(array for array in arrays if is_list(array.type))


def _parquet(handle: Any) -> Any:
    return parquet.ParquetFile(handle, page_checksum_verification=True)  # off by default


def _parquet_batches(file: DataFile, run: RowRun, choice: ColumnChoice) -> Iterator[Any]:
    with _open(file) as handle:
        reader = _parquet(handle)
        # Threads read other shards at the same time.
        yield from reader.iter_batches(
            batch_rows(choice), list(range(run.first, run.last)), list(choice.columns), use_threads=False
        )


def _ipc_batches(file: DataFile, run: RowRun, choice: ColumnChoice) -> Iterator[Any]:
    with _open(file) as handle:
        if _is_ipc_file(handle):
            schema = ipc.open_file(handle).schema
            reader = ipc.open_file(handle, options=_ipc_options(_column_numbers(schema, choice)))
            for number in range(run.first, run.last):
                yield _validated(reader.get_batch(number))
            return
        _check_end(handle, file)
        schema = ipc.open_stream(handle).schema
        handle.seek(0)
        for batch in ipc.open_stream(handle, options=_ipc_options(_column_numbers(schema, choice))):
            yield _validated(batch)


def _csv_batches(file: DataFile, run: RowRun, choice: ColumnChoice) -> Iterator[Any]:
    return csv.read(file, choice, run.with_others)


_BATCHES = {PARQUET.name: _parquet_batches, ARROW.name: _ipc_batches, CSV.name: _csv_batches}
_SCHEMAS = {PARQUET.name: _schema_of_parquet, ARROW.name: _schema_of_ipc, CSV.name: _schema_of_csv}


def _format_name(file: DataFile) -> str:
    found = format_of_name(file.path)
    assert found is not None  # only files of tables are listed
    return found.name


def _is_text(file: DataFile) -> bool:
    return format_of_name(file.path) is CSV


def _open(file: DataFile) -> Any:
    system, _ = filesystem(file.url)
    return system.open_input_file(file.path)


def _is_ipc_file(handle: Any) -> bool:
    """Whether Arrow data are of the file format, and not of the stream format."""
    start = handle.read(8)
    handle.seek(0)
    if start[:4] == b"FEA1":
        raise ValueError("Feather version 1, which pyarrow writes no more; write version 2")
    return bool(start[:6] == b"ARROW1")


def _check_end(handle: Any, file: DataFile) -> None:
    """Raise ValueError unless a stream ends with its mark: it may have been cut off between two batches."""
    handle.seek(max(0, file.size - 8))
    end = handle.read(8)
    handle.seek(0)
    if end != b"\xff\xff\xff\xff\x00\x00\x00\x00":
        raise ValueError("no end mark: not an Arrow stream, a truncated one, or its writer was not closed")


def _ipc_options(places: list[int]) -> Any:
    return ipc.IpcReadOptions(included_fields=places, use_threads=False)


def _column_numbers(schema: Any, choice: ColumnChoice) -> list[int]:
    return [schema.get_field_index(name) for name in choice.columns]


def _validated(batch: Any) -> Any:
    batch.validate()  # so that no length leads out of a buffer
    for column in batch.columns:
        if is_list(column.type):
            column.validate(full=True)  # nor any bound of a single list
    return batch


def batch_rows(choice: ColumnChoice) -> int:
    """Return how many rows are read at once."""
    return max(1 << 10, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes(choice))))


def row_bytes(choice: ColumnChoice) -> int:
    """Return how many bytes a row of the chosen columns has."""
    return sum(np.dtype(dtype).itemsize for dtype in choice.dtypes)


def _join_batches(batches: Iterator[Any], choice: ColumnChoice) -> Iterator[Any]:
    """Yield batches that are long enough: small ones are joined, as each costs a call per column."""
    enough = batch_rows(choice) // 2
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(len(part) for part in held) >= enough:
            yield _concatenate(held)
            held = []
    if held:
        yield _concatenate(held)


def _concatenate(batches: list[Any]) -> Any:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _check_unchanged(file: DataFile) -> None:
    with table_errors(file.name):
        now = file.current_mark()
    if now != file.mark:
        raise DataError(f"Changed since it was listed: {file.name}", fix="fit again")


# Tables: columns of numbers from Parquet, Arrow IPC (Feather) and CSV files, read by pyarrow.

FOOTER_THREADS = 16  # threads that read footers, and mostly wait


class TableSource(Source):
    """The columns of numbers in one or many files; each column has statistics of its own.

    Parquet (.parquet, .pq), Arrow IPC in file and stream format (.arrow, .feather, .ipc) and CSV (.csv,
    .csv.gz, with a line of names). Dictionaries are decoded; bool and integers are counted exactly; numbers
    in CSV are float64. A column of lists of numbers, all of one length, is a feature for each place in them:
    `state[0]`, `state[1]`, ... Files and folders whose names begin with . or _ are not read.

    Args:
        source: a file, a folder, a glob, or a URL of these, as `s3://`, `gs://`, `memory://`.
        columns: the names of the columns to count; by default all of numbers.
        weights: the name of the column that says how often a row counts; it is no feature.
        delimiter: what stands between the values of CSV.

    Raises:
        DataError: there are no such files; a column that was named is not there or holds no numbers;
            none was named, and one holds numbers that cannot be taken (decimals, lists of lists).
        ExtraError: a package for the URL is not installed.

    Warns:
        DataWarning: columns, or entries of a folder, that are left out; columns of bool, unless named.

    >>> import pyarrow as pa, pyarrow.parquet as pq, tempfile
    >>> from slabnorm.inputs import fit
    >>> folder = tempfile.mkdtemp()
    >>> pq.write_table(pa.table({"a": [1.0, 3.0], "b": [True, False]}), f"{folder}/part.parquet")
    >>> norm = fit(folder, split="train", columns=["a", "b"])
    >>> norm.record.names, norm.moments.mean.tolist()
    (('a', 'b'), [2.0, 0.5])
    """

    unit, pattern = "rows", "n c -> c"

    def __init__(
        self,
        source: str,
        columns: Sequence[str] | None = None,
        weights: str | None = None,
        delimiter: str = ",",
    ) -> None:
        self.name, self._weights, self._delimiter = source, weights, delimiter
        self._wanted = columns
        found = list_tables(source, is_table)
        self._files, self.hints = found.files, found.hints
        if delimiter != "," and all(format_of_name(file.name) is not CSV for file in self._files):
            raise OptionError("delimiter= is for CSV files", f"no CSV file in {source:.200}", "leave it out")
        if found.left_out:
            text = f"{source}: left out {listed(found.left_out)}"
            warnings.warn(text, DataWarning, stacklevel=5)
        self._choice = self._choose()

    def schema(self) -> Schema:
        """Return the columns' names and their common dtype."""
        names = self._choice.names[: self._choice.features]
        dtypes = set(self._choice.dtypes[: len(names)])
        return Schema((len(names),), dtypes.pop() if len(dtypes) == 1 else MIXED, names)

    def shards(self) -> list[Shard]:
        """Return runs of row groups (Parquet), of record batches (Arrow), or whole files, by path."""
        with ThreadPoolExecutor(min(FOOTER_THREADS, len(self._files))) as pool:
            found = list(pool.map(self._runs, self._files))
        shards: list[Shard] = []
        for file, runs in zip(self._files, found, strict=True):
            if isinstance(runs, DataError):
                shards.append(BrokenShard(len(shards), file.name, file.mark, file.size, error=runs))
                continue
            for run in runs:
                what = "row groups" if format_of_name(file.path) is PARQUET else "record batches"
                name = f"{file.name}, {what} {run.first}..{run.last - 1}" if len(runs) > 1 else file.name
                shards.append(
                    TableShard(
                        len(shards),
                        name,
                        fingerprint=file.mark,
                        size=run.size,
                        memory=run.memory,
                        first=run.row,
                        samples=max(0, run.rows),
                        file=file,
                        run=run,
                        choice=self._choice,
                    )
                )
        return shards

    def _choose(self) -> ColumnChoice:
        """Return the columns of the first file that can be read."""
        broken: DataError | None = None
        for file, schema in self._schemas():
            if isinstance(schema, DataError):
                broken = broken or schema
                continue
            choice, left_out = choose_columns(
                schema, self._wanted, self._weights, file.name, _is_text(file), self._length
            )
            warn_of_columns(self.name, choice, left_out, 6)
            return replace(choice, delimiter=self._delimiter)
        raise broken or empty(self.name)

    def _length(self, column: str) -> int:
        """Return how many values the first list of a column has, in the first file where one is not null."""
        broken: DataError | None = None
        for file in self._files:
            try:
                length = length_of_lists(file, column)
            except DataError as error:
                broken = broken or error
                continue
            if length is not None:
                return length
        raise broken or no_lists(column, self.name)

    def _schemas(self) -> Iterator[tuple[DataFile, Any]]:
        """Yield the schema of each file, or the error of reading it; skip text files with unknown types."""
        for file in self._files:
            try:
                schema = read_schema(file, self._delimiter)[0]
            except DataError as error:
                yield file, error
                continue
            # A column of a text file that is empty at first has no type yet; without rows none has.
            if _is_text(file) and file is not self._files[-1] and any(map(types.is_null, schema.types)):
                continue
            yield file, schema

    def _runs(self, file: DataFile) -> list[RowRun] | DataError:
        try:
            schema, runs = read_schema(file, self._delimiter)
            check_same(self._choice, schema, file.name, _is_text(file))
            return runs(self._choice)
        except DataError as error:
            return error


# Frames in memory: columns of a pandas, polars or pyarrow table, counted as those of Parquet files are.

# Rows of a row group, as pyarrow writes them: the bits are those of the same table in Parquet.
GROUP_ROWS = 1 << 20


@dataclass(frozen=True)
class FrameShard(Shard):
    """Some rows of a frame."""

    table: Any = field(kw_only=True)
    choice: ColumnChoice = field(kw_only=True)

    def blocks(self) -> Iterator[Columns]:
        """Yield a few rows at a time."""
        step = batch_rows(self.choice)
        for start in range(self.first, self.last, step):
            rows = self.table.slice(start, min(step, self.last - start)).combine_chunks()
            row = start
            for batch in rows.to_batches():
                yield as_columns(batch, self.choice, self.name, row)
                row += len(batch)


class FrameSource(Source):
    """The columns of numbers of a frame; each column has statistics of its own, under its name.

    NaN in a pandas frame is null, as `DataFrame.to_parquet` writes it; in polars and pyarrow the two differ.

    Args:
        frame: a pandas or polars DataFrame, or a pyarrow Table or RecordBatch.
        columns: the names of the columns to count; by default all of numbers.
        weights: the name of the column that says how often a row counts; it is no feature.
        name: how messages call it.

    Raises:
        DataError: a column that was named is not there or holds no numbers; none was named, and one holds
            numbers that cannot be taken (decimals, lists of lists); or a column of several types.

    Warns:
        DataWarning: columns that are left out.
    """

    unit, pattern = "rows", "n c -> c"

    def __init__(
        self, frame: Any, columns: Sequence[str] | None = None, weights: str | None = None, name: str = ""
    ) -> None:
        self.name = name or type(frame).__name__
        names = None if columns is None else {*columns, *([weights] if weights else ())}
        # A name may also mean a position in a column of lists.
        names = names and names | {element[0] for element in map(element_of, names) if element}
        table = _as_table(frame, names, self.name)
        self._table = table
        self._choice, left_out = choose_columns(
            table.schema, columns, weights, self.name, False, self._length
        )
        warn_of_columns(self.name, self._choice, left_out, 5)
        self._table = table.select(list(self._choice.columns))

    def schema(self) -> Schema:
        """Return the columns' names and their common dtype."""
        names = self._choice.names[: self._choice.features]
        dtypes = set(self._choice.dtypes[: len(names)])
        return Schema((len(names),), dtypes.pop() if len(dtypes) == 1 else MIXED, names)

    def _length(self, column: str) -> int:
        """Return how many values the first list of a column has that is not null."""
        length = first_length(self._table.column(column).chunks)
        if length is None:
            raise no_lists(column, self.name)
        return length

    def shards(self) -> list[Shard]:
        """Return runs of rows."""
        rows, width = len(self._table), row_bytes(self._choice)
        lengths = [min(GROUP_ROWS, rows - start) for start in range(0, rows, GROUP_ROWS)]
        runs = join_runs([(at, n, n * width, n * width) for at, n in enumerate(lengths)])
        return [
            FrameShard(
                number,
                self.name,
                size=run.size,
                memory=0,
                first=run.row,
                samples=run.rows,
                table=self._table,
                choice=self._choice,
            )
            for number, run in enumerate(runs)
        ]


def _as_table(frame: Any, names: set[str] | None, name: str) -> Any:
    """Return a frame as an Arrow table, of a pandas frame only the columns that are asked for."""
    try:
        if isinstance(frame, pa.RecordBatch):
            return pa.Table.from_batches([frame])
        if isinstance(frame, pa.Table):
            return frame
        if hasattr(frame, "to_arrow"):  # polars
            return frame.to_arrow()
        if names is not None:
            frame = frame.loc[:, [str(column) in names for column in frame.columns]]
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"Cannot take the columns of {name}",
            " ".join(str(error).split())[:300],
            'convert them, as with .astype, or name the columns to count, as columns=["a", "b"]',
        ) from error
