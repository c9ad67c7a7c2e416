"""Data in memory or behind Python code: arrays and tensors, torch data sets, and iterables of batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources.base import (
    BLOCK_BYTES,
    Block,
    Schema,
    Shard,
    Source,
    Stream,
    as_block,
    check_dtype,
    check_shape,
    dtype_name,
    empty,
    shard_rows,
    x_of,
)
from slabnorm.inputs.split import Hint, held_out, path_hints

# Arrays, tensors, memory maps, and objects that can be sliced like an array, such as HDF5 data sets.


@dataclass(frozen=True)
class ArrayShard(Shard):
    """Some rows of an array."""

    array: Any = None

    def blocks(self) -> Iterator[Block]:
        """Yield the rows: a view of an array; of a memory map, only these rows are read."""
        if isinstance(self.array, np.ndarray | Tensor):
            yield self.array[self.first : self.last]
            return
        # An object that only acts like an array may have to fetch or decompress: take a few rows at a time.
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
        whole = isinstance(array, np.ndarray | Tensor) or not _is_sliceable(array)
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
            ArrayShard(
                number, self.name, "", size * (last - first), 0, first, last - first, array=self._array
            )
            for number, (first, last) in enumerate(shard_rows(shape, self.chunk_values))
        ]


def is_array(value: Any) -> bool:
    """Whether a value is an array, and not a container of arrays."""
    return isinstance(value, np.ndarray | np.generic | Tensor) or hasattr(value, "__array__")


# Frames are known by the module and name of their class, so that none of these packages is imported.
_FRAMES = {("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "Table"), ("pyarrow", "RecordBatch")}


def is_frame(value: Any) -> bool:
    """Whether a value is a pandas or polars DataFrame, or a pyarrow Table or RecordBatch."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(value).__mro__}
    return not kinds.isdisjoint(_FRAMES)


def _is_sliceable(value: Any) -> bool:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return isinstance(shape, tuple) and len(shape) > 0 and isinstance(dtype, np.dtype)


# torch data sets, map-style and iterable-style; their items are single samples.

_NAMES_SPLIT = (
    "split",
    "_split",
    "image_set",
    "subset",
    "mode",
    "phase",
)  # attributes of common data sets
_IS_TRAIN = ("train", "is_train", "is_training")


class IterableSource(Stream):
    """An iterable-style torch Dataset: it is iterated once."""

    unit = "item"

    def __init__(self, dataset: IterableDataset, key: str | None) -> None:
        self.name = type(dataset).__name__
        self.hints = dataset_hints(dataset)
        self._dataset, self._key = dataset, key

    def blocks(self) -> Iterator[Block]:
        """Yield one sample at a time."""
        for number, item in enumerate(self._dataset):
            yield x_of(item, self._key, f"item {number} of {self.name}")[None]


@dataclass(frozen=True)
class DatasetShard(Shard):
    """Some items of a map-style Dataset."""

    dataset: Any = None
    key: str | None = None

    def blocks(self) -> Iterator[Block]:
        """Yield one sample at a time."""
        # Not by iteration: many map-style data sets never raise the IndexError that would end it.
        for number in range(self.first, self.last):
            yield x_of(self.dataset[number], self.key, f"item {number} of {self.name}")[None]


class DatasetSource(Source):
    """A map-style torch Dataset, whose items are single samples."""

    unit, parallel = "item", False  # items are made by user code, which may not be thread-safe

    def __init__(self, dataset: Dataset, key: str | None) -> None:
        self.name = type(dataset).__name__
        self.hints = dataset_hints(dataset)
        self._dataset, self._key = dataset, key

    def shards(self) -> list[Shard]:
        """Return runs of items."""
        dataset: Any = self._dataset
        if not hasattr(dataset, "__len__"):
            raise DataError(
                f"A map-style Dataset without a length: {self.name} without __len__",
                fix="add __len__, or make it an IterableDataset",
            )
        count = len(dataset)
        if not count:
            return []
        first = x_of(dataset[0], self._key, f"item 0 of {self.name}")
        shape = check_shape((count, *first.shape), self.name)
        return [
            DatasetShard(number, self.name, "", 0, 0, start, last - start, dataset=dataset, key=self._key)
            for number, (start, last) in enumerate(shard_rows(shape, self.chunk_values))
        ]


def dataset_hints(dataset: Any) -> tuple[Hint, ...]:
    """Return what a data set, or one inside it (Subset, ConcatDataset, a loader), says about its split."""
    hints: list[Hint] = []
    inside, seen = [dataset], set()
    while inside:
        part = inside.pop()
        if id(part) in seen or part is None:
            continue
        seen.add(id(part))
        name = type(part).__name__
        for attribute in _IS_TRAIN:
            if _is_false(_attribute(part, attribute)):
                hints.append(Hint(f"{name}.{attribute} is False", "test"))
        for attribute in _NAMES_SPLIT:
            for said in _split_names(_attribute(part, attribute)):
                word = held_out(said)
                if word:
                    hints.append(Hint(f"{name}.{attribute} is {said!r:.200}", word))
                    break
        attributes = getattr(part, "__dict__", {})
        inside += [attributes.get("dataset"), attributes.get("_dataset")]  # the latter of a loader's iterator
        several = attributes.get("datasets")
        if isinstance(several, list | tuple):  # an iterator would be used up
            inside.extend(several)
    return tuple(hints)


def _attribute(part: Any, attribute: str) -> Any:
    """Return an attribute or property; None if there is none, or asking for it fails."""
    try:
        return getattr(part, attribute, None)
    except Exception:  # a property can run any code
        return None


def _is_false(value: Any) -> bool:
    return isinstance(value, bool | np.bool_ | int | np.integer) and not value


def _split_names(value: Any) -> list[str]:
    """Return the names that a value may mean: of text, an Enum's member, or an object that shows as one."""
    if isinstance(value, Enum):
        return [text for text in (value.value, value.name) if isinstance(text, str)]
    if isinstance(value, str):
        return [str(value)]
    # As Hugging Face's NamedSplit. Indices and tables, which `subset` may be, are no names, and long to show;
    # a path says where a list of samples lies.
    kind = type(value)
    other = any(hasattr(kind, name) for name in ("__len__", "__iter__", "__array__", "__fspath__"))
    if other or kind.__str__ is object.__str__:
        return []
    try:
        return [str(value)]
    except Exception:
        return []


# A DataLoader, and any iterable of batches.


class BatchSource(Stream):
    """An iterable whose items are batches; it is iterated once."""

    unit = "batch"

    def __init__(self, batches: Iterable[Any], key: str | None) -> None:
        self.name = type(batches).__name__
        self.hints = dataset_hints(batches)  # a loader and its iterator wrap a data set
        self._batches, self._key = batches, key

    def blocks(self) -> Iterator[Block]:
        """Yield one batch at a time."""
        if isinstance(self._batches, DataLoader):
            warn_of_sampling(self._batches)
        for number, batch in enumerate(self._batches):
            where = f"batch {number} of {self.name}"
            if hasattr(batch, "getbands"):
                raise DataError(
                    f"Not a batch of samples: {where} is one picture",
                    fix="stack them, as with numpy.stack, or give a torch Dataset, whose items are samples",
                )
            block = x_of(batch, self._key, where)
            if block.ndim == 0:
                raise DataError(
                    f"Not a batch of samples: {where} is a single number",
                    fix="give arrays or tensors of one axis or more, the samples along the first",
                )
            yield block


def warn_of_sampling(loader: DataLoader) -> None:
    """Warn if a loader leaves samples out, or draws some of them twice."""
    sampler = loader.sampler
    again = isinstance(sampler, WeightedRandomSampler | RandomSampler) and sampler.replacement
    if again:
        warnings.warn(
            f"the loader draws with replacement ({type(sampler).__name__}): statistics are of the draw",
            DataWarning,
            stacklevel=2,
        )
    if loader.drop_last and loader.batch_size and isinstance(sampler, Sized):
        left_out = len(sampler) % loader.batch_size
        if left_out:
            warnings.warn(
                f"the loader drops its last batch: {left_out} of {len(sampler)} samples are left out",
                DataWarning,
                stacklevel=2,
            )
