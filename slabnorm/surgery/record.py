"""What surgery did and what it left, as plain records."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from slabnorm.text import aligned

_SHARED = "inputs that PyTorch's kernels take less time for stay with them (always=True: none)"


@dataclass(frozen=True)
class Replaced:
    """A norm that slabnorm computes from now on.

    Attributes:
        names: every name of the module in the model; several where it is shared; "" is the model itself.
        was: its class.
        layer: the norm that slabnorm computes, such as `BatchNorm` or `RMSNorm(weight + 1)`.
        activation: what is fused into it, by name; None: nothing.
        residual: whether a sum is fused into it.
        note: how it was recognised if its class is not torch.nn's; why no more is fused, where that is known.
    """

    names: tuple[str, ...]
    was: str
    layer: str
    activation: str | None = None
    residual: bool = False
    note: str = ""

    @property
    def became(self) -> str:
        """What the norm became, in words, such as `BatchNorm + residual + relu`."""
        parts = [self.layer, *(["residual"] if self.residual else []), *filter(None, [self.activation])]
        return " + ".join(parts)


@dataclass(frozen=True)
class Left:
    """A norm that was left as it is, and why."""

    names: tuple[str, ...]
    kind: str
    reason: str


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` did to a model.

    Attributes:
        replaced: the norms that slabnorm computes from now on.
        left: the norms that it left, each with the reason.
        already: how many norms an earlier call had replaced.
        verified: whether outputs and gradients were compared, see `verify`.
        always: whether slabnorm computes every size of input.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    already: int = 0
    verified: bool = False
    always: bool = False

    @property
    def fused(self) -> tuple[Replaced, ...]:
        """The norms that take an activation or a sum along."""
        return tuple(norm for norm in self.replaced if norm.activation or norm.residual)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain dictionaries, lists, strings and numbers, ready for JSON."""
        return {
            "replaced": [asdict(norm) | {"names": list(norm.names)} for norm in self.replaced],
            "left": [asdict(norm) | {"names": list(norm.names)} for norm in self.left],
            "already": self.already,
            "verified": self.verified,
            "always": self.always,
        }

    def __str__(self) -> str:
        counts = f"{len(self.replaced)} replaced, {len(self.fused)} of them fused, {len(self.left)} left"
        if self.already:
            counts += f", {self.already} replaced before"
        if self.verified:
            counts += "; outputs and gradients verified"
        rows = [(_name(n.names), n.was, f"-> {n.became}", n.note) for n in self.replaced]
        rows += [(_name(n.names), n.kind, "left", n.reason) for n in self.left]
        seen = Counter(norm.kind for norm in self.left)
        kinds = ", ".join(f"{kind} ({count})" for kind, count in seen.items())
        shared = (self.replaced or self.already) and not self.always
        return "\n".join(
            [counts, *aligned(rows), *([f"left: {kinds}"] if kinds else []), *([_SHARED] if shared else [])]
        )

    __repr__ = __str__


@dataclass(frozen=True)
class Changed:
    """A module that a surgery has changed.

    Attributes:
        names: every name of the module in the model; several where it is shared; "" is the model itself.
        was, became: what it was and is, in words such as `BatchNorm2d` and `GroupNorm(32 groups)`.
        note: what the user should know of it.
        difference: ||after - before|| / ||before|| of its outputs on the same inputs, in eval mode; None
            where no batch was given, or no tensor came out.
    """

    names: tuple[str, ...]
    was: str
    became: str
    note: str = ""
    difference: float | None = None


@dataclass(frozen=True)
class Surgery:
    """What a function such as `convert` or `fold` did to a model: print it.

    Attributes:
        done: what happened to the changed modules, in a word such as "converted".
        changed: the modules that were changed.
        left: the modules that were left, each with the reason.
        difference: that of the model's outputs on the batch, as in `Changed`.
    """

    done: str
    changed: tuple[Changed, ...]
    left: tuple[Left, ...] = ()
    difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain dictionaries, lists, strings and numbers, ready for JSON."""
        return {
            "done": self.done,
            "changed": [asdict(module) | {"names": list(module.names)} for module in self.changed],
            "left": [asdict(module) | {"names": list(module.names)} for module in self.left],
            "difference": self.difference,
        }

    def __str__(self) -> str:
        counts = f"{len(self.changed)} {self.done}, {len(self.left)} left"
        if self.difference is not None:
            counts += f"; the model's outputs differ by {self.difference:.1e} of their size"
        rows = [
            (_name(c.names), c.was, f"-> {c.became}", _share(c.difference), c.note) for c in self.changed
        ] + [(_name(m.names), m.kind, "left", "", m.reason) for m in self.left]
        return "\n".join([counts, *aligned(rows)])

    __repr__ = __str__


def _share(difference: float | None) -> str:
    return "" if difference is None else f"differs by {difference:.1e}"


def _name(names: tuple[str, ...]) -> str:
    return ", ".join(name or "(the model)" for name in names)
