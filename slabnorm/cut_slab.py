"""A slab of which some elements do not count, or whose samples are in segments: the same formula, other sums.

`kernels/eager.py` asks a slab for its sums and counts alone, so that it computes with one of these as with
any. It runs what torch records (in tensors of fixed shapes, without a step that waits for values) and, of
packed rows, groups that are too small for a kernel each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slabnorm.cut import Counted, Cut, opened
from slabnorm.kernels import eager
from slabnorm.kernels.call import Call, Statistics
from slabnorm.notation import product
from slabnorm.slab import Axes, Slab

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A map in the graph whose derivative is a linear one; the adjoint of that is its gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, there: Map, back: Map, again: Map) -> Tensor:
        ctx.maps = back, again
        return there(t)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        back, again = ctx.maps
        return apply_linear(upstream[0], back, again), None, None, None


# Without what Function.apply does for torch.func, which does not come here.
_apply = super(torch.autograd.Function, _Linear).apply


def apply_linear(t: Tensor, there: Map, back: Map, derivative: Map | None = None) -> Tensor:
    """Return there(t) in the graph, for a linear map and its adjoint.

    Torch's own gradients of taking rows add to what may be taken twice, and keep what they do not need.

    Args:
        t: a tensor.
        there, back: the map and the adjoint of its derivative.
        derivative: the map's derivative, if the map is not linear itself.
    """
    if not (torch.is_grad_enabled() and t.requires_grad):
        return there(t)
    result: Tensor = _apply(t, there, back, derivative or there)
    return result


@dataclass(frozen=True)
class Segments:
    """Which steps along the first dim belong together.

    Attributes:
        ids: the segment of each step.
        number: how many segments there are.
        lengths: the steps of each; only where each has some, and they follow one another. None: in any order.
        firsts: the first step of each, if there are lengths.
    """

    ids: Tensor
    number: int
    lengths: Tensor | None = None
    firsts: Tensor | None = None

    def total(self, t: Tensor) -> Tensor:
        """Return the sum over every segment."""
        if self.lengths is None:
            return t.new_zeros((self.number, *t.shape[1:])).index_add(0, self.ids, t)
        return apply_linear(t, self._sums, self._spread)

    def spread(self, t: Tensor) -> Tensor:
        """Return the value of its segment for every step."""
        if self.lengths is None:
            return t.index_select(0, self.ids)
        return apply_linear(t, self._spread, self._sums)

    def one_of_each(self, t: Tensor) -> Tensor:
        """Return the value of one step of every segment."""
        if self.firsts is not None:
            return t.index_select(0, self.firsts)
        return t.new_zeros((self.number, *t.shape[1:])).index_copy(0, self.ids, t)

    def _sums(self, t: Tensor) -> Tensor:
        # In the order of the steps. A GPU adds to an index in any order; the CPU takes a third of the time.
        if t.device.type == "cpu":
            return t.new_zeros((self.number, *t.shape[1:])).index_add(0, self.ids, t)
        return torch.segment_reduce(t.contiguous(), "sum", lengths=self.lengths, axis=0, unsafe=True)

    def _spread(self, t: Tensor) -> Tensor:
        return t.index_select(0, self.ids)


@dataclass(frozen=True)
class _SegmentedAxes(Axes):
    """The axes of statistics, with the segments before them."""

    segments: Segments

    def spread(self, gathered: Tensor) -> Tensor:
        """Turn one tensor a segment into one that broadcasts against the split tensor."""
        return self.segments.spread(super().spread(gathered))

    def gather(self, spread: Tensor) -> Tensor:
        """Turn a broadcasting tensor into one for every segment."""
        return super().gather(self.segments.one_of_each(spread))


@dataclass(frozen=True, eq=False)
class CutSlab(Slab):
    """A slab of which some elements count. Its `count` is 0: slabs have counts of their own.

    An empty slab gets sums of 1, so that no division of it gives NaN; nothing of it is used.

    Attributes:
        valid: True where an element counts, broadcasting against the split tensor; None: all.
        segments: which samples, along the first dim, share statistics; None: all.
        counts: elements of every slab; spread, or with one step along the first dim for each segment.
        empty: 1 where a slab has no element, else 0; as `counts`.
    """

    valid: Tensor | None
    segments: Segments | None
    counts: Tensor
    empty: Tensor

    def total(self, x: Tensor) -> Tensor:
        """Return the sums over what counts, spread."""
        return self._spread(self._sums(x))

    def average(self, x: Tensor) -> Tensor:
        """Return the means over what counts, spread."""
        return self._spread(self._sums(x) / (self.counts + self.empty))

    def first(self, x: Tensor) -> Tensor:
        """Return an element of every slab, spread; of segments in any order, their mean."""
        if self.segments is None:
            largest = x if self.valid is None else torch.where(self.valid, x, -torch.inf)
            largest = largest.amax(self.pooled, keepdim=True) if self.pooled else largest
            return torch.where(largest == -torch.inf, 0.0, largest)
        if self.valid is not None or self.segments.firsts is None:
            return self.average(x)
        for dim in self.pooled[1:]:
            x = x.narrow(dim, 0, 1)
        return self._spread(self.segments.one_of_each(x))

    @property
    def gathered_count(self) -> Tensor:
        """Elements in every slab, gathered; 1 in an empty one."""
        return self.numbers().clamp(min=1)

    def numbers(self) -> Tensor:
        """Return how many elements of every slab count, gathered."""
        # Segments need not be spread to be gathered again.
        return Axes.gather(self.kept, self.counts)

    def _sums(self, x: Tensor) -> Tensor:
        if self.valid is not None:
            x = torch.where(self.valid, x, 0.0)
        return _sums(x, self.pooled, self.segments) + self.empty

    def _spread(self, t: Tensor) -> Tensor:
        return t if self.segments is None else self.segments.spread(t)


def _sums(x: Tensor, pooled: tuple[int, ...], segments: Segments | None) -> Tensor:
    inner = pooled if segments is None else tuple([dim for dim in pooled if dim != 0])
    x = x.sum(inner, keepdim=True) if inner else x
    return x if segments is None else segments.total(x)


def cut_slab(slab: Slab, valid: Tensor | None, segments: Segments | None) -> CutSlab:
    """Return a slab of which only what is valid counts, for each segment by itself."""
    kept: Axes = slab.kept
    if segments is not None:
        shape, split = (segments.number, *kept.shape), (segments.number, *slab.split[1:])
        kept = _SegmentedAxes((0, *kept.dims), shape, split, segments)
    some = valid if valid is not None else torch.ones([1] * len(slab.split), dtype=torch.bool)
    if segments is not None:
        some = some.to(segments.ids.device).expand([slab.split[0], *some.shape[1:]])
    counts = _sums(some.double(), slab.pooled, segments)
    # Along pooled dims on which the mask does not vary it was summed once.
    counts = counts * product([slab.split[dim] for dim in slab.pooled if some.shape[dim] == 1])
    counts = counts.expand(
        [slab.split[dim] if dim in slab.kept.dims else size for dim, size in enumerate(counts.shape)]
    )
    return CutSlab(
        slab.pattern, slab.split, kept, slab.affine, slab.running, slab.pooled, slab.not_affine, 0,
        slab.slabs, slab.numel, valid, segments, counts, (counts == 0).double(),
    )  # fmt: skip


def recorded(slab: Slab, cut: Cut) -> CutSlab:
    """Return the slab of a call that torch records: masks of a fixed shape, segments in any order."""
    valid = None if cut.valid is None else opened(cut.valid, slab)
    return cut_slab(slab, valid, None if cut.ids is None else Segments(cut.ids, cut.segments))


def formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, call: Call, cut: Cut,
    masked: str,
) -> tuple[Tensor, Counted | None]:  # fmt: skip
    """Run a call on what counts as plain torch operations, which torch can record."""
    slab = recorded(call.slab, cut)
    call = call._replace(slab=slab, plans=None)
    # What does not count may be NaN, of which no factor of 0 frees a gradient.
    clean, added = cleaned(x, cut), None if residual is None else cleaned(residual, cut)
    found = None
    if call.given is None:
        mean, _, m2 = _measured(clean.detach(), slab)
        found = Counted(mean, m2, slab.numbers().long())
        y = eager.formula(clean, weight, bias, added, call)
    else:
        stats = Statistics(call.given.mean.double(), None, (call.given.var.double() + call.eps).rsqrt())
        y = eager.apply(clean, weight, bias, added, stats, call)
    if cut.valid is not None:
        y = torch.where(cut.valid, y, x.detach() if masked == "keep" else 0.0)
    return y, found


def cleaned(x: Tensor, cut: Cut, value: float = 0.0) -> Tensor:
    """Return x with a value in the place of what does not count."""
    return x if cut.valid is None else torch.where(cut.valid, x, value)


def _measured(x: Tensor, slab: CutSlab) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, what it lost, and squared deviations, 0 for an empty slab, of an x that is cleaned."""
    some = slab.numbers() > 0
    mean, low, m2 = (torch.where(some, t, 0.0) for t in eager.statistics(x, Call(slab)))
    return mean, low, m2


def moments(x: Tensor, slab: Slab, cut: Cut) -> tuple[Tensor, ...]:
    """Return count, mean, m2, minimum, maximum and low part of the mean of what counts in every slab."""
    whole = recorded(slab, cut)
    mean, low, m2 = _measured(cleaned(x, cut), whole)
    ends = []
    for bound, reduce in ((torch.inf, "amin"), (-torch.inf, "amax")):
        inner = slab.pooled if cut.ids is None else tuple([dim for dim in slab.pooled if dim != 0])
        t = cleaned(x, cut, bound).reshape(slab.split).double()
        if inner:
            t = t.amin(inner, keepdim=True) if reduce == "amin" else t.amax(inner, keepdim=True)
        if cut.ids is None:
            ends.append(slab.kept.gather(t))
            continue
        index = cut.ids.reshape([-1] + [1] * (t.dim() - 1)).expand_as(t)
        of_all = t.new_full((cut.segments, *t.shape[1:]), bound).scatter_reduce(0, index, t, reduce)
        ends.append(Axes.gather(whole.kept, of_all))
    return whole.numbers().long(), mean, m2, *ends, low
