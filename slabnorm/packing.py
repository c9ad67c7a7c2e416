"""What counts of a tensor, packed: kernels run on data without gaps, and no bit depends on what was left out.

The *rows* of a cut tensor are its steps along all axes on which the mask varies (and along the samples, where
these are in segments), with the other axes whole. Those that count are taken one after another, so that every
*group* of rows that share statistics is one piece; groups of one length lie together, as a dense tensor

    [groups, rows of each, the other axes ...]

which is normalised by one ordinary call. So batch norm with a mask of places is a call of one group, layer
norm with a mask of tokens one of groups of one row, and instance norm of sequences one call for each length.
Where these calls would be many and small, one call of the formula takes all groups (`CutSlab`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slabnorm.cut import Counted, Cut, opened
from slabnorm.cut_slab import Segments, apply_linear, cut_slab
from slabnorm.errors import StatisticsError
from slabnorm.kernels import eager
from slabnorm.kernels.call import Found, Given, Kind
from slabnorm.kernels.huge_pages import advise, numbers_only
from slabnorm.notation import Item, Pattern, parse, product
from slabnorm.prepare import Bound, bind
from slabnorm.slab import Slab, plan
from slabnorm.tracing import plain

# Elements that a further call has to have to be worth its start, rather than to go into the formula. These
# are what counts: padding must not decide which of the two computes.
_WORTH_A_CALL = 1 << 13


class Part(NamedTuple):
    """One call of `run`."""

    x: Tensor
    bound: Bound
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    given: Given | None


class Run(NamedTuple):
    """Groups of one length that lie one after another; None: of any lengths, to go into the formula."""

    groups: int
    length: int | None


@dataclass(frozen=True)
class Rows:
    """Where the rows that count lie, in the order in which they are packed.

    Attributes:
        slab: of the whole tensor.
        across: the dims of the split tensor that rows lie along, those that the statistics keep first.
        rest: its other dims.
        flat: where the rows lie, along the dims across as one.
        runs: the groups in order, by length.
        groups: the number of each group in order, among all there are; None if there is one.
        number: how many groups there are, the empty ones too.
        lengths: rows of each group in order.
        lead: the segments, if there are some, as in `Cut.lead`.
        kept_across: how many of the dims across the statistics keep.
    """

    slab: Slab
    across: tuple[int, ...]
    rest: tuple[int, ...]
    flat: Tensor
    runs: tuple[Run, ...]
    groups: Tensor | None
    number: int
    lengths: Tensor
    lead: tuple[int, ...]
    kept_across: int

    @property
    def rows(self) -> int:
        """How many rows count."""
        return len(self.flat)

    @cached_property
    def index(self) -> tuple[Tensor, ...]:
        """Where the rows lie along each of the dims across."""
        return torch.unravel_index(self.flat, [self.slab.split[dim] for dim in self.across])

    @property
    def kept(self) -> tuple[int, ...]:
        """The dims beside the rows that statistics keep."""
        return tuple([dim for dim in self.rest if dim in self.slab.kept.dims])

    @property
    def depth(self) -> int:
        """Elements of a row that share statistics."""
        return product([self.slab.split[dim] for dim in self.rest if dim not in self.slab.kept.dims])

    def take(self, t: Tensor) -> Tensor:
        """Return the rows of a tensor of x's shape that count, [rows, the other dims ...]."""
        template = torch.empty_like(t, device="meta")
        return apply_linear(t, self._taken, partial(self._put, shape=t.shape, strides=template.stride()))

    def put(self, rows: Tensor, x: Tensor, keep: bool) -> Tensor:
        """Return a tensor like x of these rows, elsewhere 0 or as x is."""
        template = torch.empty_like(x, device="meta")
        put = partial(self._put, shape=x.shape, strides=template.stride())
        if not keep:
            return apply_linear(rows, put, self._taken)
        return apply_linear(rows, partial(self._put_into, x.detach()), self._taken, put)

    def _taken(self, t: Tensor) -> Tensor:
        moved, one = self._moved(t)
        # A tenth of the time, where rows are one after another.
        if not one:
            return moved[self.index].contiguous()
        rows = _memory(t, (self.rows, *moved.shape[1:]))
        if rows is None:
            return moved.index_select(0, self.flat)
        return torch.index_select(moved, 0, self.flat, out=rows)

    def _moved(self, t: Tensor) -> tuple[Tensor, bool]:
        """Return a view with the dims across first, and whether they are one dim of it."""
        moved = t.view(self.slab.split).permute(self.across + self.rest)
        width = len(self.across)
        axes = [
            pair for pair in zip(moved.shape[:width], moved.stride()[:width], strict=True) if pair[0] != 1
        ]
        for (_, step), (size, inner) in pairwise(axes):
            if step != size * inner:
                return moved, False
        return moved.flatten(0, width - 1), True

    def _put(self, rows: Tensor, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
        t = rows.new_empty_strided(shape, strides)
        if plain(t) and t.device.type == "cpu":
            advise(t)
        return self._filled(t.zero_(), rows)

    def _put_into(self, x: Tensor, rows: Tensor) -> Tensor:
        return self._filled(x.clone(), rows)

    def _filled(self, t: Tensor, rows: Tensor) -> Tensor:
        moved, one = self._moved(t)
        if one:
            moved.index_copy_(0, self.flat, rows)
        else:
            moved[self.index] = rows
        return t

    def whole(self, t: Tensor, value: float = 0) -> Tensor:
        """Return statistics of the groups in order, gathered; a value for the empty ones."""
        sizes, kept, number = self.slab.split, self.slab.kept, self.number
        if self.groups is not None:
            t = t.new_full((number, *t.shape[1:]), value).index_copy(0, self.groups, t)
        dims = self.across[: self.kept_across] + self.kept
        t = t.reshape(self.lead + tuple([sizes[dim] for dim in dims]))
        first = len(self.lead)
        order = [*range(first), *(first + dims.index(dim) for dim in kept.dims)]
        return t.permute(order).reshape(self.lead + kept.shape)

    def of_groups(self, gathered: Tensor) -> Tensor:
        """Turn gathered statistics into those of the groups in order: what `whole` does, back."""
        sizes, kept = self.slab.split, self.slab.kept
        first = len(self.lead)
        t = gathered.reshape(self.lead + tuple([sizes[dim] for dim in kept.dims]))
        dims = self.across[: self.kept_across] + self.kept
        t = t.permute([*range(first), *(first + kept.dims.index(dim) for dim in dims)])
        t = t.reshape((self.number, *(sizes[dim] for dim in self.kept)))
        return t if self.groups is None else t.index_select(0, self.groups)

    def opened(self, t: Tensor) -> Tensor:
        """Return weight or bias with joined axes apart; row by row, if it varies so."""
        slab, sizes = self.slab, self.slab.split
        if not self.by_row:
            return t.reshape([sizes[dim] for dim in slab.affine.dims])
        # In float64, as it may be summed again over many rows.
        spread = slab.affine.spread(t.double())
        shape = [sizes[dim] if dim in self.across else size for dim, size in enumerate(spread.shape)]
        spread = spread.expand(shape)
        rows = spread.permute(self.across + self.rest)[self.index]
        return rows.reshape([len(rows), *(sizes[dim] for dim in self.rest if dim in slab.affine.dims)])

    def affine(self, lead: tuple[str, ...]) -> tuple[Item, ...]:
        """Return the axes of what `opened` returns, where rows lie along these axes."""
        dims = self.slab.affine.dims
        if not self.by_row:
            return tuple([(f"d{dim}",) for dim in dims])
        return (*((name,) for name in lead), *[(f"d{dim}",) for dim in self.rest if dim in dims])

    @property
    def by_row(self) -> bool:
        """Whether weight and bias vary from row to row."""
        return bool(set(self.slab.affine.dims) & set(self.across))

    def pattern(self, lead: tuple[str, ...], kept: tuple[str, ...]) -> Pattern:
        """Return the pattern of a part whose rows lie along some axes, of which the statistics keep some."""
        left = [*lead, *(f"d{dim}" for dim in self.rest)]
        return parse(" ".join([*left, "->", *kept, *(f"d{dim}" for dim in self.kept)]))


def _memory(t: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return memory for a large result of a plain tensor on the CPU, in huge pages."""
    if not numbers_only(t.dtype, t):
        return None
    rows = torch.empty(shape, dtype=t.dtype)
    advise(rows)
    return rows


def rows_of(slab: Slab, cut: Cut, single: bool = False, worth: int | None = None) -> Rows:
    """Return where the rows that count lie.

    Args:
        slab: of the tensor.
        cut: how it is cut.
        single: whether every row is a group of its own, if there are groups: where statistics are given.
        worth: elements that a further call has to have, if not as ever; with less all groups are one run of
            any lengths.
    """
    valid = None if cut.valid is None else opened(cut.valid, slab)
    across = [dim for dim in range(len(slab.split)) if valid is not None and valid.shape[dim] > 1]
    if (cut.ids is not None or not across) and 0 not in across:
        across.insert(0, 0)  # a mask that does not vary: every sample or none
    kept = [dim for dim in across if dim in slab.kept.dims]
    across = kept + [dim for dim in across if dim not in kept]
    rest = [dim for dim in range(len(slab.split)) if dim not in across]
    sizes = [slab.split[dim] for dim in across]
    if valid is None:
        flat = torch.arange(sizes[0], device=cut.ids.device)  # type: ignore[union-attr]
    else:
        valid = valid.expand([slab.split[dim] if dim in across else 1 for dim in range(len(slab.split))])
        flat = valid.permute(across + rest).reshape(-1).nonzero().squeeze(1)
    rows, number = len(flat), product(sizes[: len(kept)])
    key = flat // product(sizes[len(kept) :]) if kept else None
    if cut.ids is not None:
        at = across.index(0)
        segment = cut.ids[flat // product(sizes[at + 1 :]) % sizes[at]]
        key = segment if key is None else segment * number + key
        number *= cut.segments
    runs: tuple[Run, ...]
    if key is None:
        groups, runs, lengths = None, (Run(1, rows),), torch.tensor([rows], device=flat.device)
    elif single or rows == 0 or (cut.ids is None and len(kept) == len(across)):
        groups, runs, lengths = key, (Run(rows, 1),), torch.ones_like(key)
    else:
        depth = slab.numel // max(1, product(sizes))
        groups, runs, lengths, order = _grouped(key, number, depth, _WORTH_A_CALL if worth is None else worth)
        if order is not None:
            flat = flat[order]
    return Rows(slab, tuple(across), tuple(rest), flat, runs, groups, number, lengths, cut.lead, len(kept))


def _grouped(
    key: Tensor, number: int, depth: int, worth: int
) -> tuple[Tensor, tuple[Run, ...], Tensor, Tensor | None]:
    """Return groups in order, runs of one length, the lengths, and the order of the rows if it changes."""
    counts = torch.bincount(key, minlength=number)
    groups = counts.nonzero().squeeze(1)
    lengths, by = counts[groups].sort(stable=True)
    of_length, times = lengths.unique_consecutive(return_counts=True)
    runs = tuple([Run(*pair) for pair in zip(times.tolist(), of_length.tolist(), strict=True)])
    if len(key) * depth < worth * (len(runs) - 1):
        runs, lengths = (Run(len(groups), None),), counts[groups]
    else:
        groups = groups[by]
    rank = torch.empty_like(counts)
    rank[groups] = torch.arange(len(groups), device=key.device)
    place = rank[key]
    sorted_already = bool((place[1:] >= place[:-1]).all())
    return groups, runs, lengths, None if sorted_already else place.argsort(stable=True)


def check_counts(rows: Rows) -> None:
    """Raise StatisticsError if samples are pooled and a slab has one element, whose variance says nothing."""
    slab = rows.slab
    if rows.lead or not slab.pattern.pools_samples or rows.rows == 0 or not slab.slabs:
        return
    if bool((rows.lengths * rows.depth == 1).any()):
        raise StatisticsError(
            f'"{slab.pattern}" pools samples, but a slab has one valid element, whose variance says nothing',
            "",
            "use a larger batch, running statistics (eval mode), or a norm that does not pool samples",
        )


def parts_of(
    rows: Rows, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    given: Given | None,
) -> list[Part]:  # fmt: skip
    """Return the calls that compute the rows that count."""
    if given is not None:
        given = Given(rows.of_groups(given.mean), rows.of_groups(given.var))
    if len(rows.runs) > 1:  # each has a gradient of them: they are summed in float64
        weight, bias = (t if t is None else t.double() for t in (weight, bias))
    weight, bias = (t if t is None else rows.opened(t) for t in (weight, bias))
    added = None if residual is None else rows.take(residual)
    packed: tuple[Tensor | None, ...] = rows.take(x), weight, bias, added
    if len(rows.runs) == 1:
        return [_part(rows, rows.runs[0], *packed, given)]
    sizes = [run.groups * (run.length or 1) for run in rows.runs]
    apart = (True, rows.by_row, rows.by_row, True)
    pieces = [
        t.split(sizes) if t is not None and by_row else [t] * len(sizes)
        for t, by_row in zip(packed, apart, strict=True)
    ]
    return [
        _part(rows, run, *piece, given)
        for run, piece in zip(rows.runs, zip(*pieces, strict=True), strict=True)
    ]


def _part(rows: Rows, run: Run, *tensors: Any) -> Part:
    x, weight, bias, residual, given = tensors
    if run.length is None:
        return Part(x, _of_any_lengths(rows, x, weight, bias, residual), weight, bias, residual, given)
    lead = run.groups, run.length
    x, residual = x.reshape(lead + x.shape[1:]), _folded(residual, lead)
    if rows.by_row:
        weight, bias = _folded(weight, lead), _folded(bias, lead)
    items = rows.affine(("s", "v")) if weight is not None or bias is not None else ()
    bound = bind(rows.pattern(("s", "v"), ("s",)), items, (), x, weight, bias, residual)
    return Part(x, bound, weight, bias, residual, given)


def _folded(t: Tensor | None, lead: tuple[int, int]) -> Tensor | None:
    return None if t is None else t.reshape(lead + t.shape[1:])


def _of_any_lengths(
    rows: Rows, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> Bound:
    """Return what runs all groups by one call of the formula."""
    items = rows.affine(("v",)) if weight is not None or bias is not None else ()
    slab = plan(rows.pattern(("v",), ()), items, tuple(x.shape), ())
    lengths = rows.lengths
    ids = torch.repeat_interleave(lengths, output_size=rows.rows)
    segments = Segments(ids, len(lengths), lengths, lengths.cumsum(0) - lengths)
    kinds = tuple([Kind.of(t) for t in (x, weight, bias, residual)])
    return Bound(cut_slab(slab, None, segments), eager, (), torch.preserve_format, kinds)


def joined(rows: Rows, parts: list[Tensor], x: Tensor, masked: str) -> Tensor:
    """Return the output of the whole tensor from those of the parts."""
    sizes = [rows.slab.split[dim] for dim in rows.rest]
    lengths = [run.groups * run.length if run.length is not None else rows.rows for run in rows.runs]
    flat = [y.reshape([length, *sizes]) for y, length in zip(parts, lengths, strict=True)]
    return rows.put(_cat(flat), x, masked == "keep")


def counted(rows: Rows, found: list[Found]) -> Counted:
    """Return the statistics of all slabs from those that the parts have found."""
    mean, m2 = (rows.whole(_cat([getattr(part, name) for part in found])) for name in ("mean", "m2"))
    return Counted(mean, m2, counts_of(rows))


def counts_of(rows: Rows) -> Tensor:
    """Return how many elements of each slab count, gathered."""
    counts = (rows.lengths * rows.depth).reshape([-1] + [1] * len(rows.kept))
    return rows.whole(counts.expand([-1, *(rows.slab.split[dim] for dim in rows.kept)]))


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
