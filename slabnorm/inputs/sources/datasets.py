"""torch data sets, of both styles: their items are single samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import Block
from slabnorm.inputs.sources.samples import x_of
from slabnorm.inputs.split import Hint, held_out

_SAYS_SPLIT = ("split", "_split", "image_set")  # as torchvision's data sets name it


class DatasetSource:
    """A torch Dataset: map-style by number, iterable style by iteration."""

    unit = "item"

    def __init__(self, dataset: Dataset, key: str | None) -> None:
        self.name = type(dataset).__name__
        self.hints = dataset_hints(dataset)
        self._dataset, self._key = dataset, key

    def blocks(self) -> Iterator[Block]:
        """Yield one sample at a time."""
        for number, item in enumerate(self._items()):
            yield x_of(item, self._key, f"item {number} of {self.name}")[None]

    def _items(self) -> Iterator[Any]:
        dataset: Any = self._dataset
        if isinstance(dataset, IterableDataset):
            yield from dataset
        elif hasattr(dataset, "__len__"):
            # By number and length: many map-style data sets never raise the IndexError that ends a for.
            for number in range(len(dataset)):
                yield dataset[number]
        else:
            raise DataError(
                "a map-style Dataset has a length",
                f"{self.name} without __len__",
                "add __len__, or make it an IterableDataset",
            )


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
