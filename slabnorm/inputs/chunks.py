"""From a source's blocks, of whatever length, to chunks whose length only the samples' shape decides.

Every chunk but the last holds the same number of samples, about CHUNK values. So an array, a file and a
loader with the same samples in the same order give the same chunks, and the same bits in the end;
memory stays bounded; and a loader with a batch size of 1 costs no more merges than one with 1024.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError
from slabnorm.inputs.sources import Block, Source
from slabnorm.inputs.sources.base import dtype_name

# Values in a chunk: 1 MB of float64, which stays in cache and is recycled, not paged in again. 200000 rows
# of 64 doubles on 2 cores: 2^15 0.36 s, 2^17 0.11 s, 2^20 0.19 s (scikit-learn's StandardScaler: 0.57 s).
CHUNK = 1 << 17


@dataclass(frozen=True)
class Schema:
    """What all samples of a data set have in common: the shape of one, and the dtype's name."""

    sample: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"samples of shape {self.sample} and dtype {self.dtype}"


@dataclass(frozen=True)
class Chunk:
    """Samples in float64, which holds every value of the supported dtypes exactly (see `missing.py`).

    `values` is valid until the next chunk is asked for.
    """

    values: Tensor
    first_row: int


class Chunks:
    """The chunks of a source; its schema is known before the first of them.

    Raises:
        DataError: no samples, samples without values, or blocks that differ in shape or dtype.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._blocks = enumerate(source.blocks())
        self._first = next(self._blocks, None)
        if self._first is None:
            raise _empty(source.name)
        self.schema = _schema(self._first[1], source.name)
        # A merge costs what a few samples cost: of large samples take 8, within 8 times the memory.
        values = math.prod(self.schema.sample)
        self.rows = max(CHUNK // values, min(8, 8 * CHUNK // values), 1)
        self.samples = 0  # read so far

    def __iter__(self) -> Iterator[Chunk]:
        buffer: Tensor | None = None
        filled = 0
        for block in self._checked():
            done = 0
            while done < len(block):
                if buffer is None:
                    buffer = torch.empty((self.rows, *self.schema.sample), dtype=torch.float64, device="cpu")
                step = min(self.rows - filled, len(block) - done)
                _copy(buffer[filled : filled + step], block[done : done + step])
                done, filled = done + step, filled + step
                self.samples += step
                if filled == self.rows:
                    yield Chunk(buffer, self.samples - filled)
                    filled = 0
        if buffer is not None and filled:
            yield Chunk(buffer[:filled], self.samples - filled)
        if not self.samples:
            raise _empty(self._source.name)

    def _checked(self) -> Iterator[Block]:
        first, self._first = self._first, None
        if first is not None:
            yield first[1]
        for number, block in self._blocks:
            schema = _schema(block, self._source.name)
            if schema != self.schema:
                raise DataError(
                    f"all samples of a data set have one shape and dtype: {self.schema}",
                    f"{self._source.unit} {number} of {self._source.name}: {schema}",
                    "resize, crop, pad or convert them first; (x, y) is one batch, not a list of two",
                )
            yield block


def _schema(block: Block, name: str) -> Schema:
    if block.ndim == 0:
        raise DataError(
            "data have their samples along the first axis",
            f"{name} is a single number",
            "give an array of them",
        )
    sample = tuple(block.shape[1:])
    if 0 in sample:
        raise DataError("a sample holds values", f"{name}: samples of shape {sample}", "leave out empty axes")
    return Schema(sample, dtype_name(block))


def _copy(into: Tensor, block: Block) -> None:
    if isinstance(block, Tensor):
        into.copy_(block)  # from any device, dtype and strides
    else:
        # NumPy takes what torch.from_numpy does not: other byte orders, negative strides, read-only maps.
        with np.errstate(invalid="ignore"):  # NaN is counted later, with its row
            np.copyto(into.numpy(), block, casting="unsafe")


def _empty(name: str) -> DataError:
    return DataError("a data set holds samples", f"{name} is empty", "check what was selected or filtered")
