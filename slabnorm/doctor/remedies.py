"""What can be done about a finding by itself: a function for each code that says it, and then does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from slabnorm.doctor.record import ModelRecord
from slabnorm.report.check import Finding
from slabnorm.report.fixes import Fix
from slabnorm.surgery import freeze
from slabnorm.surgery.parameter_groups import exchange, splits, without_decay
from slabnorm.surgery.walk import walk

# Layers of which it is known that they do without a bias that is None. A subclass may add it by itself.
WITHOUT_BIAS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
EPS = 1e-5  # that of torch.nn's norms, and of the printed fix

Act = Callable[[nn.Module, Optimizer | None], None]


@dataclass(frozen=True)
class Remedy:
    """A change that takes a finding away.

    Attributes:
        fix: what it changes, in words.
        act: does it, to the model or a copy of it, and its optimiser.
        keeps: whether the model's outputs stay as they are.
        last: whether it comes after the statistics are taken anew.
    """

    fix: Fix
    act: Act
    keeps: bool = False
    last: bool = False


@dataclass(frozen=True)
class Patient:
    """What a remedy is chosen by: a model, what is known of it, and its optimiser."""

    model: nn.Module
    record: ModelRecord
    optimizer: Optimizer | None


class _NotCertainError(Exception):
    """Why a change is not made, although the code has one."""


def remedy(patient: Patient, finding: Finding) -> Remedy | str:
    """Return what takes a finding away, or why that is not done; "" where only its author can do it."""
    choose = _CHOICES.get(finding.code)
    if choose is None:
        return ""
    try:
        return choose(patient, finding)
    except _NotCertainError as why:
        return str(why)


def _half_statistics(patient: Patient, finding: Finding) -> Remedy:
    """502: a norm with its statistics, weight and bias in float32, as kernels for mixed dtypes want them."""
    norm = patient.model.get_submodule(finding.layer)
    if not isinstance(norm, _BatchNorm):
        raise _NotCertainError("it is no batch norm of torch.nn")
    others = [p for place in walk(patient.model) if place.module is not norm
              for p in place.module.parameters(recurse=False)]  # fmt: skip
    if any(p is other for p in norm.parameters(recurse=False) for other in others):
        raise _NotCertainError("another layer shares its weight or bias")

    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        norm = model.get_submodule(finding.layer)
        for name, buffer in norm._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                norm._buffers[name] = buffer.float()
        for parameter in norm.parameters(recurse=False):
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.float()
            parameter.grad = None if gradient is None else gradient.float()
            state = optimizer.state.get(parameter) if optimizer is not None else None
            if optimizer is not None and state:
                optimizer.state[parameter] = {key: _float(value) for key, value in state.items()}

    dtype = str(norm.running_mean.dtype).removeprefix("torch.")  # type: ignore[union-attr]
    note = "with its weight and bias; what was rounded away before stays lost"
    return Remedy(Fix(502, finding.layer, f"statistics in {dtype}", "statistics in float32", note), act)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _redundant_bias(patient: Patient, finding: Finding) -> Remedy:
    """301: no bias; the running mean of the norm behind it is that much lower, so that outputs stay."""
    name, record = finding.layer, patient.record
    after = next(layer for layer in record.norms if layer.before == name)
    before = record.layer(name)
    layer, norm = (patient.model.get_submodule(at) for at in (name, after.name))
    bias, mean = layer._parameters.get("bias"), norm._buffers.get("running_mean")
    if any(isinstance(place.module, DistributedDataParallel) for place in walk(patient.model)):
        raise _NotCertainError(
            "DistributedDataParallel counts on the bias: fix the model before it is wrapped"
        )
    if type(layer) not in WITHOUT_BIAS or "forward" in layer.__dict__ or bias is None:
        raise _NotCertainError(f"{type(layer).__name__} may use its bias in another way")
    if (before is not None and before.calls > 1) or after.calls > 1:
        raise _NotCertainError("a forward calls it, or the norm, more than once")
    if isinstance(patient.optimizer, LBFGS) and patient.optimizer.state:
        raise _NotCertainError("LBFGS keeps one state for all parameters: make a new one after the change")
    if layer._forward_hooks or norm._forward_pre_hooks:
        raise _NotCertainError("a hook reads what would change")
    if mean is not None and mean.shape != bias.shape:
        raise _NotCertainError("the norm's running mean has another shape")

    @torch.no_grad()
    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        layer, norm = (model.get_submodule(at) for at in (name, after.name))
        bias, mean = layer._parameters["bias"], norm._buffers.get("running_mean")
        assert bias is not None
        if mean is not None:
            mean.sub_(bias)
        layer.register_parameter("bias", None)
        if optimizer is not None and not any(p is bias for p in model.parameters()):
            exchange(optimizer, [], [bias])

    note = "in the code: bias=False"
    if mean is not None:
        note += f"; {after.name or 'the norm'}'s running mean is lower by it"
    fix = Fix(301, name, f"a bias of {bias.numel()} numbers", "no bias", note)
    return Remedy(fix, act, keeps=True)


def _decay(patient: Patient, finding: Finding) -> Remedy:
    """302: groups without weight decay for the norms' parameters, with their state."""
    optimizer, model = patient.optimizer, patient.model
    assert optimizer is not None
    parameters = _of_norms(model, patient.record)
    if not parameters:
        raise _NotCertainError("other layers share these parameters")
    if hasattr(optimizer.step, "_wrapped_by_lr_sched") and splits(optimizer, parameters):
        raise _NotCertainError(
            "a schedule of learning rates counts the groups: split them before you make it"
        )
    decays = sorted({g.get("weight_decay", 0) for g in optimizer.param_groups if _holds(g, parameters)})
    rates = ", ".join(f"{float(rate):g}" for rate in decays if rate)

    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        assert optimizer is not None
        without_decay(optimizer, _of_norms(model, patient.record))

    count = len(patient.record.decayed)
    what = "weight and bias of a norm" if count == 1 else f"weight and bias of {count} norms"
    note = f"{what}; the optimiser keeps their state"
    return Remedy(Fix(302, finding.layer, f"weight_decay={rates}", "weight_decay=0", note), act)


def _of_norms(model: nn.Module, record: ModelRecord) -> list[nn.Parameter]:
    """Return the parameters of the decayed norms that no other kind of layer shares."""
    norms = {layer.name for layer in record.norms}
    places = [place for place in walk(model) if place.name not in norms]
    others = {id(p) for place in places for p in place.module.parameters(recurse=False)}
    found = {id(p): p for name in record.decayed for p in model.get_submodule(name).parameters(recurse=False)}
    return [p for p in found.values() if id(p) not in others]


def _holds(group: dict[str, Any], parameters: Iterable[nn.Parameter]) -> bool:
    held = {id(p) for p in group["params"]}
    return any(id(p) in held for p in parameters)


def _other_momentum(patient: Patient, finding: Finding) -> Remedy:
    """204: one minus the momentum."""
    layer = patient.record.layer(finding.layer)
    assert layer is not None
    assert layer.norm is not None
    assert layer.norm.momentum is not None
    was = layer.norm.momentum
    if patient.model.get_submodule(finding.layer).__dict__.get("momentum") != was:
        raise _NotCertainError("it keeps momentum in another place, or by another convention")
    now = round(1 - was, 10) or 0.1

    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        norm: Any = model.get_submodule(finding.layer)
        norm.momentum = now

    fix = Fix(204, finding.layer, f"momentum={was:g}", f"momentum={now:g}", "in the code too")
    return Remedy(fix, act)


def _eps(patient: Patient, finding: Finding) -> Remedy:
    """501: the eps that torch.nn has."""
    norm = patient.model.get_submodule(finding.layer)
    name = next((name for name in ("eps", "variance_epsilon") if name in norm.__dict__), None)
    if name is None:
        raise _NotCertainError("it keeps eps in another place")

    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        setattr(model.get_submodule(finding.layer), name, EPS)

    note = "in the code too; outputs change where a variance is not far above it"
    was = f"{name}={norm.__dict__[name]:g}"
    return Remedy(Fix(501, finding.layer, was, f"{name}={EPS:g}", note), act)


def _left_in_eval(patient: Patient, finding: Finding) -> Remedy:
    """102: the mode of the model around it."""
    block = finding.layer.rpartition(".")[0]
    if block and not patient.model.get_submodule(block).training:
        raise _NotCertainError(
            f"{block} is in eval mode as a whole: train() all of it, or freeze it if that is meant"
        )

    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        model.get_submodule(finding.layer).train()

    note = "until the next eval(), as no checkpoint keeps a mode; sn.freeze if it was meant"
    return Remedy(Fix(102, finding.layer, "eval mode", "train mode, as the model", note), act)


def _half_frozen(patient: Patient, finding: Finding) -> Remedy:
    """103: statistics that stay as they are now."""
    norm = patient.model.get_submodule(finding.layer)
    if "forward" in norm.__dict__:
        raise _NotCertainError("its forward was replaced on the object")
    if norm._buffers.get("running_mean") is None:
        raise _NotCertainError("it keeps its statistics in another place")

    def act(model: nn.Module, optimizer: Optimizer | None) -> None:
        norm = model.get_submodule(finding.layer)
        freeze(model, where=lambda name, module: module is norm)

    note = "as they are now; those of before are in its checkpoint"
    return Remedy(Fix(103, finding.layer, "statistics move", "statistics frozen", note), act, last=True)


_CHOICES: dict[int, Callable[[Patient, Finding], Remedy]] = {
    502: _half_statistics,
    301: _redundant_bias,
    302: _decay,
    204: _other_momentum,
    501: _eps,
    102: _left_in_eval,
    103: _half_frozen,
}
ORDER = tuple(_CHOICES)  # in which they are done: dtypes before what is computed in them
