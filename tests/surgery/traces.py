"""All that a surgery could leave behind in a model and its optimiser, and exceptions at every line of one."""

from __future__ import annotations

import linecache
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Return classes, attributes, tables, values and random states, in a form that == compares."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = id(module), type(module), {key: _plain(value) for key, value in vars(module).items()}
    if optimizer is not None:
        found["groups"] = [{key: _plain(value) for key, value in g.items()} for g in optimizer.param_groups]
        found["lists"] = [id(g["params"]) for g in optimizer.param_groups]
        found["state"] = {id(p): _plain(s) for p, s in optimizer.state.items()}
    found["random"] = str((random.getstate(), np.random.get_state())), _plain(torch.get_rng_state())[1]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and nn.parameter.is_lazy(value):
        return id(value)
    if isinstance(value, Tensor):
        held = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        parts = tuple(value.shape), value.dtype, value.requires_grad
        return id(value), held, parts, _plain(value.grad) if value.is_leaf else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set):
        return sorted(map(str, value))
    return id(value) if isinstance(value, nn.Module) else value


class Injected(BaseException):
    """What nobody catches by name."""


def lines_of(work: Callable[[], Any], functions: frozenset[str]) -> int:
    """Return how many lines of these functions of slabnorm's surgery a call runs."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    _traced(work, functions, step)
    return count


def fails_at(line: int, work: Callable[[], Any], functions: frozenset[str]) -> None:
    """Run a call that raises `Injected` before one of these lines."""
    left = line

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Injected

    try:
        _traced(work, functions, step)
    except Injected:
        return
    raise AssertionError("nothing was raised")


def _traced(work: Callable[[], Any], functions: frozenset[str], step: Callable[[], None]) -> None:
    def local(frame: Any, event: str, argument: Any) -> Any:
        # Python visits the line of a `with` again before it calls __exit__, which an exception there skips.
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not text.lstrip().startswith("with "):
            step()
        return local

    def entered(frame: Any, event: str, argument: Any) -> Any:
        ours = "slabnorm/surgery/" in frame.f_code.co_filename and frame.f_code.co_name in functions
        return local if ours else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        work()
    finally:
        sys.settrace(before)


def each(lines: int, most: int) -> Iterator[int]:
    """Yield all numbers below `lines`, or as many as `most` of them, evenly."""
    yield from sorted(
        {round(i * (lines - 1) / (most - 1)) for i in range(most)} if lines > most else range(lines)
    )
