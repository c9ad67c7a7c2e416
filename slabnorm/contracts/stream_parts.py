"""What counts of a stream: Moments and numbers of samples, in parts that follow one another in time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.mergeable_moments import FIELDS, Moments


class StreamParts(NamedTuple):
    """What counts of a stream, in parts: one for all, or with a window one for each update, the oldest first.

    Attributes:
        moments: with the parts as first axis, then the features.
        samples: of each part.
    """

    moments: Moments
    samples: Tensor

    @classmethod
    def of(cls, found: Moments, samples: int) -> StreamParts:
        """Return the one part that a batch is."""
        return cls(_each(lambda t: t[None], found), torch.tensor([samples], device="cpu"))

    @classmethod
    def none(cls, parts: int, shape: tuple[int, ...], device: Any, weighted: bool) -> StreamParts:
        """Return parts without samples."""
        empty = Moments.empty((parts, *shape), device)
        samples = torch.zeros(parts, dtype=torch.int64, device="cpu")
        return cls(_weighted(empty) if weighted else empty, samples)

    def merge(self, other: StreamParts) -> StreamParts:
        """Return both, part by part."""
        return StreamParts(self.moments + other.moments, self.samples + other.samples)

    def push(self, batch: StreamParts) -> StreamParts:
        """Return these parts without the oldest, and with a batch as the newest."""
        found = _each(lambda old, new: torch.cat([old[1:], new]), self.moments, batch.moments)
        return StreamParts(found, torch.cat([self.samples[1:], batch.samples]))

    def fade(self, factor: float) -> StreamParts:
        """Return the same with every weight times a factor; extrema are not forgotten."""
        m = _weighted(self.moments)
        faded = m.count * factor, m.mean, m.m2 * factor, m.min, m.max, m.mean_low, m.m2_low * factor
        return StreamParts(Moments(*faded, weighted=True), self.samples)

    def total(self) -> Moments:
        """Return the merge of all parts: of the first half with the second, and so on."""
        found = self.moments
        while len(found.mean) > 1:
            half, odd = divmod(len(found.mean), 2)
            rest = _rows(found, 2 * half, 2 * half + odd)
            found = _rows(found, 0, half) + _rows(found, half, 2 * half)
            found = _each(lambda t, last: torch.cat([t, last]), found, rest)
        return _each(lambda t: t[0], found)

    def to(self, device: torch.device) -> StreamParts:
        """Return the same with its moments on a device."""
        return StreamParts(_each(lambda t: t.to(device), self.moments), self.samples)

    def digest(self) -> str:
        """Return what says whether two of these are the same, bit by bit."""
        found = hashlib.sha256(self.samples.numpy().tobytes())
        for name in FIELDS:
            found.update(getattr(self.moments, name).cpu().numpy().tobytes())
        return found.hexdigest()


def _each(function: Callable[..., Tensor], *found: Moments) -> Moments:
    """Return the Moments whose every field is a function of that field of some others."""
    fields = zip(*([getattr(m, name) for name in FIELDS] for m in found), strict=True)
    return Moments(*(function(*values) for values in fields), weighted=any(m.weighted for m in found))


def _rows(found: Moments, start: int, stop: int) -> Moments:
    return _each(lambda t: t[start:stop], found)


def _weighted(found: Moments) -> Moments:
    """Return Moments with real counts."""
    return Moments(*(getattr(found, name) for name in FIELDS), weighted=True)
