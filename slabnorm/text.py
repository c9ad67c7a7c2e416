"""Text from outside made safe to show, and words in a row."""

from __future__ import annotations


def printable(text: object, limit: int = 200) -> str:
    """Return `text` without what a terminal or a page could act on: controls, bidi marks, lone surrogates.

    Each such character becomes its escape (`\\x1b`). HTML and Rich markup stay as they are; the
    place that writes them escapes them.

    Args:
        text: a name that came from outside.
        limit: the longest result, in characters; a longer one ends in an ellipsis.
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
