"""Counting one shard: its blocks, in order, to a Tally."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from slabnorm.inputs.beside import BesideCounter, Reference
from slabnorm.inputs.features import Features
from slabnorm.inputs.grid import Grid, as_numpy, flat
from slabnorm.inputs.missing import EXACT, Where, moments_where, refuse_floats, refuse_integers
from slabnorm.inputs.sample import Sampler, most
from slabnorm.inputs.schema import Schema
from slabnorm.inputs.sketch import SIZE, Bounds, Collector
from slabnorm.inputs.sources.base import Block
from slabnorm.inputs.sums import Sums, hash_part
from slabnorm.inputs.tally import Tally
from slabnorm.mergeable_moments import Moments
from slabnorm.pattern import parse
from slabnorm.slab import Slab, plan

WIDE = ("int64", "uint64")


@dataclass(frozen=True)
class Counting:
    """What to count, the same for every shard; plain data, which travels to other processes.

    Attributes:
        pattern, sizes: which axes keep statistics of their own.
        schema: what all samples have in common.
        nan: "raise" or "omit".
        order: the axes of a sample as memory has them; () for their own order.
        sketch: how many hashes of samples are kept.
        sample: how many positions are sampled, for quantiles.
        whole: whether every block is counted by itself.
        skip_bad: whether what cannot be read is left out and listed.
        unit: how messages call a block.
        rows: samples of a chunk.
        reference: what an audit compares the samples with.
        weights: of all samples, in their order; or the name of a table's column, which is no feature then.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...]
    schema: Schema
    nan: str = "raise"
    order: tuple[int, ...] = ()
    sketch: int = SIZE
    sample: int = 0
    whole: bool = False
    skip_bad: bool = False
    unit: str = "block"
    rows: int = 1
    reference: Reference | None = None
    weights: np.ndarray | str | None = field(default=None, compare=False)

    def features(self) -> Features:
        """Return where the statistics lie in a batch."""
        return Features.of(parse(self.pattern), self.schema.sample, self.sizes)


class Counter:
    """Counts the samples of one shard, in order.

    Args:
        counting: what to count.
        name: of the shard, for messages.
        first: the number of its first sample, where that is known.
        number: of the shard, which decides what is sampled.
        bounds: what need not be kept.
    """

    def __init__(
        self, counting: Counting, name: str, first: int = 0, number: int = 0, bounds: Bounds | None = None
    ) -> None:
        bounds = bounds or Bounds()
        self._counting, self._name, self._first = counting, name, first
        self._features = counting.features()
        self._grids: dict[tuple[int, ...], Grid | None] = {}
        self._sums: Sums | None = None
        self._other: Moments | None = None  # of blocks that have no grid
        self._nan = torch.zeros(self._features.shape, dtype=torch.int64)
        self._collector, self._samples = Collector(counting.sketch, bounds), 0
        self._grid: Grid | None = None
        features = math.prod(self._features.shape)
        self._sampler = Sampler(number, features, most(counting.sample, features), bounds)
        self._beside: BesideCounter | None = None
        if counting.reference is not None:
            self._beside = BesideCounter(counting.reference, self._features, counting.sizes)

    def add(self, block: Block) -> None:
        """Count a block of samples.

        Raises:
            DataError: NaN under the policy "raise", infinity, or an integer beyond 2^53; names the row.
            StatisticsError: the sum of finite values overflows float64.
        """
        values = as_numpy(block)
        sample = tuple(values.shape[1:])
        order = self._counting.order or tuple(range(len(sample)))
        line = flat(values, order)
        grid = self._grid_of(sample, order)
        if grid is None:
            self._add_slowly(values)
        else:
            self._grid = grid
            if self._sums is None:
                self._sums = Sums(line.dtype, grid.features)
            self._sums.add(line, grid.run)
            self._check(values, self._sums)
        if self._counting.sample:
            slab = self._slab(sample, len(values))
            self._sampler.add(values.reshape(slab.split), slab.pooled, slab.kept.dims)
        if self._counting.sketch and len(values):
            length = line.size // len(values)
            hashes = self._collector.begin(len(values), length)
            hash_part(line, length, 0, hashes)
            self._collector.finish(hashes)
            if self._beside is not None:
                self._beside.add(values, hashes)
        self._samples += len(values)

    def tally(self, skipped: Sequence[tuple[str, str]] = ()) -> Tally:
        """Return what has been counted."""
        moments, nan = self._other, self._nan
        if self._sums is not None and self._grid is not None:
            # Samples whose sizes differ may have been counted either way.
            gather = self._grid.gather
            found = Moments(*map(gather, self._sums.fields()))
            moments = found if moments is None else moments.merge(found)
            nan = nan + gather(self._sums.nan)
        return Tally(
            self._samples,
            Moments.empty(self._features.shape) if moments is None else moments,
            nan,
            torch.zeros_like(nan),
            self._collector.sketch(),
            self._sampler.sample(),
            self._collector.content,
            tuple(skipped),
            None if self._beside is None else self._beside.counted(),
        )

    def _grid_of(self, sample: tuple[int, ...], order: tuple[int, ...]) -> Grid | None:
        if sample not in self._grids:
            pattern = parse(self._counting.pattern)
            self._grids[sample] = Grid.of(pattern, sample, self._counting.sizes, order)
        return self._grids[sample]

    def _slab(self, sample: tuple[int, ...], count: int) -> Slab:
        return plan(parse(self._counting.pattern), (), (count, *sample), self._counting.sizes)

    def _check(self, values: np.ndarray, sums: Sums) -> None:
        low, high = sums.extremes
        if values.dtype.kind == "f":
            infinite = bool(low.min() == -np.inf or high.max() == np.inf)
            if infinite or not sums.finite or (self._counting.nan == "raise" and sums.nan.any()):
                refuse_floats(values, self._counting.nan, self._where())
        elif values.dtype.itemsize == 8 and (high.max() >= EXACT or low.min() <= -EXACT):
            refuse_integers(values, self._where())

    def _where(self) -> Where:
        return Where(self._name, self._first + self._samples, self._features)

    def _add_slowly(self, values: np.ndarray) -> None:
        """Any pattern: in plain torch, in float64."""
        x = torch.from_numpy(values.astype(np.float64))
        where = self._where()
        if values.dtype.name in WIDE and bool((x.abs() >= EXACT).any()):
            refuse_integers(values, where)
        slab = self._slab(tuple(values.shape[1:]), len(values))
        missing = torch.isnan(x)
        found = moments_where(x, ~missing, slab)
        some = bool(missing.any())
        if (
            (some and self._counting.nan == "raise")
            or not bool(torch.isfinite(found.mean).all())
            or bool(torch.isinf(x).any())
        ):
            refuse_floats(values, self._counting.nan, where)
        self._other = found if self._other is None else self._other.merge(found)
        if some:
            split = missing.reshape(slab.split).sum(slab.pooled, keepdim=True)
            self._nan = self._nan + slab.kept.gather(split)
