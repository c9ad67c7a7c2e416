"""Tables by pyarrow: columns of numbers from Parquet, Arrow IPC (Feather) and CSV files, and from frames."""

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

from slabnorm.errors import DataError, DataWarning, SlabError, SlabWarning
from slabnorm.inputs.sources import csv
from slabnorm.inputs.sources.base import MIXED, BrokenShard, Columns, Schema, Shard, Source
from slabnorm.inputs.sources.columns import (
    Choice,
    as_columns,
    check_delimiter,
    check_names,
    check_same,
    choose,
    element_of,
    first_length,
    is_list,
    no_lists,
    warn_of_columns,
)
from slabnorm.inputs.sources.files import TableFile, filesystem, find, listed, mark_of

# Shards of tables: which parts of a file they are, and their columns read a few rows at a time.

SHARD_BYTES = 64 << 20  # of a run of row groups or record batches, in memory
BATCH_ROWS = 1 << 17  # read at once; a fit of 64 float32 columns takes 1.20 s of CPU, with 2^16 1.40
BATCH_BYTES = 32 << 20  # ... at most
PEEK_ROWS = 1 << 10  # of a column of lists, to see how long these are


@dataclass(frozen=True)
class Part:
    """A run of row groups or record batches; (0, 0) where a file is read as a whole.

    Attributes:
        first, last: the run.
        row: the number of its first row in the file.
        rows: how many it has; -1 where nobody knows before reading.
        size: about how many bytes are read for it.
        memory: about how many it takes.
        beside: of a text file, whether it has columns that are not read.
    """

    first: int = 0
    last: int = 0
    row: int = 0
    rows: int = -1
    size: int = 0
    memory: int = 0
    beside: bool = False


@dataclass(frozen=True)
class TableShard(Shard):
    """Some rows of a file of a table."""

    file: TableFile = field(kw_only=True)
    part: Part = field(kw_only=True)
    choice: Choice = field(kw_only=True)

    @property
    def numbered_in(self) -> str:
        """The file: a part of one is numbered from the file's first row."""
        return self.file.name

    def blocks(self) -> Iterator[Columns]:
        """Yield a few rows at a time."""
        _check_unchanged(self.file)
        batches = _joined(_BATCHES[self.file.kind](self.file, self.part, self.choice), self.choice)
        rows = 0
        while True:
            with reading(self.name):
                batch = next(batches, None)
                block = None
                if batch is not None:
                    block = as_columns(batch, self.choice, self.file.name, self.part.row + rows)
            if block is None:
                break
            rows += len(block)
            yield block
        if self.part.rows not in (-1, rows):
            raise DataError(
                "a file holds as many rows as its footer says",
                f"{self.name}: {rows}, not {self.part.rows}",
                "write it again",
            )
        _check_unchanged(self.file)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what pyarrow, and filesystems, raise of a file into a DataError that names it."""
    try:
        yield
    except (SlabError, SlabWarning):  # a warning is raised where warnings are errors
        raise
    except FileNotFoundError as error:
        raise DataError("files stay while they are read", f"{name} is gone", "bring it back") from error
    except Exception as error:  # every filesystem raises errors of its own, and damaged files anything
        raise DataError(
            "files of tables can be read",
            f"{name}: {' '.join(str(error).split())[:500] or type(error).__name__}",
            "write it again, or leave out and list such files with skip_bad=True (--skip-bad)",
        ) from error


def look(file: TableFile, delimiter: str = ",") -> tuple[Any, Callable[[Choice], list[Part]]]:
    """Return a file's schema, and what says its parts; of a text file the first lines are read.

    Raises:
        DataError: it cannot be read.
    """
    with reading(file.name):
        schema, parts = _LOOK[file.kind](file, delimiter)
        try:
            _ = schema.names  # pyarrow decodes them only when asked
        except UnicodeDecodeError as error:
            raise DataError(
                "the names of columns are UTF-8",
                f"{file.name}: a name that holds {error.object[:100]!r}",
                "write it as UTF-8, or leave out and list such files with skip_bad=True (--skip-bad)",
            ) from error
        return schema, parts


def _look_at_parquet(file: TableFile, _: str) -> tuple[Any, Callable[[Choice], list[Part]]]:
    with _open(file) as handle:
        meta = _parquet(handle).metadata
    schema = meta.schema.to_arrow_schema()
    return schema, lambda choice: _parquet_parts(meta, file, choice)


def _parquet_parts(meta: Any, file: TableFile, choice: Choice) -> list[Part]:
    # Not by the sizes of column chunks: where their metadata are damaged, asking for one ends the process
    # (RowGroupMetaData.column() of pyarrow 26 lets C++'s ParquetException through): 1 of 600 mutants did.
    with reading(file.name):
        lengths = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        if min(lengths, default=0) < 0:
            raise ValueError("a row group of fewer than no rows")
    width, rows = row_bytes(choice), max(1, sum(lengths))
    return parts_of([(at, n, file.size * n // rows, width * n) for at, n in enumerate(lengths)])


def _look_at_ipc(file: TableFile, _: str) -> tuple[Any, Callable[[Choice], list[Part]]]:
    with _open(file) as handle:
        if not _is_ipc_file(handle):
            _check_end(handle, file)
            return ipc.open_stream(handle).schema, lambda _: [Part(size=file.size, memory=2 * BATCH_BYTES)]
        reader = ipc.open_file(handle, options=_fields([]))
        schema, count = ipc.open_file(handle).schema, reader.num_record_batches
        # Without their columns, only the lengths of batches are read.
        rows = [reader.get_batch(number).num_rows for number in range(count)]
    size = file.size // max(1, count)
    return schema, lambda _: parts_of([(number, n, size, size) for number, n in enumerate(rows)])


def _look_at_csv(file: TableFile, delimiter: str) -> tuple[Any, Callable[[Choice], list[Part]]]:
    schema, memory = csv.schema_of(file, delimiter), 4 * csv.CSV_BYTES + BATCH_BYTES
    return schema, lambda choice: [
        Part(size=file.size, memory=memory, beside=len(choice.columns) < len(schema))
    ]


def parts_of(runs: Sequence[tuple[int, int, int, int]]) -> list[Part]:
    """Join runs of rows to parts of about SHARD_BYTES."""
    parts: list[Part] = []
    row = 0
    for number, rows, size, memory in runs:
        last = parts[-1] if parts else None
        if last and last.memory + memory <= SHARD_BYTES:
            size, memory = last.size + size, last.memory + memory
            parts[-1] = Part(last.first, number + 1, last.row, last.rows + rows, size, memory)
        else:
            parts.append(Part(number, number + 1, row, rows, size, memory))
        row += rows
    return parts


def length_of_lists(file: TableFile, column: str) -> int | None:
    """Return how many values the first list of a column has that is not null; None if there is none.

    Raises:
        DataError: the file cannot be read.
    """
    with reading(file.name), _open(file) as handle:
        if file.kind == "parquet":
            batches = _parquet(handle).iter_batches(PEEK_ROWS, columns=[column], use_threads=False)
        elif _is_ipc_file(handle):
            reader = ipc.open_file(handle)
            reader = ipc.open_file(handle, options=_fields([reader.schema.get_field_index(column)]))
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = ipc.open_stream(handle)
        arrays = (batch.column(column) for batch in map(_checked, batches))
        return first_length(array for array in arrays if is_list(array.type))


def _parquet(handle: Any) -> Any:
    return parquet.ParquetFile(handle, page_checksum_verification=True)  # off by default


def _parquet_batches(file: TableFile, part: Part, choice: Choice) -> Iterator[Any]:
    with _open(file) as handle:
        reader = _parquet(handle)
        # Threads read other shards at the same time.
        yield from reader.iter_batches(
            batch_rows(choice), list(range(part.first, part.last)), list(choice.columns), use_threads=False
        )


def _ipc_batches(file: TableFile, part: Part, choice: Choice) -> Iterator[Any]:
    with _open(file) as handle:
        if _is_ipc_file(handle):
            schema = ipc.open_file(handle).schema
            reader = ipc.open_file(handle, options=_fields(_places(schema, choice)))
            for number in range(part.first, part.last):
                yield _checked(reader.get_batch(number))
            return
        _check_end(handle, file)
        schema = ipc.open_stream(handle).schema
        handle.seek(0)
        for batch in ipc.open_stream(handle, options=_fields(_places(schema, choice))):
            yield _checked(batch)


def _csv_batches(file: TableFile, part: Part, choice: Choice) -> Iterator[Any]:
    return csv.read(file, choice, part.beside)


_BATCHES: dict[str, Callable[[TableFile, Part, Choice], Iterator[Any]]] = {
    "parquet": _parquet_batches, "ipc": _ipc_batches, "csv": _csv_batches,
}  # fmt: skip
_LOOK: dict[str, Callable[[TableFile, str], tuple[Any, Callable[[Choice], list[Part]]]]] = {
    "parquet": _look_at_parquet, "ipc": _look_at_ipc, "csv": _look_at_csv,
}  # fmt: skip


def _open(file: TableFile) -> Any:
    system, _ = filesystem(file.url)
    return system.open_input_file(file.path)


def _is_ipc_file(handle: Any) -> bool:
    """Whether Arrow data are of the file format, and not of the stream format."""
    start = handle.read(8)
    handle.seek(0)
    if start[:4] == b"FEA1":
        raise ValueError("Feather version 1, which pyarrow writes no more; write version 2")
    return bool(start[:6] == b"ARROW1")


def _check_end(handle: Any, file: TableFile) -> None:
    """Raise unless a stream has its end mark: one without may have been cut off between two batches."""
    handle.seek(max(0, file.size - 8))
    end = handle.read(8)
    handle.seek(0)
    if end != b"\xff\xff\xff\xff\x00\x00\x00\x00":
        raise ValueError("no end mark: not an Arrow stream, a truncated one, or its writer was not closed")


def _fields(places: list[int]) -> Any:
    return ipc.IpcReadOptions(included_fields=places, use_threads=False)


def _places(schema: Any, choice: Choice) -> list[int]:
    return [schema.get_field_index(name) for name in choice.columns]


def _checked(batch: Any) -> Any:
    batch.validate()  # that lengths do not lead out of buffers
    for column in batch.columns:
        if is_list(column.type):
            column.validate(full=True)  # nor where a single list begins and ends
    return batch


def batch_rows(choice: Choice) -> int:
    """Return how many rows are read at once."""
    return max(1 << 10, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes(choice))))


def row_bytes(choice: Choice) -> int:
    """Return the bytes of the chosen columns of a row."""
    return sum(np.dtype(dtype).itemsize for dtype in choice.dtypes)


def _joined(batches: Iterator[Any], choice: Choice) -> Iterator[Any]:
    """Yield batches of some length: small ones are joined, as a call for each of their columns costs more."""
    enough = batch_rows(choice) // 2
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if sum(len(part) for part in held) >= enough:
            yield _one(held)
            held = []
    if held:
        yield _one(held)


def _one(batches: list[Any]) -> Any:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _check_unchanged(file: TableFile) -> None:
    with reading(file.name):
        now = mark_of(file.url, file.path)
    if now != file.mark:
        raise DataError(
            "files do not change while they are read",
            f"{file.name} has changed since it was listed",
            "fit again",
        )


# Tables: columns of numbers from Parquet, Arrow IPC (Feather) and CSV files, read by pyarrow.

LOOKERS = 16  # threads that read footers, which is mostly waiting


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
        OptionError: `columns` is no list of names.
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
        self.name, self._weights, self._delimiter = source, weights, check_delimiter(delimiter)
        self._wanted = check_names(columns)
        found = find(source)
        self._files, self.hints = found.files, found.hints
        if found.left_out:
            _warn(f"{source}: left out {listed(found.left_out)}")
        self._choice = self._choose()

    def schema(self) -> Schema:
        """Return the columns' names and their common dtype."""
        names = self._choice.names[: self._choice.features]
        dtypes = set(self._choice.dtypes[: len(names)])
        return Schema((len(names),), dtypes.pop() if len(dtypes) == 1 else MIXED, names)

    def shards(self) -> list[Shard]:
        """Return runs of row groups (Parquet), of record batches (Arrow), or whole files, by path."""
        with ThreadPoolExecutor(min(LOOKERS, len(self._files))) as pool:
            found = list(pool.map(self._parts, self._files))
        shards: list[Shard] = []
        for file, parts in zip(self._files, found, strict=True):
            if isinstance(parts, DataError):
                shards.append(BrokenShard(len(shards), file.name, file.mark, file.size, error=parts))
                continue
            for part in parts:
                what = "row groups" if file.kind == "parquet" else "record batches"
                name = f"{file.name}, {what} {part.first}..{part.last - 1}" if len(parts) > 1 else file.name
                shards.append(
                    TableShard(
                        len(shards), name, file.mark, part.size, part.memory, part.row,
                        max(0, part.rows), file=file, part=part, choice=self._choice,
                    )
                )  # fmt: skip
        return shards

    def _choose(self) -> Choice:
        """Return the columns of the first file that can be read."""
        broken: DataError | None = None
        for file, schema in self._schemas():
            if isinstance(schema, DataError):
                broken = broken or schema
                continue
            choice, left_out = choose(
                schema, self._wanted, self._weights, file.name, file.kind == "csv", self._length
            )
            warn_of_columns(self.name, choice, left_out, 5)
            return replace(choice, delimiter=self._delimiter)
        raise broken or DataError("a data set holds samples", f"{self.name} is empty")

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

    def _schemas(self) -> Iterator[tuple[TableFile, Any]]:
        """Yield the schema of each file, or why it has none; of a text file once it shows all types."""
        for file in self._files:
            try:
                schema = look(file, self._delimiter)[0]
            except DataError as error:
                yield file, error
                continue
            # Columns of a text file that begin with nothing, and files without rows, say no type.
            if file.kind == "csv" and file is not self._files[-1] and any(map(types.is_null, schema.types)):
                continue
            yield file, schema

    def _parts(self, file: TableFile) -> list[Part] | DataError:
        try:
            schema, parts = look(file, self._delimiter)
            check_same(self._choice, schema, file.name, file.kind == "csv")
            return parts(self._choice)
        except DataError as error:
            return error


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=5)


# Frames in memory: columns of a pandas, polars or pyarrow table, counted as those of Parquet files are.

# Rows of a row group, as pyarrow writes them: the bits are those of the same table in Parquet.
GROUP = 1 << 20


@dataclass(frozen=True)
class FrameShard(Shard):
    """Some rows of a frame."""

    table: Any = field(kw_only=True)
    choice: Choice = field(kw_only=True)

    def blocks(self) -> Iterator[Columns]:
        """Yield a few rows at a time."""
        step = batch_rows(self.choice)
        for start in range(self.first, self.last, step):
            part = self.table.slice(start, min(step, self.last - start)).combine_chunks()
            row = start
            for batch in part.to_batches():
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
        wanted = check_names(columns)
        names = None if wanted is None else {*wanted, *([weights] if weights else ())}
        # A name may also be that of a value of a column of lists.
        names = names and names | {element[0] for element in map(element_of, names) if element}
        table = _as_table(frame, names, self.name)
        self._table = table
        self._choice, left_out = choose(table.schema, wanted, weights, self.name, False, self._length)
        warn_of_columns(self.name, self._choice, left_out, 4)
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
        lengths = [min(GROUP, rows - start) for start in range(0, rows, GROUP)]
        parts = parts_of([(at, n, n * width, n * width) for at, n in enumerate(lengths)])
        return [
            FrameShard(number, self.name, "", part.size, 0, part.row, part.rows,
                       table=self._table, choice=self._choice)
            for number, part in enumerate(parts)
        ]  # fmt: skip


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
            "the columns of a frame have names of their own and hold values of one type each",
            f"{name}: {' '.join(str(error).split())[:300]}",
            'convert them, as with .astype, or name the columns to count, as columns=["a", "b"]',
        ) from error
