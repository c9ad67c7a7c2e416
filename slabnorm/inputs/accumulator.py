"""Counting one shard: blocks of samples, in order, to a Tally."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError, StatisticsError
from slabnorm.inputs.features import FeatureLayout, Features, as_numpy, flatten_samples
from slabnorm.inputs.quantile_sample import QuantileSample, QuantileSampler, positions_of
from slabnorm.inputs.schemes import first_features
from slabnorm.inputs.shard_statistics import Tally, TallyTree
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
from slabnorm.inputs.weighted_moments import block_moments, check_weights, weighted_moments
from slabnorm.mergeable_moments import FIELDS, Moments
from slabnorm.notation import parse
from slabnorm.slab import Slab, plan

if TYPE_CHECKING:
    from slabnorm.inputs.audit.counts import Reference, SamplePlace
    from slabnorm.inputs.kernels.column_moments import ColumnMoments

# Many shards as one task, so that a fit hands out, commits and merges no more of them than it can.
#
# A group is 2^k neighbours, merged by whoever counts them: a node of the tree above shards, so that the bits
# are those of shards handed out one by one. Committing and merging a task takes 2.5 ms, in one place: a
# petabyte in shards of 64 MB would take it 11 hours, in 61,000 groups of 16 GB not 3 minutes.

TASKS = 1 << 16  # at most


@dataclass(frozen=True)
class ShardGroup(Shard):
    """Neighbouring shards, as many as a power of two, or the last ones."""

    parts: tuple[Shard, ...] = field(kw_only=True)

    def blocks(self) -> Iterator[Block | Columns | Unreadable | NamedBlock]:
        """Yield the samples of all parts."""
        for part in self.parts:
            yield from part.blocks()


def group_shards(shards: Sequence[Shard], tasks: int = TASKS) -> list[Shard]:
    """Return shards as they are, or as groups of them, of which there are at most `tasks`."""
    size = 1
    while len(shards) > size * tasks:
        size *= 2
    if size == 1:
        return list(shards)
    return [_group(first // size, shards[first : first + size]) for first in range(0, len(shards), size)]


def _group(number: int, parts: Sequence[Shard]) -> ShardGroup:
    known = all(part.fingerprint for part in parts)
    lines = "\n".join(f"{part.name}\n{part.fingerprint}" for part in parts)
    return ShardGroup(
        number,
        f"{parts[0].name} to {parts[-1].name}" if len(parts) > 1 else parts[0].name,
        hashlib.sha256(lines.encode()).hexdigest() if known else "",
        sum(part.size for part in parts),
        max(part.memory for part in parts),
        parts[0].first,
        sum(part.samples for part in parts),
        parts=tuple(parts),
    )


# Values that cannot be counted: infinity, integers that float64 skips, NaN and null unless they are left out.

POLICIES = ("raise", "omit")
EXACT = 2.0**53  # from here on float64 skips integers
OMIT = 'fill or remove them, or leave them out, feature by feature, with nan="omit"'


class BlockPlace(NamedTuple):
    """Where a block of samples stands.

    Attributes:
        name: of its shard.
        first: the number of its first sample.
        text: what an index of a value reads like, such as "row 17, c=2".
    """

    name: str
    first: int
    text: Callable[[tuple[int, ...]], str]

    def refuse(self, what: str, which: np.ndarray, values: np.ndarray | None, fix: str) -> NoReturn:
        """Raise DataError for the values of a block that a mask chooses; without values, they are null."""
        index = tuple(int(places[0]) for places in which.nonzero())
        value = "null" if values is None else values[index].item()
        place = self.text((self.first + index[0], *index[1:]))
        rows = f"rows {self.first}..{self.first + len(which) - 1}"
        raise DataError(f"{what} in {self.name}", f"{value} at {place}; {int(which.sum())} in {rows}", fix)


def check_policy(nan: str) -> None:
    """Raise OptionError unless `nan` is a policy."""
    if nan not in POLICIES:
        raise OptionError(
            'nan must be "raise" or "omit"',
            repr(nan),
            '"omit" leaves NaN out, feature by feature, and counts it',
        )


def refuse_values(values: np.ndarray, nan: str, place: BlockPlace) -> NoReturn:
    """Raise what is wrong with a block that holds, or adds up to, what a fit does not take."""
    if values.dtype.kind != "f":
        beyond = (values >= EXACT) | (values <= -EXACT)
        fix = "subtract an offset, or give floats, where they are approximate"
        place.refuse("Integers beyond 2^53", beyond, values, fix)
    infinite, missing = np.isinf(values), np.isnan(values)
    if infinite.any():
        place.refuse("Infinite values", infinite, values, "mend or remove them")
    if nan == "raise" and missing.any():
        place.refuse("NaN", missing, values, OMIT)
    raise StatisticsError(
        f"The sum of values in {place.name} overflows float64",
        f"from row {place.first} on",
        "bring the data nearer to 1 first, as by a change of units",
    )


def check_values_left(found: Moments, name: str, names: Sequence[str] = ()) -> None:
    """Raise DataError if a feature has no value but NaN and null."""
    empty = found.count == 0
    if bool(empty.any()):
        raise DataError(
            f"Features without values in {name}",
            f"only NaN{' or null' if names else ''} in {first_features(empty, names)}",
            "leave these features out of the data",
        )


def check_quantile_sample(sample: QuantileSample, name: str, names: Sequence[str] = ()) -> None:
    """Raise DataError if the values from which quantiles are taken have none of a feature."""
    empty = torch.from_numpy(sample.counts == 0)
    if len(sample.keys) and bool(empty.any()):
        raise DataError(
            f"Too few values for quantiles in {name}",
            f"only NaN or null in {first_features(empty, names)}, among {len(sample.keys)} values sampled",
            'leave these features out, or fit "zscore" or "minmax", which read every value',
        )


# From blocks of whatever length to chunks whose length only the samples' shape decides.
#
# Every chunk but a shard's last holds the same number of samples, about 2^20 values. So an array, a file and
# a loader with the same samples in the same order give the same chunks, and the same bits in the end;
# memory stays bounded; and a loader with a batch size of 1 costs no more than one with 1024.


class Chunks:
    """Cuts blocks of any length into chunks of so many samples; each is valid until the next is asked for."""

    def __init__(self, rows: int) -> None:
        self._rows, self._filled = rows, 0
        self._buffer: Block | None = None

    def of(self, block: Block) -> Iterator[Block]:
        """Yield the chunks that a block completes, and keep what is left of it."""
        done = 0
        while done < len(block):
            step = min(self._rows - self._filled, len(block) - done)
            part = block[done : done + step]
            done += step
            if step == self._rows:
                yield part
                continue
            if self._buffer is None:
                self._buffer = _empty_like(block, self._rows)
            _copy(self._buffer[self._filled : self._filled + step], part)
            self._filled += step
            if self._filled == self._rows:
                yield self._buffer
                self._filled = 0

    def rest(self) -> Iterator[Block]:
        """Yield what is left, if anything is."""
        if self._buffer is not None and self._filled:
            yield self._buffer[: self._filled]
            self._filled = 0


def chunks(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """Yield the samples of all blocks, in order, `rows` at a time; each valid until the next is asked for."""
    cut = Chunks(rows)
    for block in blocks:
        yield from cut.of(block)
    yield from cut.rest()


def _empty_like(block: Block, rows: int) -> Block:
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

TABLE_ROWS = (
    1 << 17
)  # of a table's chunk: 1 MB of float64 and of hashes each, which hashing finds in the cache


@dataclass(frozen=True)
class Counting:
    """What to count, the same for every shard; plain data, which travels to other processes.

    Attributes:
        pattern, sizes: which axes keep statistics of their own.
        schema: what all samples have in common.
        nan: "raise" or "omit".
        order: the axes of a sample as memory has them; () for their own order.
        sketch_size: how many hashes of samples are kept.
        positions: how many positions are sampled for quantiles; 0 for no quantiles.
        whole: whether every block is counted by itself.
        skip_bad: whether what cannot be read is left out and listed.
        unit: how messages call a block.
        rows: samples of a chunk. Moments are merged chunk by chunk, so that it decides their last bits.
        reference: what an audit compares the samples with.
        weights: of all samples, in their order; or the name of a table's column, which is no feature then.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...]
    schema: Schema
    nan: str = "raise"
    order: tuple[int, ...] = ()
    sketch_size: int = SIZE
    positions: int = 0
    whole: bool = False
    skip_bad: bool = False
    unit: str = "block"
    rows: int = 1
    reference: Reference | None = None
    weights: np.ndarray | str | None = field(default=None, compare=False)

    def features(self) -> Features:
        """Return where the statistics lie in a batch."""
        return Features.of(parse(self.pattern), self.schema.sample, self.sizes)

    def slab(self, shape: tuple[int, ...]) -> Slab:
        """Return how the axes of a batch of this shape are pooled and kept."""
        return plan(parse(self.pattern), (), shape, self.sizes)


class Accumulator:
    """Counts the samples of one shard, in order: moments, NaN, nulls, hashes, quantiles, and for an audit.

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
        bounds, features = bounds or Bounds(), counting.features()
        weighted = counting.weights is not None
        kind = WeightedReader if weighted else TableReader if counting.schema.names else DenseReader
        self._counting, self._name, self._first = counting, name, first
        self._reader: BlockReader = kind(counting, features, name, first)
        self._samples, self._collector = 0, Collector(counting.sketch_size, bounds)
        values = prod(features.shape)
        positions = positions_of(counting.positions, values)
        self._sampler = QuantileSampler(number, values + weighted, positions, bounds)
        reference = counting.reference
        self._audit = None if reference is None else reference.counter(features, counting.sizes)

    def add(self, block: Block | Columns) -> None:
        """Count a block of samples.

        Raises:
            DataError: NaN or null under the policy "raise", infinity, an integer beyond 2^53, or weights that
                cannot be; names the row.
            ShapeError: there are more samples than weights.
            StatisticsError: the sum of finite values overflows float64.
        """
        for part in self._reader.parts(block):
            hashes = self._reader.count(part, self._collector)
            if self._counting.positions:
                self._reader.draw(part, self._sampler)
            self._collector.finish(hashes)
            if self._audit is not None:
                self._audit.add(self._reader.values(part), hashes)
            self._samples += len(part)

    def tally(
        self,
        skipped: Sequence[tuple[str, str]] = (),
        place_of: Callable[[int], SamplePlace] | None = None,
    ) -> Tally:
        """Return what has been counted.

        Args:
            skipped: what could not be read, and why.
            place_of: says where a sample stands, by its number among those counted; by default its row.
        """
        moments, nan, null = self._reader.moments()
        place_of = place_of or (lambda row: (self._name, self._first + row))
        return Tally(
            self._samples,
            moments,
            nan,
            null,
            self._collector.sketch(),
            self._sampler.sample(),
            self._collector.content,
            tuple(skipped),
            None if self._audit is None else self._audit.counts(place_of),
        )


class BlockReader(ABC):
    """Turns blocks of one kind into what is counted of them. What `parts` yields, its other methods take.

    Attributes:
        row: the number of the next sample.
    """

    def __init__(self, counting: Counting, features: Features, name: str, first: int) -> None:
        self.counting, self.features, self.name, self.row = counting, features, name, first

    @abstractmethod
    def parts(self, block: Any) -> Iterator[Any]:
        """Yield the samples of a block that count, some at a time."""

    @abstractmethod
    def count(self, part: Any, collector: Collector) -> np.ndarray:
        """Add samples to the moments; return their hashes, which are still to be finished."""

    @abstractmethod
    def values(self, part: Any) -> np.ndarray:
        """Return samples as one array, NaN for null."""

    @abstractmethod
    def moments(self) -> tuple[Moments, Tensor, Tensor]:
        """Return the Moments of each feature, and how many values are left out as NaN and as null."""

    def draw(self, part: Any, sampler: QuantileSampler) -> None:
        """Sample values of every feature."""
        values = self.values(part)
        slab = self.counting.slab(values.shape)
        sampler.add(values.reshape(slab.split), slab.pooled, slab.kept.dims)

    def place(self, column: str = "") -> BlockPlace:
        """Return where the current samples stand, or a column of theirs."""
        names = (column,) if column else self.counting.schema.names

        def text(index: tuple[int, ...]) -> str:
            return f"row {index[0]}, column {names[index[1] if len(index) > 1 else 0]!r}"

        return BlockPlace(self.name, self.row, text if names else self.features.place)


class DenseReader(BlockReader):
    """Reads arrays and tensors."""

    def __init__(self, counting: Counting, features: Features, name: str, first: int) -> None:
        super().__init__(counting, features, name, first)
        self._layouts: dict[tuple[int, ...], FeatureLayout | None] = {}
        self._layout: FeatureLayout | None = None
        self._columns: ColumnMoments | None = None
        self._others: Moments | None = None  # of samples that have no layout
        self._nan = torch.zeros(features.shape, dtype=torch.int64)

    def parts(self, block: Block) -> Iterator[np.ndarray]:
        values = as_numpy(block)
        if len(values):
            yield values
        self.row += len(values)

    def count(self, part: np.ndarray, collector: Collector) -> np.ndarray:
        sample = part.shape[1:]
        order = self.counting.order or tuple(range(len(sample)))
        if sample not in self._layouts:
            pattern = parse(self.counting.pattern)
            self._layouts[sample] = FeatureLayout.of(pattern, sample, self.counting.sizes, order)
        layout, line = self._layouts[sample], flatten_samples(part, order)
        if layout is None:
            self._count_without_layout(part)
        else:
            self._layout = layout
            if self._columns is None:
                self._columns = column_moments(line.dtype, layout.features)
            # Samples of one value are hashed as a column.
            hashes = None
            if len(line) > len(part):
                hashes = collector.begin(len(part), len(line) // len(part))
            self._columns.add(line, layout.run, hashes)
            if self._columns.hold_refusable(self.counting.nan == "omit"):
                refuse_values(part, self.counting.nan, self.place())
            if hashes is not None:
                return hashes
        return hash_samples(line, len(part), collector)

    def values(self, part: np.ndarray) -> np.ndarray:
        return part

    def moments(self) -> tuple[Moments, Tensor, Tensor]:
        moments, nan = self._others, self._nan
        if self._columns is not None and self._layout is not None:
            # Samples whose sizes differ may have been counted either way.
            gather = self._layout.gather
            found = Moments(*map(gather, self._columns.fields()))
            moments, nan = found if moments is None else moments.merge(found), nan + gather(self._columns.nan)
        return moments or Moments.empty(self.features.shape), nan, torch.zeros_like(nan)

    def _count_without_layout(self, part: np.ndarray) -> None:
        """Count samples whose features are no runs in memory: any pattern, in float64."""
        found, nan = block_moments(part, self.counting.slab(part.shape))
        low, high = float(found.min.min()), float(found.max.max())
        wide = part.dtype.name in WIDE and (high >= EXACT or low <= -EXACT)
        infinite = low == -np.inf or high == np.inf or not bool(torch.isfinite(found.mean).all())
        if wide or infinite or (self.counting.nan == "raise" and bool(nan.any())):
            refuse_values(part, self.counting.nan, self.place())
        self._others = found if self._others is None else self._others.merge(found)
        self._nan = self._nan + nan


class TableReader(BlockReader):
    """Reads tables column by column, so that nothing is copied to rows.

    A row has the hash of the same row in an array; a null hashes as NaN does.
    """

    def __init__(self, counting: Counting, features: Features, name: str, first: int) -> None:
        super().__init__(counting, features, name, first)
        self._names = counting.schema.names
        self._columns: list[ColumnMoments] = []
        self._first_of: dict[np.dtype, ColumnMoments] = {}  # whose working memory others of this dtype share
        self._null = np.zeros(len(self._names), np.int64)
        # Of which feature each column is: "n c -> c" has a feature for each, "n c ->" one for all.
        numbers = torch.arange(prod(features.shape)).reshape(features.shape)
        spread = features.spread(numbers, 2).expand(1, len(self._names))
        self._feature_of: np.ndarray = spread.reshape(-1).numpy()
        self._pooled = not np.array_equal(self._feature_of, np.arange(prod(features.shape)))

    def parts(self, block: Columns) -> Iterator[Columns]:
        for first in range(0, len(block), self.counting.rows):
            part = block.rows(first, first + self.counting.rows)
            yield part
            self.row += len(part)

    def count(self, part: Columns, collector: Collector) -> np.ndarray:
        from slabnorm.inputs.kernels.hashing import add_values

        hashes = collector.begin(len(part), len(self._names))
        for at, (array, missing) in enumerate(zip(part.arrays, part.missing, strict=True)):
            values = _plain(array)
            if at == len(self._columns):
                self._columns.append(column_moments(values.dtype, 1, self._first_of.get(values.dtype)))
                self._first_of.setdefault(values.dtype, self._columns[-1])
            if missing is None:
                self._columns[at].add(values)
            else:
                self._count_present(at, values, missing)
            if self._columns[at].hold_refusable(self.counting.nan == "omit"):
                present = values if missing is None else np.where(missing, values.dtype.type(0), values)
                refuse_values(present, self.counting.nan, self.place(self._names[at]))
            add_values(values if missing is None else _with_nan(values, missing), 1, at, hashes)
        return hashes

    def _count_present(self, at: int, values: np.ndarray, missing: np.ndarray) -> None:
        present = values[~missing]
        if self.counting.nan == "raise" and len(present) < len(values):
            self.place(self._names[at]).refuse("Null values", missing, None, OMIT)
        self._null[at] += len(values) - len(present)
        self._columns[at].add(present)

    def values(self, part: Columns) -> np.ndarray:
        return table_values(part)

    def draw(self, part: Columns, sampler: QuantileSampler) -> None:
        if self._pooled:
            super().draw(part, sampler)
        else:
            columns = [*map(column_values, part.arrays, part.missing)]
            sampler.draw(len(part), lambda rows: np.column_stack([column[rows] for column in columns]))

    def moments(self) -> tuple[Moments, Tensor, Tensor]:
        shape, counts = self.features.shape, torch.zeros(2, *self.features.shape, dtype=torch.int64)
        if not self._columns:
            return Moments.empty(shape), counts[0], counts[1]
        nan = np.array([int(column.nan[0]) for column in self._columns])
        for total, of_columns in zip(counts.reshape(2, -1).numpy(), (nan, self._null), strict=True):
            np.add.at(total, self._feature_of, of_columns)
        return self._merged(), counts[0], counts[1]

    def _merged(self) -> Moments:
        """Return the Moments of features: those of their columns, merged in their order."""
        from slabnorm.inputs.kernels.column_moments import concatenate_moments

        shape = self.features.shape
        if not self._pooled:
            fields = _fields(concatenate_moments(self._columns))
            return Moments(*(values.reshape(shape) for values in fields))
        columns: list[list[Moments]] = [[] for _ in range(prod(shape))]
        for feature, column in zip(self._feature_of.tolist(), self._columns, strict=True):
            columns[feature].append(column.moments())
        merged = [_fields(reduce(Moments.merge, some)) for some in columns]
        return Moments(*(torch.cat(values).reshape(shape) for values in zip(*merged, strict=True)))


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """Samples with the weight of each, which is not 0."""

    values: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


class WeightedReader(BlockReader):
    """Reads samples with weights: those of arrays by their numbers, those of a table from a column.

    A sample of weight 0 is not there: it may hold anything, and is not among those that an audit finds again.
    """

    def __init__(self, counting: Counting, features: Features, name: str, first: int) -> None:
        super().__init__(counting, features, name, first)
        self._moments = Moments.empty(features.shape)
        self._missing, self._null = torch.zeros(2, *features.shape, dtype=torch.int64)

    def parts(self, block: Block | Columns) -> Iterator[WeightedSamples]:
        if isinstance(block, Columns):
            values, weights = self._of_table(block)
        else:
            values = as_numpy(block)
            weights = check_weights(self._given(len(values)), len(values))
        self._check(values, weights)
        if weights.any():
            yield WeightedSamples(values[weights > 0], weights[weights > 0])
        self.row += len(values)

    def count(self, part: WeightedSamples, collector: Collector) -> np.ndarray:
        slab = self.counting.slab(part.values.shape)
        found, missing = weighted_moments(part.values, part.weights, slab)
        if not bool(torch.isfinite(found.mean).all()):
            refuse_values(part.values, self.counting.nan, self.place())
        self._moments, self._missing = self._moments.merge(found), self._missing + missing
        order = self.counting.order or tuple(range(part.values.ndim - 1))
        return hash_samples(flatten_samples(part.values, order), len(part), collector)

    def values(self, part: WeightedSamples) -> np.ndarray:
        return part.values

    def draw(self, part: WeightedSamples, sampler: QuantileSampler) -> None:
        slab = self.counting.slab(part.values.shape)
        sampler.add(part.values.reshape(slab.split), slab.pooled, slab.kept.dims, part.weights)

    def moments(self) -> tuple[Moments, Tensor, Tensor]:
        return self._moments, self._missing - self._null, self._null

    def _given(self, count: int) -> np.ndarray:
        """Return the weights of the next samples."""
        assert isinstance(self.counting.weights, np.ndarray)
        return self.counting.weights[self.row : self.row + count]

    def _of_table(self, block: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return a table's features as float64, NaN for null, and their weights."""
        given = self._given(len(block)) if block.weights is None else block.weights
        weights = check_weights(given, len(block), f"{self.name}: weights, from row {self.row} on,")
        null = np.zeros((len(block), len(block.arrays)), bool)
        columns = zip(self.counting.schema.names, block.arrays, block.missing, strict=True)
        for at, (name, array, missing) in enumerate(columns):
            if missing is not None:
                null[:, at] = missing & (weights > 0)
                if self.counting.nan == "raise" and null[:, at].any():
                    self.place(name).refuse("Null values", null[:, at], None, OMIT)
            if array.dtype.name in WIDE:  # which is looked at before float64 has rounded it
                self._check(np.where(null[:, at], 0, array), weights, name)
        slab = self.counting.slab(null.shape)
        pooled = torch.from_numpy(null).reshape(slab.split).sum(slab.pooled, keepdim=True)
        self._null = self._null + slab.kept.gather(pooled)
        return table_values(block).astype(np.float64, copy=False), weights

    def _check(self, values: np.ndarray, weights: np.ndarray, column: str = "") -> None:
        """Refuse values that cannot be counted, in samples that count."""
        if values.dtype.kind == "f":
            bad = np.isinf(values) if self.counting.nan == "omit" else ~np.isfinite(values)
        elif values.dtype.name in WIDE:
            bad = (values >= EXACT) | (values <= -EXACT)
        else:
            return
        if bool(bad[weights > 0].any()):
            present = np.where((weights > 0).reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
            refuse_values(present, self.counting.nan, self.place(column))


WIDE = ("int64", "uint64")


def hash_samples(line: np.ndarray, count: int, collector: Collector) -> np.ndarray:
    """Return the hashes of samples whose values are given in a row, which are still to be finished."""
    from slabnorm.inputs.kernels.hashing import add_values  # loads Numba

    length = line.size // count
    hashes = collector.begin(count, length)
    add_values(line, length, 0, hashes)
    return hashes


def table_values(table: Columns) -> np.ndarray:
    """Return a table as one array, NaN for null."""
    return np.column_stack([*map(column_values, table.arrays, table.missing)])


def column_values(array: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """Return a column in a dtype that kernels take, NaN where a mask says that nothing is."""
    values = _plain(array)
    return values if missing is None else _with_nan(values, missing)


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


def column_moments(dtype: np.dtype, features: int, like: ColumnMoments | None = None) -> ColumnMoments:
    """Return the moments of no values, to which columns of a dtype are added."""
    from slabnorm.inputs.kernels.column_moments import ColumnMoments  # loads Numba

    return ColumnMoments(dtype, features, like)


def _fields(moments: Moments) -> tuple[Tensor, ...]:
    return tuple(getattr(moments, name) for name in FIELDS)


# What a worker does: count one shard. Any engine calls this, in a thread, a process or another machine.


def count_shard(shard: Shard, counting: Counting, bounds: Bounds | None = None) -> Tally:
    """Return the tally of a shard, without what others have pushed out.

    Raises:
        DataError: it cannot be read, or holds what cannot be counted. Under `skip_bad` what cannot be read is
            listed in the tally instead.
    """
    bounds = bounds or Bounds()
    if isinstance(shard, ShardGroup):
        tree = TallyTree(bounds if bounds.live else replace(bounds))
        for number, part in enumerate(shard.parts):
            tree.add(number, count_shard(part, counting, tree.bounds))
        return tree.whole()
    if not bounds.live:
        bounds = replace(bounds)
    bad: list[tuple[str, str]] = []
    accumulator = Accumulator(counting, shard.name, shard.first, shard.number, bounds)
    places = SamplePlaces(shard)
    blocks = readable_blocks(shard, counting, bad, places)
    try:
        for chunk in blocks if counting.whole or counting.schema.names else chunks(blocks, counting.rows):
            accumulator.add(chunk)
    except BrokenShardError as error:
        # Its blocks so far do not count: a shard is counted whole or not at all.
        accumulator, bad = Accumulator(counting, shard.name), [(shard.name, str(error))]
    return accumulator.tally(bad, places.of)


class SamplePlaces:
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


class BrokenShardError(Exception):
    """A shard that broke while it was read; why, as text."""


def readable_blocks(
    shard: Shard, counting: Counting, bad: list[tuple[str, str]], places: SamplePlaces
) -> Iterator[Any]:
    """Yield the blocks of a shard; note what could not be read, or raise it."""
    blocks = shard.blocks()
    number = 0
    while True:
        try:
            block = next(blocks, None)
        except DataError as error:
            if not counting.skip_bad or isinstance(error, MismatchError):
                raise
            raise BrokenShardError(": ".join(filter(None, (error.problem, error.got)))) from error
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
