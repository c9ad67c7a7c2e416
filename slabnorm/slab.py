"""A slab: a pattern meets a shape. Counts and axes, worked out once.

A *slab* is a set of elements that share statistics. A *cell* is a maximal set of elements that share
both their slab and their weight and bias. Small tensors (statistics, weight, bias) travel in two
forms: *gathered*, the shape a user sees, and *spread*, which broadcasts against the split input.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from slabnorm.notation import ELLIPSIS, Item, Pattern, product


@dataclass(frozen=True)
class Axes:
    """Some axes of a split tensor, in an order of their own, with some of them joined to one.

    Attributes:
        dims: positions in the split tensor, in the order of the gathered form.
        shape: the gathered form, joined axes as one.
        split: the shape of the whole split tensor.
    """

    dims: tuple[int, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]

    def spread(self, gathered: Tensor) -> Tensor:
        """Turn a tensor of `shape` into one that broadcasts against the split tensor."""
        order = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        opened = gathered.reshape([self.split[dim] for dim in self.dims]).permute(order)
        return opened.reshape([size if dim in self.dims else 1 for dim, size in enumerate(self.split)])

    def gather(self, spread: Tensor) -> Tensor:
        """Turn a broadcasting tensor, of size 1 along all other axes, back into one of `shape`."""
        ordered = sorted(self.dims)
        opened = spread.reshape([self.split[dim] for dim in ordered])
        return opened.permute([ordered.index(dim) for dim in self.dims]).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Slab:
    """The plan of one call: a pattern bound to a shape.

    Attributes:
        pattern: the pattern.
        split: the shape of x with every bracket opened.
        kept: the axes of the statistics.
        affine: the axes of weight and bias; no dims where the call has neither.
        running: the axes of running statistics: kept without the sample axis.
        pooled: the dims of the split tensor that a statistic pools over.
        not_affine: the dims of the split tensor along which weight and bias are constant.
        count: elements in a slab.
        slabs: number of slabs.
        numel: number of elements.
    """

    pattern: Pattern
    split: tuple[int, ...]
    kept: Axes
    affine: Axes
    running: Axes
    pooled: tuple[int, ...]
    not_affine: tuple[int, ...]
    count: int
    slabs: int
    numel: int

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over every slab of a tensor of the split shape, spread."""
        # torch sums over every dim when it is given none.
        return x.sum(self.pooled, keepdim=True) if self.pooled else x

    def average(self, x: Tensor) -> Tensor:
        """Return the mean over every slab of a tensor of the split shape, spread."""
        return self.total(x) / self.count

    def first(self, x: Tensor) -> Tensor:
        """Return one element of every slab, spread."""
        for dim in self.pooled:
            x = x.narrow(dim, 0, 1)
        return x

    @property
    def gathered_count(self) -> int | Tensor:
        """Elements in every slab, as a number or gathered."""
        return self.count


def plan(
    pattern: Pattern, affine: tuple[Item, ...], shape: tuple[int, ...], sizes: tuple[tuple[str, int], ...]
) -> Slab:
    """Bind a pattern to a shape.

    Args:
        pattern: from `notation.parse`.
        affine: where weight and bias vary, from `Pattern.affine`; () if the call has neither.
        shape: the shape of x.
        sizes: the sizes given as keywords, as sorted pairs.

    Raises:
        ShapeError: the shape does not fit the pattern.
        PatternError: the sizes do not fit the pattern.

    >>> from slabnorm.notation import parse
    >>> slab = plan(parse("n (g c) h w -> n g"), (("g", "c"),), (2, 6, 4, 4), (("g", 3),))
    >>> slab.split, slab.kept.shape, slab.affine.shape, slab.count
    ((2, 3, 2, 4, 4), (2, 3), (6,), 32)
    """
    bound = pattern.bind(shape, dict(sizes))
    dims: dict[str, list[int]] = {}
    for dim, (name, _) in enumerate(bound):
        dims.setdefault(ELLIPSIS if name.startswith(ELLIPSIS) else name, []).append(dim)
    split = tuple([size for _, size in bound])

    def axes(items: tuple[Item, ...]) -> Axes:
        joined: list[list[int]] = []
        for item in items:
            if item == (ELLIPSIS,):
                joined.extend([[dim] for dim in dims.get(ELLIPSIS, [])])
            else:
                joined.append([dim for name in item for dim in dims[name]])
        flat = tuple([dim for part in joined for dim in part])
        return Axes(flat, tuple([product([split[dim] for dim in part]) for part in joined]), split)

    kept, varying, running = axes(pattern.right), axes(affine), axes(pattern.running)
    pooled, not_affine = (
        tuple([dim for dim in range(len(split)) if dim not in some.dims]) for some in (kept, varying)
    )
    count = product([split[dim] for dim in pooled])
    slabs = product(kept.shape)
    return Slab(pattern, split, kept, varying, running, pooled, not_affine, count, slabs, product(split))
