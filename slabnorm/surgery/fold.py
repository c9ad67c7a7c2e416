"""fold(): batch norm with fixed statistics, and the statistics of inputs, in the weights beside them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from slabnorm import nn as ours
from slabnorm.errors import ModelError, VerificationError
from slabnorm.surgery import effect
from slabnorm.surgery.derived import plain_class
from slabnorm.surgery.effect import Span, difference
from slabnorm.surgery.flow import LAYERS, TRANSPOSED, Flow, LayerCall, agreed, flows
from slabnorm.surgery.fusion.call_sites import hooked
from slabnorm.surgery.norms import KINDS, applied
from slabnorm.surgery.record import Changed, Left, Surgery
from slabnorm.surgery.transaction import transaction
from slabnorm.surgery.walk import Place, walk

if TYPE_CHECKING:
    from slabnorm.inputs import InputNorm

_TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS = (*_TORCHS, nn.SyncBatchNorm, ours.BatchNorm, *(KINDS[kind] for kind in _TORCHS))
_ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "hardswish": nn.Hardswish,
}  # fmt: skip

_TIMES = 8.0  # the folded model's error, in errors of the model itself
_FLOORS = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF = 5e-2
_IN_FLOAT64 = 1e-9, 1e-5  # what is allowed there at least and at most


def fold(model: nn.Module, *, batch: Any = None, inputs: InputNorm | None = None) -> Surgery:
    """Fold batch norm into the layers beside it, in place: the same outputs in eval mode, without the norms.

        s = weight / sqrt(running_var + eps)        t = bias - running_mean * s
        norm(W x + b)  =  (s W) x + (s b + t)       W norm(x) + b  =  (W s) x + (b + sum(W t))

    A norm goes into the convolution, transposed convolution or Linear whose output it alone takes; else into
    the convolution or Linear that alone takes its own output, which must not pad with zeros. It leaves an
    `nn.Identity` behind, or the activation that it ended with. Names, parameters and references to the
    layers stay, and a bias that is missing is made; the state_dict has the norms' keys no more. That one
    layer takes what another makes, and nothing else does, is shown by a trace (torch.fx), by a run on
    `batch`, or by both, which then have to agree. What these do not show is left, with the reason. Weights
    are computed in float64 and rounded once.

    Args:
        model: any module, in eval mode; to be trained on, it would lack its norms.
        batch: what the model can be called with: a tensor, a tuple of positional or a dict of keyword
            arguments. The outputs before and after are compared on it, and in float64. If the model cannot
            be traced, it should take every branch that matters. Without it nothing is compared, models that
            cannot be traced are left, and so are norms beside a Linear, which may give them three axes.
        inputs: an InputNorm to fold into the first layer, see `InputNorm.fold_into`: the model then computes
            from raw data what it computed from `inputs(data)`. `batch` has to be raw, too.

    Returns:
        What was folded, what was left, and why: print it.

    Raises:
        ModelError: the model is in train mode, or does not run on the batch, or does not begin with a layer
            that `inputs` can be folded into.
        OptionError: `inputs` cannot be folded exactly.
        VerificationError: the outputs differ by more than rounding; the model is as it was.

    Jacob et al., "Quantization and Training of Neural Networks" (2018), https://arxiv.org/abs/1712.05877

    >>> import slabnorm as sn, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), sn.BatchNorm(8, activation="relu"))
    >>> y = model(torch.randn(16, 3, 8, 8))
    >>> sn.fold(model.eval())
    1 folded without a check, 0 left
      1  BatchNorm  -> ReLU    into 0
    >>> model
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
    )
    """
    _check_mode(model)
    given = batch if inputs is None or batch is None else _first_argument(batch, inputs)
    plan = _plan(model, given, inputs)
    if not plan.folds and inputs is None:
        return Surgery("folded", (), tuple(plan.left))
    if batch is None:
        with transaction(model):
            plan.commit(model)
        return plan.surgery("folded without a check", None, {})
    found = effect.before(model, given, plan.spans())
    wide = copy.deepcopy(model).double()
    with transaction(model):
        plan.commit(model)
        whole, parts = effect.after(model, replace(found, batch=batch))
        _check(model, wide, plan, batch, found.outputs)
    if not found.outputs:  # integers, or objects that torch does not look into
        return plan.surgery("folded without a check", None, parts)
    return plan.surgery("folded and checked", whole, parts)


@dataclass(frozen=True)
class _Fold:
    """A norm, the layer that it goes into, and whether that stands before it; by names."""

    norm: Place
    layer: Place
    before: bool
    activation: str | None


@dataclass
class _Plan:
    """What is to become of the norms of a model, and of its first layer."""

    folds: list[_Fold] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    inputs: InputNorm | None = None
    first: Place | None = None

    def commit(self, model: nn.Module) -> None:
        """Change the model, or a copy of it."""
        weights: dict[str, tuple[Tensor, Tensor]] = {}
        for fold in self.folds:
            layer = model.get_submodule(fold.layer.name)
            norm: Any = model.get_submodule(fold.norm.name)
            old = weights.get(fold.layer.name) or _wide(layer)
            weights[fold.layer.name] = _folded(layer, *old, *_affine(norm), fold.before)
            rest = _ACTIVATIONS[fold.activation]().train(norm.training)
            for name in fold.norm.names:
                parent, _, child = name.rpartition(".")
                model.get_submodule(parent)._modules[child] = rest
        for name, (weight, bias) in weights.items():
            _give(model.get_submodule(name), weight, bias)
        if self.inputs is not None and self.first is not None:
            layer = model.get_submodule(self.first.name)
            folded: Any = self.inputs.fold_into(layer)
            _give(layer, folded.weight.detach(), folded.bias.detach())
            for hook in folded._forward_pre_hooks.values():
                layer.register_forward_pre_hook(hook)

    def span(self, layer: str) -> Span:
        """Return a layer with the norms that go into it, in the order in which they run."""
        here = [fold for fold in self.folds if fold.layer.name == layer]
        ahead, behind = ([f.norm.name for f in here if f.before == before] for before in (False, True))
        return (*ahead, layer, *behind)

    def spans(self) -> list[Span]:
        """Return what is to be compared: all such layers whose inputs are the same after the change."""
        layers = dict.fromkeys(fold.layer.name for fold in self.folds)
        return [self.span(layer) for layer in layers if self.first is None or layer != self.first.name]

    def surgery(self, done: str, whole: float | None, parts: dict[Span, float]) -> Surgery:
        """Return the record."""
        changed = []
        for fold in self.folds:
            was, rest = type(fold.norm.module).__name__, type(_ACTIVATIONS[fold.activation]()).__name__
            note = f"into {fold.layer.name}" + ("" if fold.before else ", which follows")
            off = parts.get(self.span(fold.layer.name))
            changed.append(Changed(fold.norm.names, was, rest, note, off))
        if self.first is not None:
            kind = type(self.first.module).__name__
            changed.append(Changed(self.first.names, kind, kind, "takes raw data: the InputNorm is in it"))
        return Surgery(done, tuple(changed), tuple(self.left), whole)


def _check_mode(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError("fold() needs a torch.nn.Module", type(model).__name__, "give it the model")
    for place in walk(model):
        if place.module.training and (not place.name or isinstance(place.module, _BatchNorm)):
            raise ModelError(
                "fold() needs a model in eval mode, in which batch norm has fixed statistics",
                f"{place.name or 'the model'} ({type(place.module).__name__}) is in train mode",
                "call model.eval() first",
            )


def _plan(model: nn.Module, batch: Any, inputs: InputNorm | None) -> _Plan:
    plan, places = _Plan(inputs=inputs), walk(model)
    norms = [place for place in places if isinstance(place.module, _BatchNorm)]
    if not norms and inputs is None:
        return plan
    found, untraced = flows(model, batch)
    search = _Search(model, found, untraced)
    for place in norms:
        fold, reason = search.layer_of(place)
        if fold is None:
            plan.left.append(Left(place.names, type(place.module).__name__, reason))
        else:
            plan.folds.append(fold)
    if inputs is not None:
        plan.first = search.first(plan.folds)
    return plan


class _Search:
    """Finds the layer for each norm in what is known of the flow."""

    def __init__(self, model: nn.Module, found: list[Flow], untraced: str) -> None:
        self.flows, self.untraced = found, untraced
        self.places = {place.name: place for place in walk(model)}
        owned = (p for place in self.places.values() for p in place.module._parameters.values())
        self.owners = Counter(id(p) for p in owned)

    def layer_of(self, norm: Place) -> tuple[_Fold | None, str]:
        """Return where a norm goes, or why it stays."""
        reason = _why_not_norm(norm.module)
        if reason:
            return None, reason
        if not self.flows:
            return None, f"the model cannot be traced ({self.untraced}): give a batch"
        calls = [flow.of(norm.name) for flow in self.flows]
        if max(map(len, calls)) != 1:
            return None, "it is used more than once" if any(calls) else "it is not used in a forward"
        if any(norm.name in flow.touched for flow in self.flows):
            return None, "its parameters or statistics are used elsewhere, too"
        reasons = []
        for before in (True, False):
            name = agreed(self.flows, norm.name, _maker if before else _taker)
            reason = self._why_not(norm, name, before)
            if not reason:
                return _Fold(norm, self.places[name or ""], before, applied(norm.module)), ""
            reasons.append(reason)
        return None, "; ".join(reasons)

    def _why_not(self, norm: Place, name: str | None, before: bool) -> str:
        """Return why a norm cannot go into a layer; "" if it can."""
        if name is None or plain_class(type(self.places[name].module)) not in LAYERS:
            return "no layer makes its input for it alone" if before else "no layer alone takes its output"
        layer: Any = self.places[name].module
        reason = self._why_not_layer(name)
        if reason:
            return f"{name} {reason}"
        if any(len(flow.of(name)) != len(flow.of(norm.name)) for flow in self.flows):
            return f"{name} is used elsewhere, too"
        linear = isinstance(layer, nn.Linear)
        outputs = layer.out_features if linear else layer.out_channels
        size = outputs if before else layer.in_features if linear else layer.in_channels
        if size != norm.module.num_features:
            return f"{name} has {size} channels, the norm {norm.module.num_features}"
        rank = max(call.rank for flow in self.flows for call in flow.of(norm.name))
        if linear and not rank:
            return f"{name} may give it three axes: give a batch"
        if rank and rank != layer.weight.dim():
            return f"{name} gives it {rank} axes, of which the norm takes another than {name}"
        if before:
            return ""
        if applied(norm.module):
            return f"{applied(norm.module)} lies between them"
        if bool((_affine(norm.module)[1] != 0).any()) and (
            isinstance(layer, TRANSPOSED) or _pads_zeros(layer)
        ):
            return f"{name} pads with zeros"
        # An identity hands its input on, into which others may write before the layer reads it.
        given = [(flow, call.value) for flow in self.flows for call in flow.of(norm.name)]
        if any(value in flow.written for flow, value in given):
            return "its input is written to"
        if not rank and any(flow.uses[value] != 1 for flow, value in given):
            return "its input is used elsewhere, too: give a batch"
        return ""

    def _why_not_layer(self, name: str) -> str:
        """Return why nothing can be folded into a layer; "" if something can."""
        layer: Any = self.places[name].module
        if set(layer._parameters) != {"weight", "bias"} or not isinstance(layer.weight, nn.Parameter):
            return "keeps its parameters elsewhere (pruning or a weight norm does that)"
        if (
            type(layer).forward is not plain_class(type(layer)).forward
            or hooked(layer)
            or _has_any_global_hook()
        ):
            return "has hooks or another forward"
        if layer.weight.is_meta or not layer.weight.is_floating_point():
            return "has no real numbers as weights"
        shared = any(self.owners[id(p)] > 1 for p in layer._parameters.values() if p is not None)
        if shared or any(name in flow.touched for flow in self.flows):
            return "shares its weights"
        return ""

    def first(self, folds: Sequence[_Fold]) -> Place:
        """Return the layer that alone takes what the model is given; norms that are folded count for nothing.

        Raises:
            ModelError: there is none.
        """
        inside = {fold.norm.name: fold.layer.name for fold in folds if not fold.before}
        taken = {flow.taker(flow.entry) for flow in self.flows}
        name = taken.pop() if len(taken) == 1 else None
        name = inside.get(name, name) if name is not None else None
        reason = (
            "nothing is known of its flow" if not self.flows else "no one layer alone takes what it is given"
        )
        if name is not None and plain_class(type(self.places[name].module)) in LAYERS:
            reason = self._why_not_layer(name)
            if not reason and all(len(flow.of(name)) == 1 for flow in self.flows):
                return self.places[name]
            reason = f"{name} {reason or 'is used more than once'}"
        raise ModelError(
            "The InputNorm cannot be folded into the model's first layer",
            reason + (f" ({self.untraced})" if self.untraced else ""),
            "give a batch, or keep the InputNorm in front of the model",
        )


def _maker(flow: Flow, call: LayerCall) -> str | None:
    return flow.maker(call.value) if flow.uses[call.value] == 1 else None


def _taker(flow: Flow, call: LayerCall) -> str | None:
    return None if call.value is None else flow.taker(call.made)


def _why_not_norm(norm: Any) -> str:
    kind = plain_class(type(norm))
    if kind not in _NORMS or type(norm).forward is not kind.forward:
        return "not one of the batch norms of torch.nn and slabnorm: it may compute something else"
    if set(norm._parameters) != {"weight", "bias"}:
        return "it keeps its parameters elsewhere (pruning or a weight norm does that)"
    if hooked(norm) or _has_any_global_hook():
        return "hooks or a replaced forward would see other values"
    if norm._buffers.get("running_mean") is None or norm._buffers.get("running_var") is None:
        return "it has no running statistics"
    if norm.running_mean.is_meta or norm.eps is None:
        return "its statistics or its eps are not known"
    scale, shift = _affine(norm)
    return "" if bool((scale.isfinite() & shift.isfinite()).all()) else "its scale is not finite"


def _pads_zeros(layer: Any) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return bool(layer.padding == "same" and any(size > 1 for size in layer.kernel_size))
    return any(layer.padding)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a norm in eval mode, in float64."""
    scale = (norm.running_var.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _wide(layer: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer in float64."""
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    weight = layer.weight.detach().double()
    return weight, weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach().double()


def _folded(
    layer: Any, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, before: bool
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer with scale and shift of its outputs, or of its inputs, in them."""
    groups, rest = getattr(layer, "groups", 1), (1,) * (weight.dim() - 2)
    transposed = isinstance(layer, TRANSPOSED)
    if before and transposed:  # (inputs, outputs of a group, ...)
        by_group = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *rest)
        return by_group.flatten(0, 1), bias * scale + shift
    if before:
        return weight * scale.reshape(-1, 1, *rest), bias * scale + shift
    if transposed:  # of shift 0
        return weight * scale.reshape(-1, 1, *rest), bias
    # (outputs, inputs of a group, ...)
    spread = [
        t.reshape(groups, 1, -1).expand(groups, len(weight) // groups, -1).reshape(*weight.shape[:2], *rest)
        for t in (scale, shift)
    ]
    return weight * spread[0], bias + (weight * spread[1]).flatten(1).sum(1)


def _give(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Give a layer other numbers; the Parameters stay, and a bias is made where there is none.

    Raises:
        ModelError: the layer's dtype does not hold them.
    """
    old = layer.weight
    new = torch.empty_like(old.detach()).copy_(weight), bias.to(old.dtype)
    if not all(bool(t.isfinite().all()) for t in new):
        raise ModelError(
            f"The folded weights of {layer} are out of the range of {old.dtype}",
            fix="fold in float32, and cast the model afterwards",
        )
    old.data = new[0]
    if layer.bias is None:
        layer.register_parameter("bias", nn.Parameter(new[1], requires_grad=old.requires_grad))
    else:
        layer.bias.data = new[1].to(layer.bias.dtype)


def _first_argument(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with a function applied to the first of a model's arguments."""
    if isinstance(batch, dict):
        first = next(iter(batch))
        return {**batch, first: change(batch[first])}
    return (change(batch[0]), *batch[1:]) if isinstance(batch, tuple) else change(batch)


def _check(model: nn.Module, wide: nn.Module, plan: _Plan, batch: Any, old: list[Tensor]) -> None:
    """Raise VerificationError if a folded model is off by more than rounding.

    In float64 the outputs may differ by 1e-9 of their size, or by what the model in its own dtype is off by,
    where that is less than 1e-5: a model may cast to float32 within. In its own dtype the folded model may be
    off from float64 by 8 times what the model was off by, or by 1e-4 (float32; 1e-9 and 5e-2 for float64 and
    half precision).

    Args:
        model: folded.
        wide: a copy in float64, not folded yet.
        old: the outputs before.
    """
    new = effect.before(model, batch, ()).outputs
    if len(old) != len(new) or not all(map(_finite_alike, old, new)):
        raise _differs("other elements are NaN or infinite")
    dtypes = {t.dtype for t in old}
    floor = max((_FLOORS.get(dtype, _HALF) for dtype in dtypes), default=0.0)
    raw = pytree.tree_map(_as_float64, batch)
    if plan.inputs is not None:
        raw = _first_argument(raw, Tensor.double)
    try:
        truth = effect.before(wide, _first_argument(raw, plan.inputs) if plan.inputs else raw, ()).outputs
    except ModelError:  # a model that insists on its dtype
        truth = old
    else:
        plan.commit(wide)
        exact = difference(truth, effect.before(wide, raw, ()).outputs)
        truth = list(map(_overflown_as, truth, old))
        allowed = max(_IN_FLOAT64[0], min(difference(truth, old), _IN_FLOAT64[1]))
        if not exact <= allowed:
            raise _differs(f"by {exact:.1e} of their size in float64, more than {allowed:.1e}")
    allowed = max(_TIMES * difference(truth, old), floor)
    if not difference(truth, new) <= allowed:
        raise _differs(f"by {difference(truth, new):.1e} of their size, more than {allowed:.1e}")


def _finite_alike(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and torch.equal(old.isfinite(), new.isfinite())


def _overflown_as(truth: Tensor, old: Tensor) -> Tensor:
    """Return the truth, NaN or infinite where the model itself is: elsewhere it is off by rounding."""
    return torch.where(old.isfinite(), truth, old.to(truth.dtype)) if truth.shape == old.shape else truth


def _as_float64(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _differs(by: str) -> VerificationError:
    return VerificationError(
        "The folded model does not compute what the model computes",
        f"its outputs differ {by}" if by.startswith("by") else by,
        "the model is unchanged; please report it, with the model's forward",
    )
