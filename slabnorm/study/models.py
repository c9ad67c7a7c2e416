"""The networks of the study, and the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from slabnorm.errors import ModelError
from slabnorm.study.data import Dataset
from slabnorm.text import printable

Norm = Callable[[int], nn.Module]
Build = Callable[[Norm], nn.Module]


def conv(norm: Norm, channels: int, classes: int) -> nn.Module:
    """Return a small convolutional network: three 3x3 convolutions, each followed by `norm` and ReLU.

    The convolutions keep their biases under every norm: the network without one needs them, and the
    weights must be drawn alike.

    Args:
        norm: from a channel count to a layer.
        channels: of the input, (n, channels, height, width).
        classes: the number of outputs.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16),
        nn.MaxPool2d(2, ceil_mode=True),
        *block(16, 32),
        *block(32, 32),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 32, classes),
    )


def mlp(norm: Norm, features: int, classes: int) -> nn.Module:
    """Return a perceptron with two hidden layers of 64, each followed by `norm` and ReLU.

    Args:
        norm: from a channel count to a layer.
        features: of the input, all axes of a sample together.
        classes: the number of outputs.
    """
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(features, 64), norm(64), nn.ReLU()),
        *(nn.Linear(64, 64), norm(64), nn.ReLU()),
        nn.Linear(64, classes),
    )


def find_build(model: str | Build, data: Dataset) -> tuple[str, Build]:
    """Return a model's name and its `build(norm)`.

    Args:
        model: "conv", "mlp", "package.module:build", or the function itself.
        data: what the network is for; it gives the sizes of "conv" and "mlp".

    Raises:
        ModelError: an unknown name, a module or attribute that does not exist, "conv" for a table.
    """
    classes = len(data.classes)
    if not isinstance(model, str):
        if not callable(model):
            raise ModelError("a model is a name or a function build(norm)", f"a {type(model).__name__}")
        return printable(getattr(model, "__qualname__", type(model).__name__)), model
    if model == "conv":
        if data.x.ndim == 2:
            raise ModelError(
                "the model 'conv' is for images", f"a table: {data.axes}", "--model mlp, or give images"
            )
        return "conv", partial(conv, channels=data.sample_shape[0], classes=classes)
    if model == "mlp":
        features = 1
        for size in data.sample_shape:
            features *= size
        return "mlp", partial(mlp, features=features, classes=classes)
    return printable(model), import_build(model)


def import_build(path: str) -> Build:
    """Return the function that `package.module:name` names.

    Raises:
        ModelError: the text has no colon, or the module or the name in it does not exist or fails.
    """
    shown = printable(path)
    module_name, colon, name = path.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ModelError(
            "a model is conv, mlp or package.module:function",
            shown,
            "write the function build(norm) -> Module and name it as module:build",
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(
            "the model's module can be imported",
            f"{shown}: {printable(error)}",
            "run from the folder that holds it; the current folder is searched",
        ) from error
    # The user's module may raise anything at all while it is imported, SystemExit included.
    except (Exception, SystemExit) as error:
        raise ModelError(
            "the model's module can be imported", f"{shown}: {type(error).__name__}: {printable(error)}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            held = ", ".join(n for n in dir(found) if not n.startswith("_"))
            raise ModelError(
                "the model's function exists",
                f"{shown}: no {printable(part)!r} in {module_name}",
                f"it has {printable(held, 120)}" if held else f"define {printable(part)}(norm) there",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError("a model is a function build(norm)", f"{shown} is of type {type(found).__name__}")
    build: Build = found
    return build
