"""The notation: "n c h w -> c" in, an immutable Pattern out. Text only, no tensors.

`parser` reads the text; this is what it means. On the right `(g c)` makes one axis of the two again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral

from slabnorm.errors import PatternError, ShapeError
from slabnorm.parser import ELLIPSIS, Item, read_axes, read_pattern, suggest


@dataclass(frozen=True, eq=False)
class Pattern:
    """A parsed pattern. Make one with `parse`; equal texts give the same object, copies and pickles too.

    Attributes:
        text: the text it was parsed from.
        left: the axes of the tensor, each a tuple of names.
        right: the axes of the statistics, each a tuple of names.
        names: every name on the left, in order, brackets opened.
        kept: the names on the right: the axes along which statistics differ.
        sample: the first item, the sample axis.
        pools_samples: whether statistics depend on the other samples, as in batch norm.
        running: the axes of running statistics: the right side without the sample axis.
        default_affine: where weight and bias vary unless told otherwise: the axis that contains `c`.
    """

    text: str
    left: tuple[Item, ...]
    right: tuple[Item, ...]
    names: tuple[str, ...] = field(init=False, repr=False)
    kept: frozenset[str] = field(init=False, repr=False)
    sample: Item = field(init=False, repr=False)
    pools_samples: bool = field(init=False, repr=False)
    running: tuple[Item, ...] = field(init=False, repr=False)
    default_affine: tuple[Item, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Worked out here rather than on first use: torch.compile cannot enter cached_property's lock.
        store = object.__setattr__
        store(self, "names", tuple(name for item in self.left for name in item))
        store(self, "kept", frozenset(name for item in self.right for name in item))
        store(self, "sample", self.left[0])
        store(self, "pools_samples", not self.kept.issuperset(self.sample))
        running = (tuple(name for name in item if name not in self.sample) for item in self.right)
        store(self, "running", tuple(item for item in running if item))
        store(self, "default_affine", tuple(item for item in self.left if "c" in item))

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Callable[[str], Pattern], tuple[str]]:
        return parse, (self.text,)

    def affine(self, text: str | None) -> tuple[Item, ...]:
        """Parse where weight and bias vary: "c h w", "(g c)", or "" for no weight and bias.

        Raises:
            PatternError: the text is malformed or names an axis that is not on the left.
        """
        return self.default_affine if text is None else read_axes(text, self.names, self.text)

    def sizes_of(self, items: tuple[Item, ...], sizes: dict[str, int], what: str) -> tuple[int, ...]:
        """Return the shape that `items` have, from the sizes alone.

        Raises:
            PatternError: a size is missing, below 1, or belongs to no axis.
        """
        self.check_sizes(sizes)
        for name in (name for item in items for name in item):
            if name not in sizes:
                raise PatternError(
                    f"the size of every axis of {what} is given when the layer is made",
                    f'"{self.text}" without the size of {name!r}',
                    f"add {name}=<size>",
                )
        return tuple(product([sizes[name] for name in item]) for item in items)

    def check_sizes(self, sizes: dict[str, int]) -> None:
        """Raise PatternError unless every size is a positive integer of an axis on the left."""
        for name, size in sizes.items():
            if name not in self.names or name == ELLIPSIS:
                known = [known for known in self.names if known != ELLIPSIS]
                raise PatternError(
                    "a size belongs to an axis of the pattern",
                    f'{name}={size!r} for "{self.text}"',
                    suggest(name, known),
                )
            if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
                raise PatternError(
                    "a size is a positive integer",
                    f'{name}={size!r} for "{self.text}"',
                    f"give {name} a size of 1 or more",
                )

    def bind(self, shape: tuple[int, ...], sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
        """Return name and size of every axis of a tensor of this shape, brackets opened.

        The axes that `...` stands for are called "...0", "...1", and so on.

        Raises:
            ShapeError: the shape does not fit the pattern.
            PatternError: two sizes of one bracket are unknown, or a size belongs to no axis.
        """
        self.check_sizes(sizes)
        axes = self._expand(shape)
        bound: list[tuple[str, int]] = []
        for position, (item, size) in enumerate(zip(axes, shape, strict=True)):
            bound.extend(zip(item, self._split(item, size, position, shape, sizes), strict=True))
        return tuple(bound)

    def _expand(self, shape: tuple[int, ...]) -> list[Item]:
        fixed = len(self.left) - (ELLIPSIS in self.names)
        spare = len(shape) - fixed
        if spare < 0 or (spare > 0 and ELLIPSIS not in self.names):
            at_least = "at least " if ELLIPSIS in self.names else ""
            raise ShapeError(
                f"the pattern names {at_least}{fixed} axes, the tensor has {len(shape)}",
                f'shape {shape} for "{self.text}"',
                "name every axis of the tensor on the left, or use `...` for any number of them",
            )
        axes: list[Item] = []
        for item in self.left:
            axes.extend([(f"...{i}",) for i in range(spare)] if item == (ELLIPSIS,) else [item])
        return axes

    def _split(
        self, item: Item, size: int, position: int, shape: tuple[int, ...], sizes: dict[str, int]
    ) -> list[int]:
        unknown = [name for name in item if name not in sizes]
        known = product([sizes[name] for name in item if name in sizes])
        bracket = item[0] if len(item) == 1 else f"({' '.join(item)})"
        if len(unknown) > 1:
            raise PatternError(
                f"all sizes but one of {bracket} must be given",
                f'"{self.text}" without the sizes of {" and ".join(unknown)}',
                f"add {unknown[0]}=<size>",
            )
        if size % known if unknown else size != known:
            given = ", ".join(f"{name}={sizes[name]}" for name in item if name in sizes)
            rule = f"axis {position}, {bracket}, has size {size}, which is not "
            rule += f"divisible by {known}" if unknown else str(known)
            raise ShapeError(
                rule,
                f'shape {shape} for "{self.text}" with {given}',
                "give sizes whose product is the size of the axis",
            )
        return [sizes.get(name, size // known) for name in item]


def parse(text: str) -> Pattern:
    """Parse a pattern such as "n (g c) ... -> n g".

    Args:
        text: every axis of the tensor, "->", the axes that keep statistics of their own.

    Returns:
        The Pattern; the same object for the same text.

    Raises:
        PatternError: the text breaks the notation; the message marks the place.

    >>> parse("n (g c) ... -> n g").left
    (('n',), ('g', 'c'), ('...',))
    >>> parse("n c h w -> c").pools_samples
    True
    """
    if not isinstance(text, str):
        raise PatternError("a pattern is text", repr(text), 'write it as "n c h w -> c"')
    return _parse(text)


def parse_uncached(text: str) -> Pattern:
    """Parse without the cache; for torch.compile, which warns of caches and parses once anyway."""
    return Pattern(text, *read_pattern(text))


_parse = lru_cache(maxsize=4096)(parse_uncached)


def product(numbers: Iterable[int]) -> int:
    """Return the product, 1 of nothing; unlike math.prod, torch.compile follows it with unknown sizes."""
    result = 1
    for number in numbers:
        result *= number
    return result
