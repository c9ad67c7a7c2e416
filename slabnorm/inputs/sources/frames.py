"""Frames in memory: columns of a pandas, polars or pyarrow table, counted as those of Parquet files are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from slabnorm.errors import DataError
from slabnorm.inputs.schema import Schema
from slabnorm.inputs.sources.base import MIXED, Columns, Shard, Source
from slabnorm.inputs.sources.table_columns import (
    Choice,
    as_columns,
    check_names,
    choose,
    element_of,
    first_length,
    no_lists,
    warn_of_columns,
)
from slabnorm.inputs.sources.table_read import batch_rows, parts_of, row_bytes

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
