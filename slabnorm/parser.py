"""The notation as text: reads a pattern, or marks the place where it breaks.

    pattern  =  left "->" right
    left     =  item+             every axis of x, in order; the first is the sample axis
    right    =  item*             the axes that keep statistics of their own; the rest is pooled
    item     =  name | "(" name+ ")" | "..."

`(g c)` splits one axis in two, g outermost; `...` stands for any number of axes. Sizes are
keywords, as in einops.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

from slabnorm.errors import PatternError

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
        _fail(text, len(text), "a pattern has an arrow", 'write "axes -> kept axes", as "n c h w -> c"')
    if len(arrows) > 1:
        _fail(text, arrows[1], "a pattern has one arrow", "leave one '->'", 2)
    left = _items(text, [token for token in tokens if token[2] < arrows[0]])
    right = _items(text, [token for token in tokens if token[2] > arrows[0]])
    if not left:
        _fail(text, arrows[0], "the left of '->' names every axis", 'name them, as "n c h w"', 2)
    known = [name for item, _ in left for name in item]
    _check_known(text, right, known, "on the right of '->'")
    return tuple(item for item, _ in left), tuple(item for item, _ in right)


def read_axes(text: str, known: Sequence[str], pattern: str) -> tuple[Item, ...]:
    """Return the items of a list of axes of fixed size, such as "c h w", of a pattern with `known` names.

    Raises:
        PatternError: the text breaks the notation, or names an axis that the pattern has not.
    """
    if not isinstance(text, str):
        raise PatternError("affine is text", repr(text), 'name the axes as in "c h w"; "" for none')
    tokens = _tokenize(text)
    for kind, value, at in tokens:
        if kind in ("arrow", "dots"):
            _fail(text, at, "affine names axes of a fixed size", "name them one by one", len(value))
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
                _fail(text, bad, "a name does not begin with a digit", "name the axis; sizes are keywords")
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
                _fail(text, at, "brackets do not nest", "close the first bracket before the next")
            group, opened = [], at
        elif value == ")":
            if group is None:
                _fail(text, at, "this bracket was never opened", "remove it, or open it with '('")
            if not group:
                _fail(text, opened, "a bracket holds at least one name", "remove it, or name axes in it", 2)
            items.append((tuple(group), opened))
            group = None
        else:
            if value in seen:
                _fail(text, at, f"{value!r} is named twice", "give every axis a name of its own", len(value))
            if kind == "dots" and group is not None:
                _fail(text, at, "'...' stands alone, not in a bracket", "take it out of the bracket", 3)
            seen.add(value)
            if group is None:
                items.append(((value,), at))
            else:
                group.append(value)
    if group is not None:
        _fail(text, opened, "this bracket is never closed", "close it with ')'")
    return items


def _check_known(text: str, items: list[tuple[Item, int]], known: Sequence[str], where: str) -> None:
    for item, at in items:
        for name in item:
            if name not in known:
                # In a bracket the place of the name is found again, whole words only.
                found = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)").search(text, at)
                place = found.start() if found else at
                rule = f"axis {name!r} {where} is not on the left"
                _fail(text, place, rule, suggest(name, known), len(name))


def suggest(name: str, known: Sequence[str]) -> str:
    """Return the fix for an unknown name: the one that may have been meant, or all there are."""
    from difflib import get_close_matches  # only on the way to an error

    close = [other for other in known if other.lower() == name.lower()] or get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"name one of {', '.join(known)}" if known else "this pattern has no named axis"


def _fail(text: str, at: int, rule: str, fix: str, length: int = 1) -> NoReturn:
    # The marks stand under the quoted text, whose line begins with "  got: ".
    raise PatternError(rule, f"{text}\n       {' ' * at}{'^' * length}", fix)
