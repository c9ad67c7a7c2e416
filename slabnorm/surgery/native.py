"""Norms of other classes as slabnorm's own layers, where it is known what they compute."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from slabnorm import nn as ours
from slabnorm.surgery.adopt import Adopted, bare, release
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
    recognition = recognise(norm)
    reason = never(norm) or recognition.reason
    if recognition.computes is None or reason:
        return reason
    c = recognition.computes
    reason = _why_not(norm, c)
    if reason:
        return reason
    layer = _empty(norm, c, tail(norm, c.after)[0])
    _fill(layer, norm, c)
    return layer.train(norm.training)


def become_native(norm: nn.Module) -> None:
    """Make a norm of another class the layer that `native_layer` returns, in place.

    Hooks, mode and the user's attributes stay. Parameters and running statistics stay the same objects, under
    the names that slabnorm gives them, where they are the same numbers in the same shape. A weight that now
    counts from 1 is a new one, since others may share the old.
    """
    layer = native_layer(norm)
    assert isinstance(layer, ours.SlabNorm)
    if isinstance(norm, Adopted):
        release(norm)
    c = recognise(norm).computes
    assert c is not None
    for name, own, store in _pairs(c):
        value, tables = norm._parameters.get(own), layer._parameters
        if store == "_buffers":
            value, tables = norm._buffers.get(own), layer._buffers  # type: ignore[assignment]
        made = tables.get(name)
        same = (
            value is not None and made is not None and value.shape == made.shape and value.dtype == made.dtype
        )
        if same and not (name == "weight" and c.shift):
            tables[name] = value
    tables_of_any = {"_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"}
    of_any = vars(nn.Module()).keys() - tables_of_any
    users = {key: value for key, value in vars(norm).items() if key not in vars(layer) or key in of_any}
    vars(norm).clear()
    vars(norm).update({**vars(layer), **users})
    object.__setattr__(norm, "__class__", type(layer))


def changes_of(norm: nn.Module) -> list[str]:
    """Return what the user should know of a norm of another class that becomes a layer of slabnorm."""
    c = recognise(norm).computes
    assert c is not None
    renamed = [f"{own} is now {name}" for name, own, _ in _pairs(c) if own != name]
    counts = ["its weight counts from 1 now, not from 0"] if c.shift else []
    return ["recognised by its results", *counts, *renamed]


def _pairs(c: Computes) -> list[tuple[str, str, str]]:
    """Return what the layer calls its parameters and buffers, what the norm does, and the table."""
    named = (
        ("weight", c.weight, "_parameters"), ("bias", c.bias, "_parameters"),
        ("running_mean", c.mean, "_buffers"), ("running_var", c.var, "_buffers"),
    )  # fmt: skip
    return [(name, own, store) for name, own, store in named if own is not None]


def _why_not(norm: nn.Module, c: Computes) -> str:
    """Return why no layer of slabnorm computes what a norm computes, wherever it runs; "" if one does."""
    own = type(bare(norm)) if isinstance(norm, Adopted) else type(norm)
    takes = list(inspect.signature(own.forward).parameters.values())[1:]
    floats = _floats(norm)
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in floats)
    if len(takes) != 1 or takes[0].kind in (takes[0].VAR_POSITIONAL, takes[0].VAR_KEYWORD):
        return "its forward takes more than one argument"
    if c.partly:
        return "it computes a norm for inputs of some ranks only"
    if c.source == "fixed":
        return "its statistics are fixed"
    if c.after is not None and tail(norm, c.after)[0] is None:
        return f"{c.after}, which is no activation that slabnorm has, follows it"
    rows = c.text.startswith("...")
    if c.bias is not None and (c.weight is None or (rows and c.layer == "RMSNorm")):
        return "slabnorm has no layer with its bias"
    if not floats and not c.channels:
        return "it does not say how many channels it has"
    if any(t.dtype not in c.dtypes for t in floats):
        return f"it was not recognised in {floats[0].dtype}"
    return (
        "its weight counts from 0, and would be rounded to half precision around 1"
        if half and c.shift
        else ""
    )


def _floats(norm: nn.Module) -> list[Tensor]:
    held = (*norm._parameters.values(), *norm._buffers.values())
    return [t for t in held if t is not None and t.is_floating_point()]


def _empty(norm: nn.Module, c: Computes, activation: str | None) -> ours.SlabNorm:
    floats = _floats(norm)
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
    for name, own, _ in _pairs(c):
        shift = c.shift if name == "weight" else 0.0
        target, value = getattr(layer, name, None), held[own]
        if target is not None and value is not None:
            target.copy_((value.double() + shift).reshape(target.shape))
            target.requires_grad_(value.requires_grad)
    counter, counted = layer.num_batches_tracked, None if c.counter is None else held[c.counter]
    if counter is not None and counted is not None and counted.numel() == 1:
        counter.copy_(counted.reshape(()))
