"""Counting one shard: blocks, in order, to a Tally; a table column by column; samples with weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import isfinite, isinf, prod
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError, StatisticsError
from slabnorm.inputs.audit_counts import BesideCounter, Reference, SamplePlace
from slabnorm.inputs.column_moments import Sums, hash_part, joined
from slabnorm.inputs.features import Features, Grid, as_numpy, flat
from slabnorm.inputs.quantile_sample import Sample, Sampler, most
from slabnorm.inputs.schemes import first_features
from slabnorm.inputs.shard_statistics import Tally, Tree
from slabnorm.inputs.sketch import SIZE, Bounds, Collector
from slabnorm.inputs.sources.base import (
    Block,
    Columns,
    MismatchError,
    NamedBlock,
    Schema,
    Shard,
    Unreadable,
    check_schema,
)
from slabnorm.inputs.weighted_moments import check_weights, weighted_features
from slabnorm.mergeable_moments import Moments
from slabnorm.notation import parse
from slabnorm.slab import Slab, plan

# Many shards as one task, so that a fit hands out, commits and merges no more of them than it can.
#
# A group is 2^k neighbours, merged by whoever counts them: a node of the tree above shards, so that the bits
# are those of shards handed out one by one. Committing and merging a task takes 2.5 ms, in one place: a
# petabyte in shards of 64 MB would take it 11 hours, in 61,000 groups of 16 GB not 3 minutes.

TASKS = 1 << 16  # at most


@dataclass(frozen=True)
class Group(Shard):
    """Neighbouring shards, as many as a power of two, or the last ones."""

    parts: tuple[Shard, ...] = field(kw_only=True)

    def blocks(self) -> Iterator[Block | Columns | Unreadable | NamedBlock]:
        """Yield the samples of all parts."""
        for part in self.parts:
            yield from part.blocks()


def grouped(shards: Sequence[Shard]) -> list[Shard]:
    """Return shards as they are, or as at most TASKS groups of them."""
    size = 1
    while len(shards) > size * TASKS:
        size *= 2
    if size == 1:
        return list(shards)
    return [_group(first // size, shards[first : first + size]) for first in range(0, len(shards), size)]


def _group(number: int, parts: Sequence[Shard]) -> Group:
    marks = [part.fingerprint for part in parts]
    lines = "\n".join(f"{part.name}\n{part.fingerprint}" for part in parts)
    return Group(
        number,
        f"{parts[0].name} to {parts[-1].name}" if len(parts) > 1 else parts[0].name,
        hashlib.sha256(lines.encode()).hexdigest() if all(marks) else "",
        sum(part.size for part in parts),
        max(part.memory for part in parts),
        parts[0].first,
        sum(part.samples for part in parts),
        parts=tuple(parts),
    )


# Values that cannot be counted: NaN raised or left out, infinity and integers that float64 skips raised.

POLICIES = ("raise", "omit")
EXACT = 2.0**53  # from here on float64 skips integers


class Places(Protocol):
    """Says where a value stands."""

    def place(self, index: tuple[int, ...]) -> str:
        """Return an index as text, such as "row 17, c=2"."""


@dataclass(frozen=True)
class Where:
    """Where a block of samples stands: in what, from which row on, and what its axes are called."""

    name: str
    first: int
    features: Places

    def refuse(self, values: np.ndarray, which: np.ndarray, rule: str, fix: str) -> NoReturn:
        """Raise DataError for the first of some values."""
        first = tuple(int(i[0]) for i in which.nonzero())
        place = self.features.place((self.first + first[0], *first[1:]))
        rows = f"rows {self.first}..{self.first + len(values) - 1}"
        raise DataError(
            rule, f"{self.name}: {values[first].item()} at {place}; {int(which.sum())} in {rows}", fix
        )


def check_policy(nan: str) -> None:
    """Raise OptionError unless `nan` is a policy."""
    if nan not in POLICIES:
        raise OptionError(
            'nan is "raise" or "omit"', repr(nan), '"omit" leaves NaN out, feature by feature, and counts it'
        )


def refuse_floats(values: np.ndarray, nan: str, where: Where) -> NoReturn:
    """Raise what is wrong with a block whose sums are not what the policy takes."""
    infinite = np.isinf(values)
    if infinite.any():
        where.refuse(values, infinite, "data are finite", "mend or leave out these values")
    missing = np.isnan(values)
    if nan == "raise" and missing.any():
        where.refuse(values, missing, 'data hold no NaN under nan="raise"',
                     'mend them, or leave them out and count them with nan="omit"')  # fmt: skip
    raise StatisticsError(
        "sums of values are finite in float64",
        f"{where.name}, from row {where.first}: values near the end of float64's range",
        "bring the data nearer to 1 first, as by a change of units",
    )


def refuse_integers(values: np.ndarray, where: Where) -> NoReturn:
    """Raise DataError for integers that float64 does not hold."""
    beyond = (values >= EXACT) | (values <= -EXACT)
    where.refuse(values, beyond, "integers lie within 2^53",
                 "subtract an offset, or give floats, where they are approximate")  # fmt: skip


def refuse_null(where: Where, missing: np.ndarray) -> NoReturn:
    """Raise DataError for the first null of a column."""
    gone = np.flatnonzero(missing)
    place = where.features.place((where.first + int(gone[0]),))
    rows = f"rows {where.first}..{where.first + len(missing) - 1}"
    raise DataError(
        'tables hold no null under nan="raise"',
        f"{where.name}: null at {place}; {len(gone)} in {rows}",
        'mend them, or leave them out and count them with nan="omit"',
    )


def check_left(found: Moments, name: str, names: Sequence[str] = ()) -> None:
    """Raise DataError if a feature has no value left."""
    gone = found.count == 0
    if bool(gone.any()):
        raise DataError(
            "every feature has values left without its NaN",
            f"{name}: {first_features(gone, names)} hold NaN {'or null ' if names else ''}only",
            "leave these features out of the data",
        )


def check_present(sample: Sample, name: str, names: Sequence[str] = ()) -> None:
    """Raise DataError if a sample of values, from which quantiles come, has none of a feature."""
    gone = torch.from_numpy(sample.counts == 0)
    if len(sample.keys) and bool(gone.any()):
        raise DataError(
            f"a feature has values among the {len(sample.keys)} that quantiles are taken from",
            f"{name}: of {first_features(gone, names)} almost all values are NaN or null",
            'leave these features out, or fit "zscore" or "minmax", which read every value',
        )


def moments_where(values: Tensor, keep: Tensor, slab: Slab) -> Moments:
    """Return the Moments of the values that a mask keeps; empty where it keeps none of a slab.

    As in kernels/eager.py: shifted by an element of the slab, then by the mean found.
    """
    x, keep = values.reshape(slab.split), keep.reshape(slab.split)
    count = _sum(keep, slab)
    least = _reduce(torch.where(keep, x, torch.inf), slab, torch.amin)
    most = _reduce(torch.where(keep, x, -torch.inf), slab, torch.amax)
    shift = torch.where(count > 0, least, 0.0)
    shift = shift + _sum(torch.where(keep, x - shift, 0.0), slab) / count.clamp(min=1)
    centred = torch.where(keep, x - shift, 0.0)
    low = _sum(centred, slab) / count.clamp(min=1)
    m2 = _sum(torch.where(keep, centred - low, 0.0).square(), slab)
    gather = slab.kept.gather
    return Moments(
        gather(count), gather(shift), gather(m2), gather(least), gather(most), mean_low=gather(low)
    )


def _sum(x: Tensor, slab: Slab) -> Tensor:
    return _reduce(x, slab, torch.sum)


def _reduce(x: Tensor, slab: Slab, how: object) -> Tensor:
    # The sample axis is always pooled, so there is always a dim to reduce.
    return how(x, slab.pooled, keepdim=True)  # type: ignore[operator]


# From blocks of whatever length to chunks whose length only the samples' shape decides.
#
# Every chunk but a shard's last holds the same number of samples, about 2^20 values. So an array, a file and
# a loader with the same samples in the same order give the same chunks, and the same bits in the end;
# memory stays bounded; and a loader with a batch size of 1 costs no more than one with 1024.


def chunks(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """Yield the samples of all blocks, in order, `rows` at a time; each valid until the next is asked for."""
    buffer: Block | None = None
    filled = 0
    for block in blocks:
        done = 0
        while done < len(block):
            step = min(rows - filled, len(block) - done)
            part = block[done : done + step]
            done += step
            if step == rows:
                yield part
                continue
            if buffer is None:
                buffer = _like(block, rows)
            _copy(buffer[filled : filled + step], part)
            filled += step
            if filled == rows:
                yield buffer
                filled = 0
    if buffer is not None and filled:
        yield buffer[:filled]


def _like(block: Block, rows: int) -> Block:
    shape = (rows, *block.shape[1:])
    if isinstance(block, Tensor):
        return torch.empty(shape, dtype=block.dtype, device="cpu")
    return np.empty(shape, block.dtype)


def _copy(into: Block, block: Block) -> None:
    if isinstance(into, Tensor):
        into.copy_(block if isinstance(block, Tensor) else torch.from_numpy(np.ascontiguousarray(block)))
    elif isinstance(block, Tensor):
        into[...] = block.detach().cpu().numpy()
    else:
        into[...] = block


# Counting one shard: its blocks, in order, to a Tally.

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


# Counting one shard of a table, column by column: nothing is copied to rows.

ROWS = 1 << 17  # of a chunk: 1 MB of float64 and of hashes each, so that hashing finds them in the cache
_FIELDS = ("count", "mean", "m2", "min", "max", "mean_low", "m2_low")


class ColumnCounter:
    """Counts the rows of one shard of a table, in order; its interface is that of Counter.

    A row has the hash of the same row in an array; a null hashes as NaN does.

    Args:
        counting: what to count; its schema names the columns.
        name: of the shard, for messages.
        first: the number of its first row in the file, where that is known.
        number: of the shard, which decides what is sampled.
        bounds: what need not be kept.
    """

    def __init__(
        self, counting: Counting, name: str, first: int = 0, number: int = 0, bounds: Bounds | None = None
    ) -> None:
        bounds = bounds or Bounds()
        self._counting, self._name, self._first = counting, name, first
        self._names = counting.schema.names
        self._sums: list[Sums] = []
        self._first_of: dict[np.dtype, Sums] = {}  # whose working memory the others of this dtype share
        self._null = np.zeros(len(self._names), np.int64)
        self._collector, self._samples = Collector(counting.sketch, bounds), 0
        self._features = counting.features()
        features = prod(self._features.shape)
        self._sampler = Sampler(number, features, most(counting.sample, features), bounds)
        self._beside: BesideCounter | None = None
        if counting.reference is not None:
            self._beside = BesideCounter(counting.reference, self._features, counting.sizes)

    def add(self, block: Columns) -> None:
        """Count some rows.

        Raises:
            DataError: null or NaN under the policy "raise", infinity, or an integer beyond 2^53; names column
                and row.
            StatisticsError: the sum of finite values overflows float64.
        """
        for first in range(0, len(block), ROWS):
            self._count(block.rows(first, first + ROWS))

    def tally(self, skipped: Sequence[tuple[str, str]] = ()) -> Tally:
        """Return what has been counted."""
        shape = self._features.shape
        moments, columns = Moments.empty(shape), len(self._names)
        nan = np.array([int(sums.nan[0]) for sums in self._sums] or [0] * columns)
        if self._sums:
            moments = _pooled(joined(self._sums), self._features_of_columns(), shape)
        return Tally(
            self._samples,
            moments,
            self._summed(nan, shape),
            self._summed(self._null, shape),
            self._collector.sketch(),
            self._sampler.sample(),
            self._collector.content,
            tuple(skipped),
            None if self._beside is None else self._beside.counted(),
        )

    def _count(self, block: Columns) -> None:
        hashes = self._collector.begin(len(block), len(self._names))
        for at, (array, missing) in enumerate(zip(block.arrays, block.missing, strict=True)):
            values = _plain(array)
            if at == len(self._sums):
                like = self._first_of.get(values.dtype)
                self._sums.append(Sums(values.dtype, 1, like))
                self._first_of.setdefault(values.dtype, self._sums[-1])
            there = values if missing is None else values[~missing]
            self._sums[at].add(there)
            self._null[at] += len(values) - len(there)
            self._check(at, values, missing)
            if self._counting.sketch:
                hash_part(values if missing is None else _with_nan(values, missing), 1, at, hashes)
        if self._counting.sample:
            self._draw(block)
        if self._counting.sketch:
            self._collector.finish(hashes)
        if self._beside is not None:
            self._beside.add(np.column_stack([*map(dense, block.arrays, block.missing)]), hashes)
        self._samples += len(block)

    def _draw(self, block: Columns) -> None:
        """Sample rows, or, where columns are pooled, single values."""
        table = [*map(dense, block.arrays, block.missing)]
        if prod(self._features.shape) == len(table):
            self._sampler.draw(len(block), lambda rows: np.column_stack([column[rows] for column in table]))
        else:
            self._sampler.add(np.column_stack(table), (0, 1), ())

    def _check(self, at: int, values: np.ndarray, missing: np.ndarray | None) -> None:
        """Raise what is wrong with a column, of which only the sums so far are looked at."""
        sums, strict = self._sums[at], self._counting.nan == "raise"
        low, high = sums.extremes[0, 0], sums.extremes[1, 0]
        where = Where(self._name, self._first + self._samples, Cells((self._names[at],)))
        if strict and missing is not None and missing.any():
            refuse_null(where, missing)
        if values.dtype.kind == "f":
            # Without any value the extremes are infinite, and mean nothing.
            infinite = not isfinite(sums.mean) or (low <= high and (isinf(low) or isinf(high)))
            if infinite or (strict and sums.nan[0]):
                refuse_floats(_filled(values, missing), self._counting.nan, where)
        elif values.dtype.name in WIDE and low <= high and (int(high) >= EXACT or int(low) <= -EXACT):
            refuse_integers(_filled(values, missing), where)

    def _features_of_columns(self) -> np.ndarray:
        """Return of which feature each column is: "n c -> c" has a feature for each, "n c ->" one for all."""
        features = self._features
        numbers = torch.arange(prod(features.shape)).reshape(features.shape)
        return features.spread(numbers, 2).expand(1, len(self._names)).reshape(-1).numpy()

    def _summed(self, counts: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        total = np.zeros(prod(shape), np.int64)
        np.add.at(total, self._features_of_columns(), counts)
        return torch.from_numpy(total.reshape(shape))


@dataclass(frozen=True)
class Cells:
    """Says in messages where a value of a table, or of one of its columns, stands."""

    names: tuple[str, ...]

    def place(self, index: tuple[int, ...]) -> str:
        """Return an index as text."""
        return f"row {index[0]}, column {self.names[index[1] if len(index) > 1 else 0]!r}"


def _plain(array: np.ndarray) -> np.ndarray:
    """Return a column in a dtype that kernels take, a view where it is."""
    array = np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _with_nan(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    # float64 for integers: beyond 2^53 they are refused anyway, and hashes are of its bits.
    copy = values.astype(values.dtype if values.dtype.kind == "f" else np.float64)
    copy[missing] = np.nan
    return copy


def dense(array: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """Return a column in a dtype that kernels take, NaN where a mask says that nothing is."""
    values = _plain(array)
    return values if missing is None else _with_nan(values, missing)


def _filled(values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    return values if missing is None else np.where(missing, values.dtype.type(0), values)


def _pooled(columns: Moments, of: np.ndarray, shape: tuple[int, ...]) -> Moments:
    """Merge the Moments of columns, in their order, to those of features."""
    fields = [getattr(columns, field) for field in _FIELDS]
    if np.array_equal(of, np.arange(prod(shape))):
        return Moments(*(field.reshape(shape) for field in fields))
    single = [Moments(*(field[at] for field in fields)) for at in range(len(of))]
    parts: list[list[Moments]] = [[] for _ in range(prod(shape))]
    for feature, one in zip(of.tolist(), single, strict=True):
        parts[feature].append(one)
    merged = [reduce(Moments.merge, some) for some in parts]
    return Moments(
        *(torch.stack([getattr(one, field) for one in merged]).reshape(shape) for field in _FIELDS)
    )


# Counting one shard of samples with weights: an array's by their numbers, a table's by a column.


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


# What a worker does: count one shard. Any engine calls this, in a thread, a process or another machine.


def count_shard(shard: Shard, counting: Counting, bounds: Bounds | None = None) -> Tally:
    """Return the tally of a shard, without what others have pushed out.

    Raises:
        DataError: it cannot be read, or holds what cannot be counted. Under `skip_bad` what cannot be read is
            listed in the tally instead.
    """
    bounds = bounds or Bounds()
    if isinstance(shard, Group):
        tree = Tree(bounds if bounds.live else replace(bounds))
        for number, part in enumerate(shard.parts):
            tree.add(number, count_shard(part, counting, tree.bounds))
        return tree.whole()
    if not bounds.live:
        bounds = replace(bounds)
    bad: list[tuple[str, str]] = []
    kind = counter_of(counting)
    counter = kind(counting, shard.name, shard.first, shard.number, bounds)
    places = _Places(shard)
    blocks = _good(shard, counting, bad, places)
    try:
        for chunk in blocks if counting.whole or counting.schema.names else chunks(blocks, counting.rows):
            counter.add(chunk)
    except ShardError as error:
        # Its blocks so far do not count: a shard is counted whole or not at all.
        counter, bad = kind(counting, shard.name), [(shard.name, error.why)]
    tally: Tally = counter.tally(bad)
    return replace(tally, beside=tally.beside.placed(places.of)) if tally.beside else tally


def counter_of(counting: Counting) -> Callable[..., Any]:
    """Return the class that counts a shard: a table's blocks are Columns, all others are dense."""
    if counting.weights is not None:
        return WeightedCounter
    return ColumnCounter if counting.schema.names else Counter


class _Places:
    """Where the samples of a shard stand, by their numbers among those that could be read."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._named: list[str] = []
        self._left_out: list[tuple[int, int]] = []  # after so many samples, so many
        self._read = 0

    def read(self, count: int, name: str = "") -> None:
        """Note samples that were read, or one with a name of its own."""
        self._read += count
        if name:
            self._named.append(name)

    def leave_out(self, count: int) -> None:
        """Note samples that could not be read."""
        self._left_out.append((self._read, count))

    def of(self, row: int) -> SamplePlace:
        """Return the name of the file or data set that a sample is in, and its row there."""
        if self._named:
            return self._named[row], None
        before = sum(count for after, count in self._left_out if after <= row)
        return self._shard.numbered_in, self._shard.first + before + row


class ShardError(Exception):
    """A shard that broke while it was read."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _good(shard: Shard, counting: Counting, bad: list[tuple[str, str]], places: _Places) -> Iterator[Any]:
    """Yield the blocks of a shard; note what could not be read, or raise it."""
    blocks = shard.blocks()
    number = 0
    while True:
        try:
            block = next(blocks, None)
        except DataError as error:
            if not counting.skip_bad or isinstance(error, MismatchError):
                raise
            raise ShardError(": ".join(filter(None, (error.rule, error.got)))) from error
        if block is None:
            return
        if isinstance(block, Unreadable):
            if not counting.skip_bad:
                raise block.error()
            bad.append((block.name, block.why))
            places.leave_out(block.samples)
            continue
        where, name = f"{counting.unit} {number} of {shard.name}", ""
        if isinstance(block, NamedBlock):
            where, block = block
            name = where
        check_schema(counting.schema, block, shard.name, where)
        number += 1
        if counting.reference is not None:
            places.read(len(block) if getattr(block, "ndim", 1) else 1, name)
        yield block
