"""Where fitted values lie in a tensor: a pattern and the shape of one sample, worked out once.

Forward runs inside `torch.compile` and `torch.export`, which follow plain tuples of integers and little else;
so everything that needs the pattern is decided here, beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import PatternError, ShapeError
from slabnorm.notation import ELLIPSIS, Pattern
from slabnorm.slab import Slab, plan


@dataclass(frozen=True)
class Features:
    """The features of a data set, and how their values broadcast against a batch.

    Attributes:
        pattern: the pattern.
        shape: the shape of the statistics, which is the pattern's right side.
        sample: the shape of the sample they were fitted on; None where samples differ.
        before: for every axis of a batch its only possible size, None where any will do; of a
            pattern with a pooled `...`, the axes before it.
        after: ... and those after it.
        any_rank: whether a pooled `...` lets a batch have more or fewer axes than the fitted data.
    """

    pattern: Pattern
    shape: tuple[int, ...]
    sample: tuple[int | None, ...]
    before: tuple[int | None, ...]
    after: tuple[int | None, ...]
    any_rank: bool
    _opened: tuple[int, ...]  # one axis per kept name, in the right side's order
    _order: tuple[int, ...]  # ... in the left side's order
    _ones: tuple[int, ...]  # ... with size 1 for every name that is pooled
    _full: tuple[int, ...]  # ... with brackets at full size

    @classmethod
    def of(
        cls, pattern: Pattern, sample: tuple[int | None, ...], sizes: tuple[tuple[str, int], ...]
    ) -> Features:
        """Bind a pattern to the shape of one sample.

        Raises:
            ShapeError: the shape does not fit the pattern.
            PatternError: the sizes do not fit it, or it keeps or splits the sample axis.
        """
        # Of an axis whose size is not known any that can be split will do.
        some = prod(size for _, size in sizes)
        shape = (1, *(some if size is None else size for size in sample))
        _check_sample_axis(pattern, shape)
        slab = plan(pattern, (), shape, sizes)
        kept, split = slab.kept.dims, slab.split
        dots = len(shape) - len(pattern.left) + 1
        axes = [item for item in pattern.left for _ in range(dots if item == (ELLIPSIS,) else 1)]
        any_rank = ELLIPSIS in pattern.names and ELLIPSIS not in pattern.kept
        start, stop = len(shape), len(shape)
        if any_rank:
            start = pattern.left.index((ELLIPSIS,))
            stop = start + dots
        # An axis of which a part is kept has one possible size; all others are free.
        fixed: list[int | None] = []
        ones: list[int] = []
        full: list[int] = []
        first = 0
        for dim, item in enumerate(axes):
            parts = range(first, first + len(item))
            first += len(item)
            holds = any(part in kept for part in parts)
            if holds and dim > 0 and sample[dim - 1] is None:
                raise PatternError(
                    f'"{pattern}" keeps axis {dim} of the samples, whose size differs',
                    "",
                    "pool that axis, or bring all samples to one size first",
                )
            fixed.append(shape[dim] if holds else None)
            if not start <= dim < stop:
                ones.extend(split[part] if part in kept else 1 for part in parts)
                full.extend(split[part] if holds else 1 for part in parts)
        opened = tuple(split[dim] for dim in kept)
        order = tuple(sorted(range(len(kept)), key=kept.__getitem__))
        before, after = tuple(fixed[:start]), tuple(fixed[stop:])
        spread = opened, order, tuple(ones), tuple(full)
        return cls(pattern, slab.kept.shape, tuple(sample), before, after, any_rank, *spread)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless a batch of this shape has these features."""
        least = len(self.before) + len(self.after)
        fits = len(shape) >= least if self.any_rank else len(shape) == least
        if fits:
            end = len(shape) - len(self.after)
            fits = _match(shape[: len(self.before)], self.before) and _match(shape[end:], self.after)
        if not fits:
            middle = ["..."] if self.any_rank else []
            sizes = [*map(_size, self.before), *middle, *map(_size, self.after)]
            raise ShapeError(
                f"A batch of shape {tuple(shape)} does not fit a norm that takes ({', '.join(sizes)})",
                f'its statistics are those of "{self.pattern}" and samples of shape {self.sample}',
                "give a batch of such samples, first axis the samples: x[None] for a single one",
            )

    def spread(self, values: Tensor, rank: int) -> Tensor:
        """Turn a tensor of `shape` into one that broadcasts against a batch of this rank."""
        free = rank - len(self.before) - len(self.after)
        joined = [size or 1 for size in self.before] + [1] * free + [size or 1 for size in self.after]
        opened = values.reshape(self._opened).permute(self._order).reshape(self._ones)
        return opened.expand(self._full).reshape(joined)

    def place(self, index: tuple[int, ...]) -> str:
        """Return an index into a batch as text, such as "row 17, c=2, h=0"."""
        names: list[str] = []
        spare = len(index) - len(self.pattern.left) + 1
        for position, item in enumerate(self.pattern.left):
            if item == (ELLIPSIS,):
                names.extend(f"axis {position + i}" for i in range(spare))
            else:
                names.append(item[0] if len(item) == 1 else f"({' '.join(item)})")
        inside = [f", {name}={at}" for name, at in zip(names[1:], index[1:], strict=True)]
        return f"row {index[0]}{''.join(inside)}"


def kept_axes(pattern: Pattern, rank: int) -> frozenset[int]:
    """Return the axes of a sample of which a pattern keeps statistics, whole or in part.

    >>> from slabnorm.notation import parse
    >>> sorted(kept_axes(parse("n c h w -> c w"), 3))
    [0, 2]
    """
    dots = rank + 1 - len(pattern.left) + 1
    items = [item for item in pattern.left for _ in range(dots if item == (ELLIPSIS,) else 1)]
    return frozenset(axis for axis, item in enumerate(items[1:]) if pattern.kept.intersection(item))


def _match(shape: tuple[int, ...], sizes: tuple[int | None, ...]) -> bool:
    return all(size is None or size == given for given, size in zip(shape, sizes, strict=True))


def _size(size: int | None) -> str:
    return "any" if size is None else str(size)


def _check_sample_axis(pattern: Pattern, shape: tuple[int, ...]) -> None:
    """Raise PatternError unless the first axis is the samples, undivided, and pooled."""
    item = pattern.sample
    if not pattern.pools_samples:
        raise PatternError(
            f'"{pattern}" keeps the sample axis {item[0]!r}, which fitted statistics must pool',
            "a new sample has no statistics of its own",
            f"leave {item[0]!r} out on the right, or normalise within the network, as by slabnorm.SlabNorm",
        )
    if len(item) > 1:
        raise PatternError(
            f'"{pattern}" splits the sample axis, but data arrive in pieces of any length',
            "",
            "name the first axis alone, as `n`; reshape the data where it holds two things",
        )
    if item == (ELLIPSIS,) and len(shape) < len(pattern.left):
        raise PatternError(
            f'"{pattern}" has no sample axis: `...` stands for no axis of this data',
            f"samples of shape {shape[1:]}",
            "name the sample axis, as in `n c -> c`",
        )


# A pattern over samples in memory: rows of features, each a run of values, where it is so simple.


@dataclass(frozen=True)
class FeatureLayout:
    """How memory holds the features of a sample.

    Attributes:
        rows: of a sample; features: in a row; run: values of a feature that lie together in a row.
    """

    rows: int
    features: int
    run: int
    _slab: Slab
    _kept: tuple[int, ...]  # the kept axes of the split sample, in memory's order

    @classmethod
    def of(
        cls, pattern: Pattern, sample: Sequence[int], sizes: tuple[tuple[str, int], ...], order: Sequence[int]
    ) -> FeatureLayout | None:
        """Return the layout of samples whose axes memory holds in this order; None where there is none."""
        slab = plan(pattern, (), (1, *sample), sizes)
        axes = _memory_axes(slab, pattern, len(sample) + 1, order)
        if axes is None:
            return None
        axes = [axis for axis in axes if slab.split[axis] > 1]
        kept = [place for place, axis in enumerate(axes) if axis in slab.kept.dims]
        if kept and kept[-1] - kept[0] + 1 != len(kept):
            return None
        first, last = (kept[0], kept[-1] + 1) if kept else (len(axes), len(axes))
        if not kept:  # one feature: everything is its run
            first = last = 0
        size = [slab.split[axis] for axis in axes]
        rows, features, run = prod(size[:first]), prod(size[first:last]), prod(size[last:])
        return cls(rows, features, run, slab, tuple(axes[first:last]))

    def gather(self, values: np.ndarray) -> Tensor:
        """Return a copy of values in memory's order as the tensor that the pattern's right side says."""
        kept = self._slab.kept
        # Axes of one element have no place in memory's order. By NumPy: torch takes ten times as long here.
        opened = values.reshape([self._slab.split[axis] for axis in self._kept])
        order = [self._kept.index(axis) for axis in kept.dims if axis in self._kept]
        return torch.from_numpy(opened.transpose(order).reshape(kept.shape).copy())


def flatten_samples(block: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return a block's values in a row, each sample's axes in this order; a view where memory is so."""
    inside = (0, *(axis + 1 for axis in order))
    values = np.ascontiguousarray(block.transpose(inside)).reshape(-1)
    return values.view(np.uint8) if values.dtype == np.bool_ else values


def as_numpy(block: np.ndarray | Tensor) -> np.ndarray:
    """Return a block as an array of the machine's byte order, in a dtype that kernels take."""
    if isinstance(block, Tensor):
        block = block.detach().cpu()
        block = block.float() if block.dtype in (torch.bfloat16, torch.float16) else block
        return block.numpy()
    if block.dtype == np.float16:
        return block.astype(np.float32)
    return block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))


def _memory_axes(slab: Slab, pattern: Pattern, rank: int, order: Sequence[int]) -> list[int] | None:
    """Return the axes of the split sample, all but the first, in memory's order."""
    dots = rank - len(pattern.left) + 1
    parts: list[list[int]] = []
    first = 0
    for item in pattern.left:
        for _ in range(dots if item == ("...",) else 1):
            parts.append(list(range(first, first + len(item))))
            first += len(item)
    if first != len(slab.split):
        return None
    return [axis for place in order for axis in parts[place + 1]]
