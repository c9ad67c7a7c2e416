"""The network of a study by its name or from the user, and the norms that are compared in it."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from slabnorm.errors import ModelError, OptionError
from slabnorm.nn.norm_free import Derf, DyT
from slabnorm.study.data import Dataset
from slabnorm.study.exchange import Exchanged, exchange
from slabnorm.study.networks import Norm, conv, mlp
from slabnorm.text import did_you_mean, listing, printable

NORMS = ("none", "batch", "layer", "instance", "group")  # compared unless others are named
NORM_FREE = ("dyt", "derf")
MOST_GROUPS = 8

Build = Callable[[Norm], nn.Module]
Model = str | Build | Callable[[], nn.Module] | nn.Module


def find_build(model: Model, data: Dataset) -> tuple[str, Build]:
    """Return the name of a model, and its function `build(norm)`.

    Args:
        model: "conv", "mlp", "package.module:build", a function `build(norm)`, or a model as it is: a
            function without an argument, or a network, whose norms are exchanged.
        data: the data set, which determines the sizes of "conv" and "mlp".

    Raises:
        ModelError: there is no such name, module or function, "conv" is given for a table, or the norms of a
            model cannot be exchanged.
    """
    if isinstance(model, str) and model not in ("conv", "mlp"):
        return printable(model), _build_of(import_build(model), data)
    if not isinstance(model, str):
        if not callable(model):
            problem = "build_model must be a name, a network, or a function that builds one"
            raise ModelError(problem, f"a {type(model).__name__}", 'such as build_model="mlp"')
        return printable(getattr(model, "__qualname__", type(model).__name__)), _build_of(model, data)
    classes = len(data.classes)
    if model == "conv":
        if data.x.ndim == 2:
            raise ModelError(
                "The model conv is for images, and the data are a table", data.axes, 'use build_model="mlp"'
            )
        return "conv", partial(conv, channels=data.sample_shape[0], classes=classes)
    return "mlp", partial(mlp, features=math.prod(data.sample_shape), classes=classes)


def _build_of(model: Any, data: Dataset) -> Build:
    """Return a function `build(norm)` as it is; of another model one that exchanges its norms."""
    if isinstance(model, nn.Module) or not takes_norm(model):
        return exchange(model, torch.as_tensor(data.x[data.split.train[:3]]).float())
    return ByName(model) if wants_name(model) else model


class ByName:
    """A function `build(norm)` of one whose first argument is another."""

    def __init__(self, own: Callable[..., nn.Module]) -> None:
        self.own = own

    def __call__(self, norm: Norm) -> nn.Module:
        return self.own(norm=norm)


def parameters_of(build: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the arguments of a function; of some written in C, which do not say, one without a default."""
    try:
        return list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):
        return [inspect.Parameter("x", inspect.Parameter.POSITIONAL_ONLY)]


def wants_name(build: Callable[..., Any]) -> bool:
    """Return whether `norm` is an argument of a function, but not the first that is given without a name."""
    parameters = parameters_of(build)
    named = [p.name for p in parameters]
    return "norm" in named and (named[0] != "norm" or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY)


def takes_norm(build: Callable[..., Any]) -> bool:
    """Return whether a function is to be given `norm`: it needs an argument, or has one of that name."""
    parameters = parameters_of(build)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return any(p.name == "norm" for p in parameters) or any(p.default is p.empty for p in positional)


def parts_of(build: Any) -> Iterator[Any]:
    """Yield the functions and classes that a worker has to find to make a model."""
    if isinstance(build, partial):
        yield from parts_of(build.func)
    elif isinstance(build, Exchanged | ByName):
        yield from parts_of(build.own)
    elif isinstance(build, nn.Module):
        yield from dict.fromkeys(type(module) for module in build.modules())
    else:
        yield from (build, type(build))


def import_build(path: str) -> Any:
    """Return the function or network that a text `package.module:name` names.

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
    if not callable(found):  # networks are
        fix = "name a function build(norm)"
        raise ModelError(f"{shown} is not a function or a network", f"of type {type(found).__name__}", fix)
    return found


def check_norm(name: str) -> None:
    """Raise OptionError unless `name` is one of the norms or a pattern; PatternError for a wrong pattern."""
    if isinstance(name, str) and name in (*NORMS, *NORM_FREE):
        return
    if isinstance(name, str) and "->" in name:
        from slabnorm.notation import parse

        parse(name)
        return
    names = (*NORMS, *NORM_FREE)
    known = f"a norm is {listing(list(names), 'or')}, or a pattern such as 'n c ... -> n c'"
    question = did_you_mean(name, names)
    raise OptionError(f"There is no norm {printable(name)}", "", f"{question} {known}".strip())


def group_count(channels: int) -> int:
    """Return the largest number of groups, at most 8, that divides the number of channels."""
    return max(groups for groups in range(1, MOST_GROUPS + 1) if channels % groups == 0)


class NormFactory:
    """A function from a number of channels to a new norm layer, which `build(norm)` is given.

    Making a layer does not change the state of torch's random numbers, so that the weights drawn after it are
    the same under every norm. All layers made are in `made`.

    Args:
        name: one of NORMS or NORM_FREE, or a pattern that names its channels `c`.
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
            case "dyt":
                return DyT(channels)
            case "derf":
                return Derf(channels)
            case pattern:
                return sn.SlabNorm(pattern, c=channels)
