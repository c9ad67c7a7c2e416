"""What a source is: a name, shards of samples, and what it says about its split.

To read a new kind of data, write a class with shards in a file of its own, and add it to `open_source`. A
source checks what only it can know (files, containers); the values it passes on are checked where they are
counted, so every source gets the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError
from slabnorm.inputs.split import Hint

Block = np.ndarray | Tensor  # dense: samples along the first axis; any strides, byte order or device

BLOCK_BYTES = 8 << 20  # what a source reads at once where it can choose


@dataclass(frozen=True, eq=False)
class Columns:
    """Samples column by column, as tables hold them.

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
        """Return some rows, which are views."""
        if first == 0 and last >= len(self):
            return self
        missing = tuple(None if mask is None else mask[first:last] for mask in self.missing)
        arrays = tuple(array[first:last] for array in self.arrays)
        return Columns(
            self.names, arrays, missing, None if self.weights is None else self.weights[first:last]
        )


MIXED = "mixed"  # the dtype of a table whose columns have several


class Bad(NamedTuple):
    """What could not be read, among what could: a file's name, why, what to do, and how many samples it has
    where they are numbered."""

    name: str
    why: str
    fix: str = "mend it, or leave out and list such files with skip_bad=True (--skip-bad)"
    samples: int = 0


class Named(NamedTuple):
    """A block that messages call by a name of its own, as that of the file that it is."""

    name: str
    block: Block


class MismatchError(DataError):
    """What can be read, and is of another kind than the rest: never left out as damaged."""


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
        """The number after its last sample's."""
        return self.first + self.samples

    @property
    def numbered_in(self) -> str:
        """What its samples are numbered in: the whole data set, or a file of it."""
        return self.name

    def blocks(self) -> Iterator[Block | Columns | Bad | Named]:
        """Yield the samples in order, in blocks of any length, or what could not be read.

        Raises:
            DataError: the shard as a whole cannot be read.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BrokenShard(Shard):
    """A part that could not even be listed: what was wrong with it."""

    error: DataError = field(kw_only=True)

    def blocks(self) -> Iterator[Block | Columns | Bad | Named]:
        """Raise the error, when the first block is asked for."""
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
    """

    name: str
    unit: str = "rows"
    hints: tuple[Hint, ...] = ()
    order: tuple[int, ...] = ()
    pattern: str = ""
    whole: bool = False
    parallel: bool = True
    reader: str = ""

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
        raise DataError(
            "a masked array hides values",
            where,
            'fill it, as with .filled(np.nan), and say nan="omit"',
        )
    if getattr(value, "mode", None) in ("P", "PA") and hasattr(value, "convert"):
        raise DataError(
            "a palette image holds colour numbers, not intensities", where, 'image.convert("RGB")'
        )
    offers = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
    if not offers and not isinstance(value, bool | int | float):
        raise DataError(
            "samples are tensors, arrays or numbers",
            f"{where} is {_a(value)}",
            "convert it, as with torch.as_tensor or numpy.asarray",
        )
    return check_array(np.asarray(value), where)


def check_array(array: np.ndarray, where: str) -> np.ndarray:
    """Return the array; raise DataError unless its dtype is bool, integer or float of at most 64 bits."""
    check_dtype(array.dtype, where)
    return array


def check_dtype(dtype: np.dtype, where: str) -> None:
    """Raise DataError unless a dtype is bool, integer or float of at most 64 bits."""
    kind = dtype.kind
    if kind in "bui" or (kind == "f" and dtype.itemsize <= 8):
        return
    fixes = {
        "O": "object arrays hold Python objects: stack them to numbers, as with np.stack(list(x))",
        "c": "normalise real and imaginary parts as two features, as from .view(float)",
        "f": "convert it with .astype(numpy.float64), and mind the digits this loses",
        "V": "take one field of a structured array, as x['field'], or join them as columns",
        "M": "convert times to numbers, as with .astype('int64'), and choose the unit",
        "m": "convert times to numbers, as with .astype('int64'), and choose the unit",
    }
    raise DataError(
        "data are bool, integers, or floats of at most 64 bits",
        f"{where} of dtype {dtype!s:.200}",
        fixes.get(kind, "convert it to numbers"),
    )


def dtype_name(block: Block) -> str:
    """Return the dtype's name, the same for an array and for a tensor: "uint8", "bfloat16"."""
    if isinstance(block, Tensor):
        return str(block.dtype).removeprefix("torch.")
    return _name(block.dtype)


@cache  # NumPy makes up the name anew each time, for 4 us
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
        raise DataError("data are dense real numbers", f"{where} of {problem}", fix)
    return tensor


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
