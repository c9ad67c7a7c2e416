"""Tally: all that a fit counts of some samples. It merges, like the Moments in it, and travels as bytes.

The tallies of many shards are merged in a tree that only the data decide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from slabnorm.inputs.quantile_sample import QuantileSample
from slabnorm.inputs.sketch import Bounds, Sketch
from slabnorm.mergeable_moments import FIELDS, Moments

if TYPE_CHECKING:
    from slabnorm.inputs.audit.counts import AuditCounts

_WRAP = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class Tally:
    """What was counted of some samples.

    Attributes:
        samples: how many.
        moments: of each feature.
        nan: values left out because they were NaN, int64, per feature.
        null: values that were missing altogether, as in a table, int64, per feature.
        sketch: of the samples' hashes.
        quantile_sample: of the values; features in the pattern's order, as if in one row.
        content: the sum of the samples' hashes modulo 2^64: another one, other samples.
        skipped: what could not be read and was left out, and why.
        audit: what an audit counts; it does not travel as bytes.
    """

    samples: int
    moments: Moments
    nan: Tensor
    null: Tensor
    sketch: Sketch
    quantile_sample: QuantileSample
    content: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    audit: AuditCounts | None = None

    def merge(self, other: Tally) -> Tally:
        """Return the tally of both sets of samples."""
        return Tally(
            self.samples + other.samples,
            self.moments.merge(other.moments),
            self.nan + other.nan,
            self.null + other.null,
            self.sketch.merge(other.sketch),
            self.quantile_sample.merge(other.quantile_sample),
            (self.content + other.content) & _WRAP,
            self.skipped + other.skipped,
            self.audit.merge(other.audit) if self.audit and other.audit else None,
        )

    def to_bytes(self) -> bytes:
        """Return the tally as bytes; the same tally gives the same ones."""
        from safetensors.torch import save

        tensors = {name: getattr(self.moments, name).contiguous() for name in FIELDS}
        hashes = torch.from_numpy(self.sketch.hashes.view(np.int64).copy())
        tensors |= {"nan": self.nan.contiguous(), "null": self.null.contiguous(), "sketch": hashes}
        tensors["keys"] = torch.from_numpy(self.quantile_sample.keys.view(np.int64).copy())
        tensors["values"] = torch.from_numpy(np.ascontiguousarray(self.quantile_sample.values))
        plain = {
            "samples": self.samples,
            "content": self.content,
            "size": self.sketch.size,
            "positions": self.quantile_sample.size,
            "skipped": self.skipped,
        }
        return bytes(save(tensors, {"tally": json.dumps(plain)}))

    @classmethod
    def from_bytes(cls, content: bytes) -> Tally:
        """Return the tally of `to_bytes`; the bytes must be known to be whole."""
        from safetensors.torch import load

        length = int.from_bytes(content[:8], "little")
        plain = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["tally"])
        tensors = load(content)
        moments = {name: tensors[name] for name in FIELDS}
        hashes = tensors["sketch"].numpy().view(np.uint64)
        return cls(
            plain["samples"],
            Moments(**moments, weighted=moments["count"].is_floating_point()),
            tensors["nan"],
            tensors["null"],
            Sketch(hashes, plain["size"]),
            QuantileSample(
                tensors["keys"].numpy().view(np.uint64), tensors["values"].numpy(), plain["positions"]
            ),
            plain["content"],
            tuple((name, why) for name, why in plain["skipped"]),
        )


# Merging the tallies of many shards in a tree that only the data decide.
#
# Node (level, i) is the merge of nodes (level - 1, 2i) and (level - 1, 2i + 1); shard i is node (0, i).
# Rounding then depends on the shards' numbers and on nothing else: not on arrival, not on how many worked.


class TallyTree:
    """Takes shards in any order; at most one node per level waits for its neighbour, and what came early."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._nodes: list[tuple[int, Tally]] = []  # (level, tally), levels falling
        self._early: dict[int, Tally] = {}
        self._next = 0
        self.bounds = bounds or Bounds()

    def add(self, number: int, tally: Tally) -> None:
        """Add shard `number`; each number once."""
        self._early[number] = tally
        self.bounds.lower(tally.sketch.bound, tally.quantile_sample.bound)
        while self._next in self._early:
            self._append(self._early.pop(self._next))
            self._next += 1

    def _append(self, tally: Tally) -> None:
        level = 0
        while self._nodes and self._nodes[-1][0] == level:
            tally = self._nodes.pop()[1].merge(tally)
            level += 1
        self._nodes.append((level, tally))

    def whole(self) -> Tally:
        """Return the tally of all shards, of which there is at least one."""
        total = self.total()
        assert total is not None
        return total

    def total(self) -> Tally | None:
        """Return the tally of all shards, of which none may be missing; None if there were none."""
        if not self._nodes:
            return None
        total = self._nodes[-1][1]
        for _, tally in reversed(self._nodes[:-1]):
            total = tally.merge(total)
        return total
