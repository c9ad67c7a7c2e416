"""All of a model that a surgery which fails has to leave as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_Found = dict[tuple[str, str], Any]


def state_of(model: nn.Module) -> _Found:
    """Return classes, attributes, tables and values of all modules, and the state of torch's generator."""
    found: _Found = {("", "random state"): torch.get_rng_state()}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name, "module"] = (id(module), type(module))
        for key, value in vars(module).items():
            if isinstance(value, dict):
                for item, held in value.items():
                    found[name, f"{key}.{item}"] = _of(held)
                found[name, key] = list(value)
            elif isinstance(value, set):
                found[name, key] = set(value)
            else:
                found[name, key] = _of(value)
    return found


def _of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value.requires_grad, value.detach().clone()
    return (id(value), type(value)) if isinstance(value, nn.Module) or callable(value) else value


def assert_unchanged(model: nn.Module, before: _Found) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        if isinstance(value, tuple) and value and isinstance(value[-1], Tensor):
            assert after[key][:-1] == value[:-1], key
            assert torch.equal(after[key][-1], value[-1]), key
        elif isinstance(value, Tensor):
            assert torch.equal(after[key], value), key
        else:
            assert after[key] == value, key
