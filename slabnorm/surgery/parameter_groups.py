"""The parameters that an optimiser holds, after a surgery has made new ones or left some without a module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from slabnorm.errors import OptionError


class Born(NamedTuple):
    """A new parameter, its name in the model, and the parameters that its module had."""

    parameter: nn.Parameter
    name: str
    beside: tuple[nn.Parameter, ...]


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Raise OptionError unless an optimiser holds parameters of a model."""
    if not isinstance(optimizer, Optimizer):
        got = type(optimizer).__name__
        raise OptionError("optimizer must be a torch.optim.Optimizer", got, "give the optimiser of the model")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    mine = {id(p) for p in model.parameters()}
    if mine and not held & mine:
        fix = "give the optimiser that was made with this model's parameters"
        raise OptionError("The optimizer holds no parameter of the model", "", fix)


@contextmanager
def unchanged_if_it_fails(optimizer: Optimizer | None) -> Iterator[None]:
    """Put an optimiser's groups and state back if the block raises anything."""
    if optimizer is None:
        yield
        return
    groups = [(group, group.copy(), _lists(group)) for group in optimizer.param_groups]
    state = dict(optimizer.state)
    try:
        yield
    except BaseException:
        optimizer.param_groups[:] = [group for group, _, _ in groups]
        for group, before, lists in groups:
            group.clear()
            group.update(before)
            for name, values in lists.items():
                group[name][:] = values
        optimizer.state.clear()
        optimizer.state.update(state)
        raise


def exchange(optimizer: Optimizer, born: Sequence[Born], gone: Sequence[nn.Parameter]) -> None:
    """Give an optimiser the parameters that are new, and take from it those that are gone, with their state.

    A new one comes after those that its module had, into their group. Of a module that had none it comes into
    the first group; of one whose parameters the optimiser does not hold it stays outside. So does a constant,
    unless it is beside another.
    """
    for new in born:
        if all(p.requires_grad for p in new.beside) and not new.parameter.requires_grad:
            continue
        for group in optimizer.param_groups:
            places = [i for i, p in enumerate(group["params"]) if any(p is other for other in new.beside)]
            if places or not new.beside:
                _insert(group, max(places, default=len(group["params"]) - 1) + 1, new)
                break
    left = {id(p) for p in gone}
    for group in optimizer.param_groups:
        keep = [i for i, p in enumerate(group["params"]) if id(p) not in left]
        for name, values in _lists(group).items():
            group[name][:] = [values[i] for i in keep]
    for parameter in gone:
        optimizer.state.pop(parameter, None)


def without_decay(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Let an optimiser's weight decay leave some parameters alone.

    Of each group that is decayed and holds some, these become a group of their own, which has the group's
    other options. A group of them alone stays one. The state of every parameter stays, as it is kept by
    parameter.
    """
    chosen = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        places = [i for i, p in enumerate(group["params"]) if id(p) in chosen]
        if not group.get("weight_decay", 0) or not places:
            continue
        if len(places) == len(group["params"]):
            group["weight_decay"] = 0.0
            continue
        taken: dict[str, Any] = {name: [values[i] for i in places] for name, values in _lists(group).items()}
        for name, values in _lists(group).items():
            group[name][:] = [value for i, value in enumerate(values) if i not in places]
        optimizer.add_param_group({**group, **taken, "weight_decay": 0.0})


def splits(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether `without_decay` makes a group that is not there yet."""
    chosen = {id(p) for p in parameters}
    decayed = (g for g in optimizer.param_groups if g.get("weight_decay", 0))
    return any(0 < sum(id(p) in chosen for p in g["params"]) < len(g["params"]) for g in decayed)


def _insert(group: dict[str, Any], at: int, new: Born) -> None:
    group["params"].insert(at, new.parameter)
    if "param_names" in group:
        group["param_names"].insert(at, new.name)


def _lists(group: dict[str, Any]) -> dict[str, list[Any]]:
    """Return copies of a group's lists with an entry for each parameter; LBFGS holds on to the lists."""
    return {name: list(group[name]) for name in ("params", "param_names") if name in group}
