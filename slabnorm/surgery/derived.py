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
    transparent: ClassVar[bool] = False  # whether a call computes what the class underneath computes

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep a user's own `__init_subclass__`, such as a registry, from seeing the class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the mixins and the class underneath them, which pickle finds."""
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1] == (type(self),):  # type: ignore[attr-defined]
            return (again, _parts(type(self)), *reduced[2:])
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


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class under the mixins that leave alone what it computes."""
    while issubclass(kind, Derived) and kind.transparent:
        kind = kind.under
    return kind


def moved(kind: type[nn.Module], other: type[nn.Module]) -> type[nn.Module]:
    """Return another class under the mixins that a class has above its plain one."""
    if kind is plain_class(kind):
        return other
    assert issubclass(kind, Derived)
    return derived(kind.mixin, moved(kind.under, other))


def without(kind: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """Return a derived class without one of its mixins."""
    if not issubclass(kind, Derived):
        return kind
    under = without(kind.under, mixin)
    return under if kind.mixin is mixin else derived(kind.mixin, under)


def again(under: type[nn.Module], *mixins: type[nn.Module]) -> nn.Module:
    """Return an empty object of a derived class, as pickle and deepcopy fill it."""
    for mixin in mixins:
        under = derived(mixin, under)
    return under.__new__(under)


def _parts(kind: type[nn.Module]) -> tuple[type[nn.Module], ...]:
    """Return the class under all mixins, and these, the lowest first."""
    if not issubclass(kind, Derived):
        return (kind,)
    return (*_parts(kind.under), kind.mixin)
