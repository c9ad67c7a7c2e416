"""Counting a whole data set: shards to workers, tallies to the ledger and into the tree."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slabnorm.errors import DataError, OptionError
from slabnorm.inputs.accumulator import TABLE_ROWS, Accumulator, Chunks, Counting, group_shards
from slabnorm.inputs.engines import local
from slabnorm.inputs.ledger import Ledger
from slabnorm.inputs.quantile_sample import likely_bound, positions_of
from slabnorm.inputs.shard_statistics import Tally, TallyTree
from slabnorm.inputs.sketch import Bounds
from slabnorm.inputs.sources import BrokenShard, Source, Stream
from slabnorm.inputs.sources.base import (
    SHARD,
    Block,
    NamedBlock,
    Schema,
    Shard,
    Unreadable,
    check_schema,
    chunk_rows,
    empty,
    schema_of,
)
from slabnorm.inputs.weighted_moments import check_weights

Progress = Callable[[int, int], None]  # bytes done since the last call, bytes in all; 0 if unknown


@dataclass(frozen=True)
class Effort:
    """How a data set is counted, none of which changes what comes out.

    Attributes:
        engine: "local" or "ray".
        workers: how many shards are counted at once; None for as many as there are cores.
        memory: bytes that the shards being read may take together; None for no bound.
        ledger: where tallies are kept while it runs; None for nowhere.
        resume: whether to go on with a ledger that is there.
        address: of a Ray cluster; None starts a local one.
        progress: called after every shard.
    """

    engine: str = "local"
    workers: int | None = None
    memory: int | None = None
    ledger: Path | None = None
    resume: bool = False
    address: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Raise OptionError for what is out of range."""
        if self.engine not in ("local", "ray"):
            raise OptionError('engine must be "local" or "ray"', repr(self.engine))
        if self.address is not None and self.engine != "ray":
            raise OptionError("address is for a Ray cluster", repr(self.address), 'add engine="ray"')
        for name in ("workers", "memory"):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise OptionError(f"{name} must be an integer, 1 or more", repr(number))


class Opened:
    """A source whose first block has been looked at.

    Attributes:
        schema: what all its samples have in common.

    Raises:
        DataError: no samples.
    """

    def __init__(self, source: Source | Stream, skip_bad: bool = False) -> None:
        self.source: Any = source
        self._skip_bad = skip_bad
        self._blocks: Iterator[Block] | None = None
        # Before anything is listed or read, so that what does not fit is said at once.
        known: Schema | None = source.schema() if hasattr(source, "schema") else None
        if isinstance(source, Source):
            self.schema: Schema = known or self._peek(skip_bad)
            return
        self._blocks = source.blocks()
        if known is None:
            first = next(self._blocks, None)
            if first is None:
                raise empty(source.name)
            self._blocks, known = chain([first], self._blocks), schema_of(first, source.name)
        self.schema = known

    @cached_property
    def shards(self) -> list[Shard] | None:
        """The parts of a source, listed when they are first asked for; None of a stream."""
        if not isinstance(self.source, Source):
            return None
        shards = list(self.source.shards())
        broken = next((shard for shard in shards if isinstance(shard, BrokenShard)), None)
        if broken is not None and not self._skip_bad:
            raise broken.error  # now, and not hours later
        return shards

    def _peek(self, skip_bad: bool) -> Schema:
        """Return the schema of the first block that can be read."""
        for shard in self.shards or ():
            try:
                for block in shard.blocks():
                    if not isinstance(block, Unreadable):
                        return schema_of(
                            block.block if isinstance(block, NamedBlock) else block, self.source.name
                        )
            except DataError:
                if not skip_bad:
                    raise
        raise empty(self.source.name)

    def counting(self, pattern: str, sizes: dict[str, int], **options: Any) -> Counting:
        """Return how to count this source, by this pattern."""
        rows = TABLE_ROWS if self.schema.names else chunk_rows(self.schema.values, self.source.chunk_values)
        every = tuple(sorted(sizes.items()))
        found = Counting(pattern, every, self.schema, unit=self.source.unit, rows=rows)
        if self.shards is not None:
            found = replace(found, order=self.source.order, whole=self.source.whole)
        found = replace(found, **options)
        if isinstance(found.weights, np.ndarray):
            self._check_weights(found.weights, found.skip_bad)
        return found

    def _check_weights(self, weights: np.ndarray, skip_bad: bool) -> None:
        """Raise unless samples are numbered through, and there are as many as weights."""
        name = self.source.name
        # Rows of files, which have fingerprints, are numbered from the first of each file.
        if self.schema.names and any(shard.fingerprint for shard in self.shards or ()):
            raise OptionError(
                f"weights of the table {name} must be one of its columns", "an array", 'weights="its name"'
            )
        if skip_bad:
            fix = "leave out skip_bad=True, and mend or remove what is damaged"
            raise OptionError("weights cannot be used with skip_bad=True, which leaves samples out", "", fix)
        if self.shards is None:
            return  # known when all are read
        if not all(shard.samples for shard in self.shards):
            raise OptionError(
                f"An array of weights does not go with {name}, whose samples are not numbered",
                "",
                "give an array, .npy, Zarr, batches or a Dataset, or repeat files by their weight",
            )
        check_weights(weights, sum(shard.samples for shard in self.shards))

    def count(self, counting: Counting, effort: Effort) -> Tally:
        """Return the tally of all samples.

        Raises:
            DataError: the data cannot be read or counted.
            LedgerError: the ledger is not of this fit.
            OptionError: the effort is none for this kind of data.
        """
        if self.shards is None:
            total = self._count_stream(counting, effort)
        else:
            total = _count_shards(self.shards, self.source, counting, effort)
        if total is None or not total.samples:
            if counting.weights is not None:
                raise DataError(f"All weights of {self.source.name} are zero")
            raise empty(self.source.name)
        return total

    def _count_stream(self, counting: Counting, effort: Effort) -> Tally | None:
        """Count what can be read only once: here, in order, in shards of the same length as an array's."""
        if effort.ledger is not None or effort.engine != "local":
            raise OptionError(
                f"{self.source.name} can be read only once, which does not go with a ledger or an engine",
                "",
                "give files, an array or a map-style Dataset, or leave ledger and engine out",
            )
        blocks, self._blocks = self._blocks, None
        if blocks is None:
            raise OptionError(
                f"{self.source.name} has been read, and cannot be read again", "", "open it again"
            )
        count = StreamCount(counting, self.source.name)
        for block in self._checked(blocks, counting):
            count.add(block)
            if effort.progress:
                effort.progress(block.nbytes, 0)
        return count.total()

    def _checked(self, blocks: Iterator[Block], counting: Counting) -> Iterator[Block]:
        for number, block in enumerate(blocks):
            where = f"{counting.unit} {number} of {self.source.name}"
            check_schema(counting.schema, block, self.source.name, where)
            yield block


class StreamCount:
    """Counts blocks in order, in the chunks and shards that an array has, so that the bits are the same.

    Args:
        counting: how.
        name: how messages call what is counted.
    """

    def __init__(self, counting: Counting, name: str) -> None:
        self._counting, self._name = counting, name
        self._tree, self._chunks = TallyTree(), Chunks(counting.rows)
        self._accumulator, self._number, self._held, self._read = Accumulator(counting, name), 0, 0, 0

    def add(self, block: Block) -> None:
        """Count the samples of a block, all but those that begin a chunk."""
        for chunk in self._chunks.of(block):
            self._add_chunk(chunk)

    def total(self) -> Tally | None:
        """Count what is left, and return the tally of all; None if there was nothing."""
        for chunk in self._chunks.rest():
            self._add_chunk(chunk)
        self._tree.add(self._number, self._accumulator.tally())
        if isinstance(self._counting.weights, np.ndarray):
            check_weights(self._counting.weights, self._read)
        return self._tree.total()

    def _add_chunk(self, chunk: Block) -> None:
        if self._held == SHARD:
            self._tree.add(self._number, self._accumulator.tally())
            self._number, self._held = self._number + 1, 0
            bounds = self._tree.bounds
            self._accumulator = Accumulator(self._counting, self._name, self._read, self._number, bounds)
        self._accumulator.add(chunk)
        self._held, self._read = self._held + 1, self._read + len(chunk)


def _count_shards(shards: list[Shard], source: Source, counting: Counting, effort: Effort) -> Tally | None:
    tree = TallyTree()
    tree.bounds.lower(key=_likely_bound(shards, counting))
    tree.bounds.live = effort.ledger is None and not counting.skip_bad
    ledger = None
    shards = group_shards(shards)
    if effort.ledger is not None:
        if not all(shard.fingerprint for shard in shards):
            raise OptionError(
                f"A ledger needs files, whose changes are seen, and {source.name} is none",
                "",
                "give files, or leave the ledger out",
            )
        ledger = Ledger(effort.ledger, _plan(source, counting, shards), effort.resume)
    all_bytes = sum(shard.size for shard in shards)
    try:
        pending = {shard.number: shard for shard in shards}
        for shard, tally in ledger.done(shards) if ledger else ():
            tree.add(pending.pop(shard.number).number, tally)
            if effort.progress:
                effort.progress(shard.size, all_bytes)
        for shard, tally in _run(list(pending.values()), source, counting, tree.bounds, effort):
            if ledger:
                ledger.add(shard, tally)
            tree.add(shard.number, tally)
            if effort.progress:
                effort.progress(shard.size, all_bytes)
    finally:
        if ledger:
            ledger.close()
    return tree.total()


def _run(
    shards: Sequence[Shard], source: Source, counting: Counting, bounds: Bounds, effort: Effort
) -> Iterator[tuple[Shard, Tally]]:
    if effort.engine == "ray":
        from slabnorm.inputs.engines.cluster import run

        yield from run(shards, counting, bounds, effort.workers, effort.address)
        return
    processes = not source.parallel and effort.workers is not None and effort.workers > 1
    workers = effort.workers or (local.cores() if source.parallel else 1)
    workers = min(workers, max(1, len(shards)))
    yield from local.run(shards, counting, bounds, workers, effort.memory, processes)


def _likely_bound(shards: list[Shard], counting: Counting) -> int:
    """Return a bound of the sample's keys, so that few values are kept which others push out."""
    features = math.prod(counting.features().shape)
    samples = sum(shard.samples for shard in shards) if all(shard.samples for shard in shards) else 0
    positions = positions_of(counting.positions, features)
    return likely_bound(positions, samples * counting.schema.values // features)


def _plan(source: Source, counting: Counting, shards: list[Shard]) -> dict[str, Any]:
    weights = counting.weights
    plain = asdict(replace(counting, weights=None))
    if isinstance(weights, np.ndarray):
        plain["weights"] = hashlib.sha256(weights.tobytes()).hexdigest()
    elif weights is not None:
        plain["weights"] = f"column {weights}"
    return {**plain, "source": source.name, "shards": len(shards)}
