"""Classes made for an object that changes its behaviour and stays the same object."""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from torch import nn

_made: WeakValueDictionary[Any, type[nn.Module]] = WeakValueDictionary()


class Derived(nn.Module):
    """What a mixin of `derived` inherits: the class underneath, and the way through pickle and deepcopy."""

    mixin: ClassVar[type[nn.Module]]
    under: ClassVar[type[nn.Module]]

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep a user's own `__init_subclass__`, such as a registry, from seeing the class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the mixin and the class underneath, which pickle finds."""
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1] == (type(self),):  # type: ignore[attr-defined]
            return (again, (self.mixin, self.under), *reduced[2:])
        return reduced


def derived(mixin: type[nn.Module], under: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a class with a mixin's methods before its own; it has the class's name.

    An object takes it by `object.__setattr__(module, "__class__", kind)`, and gives it back the same way:
    parameters, buffers, hooks and every reference to the object stay.
    """
    made = _made.get((mixin, under))
    if made is None:
        names = {"__module__": under.__module__, "__qualname__": under.__qualname__, "__doc__": under.__doc__}
        metaclass: Any = type(under)
        made = metaclass(under.__name__, (mixin, under), {**names, "mixin": mixin, "under": under})
        _made[mixin, under] = made
    return made


def again(mixin: type[nn.Module], under: type[nn.Module]) -> nn.Module:
    """Return an empty object of a derived class, as pickle and deepcopy fill it."""
    kind = derived(mixin, under)
    return kind.__new__(kind)


def beneath(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before it was given a derived one; its own if it has none."""
    kind = type(module)
    while issubclass(kind, Derived):
        kind = kind.under
    return kind
