"""Which columns of a table are read, and their values as arrays."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute, types

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources.base import AbsentError, Columns
from slabnorm.inputs.sources.files import listed
from slabnorm.text import did_you_mean

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_ELEMENT = re.compile(r"(.*)\[(0|[1-9][0-9]*)\]", re.DOTALL)
_LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
_IS_LIST = [getattr(types, name) for name in _LISTS if hasattr(types, name)]

Length = Callable[[str], int]  # returns how many values each row of a column of lists has


class FeaturePlace(NamedTuple):
    """Where a table holds the values of a feature.

    Attributes:
        column: the column's name.
        at: of a column of lists, the place in each row's list.
        of: of a column of lists, how many values each row has; 0 of a column of plain numbers.
    """

    column: str
    at: int = 0
    of: int = 0

    @property
    def name(self) -> str:
        """The feature's name: "height", or "state[2]"."""
        return f"{self.column}[{self.at}]" if self.of else self.column


@dataclass(frozen=True)
class ColumnChoice:
    """The columns that are read.

    Attributes:
        places: of the features, in their order; that of the weights last.
        dtypes: NumPy's name for the type of each.
        named: whether the caller named them; else every file's numbers must be these.
        weighted: whether the last column is weights, and no feature.
        delimiter: what stands between the values of a text file.
    """

    places: tuple[FeaturePlace, ...]
    dtypes: tuple[str, ...]
    named: bool
    weighted: bool = False
    delimiter: str = ","

    @property
    def features(self) -> int:
        """How many of the places belong to features."""
        return len(self.places) - self.weighted

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the features, then that of the weights."""
        return tuple(place.name for place in self.places)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that are read, each once."""
        return tuple(dict.fromkeys(place.column for place in self.places))


@lru_cache(1024)
def is_list(kind: Any) -> bool:
    """Whether a column's type is one of lists, of fixed or of any length."""
    return any(check(kind) for check in _IS_LIST)


@lru_cache(1024)
def dtype_of(kind: Any, text: bool = False) -> str:
    """Return NumPy's name for the type of a column's numbers, or of the numbers in its lists.

    It is "" if they are none of bool, integers and floats. Numbers of text files are float64, however they
    look: 1 in one file and 1.5 in another are one column.
    """
    kind = kind.value_type if is_list(kind) else kind
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind) or types.is_floating(kind):
        return "float64" if text else np.dtype(kind.to_pandas_dtype()).name
    return ""


def element_of(name: str) -> tuple[str, int] | None:
    """Return the column and the position that a name such as "state[2]" says; None for other names."""
    match = _ELEMENT.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def first_length(arrays: Iterable[Any]) -> int | None:
    """Return the length of the first list that is not null; None if all are."""
    for array in arrays:
        lengths = compute.list_value_length(array).drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    return None


def no_lists(column: str, name: str) -> DataError:
    """Return the error for a column whose lists are all null, which leaves its number of features unknown."""
    return DataError(
        f"No list in column {column!r} of {name}",
        "the first list says how many features the column has",
        'leave it out: name the columns to count, as columns=["a", "b"]',
    )


def choose_columns(
    schema: Any, wanted: Sequence[str] | None, weights: str | None, file: str, text: bool, length: Length
) -> tuple[ColumnChoice, list[str]]:
    """Return the columns to read, and which others are left out: text, times and the like.

    Args:
        schema: of the table.
        wanted: the names that the caller gave, of columns or of all features of a column of lists.
        weights: the name of the column of weights.
        file: how messages call the table.
        text: whether it is a text file.
        length: says how many values the lists of a column have, where its type does not.

    Raises:
        DataError: a column that was named is not there or holds no numbers; none was named, and there is no
            column of numbers, or one whose numbers cannot be taken, as decimals and lists of lists.
    """
    if weights is None:
        return _choose_columns(schema, wanted, file, text, length)
    last, _ = _choose_columns(schema, (weights,), file, text, length, "weights")
    if wanted is not None and weights in wanted:
        raise DataError(f"Column {weights!r} is both weights and feature", fix="leave it out of columns=")
    others = pa.schema([field for field in schema if field.name != weights])
    found, left_out = _choose_columns(others, wanted, file, text, length)
    places, dtypes = (*found.places, *last.places), (*found.dtypes, *last.dtypes)
    return ColumnChoice(places, dtypes, found.named, True), left_out


def _choose_columns(
    schema: Any, wanted: Sequence[str] | None, file: str, text: bool, length: Length, option: str = "columns"
) -> tuple[ColumnChoice, list[str]]:
    kinds = _ColumnTypes(schema, file)
    if wanted is not None:
        return _named_columns(kinds, wanted, file, text, length, option), []
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
    left_out = nothing[::-1] + left_out  # these first, as messages show only some of many
    if not found:
        raise DataError(
            f"No columns of numbers: {file}",
            f"it has {listed(left_out, 10) or 'no columns'}",
            "convert the columns to numbers first",
        )
    if text and all(map(_is_number, found)):
        raise DataError(
            f"No names of columns in the first line: {file}",
            f"it begins with {listed(list(found), 5)}",
            "write a line of names above it",
        )
    places = tuple(place for name in found for place in _places(name, kinds, file, length))
    _check_apart(places, kinds, file)
    return ColumnChoice(places, tuple(found[place.column] for place in places), False), left_out


def _named_columns(
    kinds: _ColumnTypes, wanted: Sequence[str], file: str, text: bool, length: Length, option: str
) -> ColumnChoice:
    """Return the columns that the caller named; a column of lists also by the names of all its features."""
    found: list[FeaturePlace] = []
    dtypes: dict[str, str] = {}
    known: dict[str, list[FeaturePlace]] = {}
    for name in wanted:
        column = _column_of(name, kinds)
        if column not in kinds:
            has = listed([repr(other) for other in kinds], 10)
            names = "the name of a column" if option == "weights" else "the names of columns"
            fix = did_you_mean(name, kinds) or f"give {names} as {option}="
            raise AbsentError(f"No column {name!r} in {file}", f"it has {has or 'no columns'}", fix)
        kind = kinds[column]
        # Only the first lines of text were read. A column that is empty there is taken for numbers.
        dtypes[column] = "float64" if text and types.is_null(kind) else dtype_of(kind, text)
        if not dtypes[column] or (is_list(kind) and option == "weights"):
            instead = "give one column of numbers as" if option == "weights" else "leave it out of"
            raise _refused(column, kind, file, f"{instead} {option}=")
        if column not in known:
            known[column] = _places(column, kinds, file, length)
        found += known[column] if name == column else [FeaturePlace(column, _at(name), known[column][0].of)]
    for column, places in known.items():
        given = [place for place in found if place.column == column]
        if sorted(given) != places:
            raise DataError(
                f"Only a part of column {column!r} is named: {file}",
                f"it has {len(places)} values in a row, and named are "
                f"{listed([repr(place.name) for place in given], 10)}",
                f"a column of lists is taken whole: name the column itself, as {option}=[{column!r}]",
            )
    _check_apart(found, kinds, file)
    return ColumnChoice(tuple(found), tuple(dtypes[place.column] for place in found), True)


def _column_of(name: str, kinds: _ColumnTypes) -> str:
    """Return the column that a name means: the one so called, or the column of lists it is a value of."""
    element = element_of(name)
    if name in kinds or element is None or element[0] not in kinds or not is_list(kinds[element[0]]):
        return name
    return element[0]


def _at(name: str) -> int:
    element = element_of(name)
    assert element is not None  # as _column_of found a column of lists by it
    return element[1]


def _places(column: str, kinds: _ColumnTypes, file: str, length: Length) -> list[FeaturePlace]:
    """Return the places of a column's features: one for plain numbers, one for each position in lists."""
    kind = kinds[column]
    if not is_list(kind):
        return [FeaturePlace(column)]
    many = kind.list_size if types.is_fixed_size_list(kind) else length(column)
    if not many:
        raise DataError(
            f"Empty lists in column {column!r} of {file}",
            f"type {kind}",
            'leave it out: name the columns to count, as columns=["a", "b"]',
        )
    return [FeaturePlace(column, at, many) for at in range(many)]


def _check_apart(places: Iterable[FeaturePlace], kinds: _ColumnTypes, file: str) -> None:
    """Raise DataError if a column and a position of a column of lists have the same name."""
    for place in places:
        element = None if place.of else element_of(place.name)
        lists = element and element[0] in kinds and is_list(kinds[element[0]])
        if lists or (place.of and place.name in kinds):
            raise DataError(
                f"Two features of one name: {place.name!r} in {file}",
                "it is a column, and also a value of a column of lists",
                "rename one of the two columns",
            )


def check_same(choice: ColumnChoice, schema: Any, file: str, text: bool) -> None:
    """Raise DataError unless a file has the chosen columns with their types; their order may differ."""
    fix = "write all files with the same columns, or name those to count, as columns=['a', 'b']"
    kinds = _ColumnTypes(schema, file)
    chosen = {
        place.column: (dtype, place.of) for place, dtype in zip(choice.places, choice.dtypes, strict=True)
    }
    for name, (dtype, many) in chosen.items():
        if name not in kinds:
            raise DataError(f"No column {name!r} in {file}", "the first file has it", fix)
        kind = kinds[name]
        # Only the first lines of a text file were read, and the column may be empty there.
        same = dtype_of(kind, text) == dtype or (text and types.is_null(kind))
        if not same or is_list(kind) != bool(many):
            first = f"lists of {dtype}" if many else dtype
            raise DataError(
                f"Column {name!r} has another type in {file}",
                f"{kind}, and {first} in the first file",
                "write all files with the same types",
            )
        if types.is_fixed_size_list(kind) and kind.list_size != many:
            raise DataError(
                f"Column {name!r} has lists of another length in {file}",
                f"{kind}, and the first file has {many} values in a row",
                "write all files with lists of one length, or leave the column out: name those to count, as "
                "columns=['a', 'b']",
            )
    if choice.named:
        return
    for name in kinds:
        kind = kinds[name]
        if name not in chosen and dtype_of(kind) and not _PANDAS_INDEX.fullmatch(name):
            raise DataError(
                f"Column {name!r} in {file} only",
                f"{kind}; the first file does not have it as numbers",
                fix,
            )


def warn_of_columns(name: str, choice: ColumnChoice, left_out: Sequence[str], stacklevel: int) -> None:
    """Warn of columns that are left out, and of bool ones that nobody named.

    Flags are hardly ever meant to be scaled; but some are features, and who names them has said so.
    """
    pairs = list(zip(choice.places, choice.dtypes, strict=True))[: choice.features]
    flags = list(dict.fromkeys(repr(place.column) for place, dtype in pairs if dtype == "bool"))
    if left_out:
        text = f"{name}: columns that hold no numbers, or pandas' index, are left out: {listed(left_out, 10)}"
        warnings.warn(text, DataWarning, stacklevel=stacklevel + 1)
    if flags and not choice.named:
        text = (
            f"{name}: columns of bool are counted as 0 and 1: {listed(flags, 10)}; columns= leaves them out"
        )
        warnings.warn(f"{text}, or takes them without a warning", DataWarning, stacklevel=stacklevel + 1)


def as_columns(batch: Any, choice: ColumnChoice, name: str = "", first: int = 0) -> Columns:
    """Return the values of a record batch, without copying those of plain numbers and of lists without nulls.

    Args:
        batch: of pyarrow.
        choice: the columns.
        name: how messages call what it is a part of.
        first: the number of its first row there.

    Raises:
        DataError: a list of another length.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    read: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    arrays, missing = [], []
    for place, dtype in zip(choice.places, choice.dtypes, strict=True):
        if not place.of:
            values, mask = _numbers(columns[place.column], np.dtype(dtype))
        else:
            if place.column not in read:
                array = columns[place.column]
                check_lengths(array, place.column, place.of, name, first)
                read[place.column] = in_rows(array, np.dtype(dtype), place.of)
            whole, gone = read[place.column]
            values, mask = whole[:, place.at], None if gone is None else gone[:, place.at]
        arrays.append(values)
        missing.append(mask)
    if not choice.weighted:
        return Columns(choice.names, tuple(arrays), tuple(missing))
    weights, gone = arrays.pop().astype(np.float64), missing.pop()
    if gone is not None:
        weights[gone] = np.nan
    return Columns(choice.names[:-1], tuple(arrays), tuple(missing), weights)


def check_lengths(array: Any, column: str, many: int, name: str, first: int) -> None:
    """Raise DataError unless every list of an array that is not null has so many values."""
    lengths = compute.list_value_length(array).fill_null(many).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != many)
    if len(wrong):
        raise DataError(
            f"Lists of different lengths in column {column!r} of {name}",
            f"{lengths[wrong[0]]} values, not {many}, at row {first + wrong[0]}",
            'bring them to one length, or leave the column out: name those to count, as columns=["a", "b"]',
        )


def in_rows(array: Any, dtype: np.dtype, many: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return lists of one length as the rows of an array, and a mask of what is null, or None."""
    values, mask = _numbers(array.flatten(), dtype)  # from the offset on, without null lists
    values = values.reshape(-1, many)
    mask = None if mask is None else mask.reshape(-1, many)
    if not array.null_count:
        return values, mask
    there = array.is_valid().to_numpy(zero_copy_only=False)
    whole, gone = np.zeros((len(array), many), dtype), np.ones((len(array), many), bool)
    whole[there], gone[there] = values, False if mask is None else mask
    return whole, gone


def _numbers(array: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    mask = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if types.is_boolean(array.type):  # bits
        return (array.fill_null(False) if array.null_count else array).to_numpy(zero_copy_only=False), mask
    # to_numpy would convert integers with nulls to float64.
    values = array.buffers()[1]
    whole = (
        np.frombuffer(values, dtype, array.offset + len(array))
        if values and len(array)
        else np.empty(0, dtype)
    )
    return whole[array.offset :] if len(array) else whole, mask


class _ColumnTypes:
    """The types of a schema's columns by name: pyarrow takes as long for one of them as for all."""

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
            raise DataError(f"Several columns {name!r} in {self._file}", fix="rename them")
        return self._kinds[name]


def _refused(name: str, kind: Any, file: str, fix: str) -> DataError:
    if types.is_decimal(kind):
        fix = f"cast it to float64 and mind the digits this loses, or {fix}"
    elif types.is_nested(kind) and not dtype_of(kind):
        fix = f"write one column for each number, or lists of numbers, or {fix}"
    problem = "Cannot take the numbers" if _holds_numbers(kind) else "No numbers"
    return DataError(
        f"{problem} in column {name!r} of {file}",
        f"type {kind}; a column holds bool, integers or floats, or lists of them",
        fix,
    )


def _holds_numbers(kind: Any) -> bool:
    """Whether a type holds numbers in a form that is not read: decimals, structs, lists of lists, tensors."""
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
