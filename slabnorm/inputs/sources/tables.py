"""Tables: columns of numbers from Parquet, Arrow IPC (Feather) and CSV files, read by pyarrow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pyarrow import types

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.schema import Schema
from slabnorm.inputs.sources.base import MIXED, BrokenShard, Shard, Source
from slabnorm.inputs.sources.table_columns import (
    Choice,
    check_delimiter,
    check_names,
    check_same,
    choose,
    no_lists,
    warn_of_columns,
)
from slabnorm.inputs.sources.table_files import TableFile, find, listed
from slabnorm.inputs.sources.table_read import Part, TableShard, length_of_lists, look

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
