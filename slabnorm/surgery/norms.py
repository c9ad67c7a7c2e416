"""torch.nn norms whose arithmetic is slabnorm's: the same objects under another class.

A norm becomes fast by changing its class, not by being replaced. Parameters, buffers, hooks, the mode, its
places in the model and every reference to it stay because nothing moves; `isinstance` of the torch.nn class
stays true, so code that looks for batch norms still finds them; and torch's own forward remains at hand
for whatever slabnorm's layer takes differently: unbatched input, other shapes, nested tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from slabnorm import nn as ours
from slabnorm.cut import cut_of
from slabnorm.errors import SlabError
from slabnorm.nn.running_stats import held
from slabnorm.surgery.crossover import pays
from slabnorm.surgery.derived import moved, plain_class
from slabnorm.tracing import traced

TORCH_TYPES = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
NORM_TYPES = (*TORCH_TYPES, ours.SlabNorm)

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_HALVES = (torch.float16, torch.bfloat16)


class Accelerated(ours.SlabNorm):
    """What the nine accelerated norms share.

        norm(x)                      the norm alone, as ever
        norm(x, residual, True)      activation(norm(x) + residual), from a call site that proves it

    `activation` is what the call sites that fuse end with; a plain call does not apply it. Where PyTorch's
    own kernels take less time they run, unless it is `always` to be slabnorm's.
    """

    plain: ClassVar[type[nn.Module]]
    layer: ClassVar[str]
    widens: ClassVar[bool] = False  # whether torch computes it in float32 under an accelerator's autocast
    always: bool
    _added: dict[str, tuple[str, ...]]

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override]
            self, input: Tensor, residual: Tensor | None = None, fused: bool = False
        ) -> Tensor: ...

    def forward(  # type: ignore[override]
        self, input: Tensor, residual: Tensor | None = None, fused: bool = False
    ) -> Tensor:
        """Return the normalised input; if fused, with the residual added and the activation applied."""
        if fused or (self.activation is None and self.runs(input, False)):
            if self.widens and _widened(input):
                input, residual = input.float(), None if residual is None else residual.float()
            return super().forward(input, residual)
        return self.as_torch(input)

    def as_torch(self, x: Any) -> Tensor:
        """Return what PyTorch's own forward returns."""
        y: Tensor = self.plain.forward(self, x)
        return y

    def runs(self, x: Any, fused: bool) -> bool:
        """Whether slabnorm computes this input: as it should be computed, and in less time."""
        if not self.takes(x):
            return False
        return self.always or self.must() or (not traced() and pays(self.layer, x, fused))

    def must(self) -> bool:
        """Whether PyTorch's forward does not run with what the layer holds."""
        return False

    def takes(self, x: Any) -> bool:
        """Whether slabnorm computes this input exactly as torch's layer means it."""
        return type(x) in (Tensor, nn.Parameter) and x.dtype in _FLOATS and x.layout == torch.strided

    def extra_repr(self) -> str:
        """Return torch's own words, and the activation."""
        return self.plain.extra_repr(self) + self._activation_repr()


class _PerFeature(Accelerated):
    ranks: ClassVar[tuple[int, ...]]

    def takes(self, x: Any) -> bool:
        """Whether slabnorm computes this input."""
        if not super().takes(x) or x.dim() not in self.ranks or x.shape[1] != self.num_features:
            return False
        # momentum=None: torch weighs every batch alike, slabnorm by its count.
        averages = self.momentum is None and self.training and self.track_running_stats
        running = self.running_mean
        return not averages and (running is None or running.dtype not in _HALVES)

    def must(self) -> bool:
        """Whether the running statistics are kept in float32 beside a weight of half precision."""
        running, weight = held(self, "running_mean"), held(self, "weight")
        return running is not None and weight is not None and weight.dtype != running.dtype

    def as_torch(self, x: Any) -> Tensor:
        """Return what PyTorch's own forward returns, with statistics in the dtype of the weight."""
        if not self.must():
            return super().as_torch(x)
        kept = {name: held(self, name) for name in ("running_mean", "running_var")}
        try:
            for name, wide in kept.items():
                setattr(self, name, wide.to(held(self, "weight").dtype))
            return super().as_torch(x)
        finally:
            for name, wide in kept.items():
                wide.copy_(held(self, name))
                setattr(self, name, wide)


def _widened(x: Tensor) -> bool:
    # The CPU's autocast does not.
    return x.dtype in _HALVES and x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)


class BatchNorm1d(_PerFeature, ours.BatchNorm, nn.BatchNorm1d):  # type: ignore[misc]
    """`torch.nn.BatchNorm1d`, computed by slabnorm."""

    plain, layer, ranks = nn.BatchNorm1d, "BatchNorm", (2, 3)


class BatchNorm2d(_PerFeature, ours.BatchNorm, nn.BatchNorm2d):  # type: ignore[misc]
    """`torch.nn.BatchNorm2d`, computed by slabnorm."""

    plain, layer, ranks = nn.BatchNorm2d, "BatchNorm", (4,)


class BatchNorm3d(_PerFeature, ours.BatchNorm, nn.BatchNorm3d):  # type: ignore[misc]
    """`torch.nn.BatchNorm3d`, computed by slabnorm."""

    plain, layer, ranks = nn.BatchNorm3d, "BatchNorm", (5,)


class InstanceNorm1d(_PerFeature, ours.InstanceNorm, nn.InstanceNorm1d):  # type: ignore[misc]
    """`torch.nn.InstanceNorm1d`, computed by slabnorm."""

    plain, layer, ranks = nn.InstanceNorm1d, "InstanceNorm", (3,)


class InstanceNorm2d(_PerFeature, ours.InstanceNorm, nn.InstanceNorm2d):  # type: ignore[misc]
    """`torch.nn.InstanceNorm2d`, computed by slabnorm."""

    plain, layer, ranks = nn.InstanceNorm2d, "InstanceNorm", (4,)


class InstanceNorm3d(_PerFeature, ours.InstanceNorm, nn.InstanceNorm3d):  # type: ignore[misc]
    """`torch.nn.InstanceNorm3d`, computed by slabnorm."""

    plain, layer, ranks = nn.InstanceNorm3d, "InstanceNorm", (5,)


class GroupNorm(Accelerated, ours.GroupNorm, nn.GroupNorm):  # type: ignore[misc]
    """`torch.nn.GroupNorm`, computed by slabnorm."""

    plain, layer, widens = nn.GroupNorm, "GroupNorm", True

    def takes(self, x: Any) -> bool:
        """Whether slabnorm computes this input."""
        return super().takes(x) and x.dim() >= 2 and x.shape[1] == self.num_channels


class _Trailing(Accelerated):
    normalized_shape: tuple[int, ...]
    widens = True

    def takes(self, x: Any) -> bool:
        return super().takes(x) and x.shape[-len(self.normalized_shape) :] == self.normalized_shape


class LayerNorm(_Trailing, ours.LayerNorm, nn.LayerNorm):  # type: ignore[misc]
    """`torch.nn.LayerNorm`, computed by slabnorm."""

    plain, layer = nn.LayerNorm, "LayerNorm"


class RMSNorm(_Trailing, ours.RMSNorm, nn.RMSNorm):  # type: ignore[misc]
    """`torch.nn.RMSNorm`, computed by slabnorm."""

    plain, layer = nn.RMSNorm, "RMSNorm"


KINDS: dict[type[nn.Module], type[Accelerated]] = {
    kind.plain: kind
    for kind in (
        BatchNorm1d, BatchNorm2d, BatchNorm3d, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d,
        GroupNorm, LayerNorm, RMSNorm,
    )
}  # fmt: skip


def applied(norm: nn.Module) -> str | None:
    """Return the activation that a plain call ends with, by name; that of an accelerated norm has none."""
    return None if isinstance(norm, Accelerated) else getattr(norm, "activation", None)


def norm_like(module: nn.Module) -> bool:
    """Whether a module is a norm, or a single layer of another library that calls itself one."""
    kind = type(module)
    foreign = not kind.__module__.startswith("slabnorm.") and not module._modules
    return isinstance(module, NORM_TYPES) or (foreign and "norm" in kind.__name__.lower())


def input_of(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return what a norm is given, by position or by name; of another class, its first argument."""
    names = ("x", "input", *options)
    return args[0] if args else next((options[name] for name in names if name in options), None)


def valid_of(norm: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor | None:
    """Return the mask of what counts in a norm's input, with the axes of x; None: everything does."""
    if not isinstance(norm, ours.SlabNorm):
        return None
    return cut_of(x, norm.pattern, options.get("mask"), options.get("lengths"), None).valid


def never(norm: nn.Module) -> str:
    """Return why a norm is computed by nobody else, whatever its results are; "" if it may be."""
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
        return "not initialised yet: run the model once"
    if isinstance(norm, nn.SyncBatchNorm):
        return "merges its statistics over processes"
    return ""


def why_not(norm: nn.Module) -> str:
    """Return why a norm of one of the nine classes cannot become an accelerated one; "" if it can."""
    if "forward" in norm.__dict__:
        return "its forward was replaced on the object"
    try:
        twin = donor(norm)
    except SlabError as error:
        return "; it has ".join(filter(None, (error.problem, error.got)))
    for there, own in ((norm._parameters, twin._parameters), (norm._buffers, twin._buffers)):
        foreign = there.keys() - own.keys()
        missing = [key for key, value in own.items() if value is not None and key not in there]
        if foreign or [key for key in missing if key in ("weight", "bias", "running_mean", "running_var")]:
            return "its parameters are not where the layer keeps them (pruning or a weight norm does that)"
        for key in there.keys() & own.keys():
            mine, theirs = there[key], own[key]
            if mine is not None and (theirs is None or mine.shape != theirs.shape or mine.is_complex()):
                return f"its {key} is not what its arguments say"
    return ""


def donor(norm: nn.Module) -> ours.SlabNorm:
    """Return a slabnorm layer of a norm's arguments, for the attributes that the norm lacks."""
    n: Any = norm
    tensors = [t for t in (*norm._parameters.values(), *norm._buffers.values()) if t is not None]
    where: dict[str, Any] = {"device": tensors[0].device, "dtype": None} if tensors else {}
    if tensors and tensors[0].is_floating_point():
        where["dtype"] = tensors[0].dtype
    if isinstance(norm, nn.GroupNorm):
        return ours.GroupNorm(n.num_groups, n.num_channels, n.eps, n.affine, bias=_biased(norm), **where)
    if isinstance(norm, nn.LayerNorm):
        return ours.LayerNorm(n.normalized_shape, n.eps, n.elementwise_affine, _biased(norm), **where)
    if isinstance(norm, nn.RMSNorm):
        return ours.RMSNorm(n.normalized_shape, n.eps, n.elementwise_affine, **where)
    kind = ours.InstanceNorm if isinstance(norm, _InstanceNorm) else ours.BatchNorm
    tracks = norm._buffers.get("running_mean") is not None  # the attribute may be switched for a while
    return kind(n.num_features, n.eps, n.momentum, n.affine, tracks, bias=_biased(norm), **where)


def _biased(norm: nn.Module) -> bool:
    return norm._parameters.get("bias") is not None


def become(norm: nn.Module, twin: ours.SlabNorm, activation: str | None, always: bool) -> None:
    """Make a torch.nn norm an accelerated one, in place."""
    kind = type(norm)
    object.__setattr__(norm, "__class__", moved(kind, KINDS[plain_class(kind)]))
    for key in ("running_mean", "running_var"):
        value = norm._buffers.get(key)
        if value is not None and value.dtype in _HALVES:
            norm._buffers[key] = value.float()  # slabnorm keeps running statistics in float32 at least
    added: dict[str, tuple[str, ...]] = {}
    for store in ("_parameters", "_buffers", "__dict__"):
        mine, theirs = (vars(m) if store == "__dict__" else getattr(m, store) for m in (norm, twin))
        added[store] = tuple(key for key in theirs if key not in mine)
        mine.update({key: theirs[key] for key in added[store]})
    norm._non_persistent_buffers_set |= twin._non_persistent_buffers_set
    norm.__dict__ |= {"_added": added, "activation": activation, "always": always}


def revert(norm: Accelerated) -> None:
    """Make an accelerated norm the torch.nn norm that it was, with its present values."""
    added = norm.__dict__["_added"]
    kind = moved(type(norm), type(norm).plain)
    norm._non_persistent_buffers_set -= set(added["_buffers"])
    for store in ("_parameters", "_buffers", "__dict__"):
        mine = vars(norm) if store == "__dict__" else getattr(norm, store)
        for key in added[store]:
            mine.pop(key, None)
    for key in ("_added", "always"):
        norm.__dict__.pop(key)
    object.__setattr__(norm, "__class__", kind)
    weight = norm._parameters.get("weight")
    for key in ("running_mean", "running_var"):
        value = norm._buffers.get(key)
        if value is not None and weight is not None and weight.dtype in _HALVES:
            # slabnorm keeps them in float32; torch wants them in the dtype of the weight.
            norm._buffers[key] = value.to(weight.dtype)
