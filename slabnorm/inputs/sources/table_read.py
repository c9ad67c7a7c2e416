"""Shards of tables: which parts of a file they are, and their columns read a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from slabnorm.errors import DataError, SlabError, SlabWarning
from slabnorm.inputs.sources import table_text
from slabnorm.inputs.sources.base import Columns, Shard
from slabnorm.inputs.sources.filesystems import filesystem, mark_of
from slabnorm.inputs.sources.table_columns import Choice, as_columns, first_length, is_list
from slabnorm.inputs.sources.table_files import TableFile

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
    schema, memory = table_text.schema_of(file, delimiter), 4 * table_text.CSV_BYTES + BATCH_BYTES
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
    return table_text.read(file, choice, part.beside)


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
