"""Modules of any class whose norm slabnorm computes: adopted while they are what was recognised.

An adopted module is the same object under a class derived from its own. At each call it is looked at again:
its numbers, its parameters and buffers, its class's forward, its submodules, the input. Where one is not what
the recognition has tried, the module's own forward runs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from slabnorm.functional import run
from slabnorm.kernels.backend import dense
from slabnorm.kernels.call import Found, Given
from slabnorm.nn.diagnostics import recomputing
from slabnorm.prepare import bind
from slabnorm.surgery.computes import Computes, tail
from slabnorm.surgery.crossover import pays_adopted
from slabnorm.surgery.derived import Derived, derived, without
from slabnorm.surgery.fusion.call_sites import hooked
from slabnorm.surgery.twins import attributes, class_numbers
from slabnorm.tracing import traced

_KINDS = (Tensor, nn.Parameter)
_HALVES = (torch.float16, torch.bfloat16)


class Watch:
    """What a module computes, and what it was when that was found out.

    It never changes, so that copies of a module share it. A pickle leaves the class's forward out and takes
    that of the class which it finds.
    """

    def __init__(self, module: nn.Module, computes: Computes) -> None:
        self.computes, self.kind, self.forward = computes, type(module), type(module).forward
        own = copy.deepcopy(attributes(module))
        self.attributes, self.values = tuple(own), tuple(own.values())
        self.size = len(vars(module)) + 2  # with the watch itself, and with what it is asked beside
        self.numbers = class_numbers(self.kind)
        self.held = {
            store: {name: None if t is None else t.shape for name, t in vars(module)[store].items()}
            for store in ("_parameters", "_buffers")
        }
        self.children = _below(module)

    def __deepcopy__(self, memo: Any) -> Watch:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.forward = self.kind.forward

    def computes_now(self, module: nn.Module, x: Any) -> bool:
        """Whether the formula holds for a module as it is and for an input."""
        computes = self.computes
        if type(x) not in _KINDS or traced() or x.device.type != "cpu" or x.dtype not in computes.dtypes:
            return False
        channels = computes.channels
        if x.dim() < 2 or x.numel() == 0 or (channels is not None and x.shape[computes.axis] != channels):
            return False
        return (
            (module.__dict__["_always"] or self._pays(x))
            and self._is_as_it_was(module, x.dtype)
            and not torch.is_autocast_enabled("cpu")
        )

    def _pays(self, x: Tensor) -> bool:
        c = self.computes
        fixed, fused = c.source == "fixed", c.after is not None
        return pays_adopted(
            c.layer, x, fixed=fixed, kernel=c.kernel, over_channels=c.over_channels, fused=fused
        )

    def _is_as_it_was(self, module: nn.Module, dtype: torch.dtype) -> bool:
        own = vars(module)
        if self.kind.forward is not self.forward or len(own) != self.size:
            return False
        if tuple(map(own.get, self.attributes)) != self.values:
            return False
        if self.numbers and any(vars(kind).get(name) != value for kind, name, value in self.numbers):
            return False
        for store, held in self.held.items():
            tensors = own[store]
            if tensors.keys() != held.keys():
                return False
            for name, shape in held.items():
                t = tensors[name]
                if t is None or shape is None:
                    if t is not shape:
                        return False
                elif t.shape != shape or type(t) not in _KINDS or t.device.type != "cpu":
                    return False
                if t is not None and t.is_floating_point() and t.dtype != dtype:
                    return False
        return not self.children or _below(module) == self.children


def _below(module: nn.Module) -> tuple[Any, ...]:
    """Return what is watched of submodules."""
    return tuple((n, type(m), hooked(m), attributes(m)) for n, m in module._modules.items() if m is not None)


class Adopted(Derived):
    """A module whose norm slabnorm computes."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return what the module's own forward returns."""
        watch: Watch = self.__dict__["_adopted"]
        if len(args) == 1 and not options and watch.computes_now(self, args[0]):
            y = _computed(self, watch.computes, args[0])
            if y is not None:
                return y
        return super().forward(*args, **options)


def adopt(module: nn.Module, computes: Computes, always: bool) -> None:
    """Let slabnorm compute what a module computes; in place, as the same object."""
    watch = Watch(module, computes)
    object.__setattr__(module, "__class__", derived(Adopted, type(module)))
    module.__dict__ |= {"_adopted": watch, "_always": always}


def release(module: Adopted) -> None:
    """Give a module its own class back."""
    for name in ("_adopted", "_always"):
        del module.__dict__[name]
    object.__setattr__(module, "__class__", without(type(module), Adopted))


def bare(module: Adopted) -> nn.Module:
    """Return another object of a module's own class that shares everything with it."""
    made = module.under.__new__(module.under)
    vars(made).update({k: v for k, v in vars(module).items() if k not in ("_adopted", "_always")})
    return made


def _computed(module: nn.Module, c: Computes, x: Tensor) -> Tensor | None:
    """Return the result of a module that is what was recognised; None for an input that was not tried."""
    held: dict[str, Any] = {**module._parameters, **module._buffers}
    weight, bias, mean, var = (
        None if n is None else held[n] if held[n].dim() == 1 else held[n].reshape(-1)
        for n in (c.weight, c.bias, c.mean, c.var)
    )
    if c.shift and weight is not None:  # the sum rounded to half precision would be another weight
        weight = (weight.float() if weight.dtype in _HALVES else weight) + c.shift
    bound = bind(c.pattern, c.affine(), c.sizes, x, weight, bias)
    order = c.orders.get((x.dim(), bound.order))
    from_batch = not c.given(module.training)
    if order is None or (from_batch and bound.slab.count == 1):  # which has no variance, as the module says
        return None
    if order not in (bound.order, torch.preserve_format):
        x = dense(x, order)
        bound = bind(c.pattern, c.affine(), c.sizes, x, weight, bias)
    given = None if from_batch else Given(mean, var)  # type: ignore[arg-type]
    activation, child = tail(module, c.after)
    y, found = run(x, bound, weight, bias, c.eps, c.center, given, activation, None)
    if c.source == "running" and module.training and found is not None and not recomputing():
        _track(module, c, found, bound.slab.count)
    return y if child is None else child(y)


@torch.no_grad()
def _track(module: nn.Module, c: Computes, found: Found, count: int) -> None:
    """Let a batch enter running statistics, as torch's batch norm does."""
    for name, batch in ((c.mean, found.mean), (c.var, found.m2 / (count - 1))):
        running: Any = module._buffers[name or ""]
        running.lerp_(batch.reshape(running.shape).to(running.dtype), c.momentum)
    counter = module._buffers.get(c.counter or "")
    if counter is not None:
        counter += 1
