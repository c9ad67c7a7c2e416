"""Classes of modules whose methods run norms together with what follows: made, found again, unmade.

A rewritten module is its old object under a subclass of its own class, with the same name. Its methods are
the class's, with the call sites of norms rewritten; everything else is inherited.
"""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from torch import fx, jit, nn

from slabnorm.surgery import sites
from slabnorm.surgery.forms import Test
from slabnorm.surgery.match import Rewriter, Site
from slabnorm.surgery.source import method_of, tree_of


class Rewritten:
    """What rewritten modules have beside their class: the way back, and through pickle and deepcopy."""

    plain: ClassVar[type[nn.Module]]
    paths: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]]  # of norms, of activations

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep a user's own `__init_subclass__`, such as a registry, from seeing the class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the user's class, which pickle finds, and what to rewrite in it."""
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1] == (type(self),):  # type: ignore[attr-defined]
            return (again, (self.plain, *self.paths), *reduced[2:])
        return reduced


def again(plain: type[nn.Module], norms: Iterable[str], activations: Iterable[str]) -> nn.Module:
    """Return an empty object of a rewritten class, as pickle and deepcopy fill it."""
    try:
        kind = rewritten(plain, tuple(norms), tuple(activations))
    except Exception:  # its source is not there, or another: the norms stay fast, unfused
        kind = plain
    return kind.__new__(kind)


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has, or had before it was rewritten."""
    return module.plain if isinstance(module, Rewritten) else type(module)


def rewritable(kind: type[nn.Module]) -> bool:
    """Whether a module of this class may be given a rewritten class."""
    if issubclass(kind, fx.GraphModule | jit.ScriptModule):
        return False  # their classes are made for one object, and made anew by their own methods
    return in_order(kind) or not kind.__module__.startswith("torch.")


def in_order(kind: type[nn.Module]) -> bool:
    """Whether a class runs its children one after the other, as nn.Sequential does."""
    return kind.forward is nn.Sequential.forward


_made: WeakValueDictionary[Any, type[nn.Module]] = WeakValueDictionary()


def rewritten(
    plain: type[nn.Module], norms: tuple[str, ...], activations: tuple[str, ...]
) -> type[nn.Module]:
    """Return the subclass of a class whose methods fuse at the paths given."""
    key = (plain, norms, activations)
    made = _made.get(key)
    if made is None:
        methods = {
            name: new for name, new, _ in methods_of(plain, norms.__contains__, activations.__contains__)
        }
        if in_order(plain):
            methods["forward"] = sites.in_order
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
        own = {"plain": plain, "paths": (norms, activations)}
        metaclass: Any = type(plain)
        made = _made[key] = metaclass(plain.__name__, (Rewritten, plain), {**names, **own, **methods})
    return made


def methods_of(
    plain: type[nn.Module], is_norm: Test, is_activation: Test
) -> list[tuple[str, Callable[..., Any], list[Site]]]:
    """Return the methods of a class that change when norms are fused, rewritten, each with its sites."""
    found = []
    for name, function in _methods(plain).items():
        tree = copy.deepcopy(tree_of(function))
        if tree is None:
            continue
        rewriter = Rewriter(function, is_norm, is_activation)
        rewriter.rewrite(tree)
        method = method_of(tree, function, sites) if rewriter.sites else None
        if method is not None:
            found.append((name, method, rewriter.sites))
    return found


def unreadable(plain: type[nn.Module]) -> bool:
    """Whether the forward of a class has no source that could be rewritten."""
    return not in_order(plain) and tree_of(_methods(plain).get("forward")) is None


def _methods(plain: type[nn.Module]) -> dict[str, FunctionType]:
    methods: dict[str, FunctionType] = {}
    seen: set[str] = set()
    for kind in plain.__mro__:
        if kind.__module__.startswith("torch."):
            continue
        for name, value in vars(kind).items():
            if name not in seen and isinstance(value, FunctionType):
                methods[name] = value
            seen.add(name)
    return methods
