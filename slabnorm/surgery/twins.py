"""A module's forward tried out: on a copy with other values, on the CPU, and without a trace.

What is tried may be anybody's code. It runs on a copy that shares nothing with the module, under torch's
usual modes, with the random states put back. A forward that prints, counts, or changes its input is found out
at its first run, and what it counted is put back where it can be seen.
"""

from __future__ import annotations

import copy
import enum
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from slabnorm.surgery.transaction import Generators

# Data that a copy can have as it is, and that says all of itself by `==`.
_PLAIN = (
    type(None), bool, int, float, str, bytes, torch.dtype, torch.device, enum.Enum, type, FunctionType,
    BuiltinFunctionType,
)  # fmt: skip
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


class SideEffectError(Exception):
    """A forward does more than to return a tensor; the text says what."""


class Result(NamedTuple):
    """What a forward returned, and the buffers that it left behind."""

    y: Tensor
    buffers: dict[str, Tensor]


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that a module has beside those of every module; its mode is not among them."""
    return {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE and k != "training"}


def class_numbers(kind: type[nn.Module]) -> tuple[tuple[type, str, float], ...]:
    """Return the numbers that a class and its parents keep, which a forward may read, too."""
    return tuple(
        (k, name, value)
        for k in _own_classes(kind)
        for name, value in vars(k).items()
        if type(value) in (int, float, bool) and not name.startswith("__")
    )


def _own_classes(kind: type[nn.Module]) -> list[type]:
    return [k for k in kind.__mro__ if not k.__module__.startswith("torch.") and k is not object]


def is_plain(value: Any) -> bool:
    """Whether a value is plain data: numbers, text, functions, and containers of these."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return isinstance(value, _PLAIN)


def frozen(value: Any) -> Any:
    """Return plain data as something that a dict can be asked for."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(frozen, value))
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in value.items())
    return value


def make(module: nn.Module, values: dict[str, Tensor], dtype: torch.dtype, training: bool) -> nn.Module:
    """Return a copy of a module without its hooks, on the CPU, with these parameters and buffers.

    Args:
        module: a module whose attributes are plain, and whose submodules have no parameters.
        values: for each floating-point parameter and buffer; other buffers are 0.
        dtype: of parameters and buffers.
        training: the mode.
    """
    made = type(module).__new__(type(module))
    nn.Module.__init__(made)
    vars(made).update(copy.deepcopy(attributes(module)))
    for name, parameter in module._parameters.items():
        made._parameters[name] = None if parameter is None else nn.Parameter(values[name].to(dtype))
    for name, buffer in module._buffers.items():
        if buffer is None:
            made._buffers[name] = None
        elif buffer.is_floating_point():
            made._buffers[name] = values[name].to(dtype, copy=True)
        else:
            made._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")
    made._modules.update(copy.deepcopy(module._modules))
    return made.train(training)


def run(made: nn.Module, x: Tensor) -> Result:
    """Run a copy's forward once.

    Raises:
        SideEffectError: it prints, changes its input or its attributes, or counts in its class or module.
        Exception: what the forward raises, or TypeError if it returns no tensor of the input's shape.
    """
    before, given, outside = frozen(attributes(made)), x.detach().clone(), _Outside(type(made))
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            y = type(made).forward(made, x)
    finally:
        counted = outside.put_back()
    if counted:
        raise SideEffectError(f"its forward changes {counted}")
    if printed.getvalue():
        raise SideEffectError("its forward prints")
    if frozen(attributes(made)) != before:
        raise SideEffectError("its forward changes its attributes")
    if not torch.allclose(x.detach(), given, rtol=0, atol=0, equal_nan=True):
        raise SideEffectError("its forward changes its input")
    if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
        raise TypeError("its forward does not return a tensor of its input's shape")
    return Result(y, {name: t.clone() for name, t in made._buffers.items() if t is not None})


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block under torch's usual modes, without warnings, and with the random states put back."""
    generators = Generators()
    try:
        with (
            warnings.catch_warnings(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        generators.put_back()


class _Outside:
    """The numbers and lists of a class, its parents, and of the file that its forward is written in."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.classes = {k: _counters(vars(k)) for k in _own_classes(kind)}
        self.globals = getattr(kind.forward, "__globals__", {})
        self.before = _counters(self.globals)

    def put_back(self) -> str:
        """Undo what was counted; return its name, "" if nothing was."""
        found = ""
        for kind, before in self.classes.items():
            for name, (value, length) in before.items():
                now = vars(kind).get(name)
                if _changed(now, value, length):
                    found = f"{kind.__name__}.{name}"
                    setattr(kind, name, _undone(value, length))
        for name, (value, length) in self.before.items():
            if _changed(self.globals.get(name), value, length):
                found = name
                self.globals[name] = _undone(value, length)
        return found


def _counters(names: Any) -> dict[str, tuple[Any, int]]:
    return {
        name: (value, len(value) if type(value) is list else 0)
        for name, value in list(names.items())
        if type(value) in (int, float, list)
    }


def _changed(now: Any, value: Any, length: int) -> bool:
    return now is not value or (type(value) is list and len(value) != length)


def _undone(value: Any, length: int) -> Any:
    if type(value) is list:
        del value[length:]
    return value
