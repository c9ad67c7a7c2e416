"""torch data sets, of both styles: their items are single samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import Block, Shard, Source, Stream
from slabnorm.inputs.sources.parts import bounds, check_shape
from slabnorm.inputs.sources.samples import x_of
from slabnorm.inputs.split import Hint, held_out

_NAMES_SPLIT = ("split", "_split", "image_set", "subset", "mode", "phase")  # as common data sets call it
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
        # By number and length: many map-style data sets never raise the IndexError that ends a for.
        for number in range(self.first, self.last):
            yield x_of(self.dataset[number], self.key, f"item {number} of {self.name}")[None]


class DatasetSource(Source):
    """A map-style torch Dataset, whose items are single samples."""

    unit, parallel = "item", False  # its code may share anything

    def __init__(self, dataset: Dataset, key: str | None) -> None:
        self.name = type(dataset).__name__
        self.hints = dataset_hints(dataset)
        self._dataset, self._key = dataset, key

    def shards(self) -> list[Shard]:
        """Return runs of items."""
        dataset: Any = self._dataset
        if not hasattr(dataset, "__len__"):
            raise DataError(
                "a map-style Dataset has a length",
                f"{self.name} without __len__",
                "add __len__, or make it an IterableDataset",
            )
        count = len(dataset)
        if not count:
            return []
        first = x_of(dataset[0], self._key, f"item 0 of {self.name}")
        shape = check_shape((count, *first.shape), self.name)
        return [
            DatasetShard(number, self.name, "", 0, 0, start, last - start, dataset, self._key)
            for number, (start, last) in enumerate(bounds(shape))
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
            if _is_false(_get(part, attribute)):
                hints.append(Hint(f"{name}.{attribute} is False", "test"))
        for attribute in _NAMES_SPLIT:
            for said in _names(_get(part, attribute)):
                word = held_out(said)
                if word:
                    hints.append(Hint(f"{name}.{attribute} is {said!r:.200}", word))
                    break
        attributes = getattr(part, "__dict__", {})
        inside += [attributes.get("dataset"), attributes.get("_dataset")]  # the latter of a loader's iterator
        several = attributes.get("datasets")
        if isinstance(several, list | tuple):  # and no iterator, which looking would use up
            inside.extend(several)
    return tuple(hints)


def _get(part: Any, attribute: str) -> Any:
    """Return an attribute or property; None if there is none, or asking for it fails."""
    try:
        return getattr(part, attribute, None)
    except Exception:  # a property is anyone's code
        return None


def _is_false(value: Any) -> bool:
    return isinstance(value, bool | np.bool_ | int | np.integer) and not value


def _names(value: Any) -> list[str]:
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
