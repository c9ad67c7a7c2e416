"""What of an item or batch is x: the rule that data sets and loaders share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import Block, as_block

RULE = (
    "x is an item itself, the first of a tuple or list, or of a dict the entry named by key=,"
    " else 'x', else the only one"
)


def x_of(item: Any, key: str | None, where: str) -> Block:
    """Return x of one item or batch.

    Raises:
        DataError: the rule above finds no x, or x holds no real numbers.
    """
    if isinstance(item, Mapping):
        return as_block(item[pick(list(item), key, where)], where)
    if key is not None:
        raise DataError("key= names an entry of a dict", f"key={key!r}, but {where} is {type(item).__name__}")
    if isinstance(item, tuple | list):
        if not item:
            raise DataError(RULE, f"{where} is empty", "give (x, y), or x alone")
        if isinstance(item, list) and isinstance(item[0], bool | int | float | list | str):
            # [3.5, 1.0] may be x and y, or two features.
            raise DataError(RULE, f"{where} is a list of numbers", "make x an array, as with numpy.asarray")
        return as_block(item[0], where)
    return as_block(item, where)


def pick(names: list[str], key: str | None, where: str) -> str:
    """Return the name of x among the entries of a dict or an npz file.

    Raises:
        DataError: there is no entry `key`, or none can be told to be x.
    """
    listed = ", ".join(map(repr, names[:10])) or "no entries"
    if key is not None:
        if key not in names:
            raise DataError("key= names an entry", f"key={key!r}, but {where} holds {listed}")
        return key
    if "x" in names:
        return "x"
    if len(names) == 1:
        return names[0]
    raise DataError(
        "x is the entry named by key=, else 'x', else the only one",
        f"{where} holds {listed}",
        f"say which, as key={names[0]!r}" if names else "",
    )
