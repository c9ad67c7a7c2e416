"""The activations a norm can end with, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from slabnorm.errors import OptionError

aten = torch.ops.aten

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
# What of a gradient g passes at the pre-activation p. Not autograd, which is off inside a custom operator.
PASSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda g, p: aten.threshold_backward(g, p, 0),
    "leaky_relu": lambda g, p: aten.leaky_relu_backward(g, p, 0.01, False),
    "silu": aten.silu_backward,
    "gelu": aten.gelu_backward,
    "gelu_tanh": partial(aten.gelu_backward, approximate="tanh"),
    "sigmoid": lambda g, p: aten.sigmoid_backward(g, p.sigmoid()),
    "tanh": lambda g, p: aten.tanh_backward(g, p.tanh()),
    "hardswish": aten.hardswish_backward,
}


def check_activation(name: str | None) -> None:
    """Raise OptionError unless `name` is None or names an activation."""
    if name is not None and not (isinstance(name, str) and name in ACTIVATIONS):
        raise OptionError(f"There is no activation {name!r}", fix=f"use one of {', '.join(ACTIVATIONS)}")
