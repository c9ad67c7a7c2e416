"""Arrays and tensors in memory, memory maps, and whatever can be sliced like one (HDF5, Zarr)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from slabnorm.inputs.sources.base import BLOCK_BYTES, Block, as_block
from slabnorm.inputs.split import Hint, file_hints


class ArraySource:
    """One array or tensor, its samples along the first axis."""

    unit = "rows"

    def __init__(self, array: Any, name: str = "", hints: tuple[Hint, ...] = ()) -> None:
        self.name = name or ("tensor" if isinstance(array, Tensor) else "array")
        self.hints = hints
        if isinstance(array, np.memmap) and array.filename is not None and not name:
            path = Path(str(array.filename))
            self.name, self.hints = str(path), file_hints(path)
        self._array = array

    def blocks(self) -> Iterator[Block]:
        """Yield the whole array: slices of it are views, and a memory map reads what it is asked for."""
        if isinstance(self._array, np.ndarray | Tensor) or not _slices(self._array):
            yield as_block(self._array, self.name)
            return
        # What only behaves like an array may have to fetch or decompress: a few rows at a time.
        count, *rest = self._array.shape
        row = math.prod(rest) * np.dtype(self._array.dtype).itemsize
        rows = max(1, BLOCK_BYTES // max(1, row))
        for start in range(0, max(1, count), rows):
            yield as_block(self._array[start : start + rows], self.name)


def is_array(value: Any) -> bool:
    """Whether a value is one array, and no container of several."""
    return isinstance(value, np.ndarray | np.generic | Tensor) or hasattr(value, "__array__")


def _slices(value: Any) -> bool:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return isinstance(shape, tuple) and len(shape) > 0 and isinstance(dtype, np.dtype)
