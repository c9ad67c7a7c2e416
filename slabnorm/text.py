"""Text from outside made safe to show, lists of words, tables, and suggestions for misspelt words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def printable(text: object, limit: int = 200) -> str:
    """Return text without characters that a terminal or a page would act on.

    These are control characters, marks that change the direction of writing, and lone surrogates. Each
    becomes its escape, such as `\\x1b`. HTML and Rich markup stay: the code that writes them escapes them.

    Args:
        text: a name that came from outside.
        limit: the largest number of characters to return; longer text ends in an ellipsis.
    """
    raw = str(text)
    if len(raw) <= limit and raw.isprintable():
        return raw
    shown = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def listing(words: list[str], last: str = "and") -> str:
    """Return `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return `did you mean 'batch'?`, with the known word that is closest to a text; "" if none is close."""
    close = get_close_matches(given.lower(), known, 1) if isinstance(given, str) else []
    return f"did you mean {close[0]!r}?" if close else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, indented, with the cells of a column one below the other.

    >>> aligned([("a", "1"), ("long", "2")])
    ['  a     1', '  long  2']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return [("  " + "  ".join(row)).rstrip() for row in cells]
