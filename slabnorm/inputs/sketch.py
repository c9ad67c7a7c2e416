"""A sketch of which samples were seen: the smallest of their hashes, a uniform sample of the distinct ones.

Bottom-k sketches are sets, so that merging them in any order gives the same (Cohen and Kaplan, "Summarizing
data using bottom-k sketches", 2007). Every hash below the sketch's bound belongs to a sample that was seen if
and only if it is in the sketch: what part of another data set was seen follows by counting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SIZE = 1 << 14  # hashes: 128 KiB
_WRAP = (1 << 64) - 1
_MARGIN = 1.05  # 6 standard deviations of how many of 16384 hashes lie below what a share of all does
_WAITING = 8  # sizes of a sketch that wait to be sorted: the more, the fewer of them need sorting


def _none() -> np.ndarray:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False)
class Sketch:
    """The smallest hashes of samples.

    Attributes:
        hashes: sorted, distinct, uint64.
        size: how many are kept at most; 0 keeps none.
    """

    hashes: np.ndarray = field(default_factory=_none)
    size: int = SIZE

    @property
    def bound(self) -> int:
        """The hash below which all that were seen are kept; 2^64 if all are."""
        return int(self.hashes[-1]) + 1 if len(self.hashes) >= self.size else 1 << 64

    def add(self, hashes: np.ndarray) -> Sketch:
        """Return the sketch with more samples, in any order and as often as they come."""
        if self.bound < 1 << 64:
            hashes = hashes[hashes < np.uint64(self.bound)]
        if not len(hashes) or not self.size:
            return self
        # Most need no sorting: hashes are uniform, so that almost surely enough of them lie below this.
        # Samples that repeat may leave too few; then all are sorted.
        below = int(self.bound * self.size * _MARGIN / (len(self.hashes) + len(hashes)))
        if below < self.bound:
            few = self._with(np.sort(hashes[hashes < np.uint64(below)]))
            if few.bound <= below:
                return few
        return self._with(np.sort(hashes))

    def _with(self, hashes: np.ndarray) -> Sketch:
        """Return the sketch with more hashes, sorted."""
        if self.bound < 1 << 64:
            hashes = hashes[: np.searchsorted(hashes, np.uint64(self.bound))]
        both = hashes
        if len(self.hashes):
            # A stable sort merges what is sorted already, in 0.1 ms; numpy.unique takes 4.
            both = np.sort(np.concatenate([self.hashes, hashes]), kind="stable")
        distinct = np.concatenate([both[:1], both[1:][both[1:] != both[:-1]]])
        return Sketch(distinct[: self.size], self.size)

    def merge(self, other: Sketch) -> Sketch:
        """Return the sketch of both sets of samples."""
        return self._with(other.hashes) if self.size else self


@dataclass
class Bounds:
    """From where on hashes of samples, and keys of positions, need not be kept: others have pushed them out.

    Whoever counts some of the data lowers them; what two threads write at once may be lost, which costs time
    and changes no result.

    Attributes:
        hash, key: from where on.
        live: whether those at work lower them for each other at once; else the tallies of what is done do.
            A shard that breaks, and is left out or mended before the fit goes on from its ledger, must not
            have pushed out anything.
    """

    hash: int = 1 << 64
    key: int = 1 << 64
    live: bool = False

    def lower(self, hash: int = 1 << 64, key: int = 1 << 64) -> None:
        """Leave out what lies from these on."""
        self.hash, self.key = min(self.hash, hash), min(self.key, key)


class Collector:
    """Fills a sketch, hash by hash: sorted now and then, not with every few samples.

    Args:
        size: of the sketch.
        bounds: what need not be kept.
    """

    def __init__(self, size: int, bounds: Bounds) -> None:
        self.content = 0  # the sum of all that were finished, modulo 2^64
        self._sketch, self._bounds = Sketch(size=size), bounds
        self._pending: list[np.ndarray] = []
        self._waiting = 0
        # Used again and again: of fresh memory the pages alone take 2 ms in 10^6 samples.
        self._room = np.empty((2, 0), np.uint64)

    def begin(self, count: int, length: int) -> np.ndarray:
        """Return the hashes of so many samples of so many values each, to which their parts are added."""
        if count > self._room.shape[1]:
            self._room = np.empty((2, count), np.uint64)
        hashes = self._room[0, :count]
        hashes.fill(length)
        return hashes

    def finish(self, hashes: np.ndarray) -> None:
        """Finish the hashes that began last, in place, and add them."""
        from slabnorm.inputs.kernels.hashing import finish_hashes  # loads Numba

        few, total = finish_hashes(hashes, self._room[1], self._bounds.hash)
        self.content = (self.content + total) & _WRAP
        self.add(few)

    def add(self, hashes: np.ndarray) -> None:
        """Add finished hashes."""
        self._pending.append(hashes)
        self._waiting += len(hashes)
        if self._waiting >= _WAITING * self._sketch.size:
            self._bounds.lower(hash=self.sketch().bound)

    def sketch(self) -> Sketch:
        """Return the sketch so far."""
        if self._waiting:
            self._sketch = self._sketch.add(np.concatenate(self._pending))
        self._pending, self._waiting = [], 0
        return self._sketch
