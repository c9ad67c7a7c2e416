"""Norms of other classes as slabnorm's own layers, where it is known what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slabnorm import nn as ours
from slabnorm.surgery.adopt import Adopted, release
from slabnorm.surgery.computes import Computes, tail
from slabnorm.surgery.derived import plain_class
from slabnorm.surgery.norms import KINDS, never
from slabnorm.surgery.recognise import recognise


def foreign(norm: nn.Module) -> bool:
    """Whether a norm's class is of another library; what is frozen is looked at underneath."""
    kind = plain_class(type(norm))
    own = isinstance(norm, ours.SlabNorm) or kind.__module__.startswith("slabnorm.")
    return kind not in (*KINDS, nn.SyncBatchNorm) and not own


def native_layer(norm: nn.Module) -> ours.SlabNorm | str:
    """Return a new layer of slabnorm that computes what a norm of any class computes; or why there is none.

    It has weight, bias and statistics of its own, with the norm's values; a weight around 0 is then around 1.
    """
    reason = never(norm)
    if reason:
        return reason
    found: Computes | None
    if isinstance(norm, Adopted):
        found = norm.__dict__["_adopted"].computes
    else:
        recognition = recognise(norm)
        found, reason = recognition.computes, recognition.reason
    if found is None:
        return reason
    activation, child = tail(norm, found.after)
    if found.source == "fixed" or child is not None:
        return "its statistics are fixed" if found.source == "fixed" else f"{found.after} follows it"
    layer = _empty(norm, found, activation)
    _fill(layer, norm, found)
    return layer.train(norm.training)


def become_native(norm: nn.Module) -> None:
    """Make a norm of another class the layer that `native_layer` returns, in place.

    The parameters stay the same objects, under the names that slabnorm gives them.
    """
    layer = native_layer(norm)
    assert isinstance(layer, ours.SlabNorm)
    if isinstance(norm, Adopted):
        release(norm)
    found = recognise(norm).computes
    assert found is not None
    for name, own in (("weight", found.weight), ("bias", found.bias)):
        value = None if own is None else norm._parameters.get(own)
        made = layer._parameters[name]
        if value is not None and made is not None:
            value.data = made.data
            layer._parameters[name] = value
    of_any = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"}
    layer.__dict__ |= {key: value for key, value in vars(norm).items() if key in of_any}
    vars(norm).clear()
    vars(norm).update(vars(layer))
    object.__setattr__(norm, "__class__", type(layer))


def _empty(norm: nn.Module, c: Computes, activation: str | None) -> ours.SlabNorm:
    held = [t for t in (*norm._parameters.values(), *norm._buffers.values()) if t is not None]
    floats = [t for t in held if t.is_floating_point()]
    where: dict[str, Any] = {"device": floats[0].device, "dtype": floats[0].dtype} if floats else {}
    size = next((t.numel() for t in floats), c.channels or 0)
    options: dict[str, Any] = {"eps": c.eps, "activation": activation, **where}
    if c.text.startswith("...") and c.layer == "RMSNorm":
        return ours.RMSNorm(size, elementwise_affine=c.weight is not None, **options)
    options["bias"] = c.bias is not None
    if c.text.startswith("...") and c.layer == "LayerNorm":
        return ours.LayerNorm(size, elementwise_affine=c.weight is not None, **options)
    if c.layer == "BatchNorm":
        tracks = c.mean is not None
        affine = c.weight is not None
        return ours.BatchNorm(size, momentum=c.momentum, affine=affine, track_running_stats=tracks, **options)
    if c.layer == "InstanceNorm":
        return ours.InstanceNorm(size, affine=c.weight is not None, **options)
    if c.layer == "GroupNorm":
        return ours.GroupNorm(c.groups, size, affine=c.weight is not None, **options)
    axes = None if c.weight else ""
    return ours.SlabNorm(c.pattern, affine=axes, center=c.center, c=size, **options)


@torch.no_grad()
def _fill(layer: ours.SlabNorm, norm: nn.Module, c: Computes) -> None:
    held = {**norm._parameters, **norm._buffers}
    for name, own, shift in (
        ("weight", c.weight, c.shift), ("bias", c.bias, 0.0), ("running_mean", c.mean, 0.0),
        ("running_var", c.var, 0.0),
    ):  # fmt: skip
        target, value = getattr(layer, name, None), None if own is None else held[own]
        if target is not None and value is not None:
            target.copy_((value.double() + shift).reshape(target.shape))
            target.requires_grad_(value.requires_grad)
    counter, counted = layer.num_batches_tracked, None if c.counter is None else held[c.counter]
    if counter is not None and counted is not None:
        counter.copy_(counted)
