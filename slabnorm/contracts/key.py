"""Key: what a contract says about one entry of a batch, besides its statistics."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from slabnorm.errors import ContractError, OptionError
from slabnorm.inputs.schemes import Scheme, as_range, from_plain, resolve, to_plain
from slabnorm.notation import parse
from slabnorm.text import printable

KEEP = "keep"
ROLES = ("input", "output")


@dataclass(frozen=True)
class Key:
    """What one entry of a batch is, and how it is normalised.

    Args:
        pattern: which axes keep statistics of their own, such as "n c -> c"; or "keep" for an entry that
            passes unchanged, such as an index or a text.
        scheme: "zscore", "minmax", "robust", "fixed", "quantile", or an object such as `ZScore(ddof=1)`.
        unit: of the values, such as "rad" or "m/s"; "" if nobody says.
        names: of the features, in their order; () if they have none.
        role: "input" of the model, or "output", which `inverse` brings back to units.
        valid: the least and the largest value that can occur, in units of the data; None if nobody says.
        sizes: of axes in brackets, as in {"g": 32}.

    Raises:
        OptionError: an argument is out of its range.
        PatternError: the pattern is wrong.

    >>> from slabnorm import Key
    >>> Key("n c -> c", scheme="minmax", unit="rad", role="output").unit
    'rad'
    """

    pattern: str
    scheme: str | Scheme = "zscore"
    unit: str = ""
    names: tuple[str, ...] = ()
    role: str = "input"
    valid: tuple[float, float] | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise for what is out of range."""
        if not isinstance(self.pattern, str):
            raise OptionError("The pattern of a key must be text", type(self.pattern).__name__, '"n c -> c"')
        if self.pattern != KEEP:
            parse(self.pattern)
        if self.role not in ROLES:
            raise OptionError('role must be "input" or "output"', f"{self.role!r:.80}")
        if not isinstance(self.unit, str):
            raise OptionError("unit must be text", f"{self.unit!r:.80}", 'such as "rad"')
        names = self.names
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise OptionError("names must be a list of texts", f"{names!r:.80}", 'such as ["x", "y"]')
        if len(set(names)) < len(names):
            raise OptionError("names must differ", f"{tuple(names)!r:.200}", "give each feature its own name")
        object.__setattr__(self, "names", tuple(names))
        sizes = self.sizes
        if not isinstance(sizes, dict) or not all(type(size) is int and size > 0 for size in sizes.values()):
            raise OptionError(
                "sizes must be a dict of integers above 0", f"{sizes!r:.80}", 'such as {"g": 32}'
            )
        resolve(self.scheme, "uint8")  # raises if there is no such scheme
        if self.valid is not None:
            object.__setattr__(self, "valid", as_range("valid", self.valid))

    @property
    def keep(self) -> bool:
        """Whether the entry passes unchanged."""
        return self.pattern == KEEP

    def check_width(self, shape: tuple[int, ...], name: str) -> None:
        """Raise ContractError unless there is a name for each feature, if there are names."""
        if self.names and len(self.names) != math.prod(shape):
            raise ContractError(
                f"Key {name_of(name)} has {len(self.names)} names for {math.prod(shape)} features",
                printable(", ".join(self.names), 200),
                "give one name for each feature, in their order",
            )

    def to_plain(self) -> dict[str, Any]:
        """Return the key as JSON's own types."""
        scheme = self.scheme if isinstance(self.scheme, str) else to_plain(self.scheme)
        return {**asdict(self), "scheme": scheme, "names": list(self.names)}

    @classmethod
    def from_plain(cls, plain: Any) -> Key:
        """Return the key that `to_plain` wrote down.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of range.
        """
        if not isinstance(plain, dict) or plain.keys() != {field.name for field in fields(cls)}:
            raise ValueError("a key does not have the fields of a key")
        kinds = {"pattern": str, "unit": str, "names": list, "role": str, "sizes": dict}
        for name, kind in kinds.items():
            if type(plain[name]) is not kind:
                raise ValueError(f"{name} of a key is {plain[name]!r:.80}, not of type {kind.__name__}")
        if len(plain["pattern"]) > 4096:
            raise ValueError("a pattern is too long")
        scheme, valid = plain["scheme"], plain["valid"]
        scheme = scheme if isinstance(scheme, str) else from_plain(scheme)
        valid = tuple(valid) if isinstance(valid, list) else valid
        return cls(**{**plain, "scheme": scheme, "names": tuple(plain["names"]), "valid": valid})


def as_key(given: Any, name: str) -> Key:
    """Return a key as it is, or the one that a pattern stands for.

    Raises:
        OptionError: it is neither.
        ContractError: the name is not text.
    """
    check_name(name)
    if isinstance(given, Key):
        return given
    if isinstance(given, str):
        return Key(given)
    raise OptionError(
        f"What key {name_of(name)} is must be said by a pattern or a Key",
        type(given).__name__,
        'such as "n c -> c", "keep", or slabnorm.Key("n c -> c", unit="rad")',
    )


def check_name(name: Any) -> str:
    """Return the name of a key.

    Raises:
        ContractError: it is not text, or empty.
    """
    if isinstance(name, str) and name:
        return name
    fix = 'such as "state"; of nested entries with dots between, as "observation.state"'
    raise ContractError("The name of a key must be text", f"{name!r:.80}", fix)


def name_of(name: str) -> str:
    """Return the name of a key for a message."""
    return printable(repr(name), 80)
