"""What a rewritten call site runs: hold a norm back, add, close.

    close("relu", F.relu, add(plus, hold(norm, x), r))      instead of      F.relu(norm(x) + r)

Every condition is looked at when the call runs: whether the norm is an accelerated one, whether anything
hooks it or the activation, whether the residual fits. Where one fails, the original calls run, in the
original order: so a norm that is exchanged or hooked later is no mistake, and neither is a residual that
broadcasts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from slabnorm.kernels.memory_format import order_of
from slabnorm.surgery.norms import Accelerated

plus, iplus = operator.add, operator.iadd

# Modules whose output is memory of its own: nothing else can change what they hand to a norm.
_FRESH = frozenset(
    (
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
        nn.Linear, nn.Bilinear,
    )
)  # fmt: skip

_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu", nn.GELU: "gelu", nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh", nn.Hardswish: "hardswish",
}  # fmt: skip

FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", F.relu_: "relu", torch.relu_: "relu",
    F.leaky_relu: "leaky_relu", F.leaky_relu_: "leaky_relu", F.silu: "silu", F.gelu: "gelu",
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", torch.sigmoid_: "sigmoid",
    F.tanh: "tanh", torch.tanh: "tanh", torch.tanh_: "tanh", F.hardswish: "hardswish",
}  # fmt: skip
METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")


class Held(NamedTuple):
    """A norm that is to run with what follows it."""

    norm: Accelerated
    x: Tensor
    residual: Tensor | None


def hold(norm: Any, x: Any, source: Any = None, guarded: bool = False) -> Any:
    """Hold a norm back; if other code runs before the close (`guarded`), only where `source` made x anew."""
    if (
        not isinstance(norm, Accelerated)
        or (guarded and type(source) not in _FRESH)
        or hooked(norm)
        or _has_any_global_hook()
        or not norm.runs(x, True)
    ):
        return norm(x)
    return Held(norm, x, None)


def add(plus: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Add; a norm that is held back takes a residual along that fits it."""
    held, other = (left, right) if isinstance(left, Held) else (right, left)
    if not isinstance(held, Held):
        return plus(left, right)
    x = held.x
    if (
        type(other) is Tensor
        and other.shape == x.shape
        and other.dtype == x.dtype
        and other.device == x.device
        and other.layout == x.layout
        and other.stride() == x.stride()  # else the sum's memory order depends on what stands left
        and order_of(x, x) in held.norm.formats
    ):
        return Held(held.norm, x, other)
    y = held.norm(x)
    return plus(y, right) if held is left else plus(left, y)


def close(name: str | None, activation: Any, held: Any, *args: Any, **options: Any) -> Any:
    """Apply an activation, with the norm if one is held back that ends with it."""
    if not isinstance(held, Held):
        return activation(held, *args, **options)
    ends = name or name_of(activation)
    if ends is not None and ends == held.norm.activation:
        return held.norm(held.x, held.residual, True)
    return activation(_plain(held), *args, **options)


def in_order(self: nn.Sequential, input: Any) -> Any:
    """Run a Sequential, a norm together with the activation behind it."""
    for module in self:
        if isinstance(input, Held):
            input = close(None, module, input)
        elif isinstance(module, Accelerated) and module.activation is not None:
            input = hold(module, input)
        else:
            input = module(input)
    return _plain(input) if isinstance(input, Held) else input


def finish(held: Any) -> Any:
    """Return a sum that no activation follows."""
    if not isinstance(held, Held):
        return held
    if held.norm.activation is None:
        return held.norm(held.x, held.residual, True)
    return _plain(held)


def _plain(held: Held) -> Tensor:
    y = held.norm(held.x)
    return y if held.residual is None else y + held.residual


def hooked(module: nn.Module) -> bool:
    """Whether a hook, or a forward put on the object, would see a module's input or output."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def name_of(activation: Any) -> str | None:
    """Return the name of an activation that a norm can end with; None for anything else."""
    if not isinstance(activation, nn.Module):
        return next((name for function, name in FUNCTIONS.items() if function is activation), None)
    name = _MODULES.get(type(activation))
    if name is None or hooked(activation):
        return None
    if name == "leaky_relu" and activation.negative_slope != 0.01:
        return None
    if name == "gelu" and activation.approximate == "tanh":
        return "gelu_tanh"
    return name


def name_of_call(function: Any, args: list[Any], options: dict[str, Any]) -> str | None:
    """Return the name of an activation called with more than its input, all of it constants."""
    name = FUNCTIONS.get(function)
    if name is None:
        return None
    if name == "leaky_relu":
        slope = args[0] if args else options.get("negative_slope", 0.01)
        return name if slope == 0.01 and len(args) <= 2 else None
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(options.get("approximate", "none"))
    return name  # what is left is `inplace`, which a norm's own output does not show
