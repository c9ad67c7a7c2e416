"""Columns of numbers: which ones of a table are, and their values as arrays."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from slabnorm.errors import DataError, DataWarning, OptionError
from slabnorm.inputs.sources.base import Columns
from slabnorm.inputs.sources.table_files import listed

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class Choice:
    """The columns that are read.

    Attributes:
        names: of the columns, in their order; that of the weights last.
        dtypes: NumPy's name for the type of each.
        named: whether the caller named them; else every file's numbers must be these.
        weighted: whether the last column is weights, and no feature.
        delimiter: what stands between the values of a text file.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    named: bool
    weighted: bool = False
    delimiter: str = ","

    @property
    def features(self) -> int:
        """How many columns are features."""
        return len(self.names) - self.weighted


@lru_cache(1024)
def dtype_of(kind: Any, text: bool = False) -> str:
    """Return NumPy's name for a column's type, "" if it is none of bool, integers and floats.

    Numbers of text files are float64, however they look: 1 in one file and 1.5 in another are one column.
    """
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind) or types.is_floating(kind):
        return "float64" if text else np.dtype(kind.to_pandas_dtype()).name
    return ""


def choose(
    schema: Any, wanted: Sequence[str] | None, weights: str | None, file: str, text: bool
) -> tuple[Choice, list[str]]:
    """Return the columns to read, and which others are left out: text, times and the like.

    Raises:
        DataError: a column that was named is not there or holds no numbers; none was named, and there is no
            column of numbers, or one whose numbers cannot be taken, as decimals and lists.
    """
    if weights is None:
        return _choose(schema, wanted, file, text)
    last, _ = _choose(schema, (weights,), file, text, "weights")
    if wanted is not None and weights in wanted:
        raise DataError("a column of weights is no feature", repr(weights), "leave it out of columns=")
    others = pa.schema([field for field in schema if field.name != weights])
    found, left_out = _choose(others, wanted, file, text)
    names, dtypes = (*found.names, *last.names), (*found.dtypes, *last.dtypes)
    return Choice(names, dtypes, found.named, True), left_out


def _choose(
    schema: Any, wanted: Sequence[str] | None, file: str, text: bool, option: str = "columns"
) -> tuple[Choice, list[str]]:
    kinds = _Kinds(schema, file)
    if wanted is not None:
        missing = [name for name in wanted if name not in kinds]
        if missing:
            has = listed([repr(name) for name in kinds], 10)
            raise DataError(f"{option}= names columns of the table", f"no {missing[0]!r}; {file} has {has}")
        dtypes = []
        for name in wanted:
            kind = kinds[name]
            # Of text only the first lines were read: a column that holds nothing there is named as numbers.
            dtypes.append("float64" if text and types.is_null(kind) else dtype_of(kind, text))
            if not dtypes[-1]:
                raise _refused(name, kind, file, f"leave it out of {option}=")
        return Choice(tuple(wanted), tuple(dtypes), True), []
    found: dict[str, str] = {}
    left_out: list[str] = []
    nothing: list[str] = []
    for name in kinds:
        kind = kinds[name]
        dtype = dtype_of(kind, text)
        if not dtype and _holds_numbers(kind):
            raise _refused(name, kind, file, 'name the columns to count, as columns=["a", "b"]')
        if dtype and not _PANDAS_INDEX.fullmatch(name):
            found[name] = dtype
        elif text and types.is_null(kind):
            nothing.append(f"{name} (nothing in its first rows; columns= takes it)")
        else:
            left_out.append(f"{name} ({kind})")
    left_out = nothing[::-1] + left_out  # those first, as of many only some are shown
    if not found:
        raise DataError(
            "a table has columns of numbers", f"{file} has {listed(left_out, 10) or 'no columns'}"
        )
    if text and all(map(_is_number, found)):
        raise DataError(
            "a CSV file names its columns in the first line",
            f"{file} begins with {listed(list(found), 5)}",
            "write a line of names above it",
        )
    return Choice(tuple(found), tuple(found.values()), False), left_out


def check_same(choice: Choice, schema: Any, file: str, text: bool) -> None:
    """Raise DataError unless a file has the chosen columns with their types; their order may differ."""
    fix = "write all files with the same columns, or name those to count, as columns=['a', 'b']"
    kinds, chosen = _Kinds(schema, file), set(choice.names)
    for name, dtype in zip(choice.names, choice.dtypes, strict=True):
        if name not in kinds:
            raise DataError("all files of a table have the same columns", f"{file}: no column {name!r}", fix)
        kind = kinds[name]
        # Of a text file only the first lines were read, and these may have nothing there.
        if dtype_of(kind, text) != dtype and not (text and types.is_null(kind)):
            raise DataError(
                "a column has the same type in all files of a table",
                f"{file}: column {name!r} is {kind}, and {dtype} in the first file",
                "write all files with the same types",
            )
    if choice.named:
        return
    for name in kinds:
        kind = kinds[name]
        if name not in chosen and dtype_of(kind) and not _PANDAS_INDEX.fullmatch(name):
            raise DataError(
                "all files of a table have the same columns",
                f"{file}: column {name!r} ({kind}), which the first file does not have as numbers",
                fix,
            )


def warn_of_columns(name: str, choice: Choice, left_out: Sequence[str], stacklevel: int) -> None:
    """Warn of columns that are left out, and of bool ones that nobody named.

    Flags are hardly ever meant to be scaled; but some are features, and who names them has said so.
    """
    pairs = list(zip(choice.names, choice.dtypes, strict=True))[: choice.features]
    flags = [repr(name) for name, dtype in pairs if dtype == "bool"]
    if left_out:
        text = f"{name}: columns that hold no numbers are left out: {listed(left_out, 10)}"
        warnings.warn(text, DataWarning, stacklevel=stacklevel + 1)
    if flags and not choice.named:
        text = (
            f"{name}: columns of bool are counted as 0 and 1: {listed(flags, 10)}; columns= leaves them out"
        )
        warnings.warn(f"{text}, or takes them without a warning", DataWarning, stacklevel=stacklevel + 1)


def check_delimiter(delimiter: Any) -> str:
    """Return what stands between the values of a text file.

    Raises:
        OptionError: it is no single character of ASCII, or one that means something else there.
    """
    if type(delimiter) is str and len(delimiter) == 1 and delimiter.isascii() and delimiter not in '"\r\n\0':
        return delimiter
    raise OptionError(
        "a delimiter is one character of ASCII, no quote and no line's end",
        f"{delimiter!r:.50}",
        'as delimiter=";" (--delimiter ";"), or a tab',
    )


def check_names(columns: Any) -> tuple[str, ...] | None:
    """Return the names given as columns=.

    Raises:
        OptionError: they are no list of texts, or one is there twice.
    """
    if columns is None:
        return None
    names = tuple(columns) if not isinstance(columns, str) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise OptionError("columns are a list of names, each once", f"{columns!r:.200}", 'as ["a", "b"]')
    return names


def as_columns(batch: Any, choice: Choice) -> Columns:
    """Return the values of a record batch, without copying those of plain numbers."""
    arrays, missing = [], []
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name, dtype in zip(choice.names, choice.dtypes, strict=True):
        values, mask = _numbers(columns[name], np.dtype(dtype))
        arrays.append(values)
        missing.append(mask)
    if not choice.weighted:
        return Columns(choice.names, tuple(arrays), tuple(missing))
    weights, gone = arrays.pop().astype(np.float64), missing.pop()
    if gone is not None:
        weights[gone] = np.nan
    return Columns(choice.names[:-1], tuple(arrays), tuple(missing), weights)


def _numbers(array: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    mask = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if types.is_boolean(array.type):  # bits
        return (array.fill_null(False) if array.null_count else array).to_numpy(zero_copy_only=False), mask
    # Not to_numpy, which makes float64 of integers with nulls.
    values = array.buffers()[1]
    whole = (
        np.frombuffer(values, dtype, array.offset + len(array))
        if values and len(array)
        else np.empty(0, dtype)
    )
    return whole[array.offset :] if len(array) else whole, mask


class _Kinds:
    """The types of a schema's columns by name: looked up in pyarrow's schema, each costs as much as all."""

    def __init__(self, schema: Any, file: str) -> None:
        self._file, names = file, schema.names
        self._kinds = dict(zip(names, schema.types, strict=True))
        self._several = {name for name, count in Counter(names).items() if count > 1}

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __getitem__(self, name: str) -> Any:
        """Return a column's type; raise DataError where several have the name."""
        if name in self._several:
            raise DataError(
                "columns have names of their own", f"{self._file}: several columns {name!r}", "rename them"
            )
        return self._kinds[name]


def _refused(name: str, kind: Any, file: str, fix: str) -> DataError:
    if types.is_decimal(kind):
        fix = f"cast it to float64 and mind the digits this loses, or {fix}"
    elif types.is_nested(kind):
        fix = f"write one column for each number, or {fix}"
    return DataError(
        "a column holds bool, integers or floats",
        f"{file}: column {name!r} of type {kind}",
        fix,
    )


def _holds_numbers(kind: Any) -> bool:
    """Whether values of a type are numbers that are not plain ones: decimals, lists, tensors."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_numbers(kind.storage_type)
    if types.is_nested(kind):
        parts = [kind.field(at).type for at in range(kind.num_fields)]
        return any(bool(dtype_of(part)) or _holds_numbers(part) for part in parts)
    return bool(types.is_decimal(kind))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
