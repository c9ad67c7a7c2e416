"""What a worker does: count one shard. Any engine calls this, in a thread, a process or another machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from slabnorm.errors import DataError
from slabnorm.inputs.beside import SamplePlace
from slabnorm.inputs.chunks import chunks
from slabnorm.inputs.columns import ColumnCounter
from slabnorm.inputs.counter import Counter, Counting
from slabnorm.inputs.groups import Group
from slabnorm.inputs.schema import check_schema
from slabnorm.inputs.sketch import Bounds
from slabnorm.inputs.sources.base import Bad, MismatchError, Named, Shard
from slabnorm.inputs.tally import Tally
from slabnorm.inputs.tree import Tree
from slabnorm.inputs.weighing import WeightedCounter


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
            raise ShardError(error.got or error.rule) from error
        if block is None:
            return
        if isinstance(block, Bad):
            if not counting.skip_bad:
                raise DataError("data files can be read whole", f"{block.name}: {block.why}", block.fix)
            bad.append((block.name, block.why))
            places.leave_out(block.samples)
            continue
        where, name = f"{counting.unit} {number} of {shard.name}", ""
        if isinstance(block, Named):
            where, block = block
            name = where
        check_schema(counting.schema, block, shard.name, where)
        number += 1
        if counting.reference is not None:
            places.read(len(block) if getattr(block, "ndim", 1) else 1, name)
        yield block
