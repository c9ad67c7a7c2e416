"""A DataLoader, and any iterable of batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources.base import Block, Stream
from slabnorm.inputs.sources.datasets import dataset_hints
from slabnorm.inputs.sources.samples import x_of


class BatchSource(Stream):
    """An iterable whose items are batches; it is iterated once."""

    unit = "batch"

    def __init__(self, batches: Iterable[Any], key: str | None) -> None:
        self.name = type(batches).__name__
        self.hints = dataset_hints(batches)  # also of what wraps a data set: a loader, and its iterator
        self._batches, self._key = batches, key

    def blocks(self) -> Iterator[Block]:
        """Yield one batch at a time."""
        if isinstance(self._batches, DataLoader):
            _warn_of_sampling(self._batches)
        for number, batch in enumerate(self._batches):
            where = f"batch {number} of {self.name}"
            if hasattr(batch, "getbands"):
                raise DataError(
                    "a batch has its samples along the first axis",
                    f"{where} is one picture",
                    "stack them, as with numpy.stack, or give a torch Dataset, whose items are samples",
                )
            block = x_of(batch, self._key, where)
            if block.ndim == 0:
                raise DataError(
                    "a batch has its samples along the first axis",
                    f"{where} is a single number",
                    "give arrays or tensors of one axis or more",
                )
            yield block


def _warn_of_sampling(loader: DataLoader) -> None:
    """Say so when a loader leaves samples out, or draws some of them twice."""
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
