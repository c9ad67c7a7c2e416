"""torch data sets, of both styles: their items are single samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import Block, Shard, Source, Stream
from slabnorm.inputs.sources.parts import bounds
from slabnorm.inputs.sources.samples import x_of
from slabnorm.inputs.split import Hint, held_out

_SAYS_SPLIT = ("split", "_split", "image_set")  # as torchvision's data sets name it


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
        return [
            DatasetShard(number, self.name, "", 0, 0, start, last - start, dataset, self._key)
            for number, (start, last) in enumerate(bounds((count, *first.shape)))
        ]


def dataset_hints(dataset: Any) -> tuple[Hint, ...]:
    """Return what a data set, or one inside it (Subset, ConcatDataset), says about its split."""
    hints: list[Hint] = []
    inside, seen = [dataset], set()
    while inside:
        part = inside.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        name, attributes = type(part).__name__, getattr(part, "__dict__", {})
        if attributes.get("train") is False:
            hints.append(Hint(f"{name}.train is False", "test"))
        for attribute in _SAYS_SPLIT:
            said = attributes.get(attribute)
            word = held_out(said) if isinstance(said, str) else ""
            if word:
                hints.append(Hint(f"{name}.{attribute} is {said!r}", word))
        inside.append(attributes.get("dataset"))
        several = attributes.get("datasets")
        if isinstance(several, list | tuple):  # and no iterator, which looking would use up
            inside.extend(several)
    return tuple(hints)
