"""What a source is: a name, shards of samples, and what it says about its split.

A source checks what only it can know (files, containers); the values it passes on are checked where they are
counted, so every source gets the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError
from slabnorm.inputs.split import Hint
from slabnorm.text import did_you_mean

# Data that can be read from any row on are cut into shards of whole chunks.

CHUNK = 1 << 20  # values: 4 MB of float32, which hashing finds in the cache where counting left them
SHARD = 16  # chunks of a shard; a power of two, so that the tree above shards is that above chunks

AXES = 64  # the largest number that NumPy and PyTorch take
VALUES = 1 << 44  # of a data set: to list its 2^20 shards takes 0.4 GB


def check_shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """Check a shape that a header, metadata or an object claims, before anything is allocated for it.

    Raises:
        DataError: it is none, has no axis or too many, samples without values, or more values than can be.
    """
    if not all((type(size) is int or isinstance(size, np.integer)) and size >= 0 for size in shape):
        raise DataError(
            f"Impossible shape of {name}",
            f"{tuple(shape)!r:.200}; sizes are whole numbers, 0 or more",
            "write it again",
        )
    if not shape:
        raise DataError(
            f"No axis of samples: {name} is a single number",
            fix="give an array, its samples along the first axis",
        )
    if len(shape) > AXES:
        raise DataError(f"Too many axes: {name}", f"{len(shape)}, at most {AXES}", "join some of them")
    if 0 in shape[1:]:
        raise DataError(
            f"Samples without values: {name}", f"samples of shape {tuple(shape[1:])}", "leave out empty axes"
        )
    # Also where there are no samples: NumPy makes no array of shape (0, 2^62).
    if math.prod(size or 1 for size in shape) > VALUES:
        raise DataError(
            f"Too many values: {name}",
            f"shape {tuple(shape)}, at most 2^44 values",
            "write it again if that is damage; or fit a part of it",
        )
    return tuple(map(int, shape))


def empty(name: str) -> DataError:
    """Return the error of a data set without samples."""
    return DataError(f"No samples: {name} is empty", fix="check what was selected or filtered")


def chunk_rows(values: int, chunk_values: int = CHUNK) -> int:
    """Return how many samples make a chunk, if each has this many values."""
    return max(1, chunk_values // max(1, values))


def shard_rows(shape: Sequence[int], chunk_values: int = CHUNK) -> list[tuple[int, int]]:
    """Return the rows of each shard, as first and last, for data of this shape; there is one shard at least.

    >>> shard_rows((1_000_000, 64))
    [(0, 262144), (262144, 524288), (524288, 786432), (786432, 1000000)]
    """
    count = shape[0] if shape else 0
    rows = chunk_rows(math.prod(shape[1:]), chunk_values) * SHARD
    return [(first, min(first + rows, count)) for first in range(0, max(1, count), rows)]


# What a source yields, and what it is.

Block = np.ndarray | Tensor  # samples along the first axis; any strides, byte order and device, but dense

BLOCK_BYTES = 8 << 20  # how much a source reads at once, where it can choose


@dataclass(frozen=True, eq=False)
class Columns:
    """Some rows of a table, column by column.

    Attributes:
        names: of the columns.
        arrays: their values, 1-D, of one length; dtypes may differ.
        missing: for each a mask of what is null, None where nothing is; `arrays` hold anything there.
        weights: of the samples, float64, NaN for null; None where they have none.
    """

    names: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]
    missing: tuple[np.ndarray | None, ...]
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.arrays[0])

    @property
    def dtype(self) -> str:
        """The name of the columns' dtype, or "mixed"."""
        names = {array.dtype.name for array in self.arrays}
        return names.pop() if len(names) == 1 else MIXED

    def rows(self, first: int, last: int) -> Columns:
        """Return some of the rows, as views."""
        if first == 0 and last >= len(self):
            return self
        missing = tuple(None if mask is None else mask[first:last] for mask in self.missing)
        arrays = tuple(array[first:last] for array in self.arrays)
        return Columns(
            self.names, arrays, missing, None if self.weights is None else self.weights[first:last]
        )


MIXED = "mixed"  # the dtype of a table whose columns have several


class Unreadable(NamedTuple):
    """A part of a shard that cannot be read, where others can.

    Attributes:
        name: the file's.
        why: it cannot be read.
        fix: what to do.
        samples: how many it has, where they are numbered.
        problem: what is wrong, in short.
    """

    name: str
    why: str
    fix: str = "mend it, or leave out and list such files with skip_bad=True"
    samples: int = 0
    problem: str = "Cannot read"

    def error(self) -> DataError:
        """Return it as an error."""
        return DataError(f"{self.problem} {self.name}", self.why, self.fix)


class NamedBlock(NamedTuple):
    """A block with a name for messages, such as the name of the file that it comes from."""

    name: str
    block: Block


class MismatchError(DataError):
    """Data of another kind than the rest of a data set: an error also under skip_bad, as it is no damage."""


class AbsentError(DataError):
    """What was asked for by its name, an entry or a column, is not in the data."""


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is read alone, by any worker, as often as needed. It can be pickled.

    Attributes:
        number: its place in the data set, from 0 on; the same data give the same numbers.
        name: how messages call it.
        fingerprint: changes when the data do, as a file's size and time; empty for what is in memory.
        size: about how many bytes are read for it.
        memory: about how many bytes it takes while it is read.
        first: the number of its first sample, where that is known.
        samples: how many it has; 0 where nobody knows before reading.
    """

    number: int
    name: str
    fingerprint: str = ""
    size: int = 0
    memory: int = 2 * BLOCK_BYTES
    first: int = 0
    samples: int = 0

    @property
    def last(self) -> int:
        """The number of the first sample behind this shard."""
        return self.first + self.samples

    @property
    def numbered_in(self) -> str:
        """The name of what its samples are numbered within: the whole data set, or one file."""
        return self.name

    def blocks(self) -> Iterator[Block | Columns | Unreadable | NamedBlock]:
        """Yield the samples in order, in blocks of any length, or what could not be read.

        Raises:
            DataError: the shard as a whole cannot be read.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BrokenShard(Shard):
    """A shard whose file could not be opened when the data set was listed."""

    error: DataError = field(kw_only=True)

    def blocks(self) -> Iterator[Block | Columns | Unreadable | NamedBlock]:
        """Raise the error that opening the file gave."""
        raise self.error
        yield


class Source:
    """A data set that is read shard by shard, in any order. A source that knows its Schema without reading
    has a method `schema()` that returns it.

    Attributes:
        name: how messages call it: "train.npy", "array", "MNIST".
        unit: how they call one block: "batch", "item", "rows".
        hints: what it says about its split.
        order: the axes of a sample as memory has them; () for their own order.
        pattern: which axes keep statistics, where the source knows; else "".
        whole: whether every block is counted by itself, as images are, whose sizes differ.
        parallel: whether threads may read shards at the same time, and gain by it.
        reader: what decodes the data, with its version, where that decides values, as of images.
        chunk_values: values of a chunk; 16 chunks are a shard, where data can be cut anywhere. Moments are
            merged chunk by chunk, so that it decides their last bits.
    """

    name: str
    unit: str = "rows"
    hints: tuple[Hint, ...] = ()
    order: tuple[int, ...] = ()
    pattern: str = ""
    whole: bool = False
    parallel: bool = True
    reader: str = ""
    chunk_values: int = CHUNK

    def shards(self) -> Sequence[Shard]:
        """Return all shards in order.

        Raises:
            DataError: the data set cannot be listed.
        """
        raise NotImplementedError


class Stream:
    """A data set that can be read once, from the first sample to the last, as batches from a loader."""

    name: str
    unit: str = "batch"
    hints: tuple[Hint, ...] = ()
    reader: str = ""
    chunk_values: int = CHUNK

    def blocks(self) -> Iterator[Block]:
        """Yield the samples in order, in blocks of any length."""
        raise NotImplementedError


def as_block(value: Any, where: str) -> Block:
    """Return a value as an array or tensor of real numbers, without copying one.

    Takes tensors, NumPy arrays and scalars, Python numbers, and whatever offers itself as an array
    (a PIL image, a pandas frame).

    Raises:
        DataError: it is none of these, or holds no real numbers of at most 64 bits; names `where`.
    """
    if isinstance(value, Tensor):
        return _check_tensor(value.detach(), where)
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(f"Masked array: {where}", fix='fill it, as with .filled(np.nan), and give nan="omit"')
    if getattr(value, "mode", None) in ("P", "PA") and hasattr(value, "convert"):
        raise DataError(
            f"Image with a palette: {where}",
            "its pixels are numbers of colours, not intensities",
            'convert it, as with image.convert("RGB")',
        )
    offers = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
    if not offers and not isinstance(value, bool | int | float):
        raise DataError(
            f"Not a tensor, an array or a number: {where} is {_with_article(value)}",
            fix="convert it, as with torch.as_tensor or numpy.asarray",
        )
    array = np.asarray(value)
    check_dtype(array.dtype, where)
    return array


def check_dtype(dtype: np.dtype, where: str) -> None:
    """Raise DataError unless a dtype is bool, integer or float of at most 64 bits."""
    kind = dtype.kind
    if kind in "bui" or (kind == "f" and dtype.itemsize <= 8):
        return
    fixes = {
        "O": "convert it to numbers, as with .astype(float), without columns of text",
        "c": "normalise real and imaginary parts as two features, as from .view(float)",
        "f": "convert it with .astype(numpy.float64), and mind the digits this loses",
        "V": "take one field of a structured array, as x['field'], or join them as columns",
        "M": "convert times to numbers, as with .astype('int64'), and choose the unit",
        "U": "leave text out, or convert it to numbers, as with .astype(float)",
        "S": "leave text out, or convert it to numbers, as with .astype(float)",
        "m": "convert times to numbers, as with .astype('int64'), and choose the unit",
    }
    raise DataError(
        f"Cannot take {where} of dtype {dtype!s:.200}",
        "data are bool, integers, or floats of at most 64 bits",
        fixes.get(kind, "convert it to numbers"),
    )


def dtype_name(block: Block) -> str:
    """Return the dtype's name, the same for an array and for a tensor: "uint8", "bfloat16"."""
    if isinstance(block, Tensor):
        return str(block.dtype).removeprefix("torch.")
    return _name(block.dtype)


@cache  # NumPy builds the name on each call, which takes 4 us
def _name(dtype: np.dtype) -> str:
    return dtype.newbyteorder("=").name


def _check_tensor(tensor: Tensor, where: str) -> Tensor:
    problem = fix = ""
    if tensor.layout != torch.strided or tensor.is_nested:
        problem, fix = f"layout {tensor.layout}", "convert it with .to_dense(), or pad it"
    elif tensor.is_quantized:
        problem, fix = f"dtype {tensor.dtype}", "convert it with .dequantize()"
    elif tensor.is_floating_point() and tensor.element_size() == 1:
        problem, fix = f"dtype {tensor.dtype}", "convert it with .float()"
    elif tensor.is_complex():
        problem, fix = f"dtype {tensor.dtype}", "normalise real and imaginary parts: torch.view_as_real(x)"
    elif tensor.device.type == "meta":
        problem, fix = "device meta, which has shapes and no values", "give a tensor with values"
    if problem:
        raise DataError(f"Not dense real numbers: {where} of {problem}", fix=fix)
    return tensor


def _with_article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# Which part of an item or batch is x; data sets and loaders share the rule.

WHICH_IS_X = (
    "x is an item itself, the first of a tuple or list, or of a dict the entry named by key=,"
    " else 'x', else the only one"
)


def x_of(item: Any, key: str | None, where: str) -> Block:
    """Return x of one item or batch.

    Raises:
        DataError: the rule above finds no x, or x holds no real numbers.
    """
    if isinstance(item, Mapping):
        return as_block(item[pick(list(item), key, where)], where)
    if key is not None:
        raise DataError(
            f"No entries in {where}, which is {_with_article(item)}",
            f"key={key!r}, which names an entry of a dict",
            "leave key= out",
        )
    if isinstance(item, tuple | list):
        if not item:
            raise DataError(f"No x: {where} is empty", WHICH_IS_X, "give (x, y), or x alone")
        if isinstance(item, list) and isinstance(item[0], bool | int | float | list | str):
            # [3.5, 1.0] may be x and y, or two features.
            raise DataError(
                f"Cannot tell which is x: {where} is a list of numbers",
                WHICH_IS_X,
                "make x an array, as with numpy.asarray",
            )
        return as_block(item[0], where)
    return as_block(item, where)


def pick(names: list[str], key: str | None, where: str) -> str:
    """Return the name of x among the entries of a dict, an npz file or a Zarr group.

    Raises:
        DataError: there is no entry `key`, or none can be told to be x.
    """
    if not names:
        raise DataError(f"No entries in {where}", fix="give data that hold x")
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    held = f"it holds {', '.join(map(repr, names[:10]))}{more}"
    if key is not None:
        if key not in names:
            fix = did_you_mean(key, map(str, names)) or "give one of these as key="
            raise AbsentError(f"No entry {key!r:.200} in {where}", held, fix)
        return key
    if "x" in names:
        return "x"
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"Cannot tell which entry of {where} is x",
        f"{held}; x is the entry named by key=, else 'x', else the only one",
        f"say which, as key={names[0]!r}",
    )


# What all samples of a data set have in common.


@dataclass(frozen=True)
class Schema:
    """The shape of one sample and the dtype's name.

    Attributes:
        sample: a size for every axis; None where samples differ, as the height and width of images may.
        dtype: such as "uint8"; "mixed" of a table whose columns have several.
        names: of the features, where the data have names for them, as the columns of a table.
        seen: the sizes of the first sample, where samples may differ.
    """

    sample: tuple[int | None, ...]
    dtype: str
    names: tuple[str, ...] = ()
    seen: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.sample)
        return f"samples of shape ({sizes}{',' if len(self.sample) == 1 else ''}) and dtype {self.dtype}"

    def includes(self, other: Schema) -> bool:
        """Whether samples of another schema fit this one."""
        return (
            self.dtype == other.dtype
            and self.names == other.names
            and len(self.sample) == len(other.sample)
            and all(size in (None, given) for size, given in zip(self.sample, other.sample, strict=True))
        )

    def pinned(self, axes: frozenset[int]) -> Schema:
        """Return the schema that also fixes the sizes of these axes, to those of the first sample."""
        pairs = enumerate(zip(self.sample, self.seen or self.sample, strict=True))
        return replace(self, sample=tuple(seen if axis in axes else size for axis, (size, seen) in pairs))

    @property
    def values(self) -> int:
        """How many values a sample has; an unknown size counts as 1."""
        total = 1
        for size in self.sample:
            total *= size or 1
        return total


def schema_of(block: Block | Columns, name: str) -> Schema:
    """Return the schema of a block's samples.

    Raises:
        DataError: it has no samples, or samples without values.
    """
    if isinstance(block, Columns):
        return Schema((len(block.names),), block.dtype, block.names)
    return Schema(check_shape(block.shape, name)[1:], dtype_name(block))


def check_schema(schema: Schema, block: Block | Columns, name: str, where: str) -> None:
    """Raise DataError unless a block's samples fit the schema."""
    given = schema_of(block, name)
    if not schema.includes(given):
        raise DataError(
            f"Samples of different shapes or dtypes: {where}",
            f"{given}; the first are {schema}",
            "resize, crop, pad or convert them first; (x, y) is one batch, not a list of two",
        )
