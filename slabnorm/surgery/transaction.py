"""A model that is changed wholly or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slabnorm.surgery.walk import walk


@contextmanager
def transaction(model: nn.Module) -> Iterator[None]:
    """Put a model back as it was if the block raises anything, KeyboardInterrupt included.

    Put back are, for every module: its class, its attributes, its tables of parameters, buffers, submodules
    and hooks, and its mode; the values of buffers; what parameters hold, ask and have of gradients; and the
    states of the random number generators of torch, NumPy and Python. Buffers are copied for that. Parameters
    are not: a block gives a parameter other values by `parameter.data = values`, never by writing into them.

    >>> model = torch.nn.Linear(2, 2)
    >>> before = model.weight.detach().clone()
    >>> try:
    ...     with transaction(model):
    ...         model.weight.data = torch.zeros(2, 2)
    ...         raise ValueError
    ... except ValueError:
    ...     torch.equal(model.weight, before)
    True
    """
    modules = [_Module(place.module) for place in walk(model)]
    tensors = [_Values(t) for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()]
    generators = Generators()
    try:
        yield
    except BaseException:
        for module in modules:
            module.put_back()
        for values in tensors:
            values.put_back()
        generators.put_back()
        raise


class _Module:
    """The class and the attributes of a module; the tables among them by what they hold."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.attributes = module, type(module), vars(module).copy()
        self.tables = [
            (table, table.copy())
            for table in self.attributes.values()
            if isinstance(table, dict | set | list) and hasattr(table, "copy")
        ]

    def put_back(self) -> None:
        object.__setattr__(self.module, "__class__", self.kind)
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for table, before in self.tables:
            table.clear()
            if isinstance(table, list):
                table.extend(before)
            else:
                table.update(before)


class _Values:
    """What a parameter or a buffer holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.data = tensor, tensor.data
        holds = not isinstance(tensor, nn.Parameter) and not is_lazy(tensor)
        self.copied = tensor.detach().clone() if holds else None
        self.asks, self.gradient = tensor.requires_grad, tensor.grad if tensor.is_leaf else None

    def put_back(self) -> None:
        self.tensor.data = self.data
        if self.copied is not None:
            self.tensor.detach().copy_(self.copied)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.asks)
            self.tensor.grad = self.gradient


class Generators:
    """The states of the random number generators."""

    def __init__(self) -> None:
        self.python, self.numpy, self.torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.cuda: list[Any] = torch.cuda.get_rng_state_all() if on_gpu else []

    def put_back(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
