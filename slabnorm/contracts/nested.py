"""Entries of batches that may lie in one another: "observation.state" in {"observation": {"state": ...}}."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from slabnorm.contracts.key import name_of
from slabnorm.errors import ContractError


def is_mapping(batch: Any) -> bool:
    """Whether a batch has entries with names: a dict, a TensorDict and their like."""
    return isinstance(batch, Mapping) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__"))


def known_names(batch: Any, known: Collection[str]) -> list[str]:
    """Return the names of a batch's entries; of an entry that holds others theirs, with dots between.

    An entry that is known by its own name is not looked into.

    Raises:
        ContractError: the batch has no entries.
    """
    if not is_mapping(batch):
        raise ContractError(
            "A contract of keys needs a batch with names", type(batch).__name__,
            'give a dict or a TensorDict; contract["key"](x) normalises one entry',
        )  # fmt: skip
    found = []
    for name in batch.keys():  # noqa: SIM118 - a TensorDict iterates over its samples
        inside = batch[name]
        if name not in known and is_mapping(inside):
            below = f"{name}."
            some = [other.removeprefix(below) for other in known if other.startswith(below)]
            found += [f"{name}.{other}" for other in known_names(inside, some)]
        else:
            found.append(name)
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ContractError(
            f"The batch has two entries of the name {name_of(twice)}",
            "one of that name, and one inside of another", "leave one of them out",
        )  # fmt: skip
    return found


def get(batch: Any, name: str) -> Any:
    """Return the entry of a name that `known_names` has returned.

    Raises:
        KeyError: there is no such entry.
    """
    way = _way(batch, name)
    if not way:
        raise KeyError(name)
    for outer in way:
        batch = batch[outer]
    return batch


def replaced(batch: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of a batch with other values for some of its entries; the rest is the same objects."""
    new = batch.copy() if hasattr(batch, "copy") else copy.copy(batch)
    inside: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        outer = _way(batch, name)[0]
        if outer == name:
            new[name] = value
        else:
            inside.setdefault(outer, {})[name.removeprefix(f"{outer}.")] = value
    for outer, parts in inside.items():
        new[outer] = replaced(batch[outer], parts)
    return new


def _way(batch: Any, name: str) -> list[str]:
    """Return the names of the entries in one another that lead to the entry of a name; none if none do."""
    if name in batch.keys():  # noqa: SIM118 - a TensorDict looks for a sample
        return [name]
    for outer, inner in _splits(name):
        if outer in batch.keys() and is_mapping(batch[outer]):  # noqa: SIM118
            way = _way(batch[outer], inner)
            if way:
                return [outer, *way]
    return []


def _splits(name: str) -> list[tuple[str, str]]:
    """Return the ways to cut a name at a dot, the longest first part last."""
    parts = name.split(".")
    return [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(1, len(parts))]
