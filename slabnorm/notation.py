"""The notation: "n c h w -> c" in, an immutable Pattern out. Text only, no tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from typing import NoReturn

from slabnorm.errors import PatternError, ShapeError

# The notation as text: reads a pattern, or marks the place where it breaks.
#
#     pattern  =  left "->" right
#     left     =  item+             every axis of x, in order; the first is the sample axis
#     right    =  item*             the axes that keep statistics of their own; the rest is pooled
#     item     =  name | "(" name+ ")" | "..."
#
# `(g c)` splits one axis in two, g outermost; `...` stands for any number of axes. Sizes are
# keywords, as in einops.

ELLIPSIS = "..."
Item = tuple[str, ...]  # the names in one axis: ("c",), ("g", "c") or ("...",)

_TOKEN = re.compile(r"\s*(?:(?P<arrow>->)|(?P<dots>\.\.\.)|(?P<name>[^\W\d]\w*)|(?P<bracket>[()]))")


def read_pattern(text: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return the items left and right of the arrow.

    Raises:
        PatternError: the text breaks the notation; the message marks the place.

    >>> read_pattern("n (g c) ... -> n g")
    ((('n',), ('g', 'c'), ('...',)), (('n',), ('g',)))
    """
    tokens = _tokenize(text)
    arrows = [at for kind, _, at in tokens if kind == "arrow"]
    if not arrows:
        _fail(text, len(text), "The pattern has no arrow", 'write "axes -> kept axes", as "n c h w -> c"')
    if len(arrows) > 1:
        _fail(text, arrows[1], "The pattern has two arrows", "leave one '->'", 2)
    left = _items(text, [token for token in tokens if token[2] < arrows[0]])
    right = _items(text, [token for token in tokens if token[2] > arrows[0]])
    if not left:
        _fail(
            text,
            arrows[0],
            "The pattern names no axes left of '->'",
            'name every axis of the tensor, as "n c h w"',
            2,
        )
    known = [name for item, _ in left for name in item]
    name = known[0]
    apart = len(known) == 1 and "(" not in text and len(set(name)) == len(name)
    if apart and any(other not in known for item, _ in right for other in item):
        spaced = _spaced(text)
        if set(spaced.partition("->")[2].split()) <= set(spaced.partition("->")[0].split()):
            fix = f'put spaces between them: "{spaced}"'
            _fail(text, left[0][1], "The axes are not apart", fix, len(name))
    _check_known(text, right, known, "on the right of '->'")
    return tuple(item for item, _ in left), tuple(item for item, _ in right)


def _spaced(text: str) -> str:
    """Return a pattern with every letter as an axis: "n c h w -> c" of "nchw->c"."""
    return " -> ".join(" ".join("".join(side.split())) for side in text.split("->")).strip()


def read_axes(text: str, known: Sequence[str], pattern: str) -> tuple[Item, ...]:
    """Return the items of a list of axes of fixed size, such as "c h w", of a pattern with `known` names.

    Raises:
        PatternError: the text breaks the notation, or names an axis that the pattern has not.
    """
    if not isinstance(text, str):
        raise PatternError("affine must be text", repr(text), 'name the axes as in "c h w"; "" for none')
    tokens = _tokenize(text)
    for kind, value, at in tokens:
        if kind in ("arrow", "dots"):
            _fail(
                text, at, f"affine must name axes, and {value!r} is none", "name them one by one", len(value)
            )
    items = _items(text, tokens)
    _check_known(text, items, known, f'of affine in "{pattern}"')
    return tuple(item for item, _ in items)


def _tokenize(text: str) -> list[tuple[str, str, int]]:
    tokens, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            bad = at + len(text[at:]) - len(text[at:].lstrip())
            fixes = {".": "write '...', three dots", "…": "write '...', three dots", "-": "write '->'"}
            if text[bad].isdigit():
                _fail(
                    text,
                    bad,
                    "A name cannot begin with a digit",
                    "name the axis, and give its size as a keyword",
                )
            fix = fixes.get(text[bad], "use names, '(', ')', '...' and '->'")
            _fail(text, bad, f"{text[bad]!r} has no meaning in a pattern", fix)
        kind = str(match.lastgroup)
        tokens.append((kind, match.group(kind), match.start(kind)))
        at = match.end()
    return tokens


def _items(text: str, tokens: list[tuple[str, str, int]]) -> list[tuple[Item, int]]:
    """Group tokens into items; every item with its place in the text."""
    items: list[tuple[Item, int]] = []
    seen: set[str] = set()
    group: list[str] | None = None
    opened = 0
    for kind, value, at in tokens:
        if value == "(":
            if group is not None:
                _fail(text, at, "A bracket opens within a bracket", "close the first bracket before the next")
            group, opened = [], at
        elif value == ")":
            if group is None:
                _fail(text, at, "A bracket closes that was never opened", "remove it, or open it with '('")
            if not group:
                _fail(text, opened, "A bracket is empty", "remove it, or name axes in it", 2)
            items.append((tuple(group), opened))
            group = None
        else:
            if value in seen:
                fix = "give every axis a name of its own"
                if kind == "dots":
                    fix = "leave one '...', which stands for any number of axes, and name the others"
                _fail(text, at, f"{value!r} is named twice", fix, len(value))
            if kind == "dots" and group is not None:
                _fail(text, at, "'...' cannot stand in a bracket", "take it out of the bracket", 3)
            seen.add(value)
            if group is None:
                items.append(((value,), at))
            else:
                group.append(value)
    if group is not None:
        _fail(text, opened, "A bracket is never closed", "close it with ')'")
    return items


def _check_known(text: str, items: list[tuple[Item, int]], known: Sequence[str], where: str) -> None:
    for item, at in items:
        for name in item:
            if name not in known:
                # In a bracket the place of the name is found again, whole words only.
                found = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search(text, at)
                place = found.start() if found else at
                problem = f"Axis {name!r} {where} is not on the left"
                _fail(text, place, problem, suggest(name, known), len(name))


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the fix for an unknown name: the one that may have been meant, or all there are."""
    from difflib import get_close_matches  # only on the way to an error

    close = [other for other in known if other.lower() == name.lower()] or get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"name one of {', '.join(known)}" if known else "this pattern has no named axis"


def _fail(text: str, at: int, problem: str, fix: str, length: int = 1) -> NoReturn:
    # The marks stand under the quoted text, whose line begins with "  got: ".
    raise PatternError(problem, f"{text}\n       {' ' * at}{'^' * length}", fix)


# What a pattern means. On the right `(g c)` makes one axis of the two again.


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
                problem = f"The size of {name!r} is missing, which {what} need"
                raise PatternError(problem, f'"{self.text}"', f"add {name}=<size>")
        return tuple(product([sizes[name] for name in item]) for item in items)

    def check_sizes(self, sizes: dict[str, int]) -> None:
        """Raise PatternError unless every size is a positive integer of an axis on the left."""
        for name, size in sizes.items():
            if name not in self.names or name == ELLIPSIS:
                known = [known for known in self.names if known != ELLIPSIS]
                problem = f'{name}={size!r} names no axis of "{self.text}"'
                raise PatternError(problem, fix=suggest(name, known))
            if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
                problem = f"{name} must be a positive integer, and is {size!r}"
                raise PatternError(problem, f'"{self.text}"', f"give {name} a size of 1 or more")

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
            named = (
                f"{'at least ' if ELLIPSIS in self.names else ''}{fixed} {'axis' if fixed == 1 else 'axes'}"
            )
            problem = f'"{self.text}" names {named}, but the tensor has {len(shape)}'
            fix = "name every axis of the tensor on the left, or use `...` for any number of them"
            name = self.names[0]
            if self.left == ((name,),) and len(set(name)) == len(name) == len(shape):
                fix = f'put spaces between the axes: "{_spaced(self.text)}"'
            raise ShapeError(problem, f"shape {shape}", fix)
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
            problem = f"Of {bracket}, all sizes but one must be given"
            got = f'"{self.text}" without the sizes of {" and ".join(unknown)}'
            raise PatternError(problem, got, f"add {unknown[0]}=<size>")
        if size % known if unknown else size != known:
            given = ", ".join(f"{name}={sizes[name]}" for name in item if name in sizes)
            wrong = f"which cannot be split with {given}" if unknown else f"but {given} was given"
            if len(item) > 1 and not unknown:
                wrong += f", which makes {known}"
            raise ShapeError(
                f"Axis {position} (`{bracket}`) has size {size}, {wrong}",
                f'shape {shape} for "{self.text}"',
                f"choose sizes that divide {size}" if unknown else f"give an input with {known} there",
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
        raise PatternError("A pattern must be text", repr(text), 'write it as "n c h w -> c"')
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
