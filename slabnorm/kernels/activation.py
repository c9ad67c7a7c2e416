"""The activations a norm can end with, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from slabnorm.errors import OptionError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "hardswish": F.hardswish,
}


def check_activation(name: str | None) -> None:
    """Raise OptionError unless `name` is None or names an activation."""
    if name is not None and not (isinstance(name, str) and name in ACTIVATIONS):
        raise OptionError("activation is the name of one", repr(name), f"use one of {', '.join(ACTIVATIONS)}")
