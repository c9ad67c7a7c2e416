"""What a norm computes, whatever its class; and the layer of another kind for the same channels."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from slabnorm import nn as ours
from slabnorm.errors import SlabError
from slabnorm.nn.batch_modes import check_ghost, check_renorm
from slabnorm.nn.norm_free import DyT
from slabnorm.notation import ELLIPSIS, Item, Pattern, parse, product
from slabnorm.slab import plan
from slabnorm.surgery.derived import plain_class
from slabnorm.surgery.native import become_native, foreign, native_layer
from slabnorm.surgery.norms import KINDS, Accelerated, revert, why_not

NAMES = ("batch", "layer", "instance", "group", "rms", "dyt", "torch")
MOST_GROUPS = 32
OURS = (ours.BatchNorm, ours.InstanceNorm, ours.GroupNorm, ours.LayerNorm, ours.RMSNorm, ours.SlabNorm, DyT)
_TORCH: dict[str, dict[int, Any]] = {
    "batch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}


@dataclass(frozen=True)
class Norm:
    """What a norm computes.

    Attributes:
        kind: batch, layer, instance, group, rms or dyt; or the text of a pattern that is none of them. A
            layer norm of channels on the second axis pools a sample, of channels on the last axis a position.
        shape: the sizes of weight and bias: the channels, or several last axes.
        last: whether they are the last axes of the input; else the second one.
        groups: of a group norm.
        sizes: of a pattern.
        spatial: how many axes stand behind the channels, where the class says so.
        weight, bias: whether it has them.
        tracks: whether it has running statistics.
        activation: what it applies last.
        ghost, renorm: what it does in train mode beside, as in `slabnorm.BatchNorm`.
    """

    kind: str
    shape: tuple[int, ...]
    last: bool = False
    groups: int = 1
    sizes: tuple[tuple[str, int], ...] = ()
    spatial: int | None = None
    eps: float | None = 1e-5
    weight: bool = True
    bias: bool = True
    momentum: float | None = 0.1
    tracks: bool = False
    activation: str | None = None
    inplace: bool = False
    ghost: int | None = None
    renorm: tuple[float, float] | None = None

    @property
    def channels(self) -> int:
        """How many there are; of a norm over several last axes the product of their sizes."""
        return product(self.shape)

    @property
    def function(self) -> tuple[Any, ...]:
        """What decides what it computes, running statistics and learned values aside."""
        kind = self.kind
        if kind == "layer" and not self.last:
            kind = "group"  # of one group
        where = (kind,) if kind == "dyt" else (kind, self.eps)
        modes = self.ghost, self.renorm and tuple(self.renorm)
        return *where, self.shape, self.last, self.groups, self.sizes, self.activation, *modes


def describe(norm: nn.Module) -> Norm | str:
    """Return what a norm computes; for a norm that cannot be converted, the reason."""
    if plain_class(type(norm)) is type(norm) and foreign(norm):
        native = native_layer(norm)
        return native if isinstance(native, str) else describe(native)
    reason = _unfit(norm)
    if reason:
        return reason
    n: Any = norm
    more: dict[str, Any] = {
        "eps": getattr(n, "eps", None),
        "weight": norm._parameters.get("weight") is not None,
        "bias": norm._parameters.get("bias") is not None,
        "tracks": norm._buffers.get("running_mean") is not None,
        "momentum": getattr(n, "momentum", 0.1),
        "spatial": norm.__dict__.get("_spatial", _spatial(norm)),
        "ghost": getattr(n, "ghost", None),
        "renorm": getattr(n, "renorm", None),
    }
    if not isinstance(norm, Accelerated):  # what follows it is its call sites' affair
        more |= {"activation": getattr(n, "activation", None), "inplace": getattr(n, "inplace", False)}
    if isinstance(norm, DyT):
        shape = (n.channels,) if isinstance(n.channels, int) else tuple(n.channels)
        return Norm("dyt", shape, n.last, **more)
    if isinstance(norm, nn.GroupNorm):
        return Norm("group", (n.num_channels,), groups=n.num_groups, **more)
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        kind = "rms" if isinstance(norm, nn.RMSNorm) else "layer"
        return Norm(kind, tuple(n.normalized_shape), last=True, **more)
    if isinstance(norm, _BatchNorm | _InstanceNorm):
        kind = "instance" if isinstance(norm, _InstanceNorm) else "batch"
        return Norm(kind, (n.num_features,), **more)
    return _of_pattern(n, more)


def _unfit(norm: nn.Module) -> str:
    kind = type(norm)
    if kind is not plain_class(kind):
        return "frozen: unfreeze it first"
    if kind in KINDS:
        return why_not(norm)
    if kind not in (*OURS, *KINDS.values(), nn.SyncBatchNorm):
        return "a subclass, which may compute something else"
    if "forward" in norm.__dict__:
        return "its forward was replaced on the object"
    if not norm._parameters.keys() <= {"alpha", "weight", "bias"}:
        return "its parameters are not where the layer keeps them (pruning or a weight norm does that)"
    return ""


def _spatial(norm: nn.Module) -> int | None:
    kind = norm.plain if isinstance(norm, Accelerated) else type(norm)
    return next((n for table in _TORCH.values() for n, other in table.items() if other is kind), None)


def _of_pattern(norm: ours.SlabNorm, more: dict[str, Any]) -> Norm | str:
    """Return what a layer of a pattern computes: one of the kinds, where it is one."""
    pattern, axis = norm.pattern, norm.pattern.default_affine
    if not axis or norm.affine_axes not in ((), axis):
        return "its weight and bias do not vary along channels `c`"
    try:
        (channels,) = pattern.sizes_of(axis, norm.sizes, "the channels")
    except SlabError as error:
        return error.problem
    places = _places(pattern)
    if not places:
        return "its channels are neither the second nor the last axis"
    last = places == ["last"]
    kind, groups = _kind(pattern, axis[0], last), 1
    if kind == "group":
        groups = channels // norm.sizes["c"]
    if not norm.center:
        kind = "rms" if kind == "layer" else ""
    sizes = () if kind else (*norm._sizes, ("center", int(norm.center)))
    return Norm(kind or pattern.text, (channels,), last, groups, sizes, **more)


def _places(pattern: Pattern) -> list[str]:
    """Return where the channels of a pattern are: at the second axis, the last, both or elsewhere."""
    at = pattern.left.index(pattern.default_affine[0])
    second = at == 1 and pattern.left[0] != (ELLIPSIS,)
    return ["second"] * second + ["last"] * (at == len(pattern.left) - 1)


def _kind(pattern: Pattern, axis: Item, last: bool) -> str:
    """Return the kind that a pattern spells; "" for none."""
    rest = tuple(item for item in pattern.left if item != axis)
    group = len(axis) == 2 and axis[1] == "c" and (axis[0],)
    if axis == ("c",) and pattern.right == (axis,):
        return "batch"
    if axis == ("c",) and pattern.right == (pattern.sample, axis) and pattern.sample != (ELLIPSIS,):
        return "instance"
    positions = rest if last else (pattern.sample,)
    if pattern.right == positions:
        return "layer"
    return "group" if group and pattern.right == (*positions, group) else ""


def group_count(channels: int) -> int:
    """Return the largest number of groups up to 32 that divides the channels into groups of two at least.

    It is 1 where there is none.
    """
    fit = (n for n in range(2, MOST_GROUPS + 1) if channels % n == 0 and channels // n >= 2)
    return max(fit, default=1)


def layer_of(norm: Norm, to: str, sizes: dict[str, int], device: Any, dtype: Any) -> nn.Module | str:
    """Return a new layer of a kind or pattern for the channels of a norm; or why there is none.

    It has weight and bias where the norm has them; a bias, too, where the norm is an RMS norm, which cannot.
    """
    if norm.kind == "rms" and to not in ("rms", "torch"):
        norm = replace(norm, bias=norm.weight)
    if norm.eps is None and not (norm.kind == "rms" and to in ("rms", "torch")):
        norm = replace(norm, eps=torch.finfo(torch.promote_types(dtype or torch.float32, torch.float32)).eps)
    made: dict[str, Any] = {"device": device, "dtype": dtype}
    if to == "torch":
        return _torch_layer(norm, made)
    if to == "dyt":
        new = DyT(
            norm.shape if len(norm.shape) > 1 else norm.channels, last=norm.last, affine=norm.weight, **made
        )
        if not norm.bias:
            new.bias = None
        return new if norm.activation is None else f"it ends with {norm.activation}, which DyT does not"
    made |= {"activation": norm.activation, "inplace": norm.inplace}
    made["eps"] = 1e-5 if norm.kind == "dyt" else norm.eps
    if to == "layer" and norm.last:
        return ours.LayerNorm(norm.shape, elementwise_affine=norm.weight, bias=norm.bias, **made)
    if to == "rms" and norm.last:
        return ours.RMSNorm(norm.shape, elementwise_affine=norm.weight, **made)
    if len(norm.shape) > 1:
        return f"it normalises the last {len(norm.shape)} axes, of which none is known as the channels"
    try:
        return _channel_layer(norm, to, sizes, made)
    except SlabError as error:
        return "; ".join(filter(None, (error.problem, error.got)))


def _channel_layer(norm: Norm, to: str, sizes: dict[str, int], made: dict[str, Any]) -> nn.Module | str:
    channels = norm.channels
    affine: dict[str, Any] = {"affine": norm.weight, "bias": norm.bias}
    groups = sizes.get("g", group_count(channels))
    if not norm.last:
        if to == "batch":
            tracks = norm.tracks or norm.kind != "batch"
            return ours.BatchNorm(
                channels, momentum=norm.momentum, track_running_stats=tracks, ghost=norm.ghost,
                renorm=norm.renorm, **affine, **made,
            )  # fmt: skip
        if to == "instance":
            tracks = norm.tracks and norm.kind == "instance"
            return ours.InstanceNorm(
                channels, momentum=norm.momentum, track_running_stats=tracks, **affine, **made
            )
        if to == "group":
            return ours.GroupNorm(groups, channels, **affine, **made)
    written = {
        "batch": "... c -> c", "instance": "n ... c -> n c", "group": "... (g c) -> ... g",
        "layer": "n c ... -> n", "rms": "n c ... -> n",
    }  # fmt: skip
    pattern = parse(written.get(to, to))
    if to == "group":
        sizes = {"g": groups}
    place = "last" if norm.last else "second"
    if to not in written and place not in _places(pattern):
        return f'"{pattern}" has its channels elsewhere: those of this norm are its {place} axis'
    if norm.spatial is not None and to not in written and (ELLIPSIS,) not in pattern.left:
        ranks = (2, 3) if norm.spatial == 1 else (norm.spatial + 2,)
        if len(pattern.left) not in ranks:
            return f'"{pattern}" names {len(pattern.left)} axes, but its input has {ranks[-1]}'
    others = product([sizes[name] for name in pattern.default_affine[0] if name != "c"])
    if channels % others:
        return f"{channels} channels cannot be divided into {others} groups"
    made |= sizes | _modes(norm, pattern)
    return ours.SlabNorm(
        pattern, affine=None if norm.weight else "", bias=norm.bias and to != "rms", center=to != "rms",
        momentum=norm.momentum, c=channels // others, **made,
    )  # fmt: skip


def _modes(norm: Norm, pattern: Pattern) -> dict[str, Any]:
    """Return what a norm does in train mode beside, as far as a layer of a pattern can do it."""
    modes: dict[str, Any] = {}
    with suppress(SlabError):
        check_ghost(norm.ghost, pattern, pattern.default_affine if norm.weight else ())
        modes["ghost"] = norm.ghost
    with suppress(SlabError):
        check_renorm(norm.renorm, pattern.pools_samples and pattern.running == pattern.right, norm.ghost)
        modes["renorm"] = norm.renorm
    return modes


def _torch_layer(norm: Norm, made: dict[str, Any]) -> nn.Module | str:
    if norm.activation is not None:
        return f"it ends with {norm.activation}, which torch.nn's norms do not"
    for name, value in (("ghost", norm.ghost), ("renorm", norm.renorm)):
        if value is not None:
            return f"torch.nn has no layer with {name}={value}: set the layer's {name} to None before"
    if norm.kind in _TORCH and not norm.last:
        kind = _TORCH[norm.kind].get(norm.spatial or 0)
        if kind is None:
            return "torch.nn has a class for each number of axes: give batch= to know it"
        return kind(norm.channels, norm.eps, norm.momentum, norm.weight, norm.tracks, **made)
    eps: Any = norm.eps
    if not norm.last and norm.kind in ("layer", "group"):
        return nn.GroupNorm(norm.groups, norm.channels, eps, norm.weight, **made)
    if norm.last and norm.kind == "layer":
        return nn.LayerNorm(norm.shape, eps, norm.weight, norm.bias, **made)
    if norm.last and norm.kind == "rms":
        return nn.RMSNorm(norm.shape, norm.eps, norm.weight, **made)
    return "torch.nn has no layer that computes it"


def elements_of(layer: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, bool]:
    """Return how many elements a slab has at least, and whether that is their number.

    Args:
        layer: the number says nothing of one that pools samples, or has no slabs: it is 0.
        shape: of its input, where that is known.

    Raises:
        ShapeError: the input does not fit the layer's pattern.
    """
    if not isinstance(layer, ours.SlabNorm):
        return 0, False
    count = plan(layer.pattern, (), shape, layer._sizes).count if shape is not None else None
    if layer.pattern.pools_samples:
        return 0, False
    if count is not None:
        return count, True
    pooled = [name for name in layer.pattern.names if name not in layer.pattern.kept]
    known = [layer.sizes[name] for name in pooled if name in layer.sizes]
    return product(known), len(known) == len(pooled)


def take_place(norm: nn.Module, new: nn.Module) -> None:
    """Make a norm another one, in place: names, hooks, mode, references and the user's attributes stay.

    Weight and bias stay the same objects where their shapes agree, and running statistics where both compute
    the same.
    """
    if foreign(norm):
        become_native(norm)
    if isinstance(norm, Accelerated):
        wide = {name: value for name, value in norm._buffers.items() if name.startswith("running_")}
        revert(norm)
        norm._buffers.update(wide)  # torch's layer would round them to the dtype of its weight
    old, made = describe(norm), describe(new)
    assert isinstance(old, Norm)
    if old.spatial is not None and type(new) in OURS:
        new.__dict__["_spatial"] = old.spatial  # so that there is a way back
    learned = [p for p in norm._parameters.values() if p is not None]
    for name, value in new._parameters.items():
        kept = norm._parameters.get(name)
        if value is not None and kept is not None and kept.shape == value.shape:
            new._parameters[name] = kept
        elif value is not None:
            value.requires_grad_(not learned or any(p.requires_grad for p in learned))
    if isinstance(made, Norm) and old.function == made.function:
        _take_statistics(norm, new)
    mine, own = vars(norm), _own()
    new.__dict__ |= {key: value for key, value in mine.items() if key not in own}
    mine.clear()
    mine.update(vars(new))
    object.__setattr__(norm, "__class__", type(new))


def _take_statistics(norm: nn.Module, new: nn.Module) -> None:
    weight = new._parameters.get("weight")
    for name, value in new._buffers.items():
        kept = norm._buffers.get(name)
        if value is None or kept is None:
            continue
        if name.startswith("running_"):
            # slabnorm keeps them in float32 at least; torch wants them in the dtype of the weight.
            wide = torch.promote_types(kept.dtype, torch.float32)
            kept = kept.to(wide if type(new) in OURS or weight is None else weight.dtype)
        new._buffers[name] = kept
    if norm._buffers.get("running_mean") is not None:  # tracking may be switched off for a while
        new.__dict__["track_running_stats"] = norm.track_running_stats


@cache
def _own() -> frozenset[str]:
    """Return the attributes that say what a norm is: the others are the user's, or those of any module."""
    layers = (
        nn.SyncBatchNorm(1), nn.GroupNorm(1, 1), nn.LayerNorm(1), nn.RMSNorm(1),
        ours.BatchNorm(1), ours.GroupNorm(1, 1), ours.LayerNorm(1), DyT(1),
    )  # fmt: skip
    of_any = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_non_persistent_buffers_set"}
    return frozenset(key for layer in layers for key in vars(layer)) - of_any | {"_spatial"}
