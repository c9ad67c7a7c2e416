"""freeze() and unfreeze(): norms whose statistics stay as they are, whatever `.train()` says."""

from __future__ import annotations

from typing import Any

from torch import nn

from slabnorm.errors import ModelError
from slabnorm.surgery.derived import Derived, derived, without
from slabnorm.surgery.effect import after, before
from slabnorm.surgery.norms import norm_like
from slabnorm.surgery.record import Changed, Left, Surgery
from slabnorm.surgery.transaction import transaction
from slabnorm.surgery.walk import Place, Where, meant, walk
from slabnorm.tracing import readable


class Frozen(Derived):
    """A norm that stays in eval mode.

    `training` reads False whoever sets it. What `train()` and `eval()` have set lies in the object's own
    dictionary, and is there again when the class is taken back.
    """

    transparent = True
    __jit_unused_properties__ = ("training",)

    @property
    def training(self) -> bool:
        """False."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["training"] = mode

    def reset_running_stats(self) -> None:
        """Leave the statistics alone, which `torch.optim.swa_utils.update_bn` would lose."""

    def extra_repr(self) -> str:
        """Return the norm's own words, and that it is frozen."""
        return ", ".join(filter(None, (super().extra_repr(), "frozen")))


def freeze(
    model: nn.Module, *, where: Where | None = None, affine: bool = False, batch: Any = None
) -> Surgery:
    """Keep the statistics of a model's norms as they are, in place, whatever `.train()` says.

        y = weight * (x - running_mean) / sqrt(running_var + eps) + bias        in train mode, too

    This is for fine-tuning, where batches are small or from other data. A frozen norm is the same object
    under a subclass of its class that has the same name: its parameters, `state_dict` keys, hooks and
    references stay, `isinstance` stays true, and copies, pickles and wrappers such as
    DistributedDataParallel keep it frozen. Its `training` reads False whoever sets it, and
    `reset_running_stats()` does nothing, so that `torch.optim.swa_utils.update_bn` leaves it alone. A
    second call changes nothing more, and `unfreeze` goes back. `accelerate` and `restore` may come before
    or after.

    Args:
        model: any module; the model itself may be a norm.
        where: a function of a norm's name and the norm that says whether it is meant; by default all are.
        affine: also make weight and bias constants: `requires_grad` is False, and gradients are dropped.
        batch: a tensor, a tuple of positional or a dict of keyword arguments, to measure that outputs in eval
            mode stay the same.

    Returns:
        What was frozen, what was left, and why: print it.

    Raises:
        ModelError: `model` is no module, or it does not run on the batch.

    He, Zhang, Ren and Sun fix batch norm so to fine-tune a detector: "Deep Residual Learning for Image
    Recognition" (2016), appendix A, https://arxiv.org/abs/1512.03385.

    >>> import slabnorm as sn, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.LayerNorm(6))
    >>> model(torch.randn(4, 3, 8, 8)).shape
    torch.Size([4, 8, 6, 6])
    >>> sn.freeze(model)
    1 frozen, 1 left
      1  BatchNorm2d  -> statistics frozen
      2  LayerNorm    left                  has no running statistics; affine=True freezes weight and bias
    >>> model.train()[1]
    BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, frozen)
    """
    chosen, left = _chosen(model, "freeze", where), []
    todo: list[Place] = []
    for place in chosen:
        reason = _why_not(place.module, affine)
        if reason:
            left.append(Left(place.names, type(place.module).__name__, reason))
        else:
            todo.append(place)
    found = before(model, batch, [(place.name,) for place in todo]) if batch is not None else None
    # All of them before any change: norms may share a parameter.
    asked = [{name: p.requires_grad for name, p in _learned(place.module)} for place in todo]
    with transaction(model):
        for place, asks in zip(todo, asked, strict=True):
            _freeze(place.module, asks if affine else {})
        whole, parts = after(model, found) if found is not None else (None, {})
        changed = (
            Changed(p.names, type(p.module).__name__, _state(p.module), _note(p.module), parts.get((p.name,)))
            for p in todo
        )
        return Surgery("frozen", tuple(changed), tuple(left), whole)


def unfreeze(model: nn.Module, *, where: Where | None = None) -> Surgery:
    """Let the frozen norms of a model go on, in place.

    Class and `requires_grad` are what they were before `freeze`. So is the mode, unless `train()` or `eval()`
    has asked for another one meanwhile.

    Args:
        model: any module; the model itself may be a norm.
        where: a function of a norm's name and the norm that says whether it is meant; by default all are.

    Returns:
        What was unfrozen: print it.

    Raises:
        ModelError: `model` is no module.

    >>> import slabnorm as sn, torch
    >>> norm = torch.nn.BatchNorm2d(8)
    >>> report = sn.freeze(norm, affine=True)
    >>> sn.unfreeze(norm)
    1 unfrozen, 0 left
      (the model)  BatchNorm2d  -> statistics, weight and bias go on
    >>> norm.training, norm.weight.requires_grad
    (True, True)
    """
    todo = [place for place in _chosen(model, "unfreeze", where) if isinstance(place.module, Frozen)]
    changed = [
        Changed(p.names, type(p.module).__name__, _state(p.module).replace("frozen", "go on")) for p in todo
    ]
    with transaction(model):
        for place in todo:
            norm = place.module
            for name, asks in norm.__dict__.pop("_asked", {}).items():
                parameter = norm._parameters.get(name)
                if parameter is not None:
                    parameter.requires_grad_(asks)
            object.__setattr__(norm, "__class__", without(type(norm), Frozen))
        return Surgery("unfrozen", tuple(changed))


def _chosen(model: nn.Module, function: str, where: Where | None) -> list[Place]:
    if not isinstance(model, nn.Module):
        got = type(model).__name__
        raise ModelError(f"{function}() needs a torch.nn.Module", got, "give it the model")
    return [place for place in walk(model) if norm_like(place.module) and meant(place, where)]


def _why_not(norm: nn.Module, affine: bool) -> str:
    """Return why there is nothing to freeze in a norm, or why it cannot be; "" if it can."""
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
        return "not initialised yet: run the model once"
    if "forward" in norm.__dict__:
        return "its forward was replaced on the object"
    learned = [name for name, _ in _learned(norm)]
    if isinstance(norm, Frozen):
        return "" if affine and learned and "_asked" not in norm.__dict__ else "frozen already"
    if _tracks(norm) or (affine and learned):
        return ""
    if learned:
        return "has no running statistics; affine=True freezes weight and bias"
    return "has no running statistics, and no weight and bias"


def _tracks(norm: nn.Module) -> bool:
    return norm._buffers.get("running_mean") is not None


def _learned(norm: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in norm._parameters.items() if p is not None]


def _freeze(norm: nn.Module, asked: dict[str, bool]) -> None:
    """Freeze a norm, and of its parameters those named, with what their `requires_grad` was."""
    if not isinstance(norm, Frozen):
        object.__setattr__(norm, "__class__", derived(Frozen, type(norm)))
    for name, parameter in _learned(norm):
        if name in asked:
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimiser would go on with it
    if asked:
        norm.__dict__["_asked"] = asked


def _state(norm: nn.Module) -> str:
    parts = ["statistics"] if _tracks(norm) else []
    parts += ["weight and bias"] if "_asked" in norm.__dict__ else []
    return f"{', '.join(parts)} frozen"


def _note(norm: nn.Module) -> str:
    mean, var = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
    if mean is None or var is None or not readable(mean) or bool((mean != 0).any() | (var != 1).any()):
        return ""
    return "its running statistics are still mean 0 and variance 1: load or train them first"
