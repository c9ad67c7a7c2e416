"""The one walker of module trees: every module once, with every name it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Place(NamedTuple):
    """A module and its names; the root's is the empty string. A shared module has several."""

    module: nn.Module
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]


Where = Callable[[str, nn.Module], bool]  # whether a module of this name is meant


def meant(place: Place, where: Where | None) -> bool:
    """Whether `where` is true for one of a module's names; without it every module is meant."""
    return where is None or any(where(name, place.module) for name in place.names)


def walk(model: nn.Module) -> list[Place]:
    """Return every module of a model once, the root first, in the order of `named_modules`."""
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), (module, []))[1].append(name)
    return [Place(module, tuple(names)) for module, names in found.values()]


def follow(module: nn.Module, path: str) -> Any:
    """Return what a path such as `blocks.0.act` leads to from a module; None if it leads nowhere.

    Only modules and their plain attributes are read: no property runs.
    """
    here: Any = module
    for step in path.split("."):
        if not isinstance(here, nn.Module):
            return None
        if step in here._modules:
            here = here._modules[step]
        elif step.lstrip("-").isdigit() and isinstance(here, nn.ModuleList | nn.Sequential):
            index = int(step)
            children = list(here._modules.values())
            here = children[index] if -len(children) <= index < len(children) else None
        else:
            here = here.__dict__.get(step)
    return here
