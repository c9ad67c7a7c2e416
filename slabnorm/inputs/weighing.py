"""Counting one shard of samples with weights: an array's by their numbers, a table's by a column."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from slabnorm.inputs.columns import Cells, dense
from slabnorm.inputs.counter import WIDE, Counting
from slabnorm.inputs.grid import as_numpy, flat
from slabnorm.inputs.missing import EXACT, Places, Where, refuse_floats, refuse_integers, refuse_null
from slabnorm.inputs.sample import Sampler, most
from slabnorm.inputs.sketch import Bounds, Collector
from slabnorm.inputs.sources.base import Block, Columns
from slabnorm.inputs.sums import hash_part
from slabnorm.inputs.tally import Tally
from slabnorm.inputs.weights import check_weights, weighted_features
from slabnorm.mergeable_moments import Moments
from slabnorm.slab import Slab, plan


class WeightedCounter:
    """Counts the samples of one shard, in order; its interface is that of Counter.

    A sample of weight 0 is not there: it may hold anything, and is not among those that an audit finds again.

    Args:
        counting: what to count, and the weights.
        name: of the shard, for messages.
        first: the number of its first sample.
        number: of the shard, which decides what is sampled.
        bounds: what need not be kept.
    """

    def __init__(
        self, counting: Counting, name: str, first: int = 0, number: int = 0, bounds: Bounds | None = None
    ) -> None:
        self._counting, self._name, self._next = counting, name, first
        self._features = counting.features()
        shape, bounds = self._features.shape, bounds or Bounds()
        self._moments = Moments.empty(shape)
        self._nan, self._null = torch.zeros(2, *shape, dtype=torch.int64)
        self._collector, self._samples = Collector(counting.sketch, bounds), 0
        features = math.prod(shape)
        self._sampler = Sampler(number, features + 1, most(counting.sample, features), bounds)

    def add(self, block: Block | Columns) -> None:
        """Count some samples.

        Raises:
            DataError: what Counter and ColumnCounter refuse, in samples that count; weights that cannot be.
            ShapeError: there are more samples than weights.
        """
        if isinstance(block, Columns):
            values, weights, null = self._of_table(block)
        else:
            values, null = as_numpy(block), None
            weights = check_weights(self._given(len(values)), len(values))
        there = weights > 0
        self._check(values, there)
        if null is not None:
            self._null += self._pooled(null[there])
        if there.any():
            self._count(values[there], weights[there])
        self._next += len(values)

    def tally(self, skipped: Sequence[tuple[str, str]] = ()) -> Tally:
        """Return what has been counted."""
        return Tally(
            self._samples, self._moments, self._nan - self._null, self._null, self._collector.sketch(),
            self._sampler.sample(), self._collector.content, tuple(skipped),
        )  # fmt: skip

    def _check(self, values: np.ndarray, there: np.ndarray) -> None:
        """Raise what is wrong with values that count."""
        if values.dtype.name in WIDE and bool(((values >= EXACT) | (values <= -EXACT))[there].any()):
            refuse_integers(_cleared(values, there), self._where())
        if values.dtype.kind == "f" and not np.isfinite(values[there]).all():
            strict = self._counting.nan == "raise"
            if np.isinf(values[there]).any() or (strict and np.isnan(values[there]).any()):
                refuse_floats(_cleared(values, there), self._counting.nan, self._where())

    def _count(self, values: np.ndarray, weights: np.ndarray) -> None:
        found, nan = weighted_features(values, weights, self._features, self._counting.sizes)
        if not bool(torch.isfinite(found.mean).all()):
            refuse_floats(values, self._counting.nan, self._where())
        self._moments, self._nan = self._moments.merge(found), self._nan + nan
        if self._counting.sample:
            slab = self._slab(values)
            self._sampler.add(values.reshape(slab.split), slab.pooled, slab.kept.dims, weights)
        if self._counting.sketch:
            line = flat(values, self._counting.order or tuple(range(values.ndim - 1)))
            hashes = self._collector.begin(len(values), line.size // len(values))
            hash_part(line, line.size // len(values), 0, hashes)
            self._collector.finish(hashes)
        self._samples += len(values)

    def _given(self, count: int) -> np.ndarray:
        """Return the weights of the next samples."""
        assert isinstance(self._counting.weights, np.ndarray)
        return self._counting.weights[self._next : self._next + count]

    def _of_table(self, block: Columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a table's features as float64, their weights, and what of the features is null."""
        given = self._given(len(block)) if block.weights is None else block.weights
        name = f"{self._name}: weights, from row {self._next} on,"
        weights, arrays, masks = check_weights(given, len(block), name), block.arrays, block.missing
        null = np.zeros((len(block), len(arrays)), bool)
        for column, mask in enumerate(masks):
            if mask is not None:
                null[:, column] = mask & (weights > 0)
        if self._counting.nan == "raise" and null.any():
            first = int(np.flatnonzero(null.any(0))[0])
            refuse_null(self._where(Cells((self._counting.schema.names[first],))), null[:, first])
        for column, array in enumerate(arrays):
            cells = Cells((self._counting.schema.names[column],))
            wide = (
                _cleared(array, (weights > 0) & ~null[:, column]) if array.dtype.name in WIDE else array[:0]
            )
            if bool(((wide >= EXACT) | (wide <= -EXACT)).any()):
                refuse_integers(wide, self._where(cells))
        values = np.column_stack([*map(dense, arrays, masks)])
        return values.astype(np.float64, copy=False), weights, null

    def _pooled(self, null: np.ndarray) -> torch.Tensor:
        """Return how many values of each feature a mask of a table has."""
        slab = self._slab(null)
        return slab.kept.gather(torch.from_numpy(null).reshape(slab.split).sum(slab.pooled, keepdim=True))

    def _slab(self, values: np.ndarray) -> Slab:
        return plan(self._features.pattern, (), values.shape, self._counting.sizes)

    def _where(self, cells: Places | None = None) -> Where:
        names = self._counting.schema.names
        return Where(self._name, self._next, cells or (Cells(names) if names else self._features))


def _cleared(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return values with zeros for samples that do not count, so that the others keep their places."""
    values = values.copy()
    values[~there] = 0
    return values
