"""Input scaling folded into the weights of the first layer, so that a model takes raw data."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slabnorm.errors import OptionError

if TYPE_CHECKING:
    from slabnorm.inputs.normalizer import InputNorm

# Raw data r scales away from 0 lose r times the dtype's eps. In float32, 1000 scales lose 1e-4 of the spread.
# bfloat16 and float16, which round to 1e-2 and 1e-3 of it anyway, are allowed 4 scales, enough for pixels.
OFFSET = 1000
_LOST = OFFSET * torch.finfo(torch.float32).eps
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold(norm: InputNorm, layer: nn.Module) -> Any:
    """Return a copy of a layer that computes `layer(norm(x))`, see `InputNorm.fold_into`."""
    if type(layer) not in (nn.Linear, *_CONVOLUTIONS) or not isinstance(layer.weight, nn.Parameter):
        raise _refused("the layer is not a Linear or a Conv1d to Conv3d", type(layer).__name__)
    given: Any = layer
    if given.weight.is_meta or norm.scale.is_meta:
        raise _refused("weights or statistics are on the meta device, without values", "", "load them first")
    if set(given._parameters) != {"weight", "bias"} or "forward" in vars(given) or _hooked(given):
        raise _refused("the layer has hooks, is pruned, or has another forward")
    kept = norm.record.features()
    if isinstance(layer, _CONVOLUTIONS) and not kept.any_rank and len(kept.sample) != weight_rank(given) - 1:
        got = f'"{norm.pattern}" for {given}'
        raise _refused("batches do not have the axes that the layer takes", got, "name every axis")
    if norm.scheme.clip is not None:
        raise _refused("the weights of a layer cannot clip", f"clip={norm.scheme.clip}", "fit without clip")
    span, low = norm.scheme.target
    factor = span / norm.scale
    offset = low - (norm.shift + norm.shift_low) * factor
    inputs = given.in_features if isinstance(layer, nn.Linear) else given.in_channels
    factor, offset = (_per_input(t, norm, layer, inputs) for t in (factor, offset))
    if isinstance(layer, _CONVOLUTIONS) and bool((offset != 0).any()) and _pads_zeros(given):
        raise _refused(
            "the convolution pads scaled data with zeros, which are other values in raw data",
            f"padding={given.padding!r}, and 0 is not scaled to 0",
            "keep the InputNorm, or train with padding=0 or padding_mode='replicate'",
        )
    folded = copy.deepcopy(given)
    weight = given.weight.detach().double()
    spread = _spread(weight, factor, given)
    with torch.no_grad():
        folded.weight.copy_(weight * spread)
        added = (weight * _spread(weight, offset, given)).flatten(1).sum(1)
        bias = added if given.bias is None else given.bias.detach().double() + added
        trained = (given.weight if given.bias is None else given.bias).requires_grad
        folded.bias = nn.Parameter(bias.to(given.weight.dtype), requires_grad=trained)
    _check(folded, weight, offset - low)
    folded.register_forward_pre_hook(take_integers)
    return folded


def take_integers(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Convert a batch of integers to the dtype of a layer's weight. This is a forward pre-hook.

    Layers of torch refuse integers, and raw pixels are integers. A hook changes neither the type of the layer
    nor the keys of its state_dict. The batch must be a positional argument. bfloat16 holds integers up to 256
    and float16 up to 2048; larger ones are rounded.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex():
        return None
    return (x.to(layer.weight.dtype), *args[1:])


def weight_rank(layer: Any) -> int:
    """Return the number of axes of a layer's weight, which is also that of its batches."""
    return int(layer.weight.dim())


def _hooked(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )


def _check(folded: Any, weight: Tensor, shifts: Tensor) -> None:
    """Raise OptionError if the layer's dtype cannot hold its new weights, or loses digits of the data."""
    new, bias = folded.weight.detach(), folded.bias.detach()
    if not bool(new.isfinite().all() & bias.isfinite().all()) or bool(((new == 0) & (weight != 0)).any()):
        raise _refused(f"the scale of the data is out of the range of {new.dtype}")
    most = max(_LOST / torch.finfo(new.dtype).eps, 4.0)
    if new.dtype != torch.float64 and float(shifts.abs().max()) > most:
        raise _refused(
            f"the data lie so far from 0 that {new.dtype} loses digits",
            f"{float(shifts.abs().max()):.3g} times their scale; up to {most:.4g} times is allowed",
            "keep the InputNorm, which subtracts exactly",
        )


def _per_input(values: Tensor, norm: InputNorm, layer: nn.Module, inputs: int) -> Tensor:
    """Return one number for each input channel or feature of the layer."""
    pattern = norm.pattern
    if values.dim() == 0:
        return values.expand(inputs)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    if pattern.right != (pattern.left[axis],) or len(pattern.right[0]) != 1 or values.shape != (inputs,):
        raise _refused(
            "the statistics are neither one per input of the layer nor one for all",
            f'"{pattern}" with statistics of shape {tuple(values.shape)}; the layer has {inputs} inputs '
            f"along axis {axis}",
        )
    return values


def _spread(weight: Tensor, values: Tensor, layer: Any) -> Tensor:
    """Return numbers in the shape in which they multiply the weight: (outputs, inputs of a group, 1, ...)."""
    groups = getattr(layer, "groups", 1)
    per_group = values.to(weight).reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1)
    return per_group.reshape(*weight.shape[:2], *(1,) * (weight.dim() - 2))


def _pads_zeros(layer: Any) -> bool:
    if layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return bool(layer.padding == "same" and any(size > 1 for size in layer.kernel_size))
    return any(layer.padding)


def _refused(why: str, got: str = "", fix: str = "keep the InputNorm in front of the layer") -> OptionError:
    return OptionError(f"The scaling cannot be folded into the layer: {why}", got, fix)
