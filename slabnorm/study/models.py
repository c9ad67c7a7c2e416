"""The network of a study by its name or from the user, and the norms that are compared in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from slabnorm.errors import ModelError, OptionError
from slabnorm.study.data import Dataset
from slabnorm.study.networks import Norm, conv, mlp
from slabnorm.text import did_you_mean, listing, printable

NORMS = ("none", "batch", "layer", "instance", "group")
MOST_GROUPS = 8

Build = Callable[[Norm], nn.Module]


def find_build(model: str | Build, data: Dataset) -> tuple[str, Build]:
    """Return the name of a model, and its function `build(norm)`.

    Args:
        model: "conv", "mlp", "package.module:build", or the function itself.
        data: the data set, which determines the sizes of "conv" and "mlp".

    Raises:
        ModelError: there is no such name, module or function, or "conv" is given for a table.
    """
    classes = len(data.classes)
    if not isinstance(model, str):
        if not callable(model):
            problem = "build_model must be a name or a function build(norm)"
            raise ModelError(problem, f"a {type(model).__name__}", 'such as build_model="mlp"')
        return printable(getattr(model, "__qualname__", type(model).__name__)), model
    if model == "conv":
        if data.x.ndim == 2:
            raise ModelError(
                "The model conv is for images, and the data are a table", data.axes, 'use build_model="mlp"'
            )
        return "conv", partial(conv, channels=data.sample_shape[0], classes=classes)
    if model == "mlp":
        features = 1
        for size in data.sample_shape:
            features *= size
        return "mlp", partial(mlp, features=features, classes=classes)
    return printable(model), import_build(model)


def import_build(path: str) -> Build:
    """Return the function that a text `package.module:name` names.

    Raises:
        ModelError: the text has no colon, the module or the name in it does not exist, or importing it fails.
    """
    shown = printable(path)
    module_name, colon, name = path.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ModelError(
            f"There is no model {shown}",
            "",
            did_you_mean(path, ("conv", "mlp"))
            or "use conv, mlp, or a function build(norm) of your own, as package.module:build",
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        fix = "run the command in the folder that holds it; the current folder is searched"
        raise ModelError(f"Cannot import the model {shown}", printable(error), fix) from error
    # Importing the user's module may raise anything at all, even SystemExit.
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {printable(error)}"
        raise ModelError(f"Cannot import the model {shown}", why, "mend the module") from error
    for part in name.split("."):
        if not hasattr(found, part):
            held = ", ".join(n for n in dir(found) if not n.startswith("_"))
            raise ModelError(
                f"There is no {printable(part)!r} in {module_name}",
                f"it has {printable(held, 120)}" if held else "",
                f"define {printable(part)}(norm) there, or name another function",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(f"{shown} is not a function", f"of type {type(found).__name__}", "name build(norm)")
    build: Build = found
    return build


def check_norm(name: str) -> None:
    """Raise OptionError unless `name` is one of the norms or a pattern; PatternError for a wrong pattern."""
    if isinstance(name, str) and name in NORMS:
        return
    if isinstance(name, str) and "->" in name:
        from slabnorm.notation import parse

        parse(name)
        return
    known = f"a norm is {listing(list(NORMS), 'or')}, or a pattern such as 'n c ... -> n c'"
    question = did_you_mean(name, NORMS)
    raise OptionError(f"There is no norm {printable(name)}", "", f"{question} {known}".strip())


def group_count(channels: int) -> int:
    """Return the largest number of groups, at most 8, that divides the number of channels."""
    return max(groups for groups in range(1, MOST_GROUPS + 1) if channels % groups == 0)


class NormFactory:
    """A function from a number of channels to a new norm layer, which `build(norm)` is given.

    Making a layer does not change the state of torch's random numbers, so that the weights drawn after it are
    the same under every norm. All layers made are in `made`.

    Args:
        name: one of NORMS, or a pattern that names its channels `c`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: list[nn.Module] = []

    def __call__(self, channels: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            layer = self._make(int(channels))
        self.made.append(layer)
        return layer

    def _make(self, channels: int) -> nn.Module:
        import slabnorm as sn

        match self.name:
            case "none":
                return nn.Identity()
            case "batch":
                return sn.BatchNorm(channels)
            case "layer":
                return sn.SlabNorm("n c ... -> n", c=channels)
            case "instance":
                return sn.InstanceNorm(channels, affine=True)
            case "group":
                return sn.GroupNorm(group_count(channels), channels)
            case pattern:
                return sn.SlabNorm(pattern, c=channels)
