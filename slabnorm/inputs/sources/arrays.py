"""Arrays and tensors in memory, memory maps, and whatever can be sliced like one (HDF5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from slabnorm.inputs.schema import Schema
from slabnorm.inputs.sources.base import BLOCK_BYTES, Block, Shard, Source, as_block, check_dtype, dtype_name
from slabnorm.inputs.sources.parts import bounds, check_shape, empty
from slabnorm.inputs.split import Hint, path_hints


@dataclass(frozen=True)
class ArrayShard(Shard):
    """Some rows of an array."""

    array: Any = None

    def blocks(self) -> Iterator[Block]:
        """Yield the rows: those of an array are a view, and a memory map reads what it is asked for."""
        if isinstance(self.array, np.ndarray | Tensor):
            yield self.array[self.first : self.last]
            return
        # What only behaves like an array may have to fetch or decompress: a few rows at a time.
        row = math.prod(self.array.shape[1:]) * np.dtype(self.array.dtype).itemsize
        rows = max(1, BLOCK_BYTES // max(1, row))
        for start in range(self.first, max(self.last, 1), rows):
            yield as_block(self.array[start : min(start + rows, self.last)], self.name)


class ArraySource(Source):
    """One array or tensor, its samples along the first axis."""

    def __init__(self, array: Any, name: str = "", hints: tuple[Hint, ...] = ()) -> None:
        self.name = name or ("tensor" if isinstance(array, Tensor) else "array")
        self.hints = hints
        if isinstance(array, np.memmap) and array.filename is not None and not name:
            path = Path(str(array.filename))
            self.name, self.hints = str(path), path_hints([path])
        whole = isinstance(array, np.ndarray | Tensor) or not _slices(array)
        if not whole:
            check_dtype(array.dtype, self.name)
        self._array = as_block(array, self.name) if whole else array

    def schema(self) -> Schema:
        """Return shape and dtype of the samples."""
        shape = check_shape(self._array.shape, self.name)
        if not shape[0]:
            raise empty(self.name)
        return Schema(shape[1:], dtype_name(self._array))

    def shards(self) -> list[Shard]:
        """Return runs of rows."""
        shape = check_shape(self._array.shape, self.name)
        size = math.prod(shape[1:]) * self._array.dtype.itemsize
        return [
            ArrayShard(number, self.name, "", size * (last - first), 0, first, last - first, self._array)
            for number, (first, last) in enumerate(bounds(shape))
        ]


def is_array(value: Any) -> bool:
    """Whether a value is one array, and no container of several."""
    return isinstance(value, np.ndarray | np.generic | Tensor) or hasattr(value, "__array__")


def _slices(value: Any) -> bool:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return isinstance(shape, tuple) and len(shape) > 0 and isinstance(dtype, np.dtype)
