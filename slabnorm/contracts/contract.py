"""Contract: the statistics of many keys as one object, which normalises batches and travels with a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from slabnorm.contracts import extra_state
from slabnorm.contracts.key import Key, check_name, name_of
from slabnorm.contracts.nested import get, known_names, replaced
from slabnorm.contracts.statistics import GivenNorm
from slabnorm.errors import ContractError, DtypeError, OptionError, ShapeError, SlabError
from slabnorm.inputs.normalizer import FeatureNorm, InputNorm
from slabnorm.notation import parse
from slabnorm.text import did_you_mean, listing, printable

if TYPE_CHECKING:
    from slabnorm.report.audit import Finding

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
ATTRIBUTES = frozenset(dir(nn.ModuleDict()))  # which no module inside may be called


class Keep(nn.Module):
    """Returns what it is given: an entry that passes unchanged."""

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    inverse = forward


class Contract(nn.Module):
    """The statistics of many keys, with their units, names and roles, as one layer.

        contract(batch):          y[key] = ((x[key] - shift) - shift_low) / scale * span + low
        contract.inverse(batch):  x[key] = (y[key] - low) / span * scale + shift_low + shift

    Make one with `slabnorm.fit_contract`, or with `slabnorm.contract` from statistics that are there already.
    Nothing passes unnormalised by accident: a batch with a key that the contract does not know, without an
    input that it names, of another width or of another unit is an error. What shall pass unchanged is said:
    `"index": "keep"`.

    Batches are dicts, TensorDicts, or other mappings that can be copied. A name with dots also finds entries
    of nested ones: "observation.state" is `batch["observation"]["state"]` where there is no entry of that
    name.

    Args:
        entries: by name, a Key and the layer that normalises its values; None for a key that passes.

    Raises:
        ContractError: there are no keys, or a key and its layer do not go together.

    >>> import torch, slabnorm as sn
    >>> data = {"state": torch.tensor([[0.0, 10.0], [2.0, 30.0]]), "action": torch.tensor([[1.0], [5.0]])}
    >>> action = sn.Key("n c -> c", role="output", unit="rad")
    >>> contract = sn.fit_contract(data, {"state": "n c -> c", "action": action}, split="train")
    >>> contract["state"](data["state"])
    tensor([[-1., -1.],
            [ 1.,  1.]])
    >>> contract.inverse({"action": torch.tensor([[0.5]])})
    {'action': tensor([[4.]])}
    """

    def __init__(self, entries: Mapping[str, tuple[Key, FeatureNorm | None]]) -> None:
        super().__init__()
        if not entries:
            raise ContractError(
                "A contract without keys", "", "name the entries of a batch, and what they are"
            )
        self.norms = nn.ModuleDict()
        self._entries: dict[str, Key] = {}
        self.origin: tuple[str, ...] = ()
        for name, entry in entries.items():
            if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], Key):
                raise ContractError(
                    f"Entry {name!r:.80} of a Contract must be a Key and a layer", type(entry).__name__,
                    "such as (slabnorm.Key(...), norm); slabnorm.contract({...: norm}) takes layers alone",
                )  # fmt: skip
            key, norm = entry
            self._entries[check_name(name)] = _matching(name, key, norm)
            self.norms[_escaped(name)] = Keep() if norm is None else norm

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], prefix: str = "") -> Contract:
        """Return the contract of a `state_dict`, which may be that of a whole model.

        Args:
            state: the state_dict.
            prefix: what stands before the names of the contract in it: "contract." of a model that a contract
                is attached to.

        Raises:
            ContractError: there is no contract under this prefix, or it is damaged.
            StatisticsError: an entry is missing or damaged.

        >>> import torch, slabnorm as sn
        >>> contract = sn.fit_contract({"x": torch.tensor([[1.0], [3.0]])}, {"x": "n c -> c"}, split="train")
        >>> model = contract.attach(torch.nn.Identity())
        >>> sn.Contract.from_state_dict(model.state_dict(), prefix="contract.")["x"].moments.mean
        tensor([2.], dtype=torch.float64)
        """
        extra = f"{prefix}_extra_state"
        if extra not in state:
            raise ContractError(
                "The state_dict has no contract under this prefix", f"no entry {extra!r:.200}",
                'give the prefix under which the contract lies in it, such as prefix="contract."',
            )  # fmt: skip
        inside: dict[str, dict[str, Any]] = {}
        for label, value in state.items():
            if label.startswith(f"{prefix}norms."):
                escaped, _, part = label.removeprefix(f"{prefix}norms.").partition(".")
                inside.setdefault(escaped, {})[part] = value
        entries: dict[str, tuple[Key, FeatureNorm | None]] = {}
        for name, plain in _plain_keys(state[extra]).items():
            key = _key_of(name, plain)
            parts = inside.get(_escaped(name), {})
            if key.keep:
                entries[name] = key, None
            elif "moments_mean" in parts:
                entries[name] = key, InputNorm.from_state_dict(parts)
            else:
                entries[name] = key, GivenNorm.from_state_dict(parts, key)
        return cls(entries)

    def __getitem__(self, name: str) -> Any:
        """Return the layer of a key: an InputNorm, a GivenNorm, or what returns its input.

        Raises:
            ContractError: there is no such key.
        """
        self.key(name)
        return self.norms[_escaped(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, name: str) -> Key:
        """Return what a key is.

        Raises:
            ContractError: there is no such key.
        """
        if name not in self._entries:
            raise self._unknown(name)
        return self._entries[name]

    def names(self, role: str = "") -> list[str]:
        """Return the names of all keys that are normalised, or of those of a role."""
        return [n for n, key in self._entries.items() if not key.keep and role in ("", key.role)]

    def entries(self) -> dict[str, tuple[Key, FeatureNorm | None]]:
        """Return all keys with their layers, as a new contract takes them."""
        return {n: (key, None if key.keep else self[n]) for n, key in self._entries.items()}

    def forward(self, batch: Batch, units: Mapping[str, str] | None = None) -> Batch:
        """Return a batch with its entries normalised; the batch itself stays as it is.

        All inputs have to be there. Outputs, such as the actions of a training batch, may be.

        Args:
            batch: a dict or a TensorDict.
            units: the units in which the batch is, by key, to have them checked.

        Raises:
            ContractError: a key is unknown or missing, or a unit is another one.
            ShapeError: an entry has another width.
            DtypeError: an entry is complex or sparse.
        """
        self._check_units(units)
        return self._each(batch, "input", lambda norm, x: norm(x))

    def inverse(self, batch: Batch, units: Mapping[str, str] | None = None) -> Batch:
        """Return a batch with its entries back in units of the data.

        All outputs have to be there. Inputs may be.

        Raises:
            ContractError: a key is unknown or missing, or a unit is not that of the contract.
            ShapeError: an entry has another width.
            DtypeError: an entry is complex or sparse.
        """
        self._check_units(units)
        return self._each(batch, "output", lambda norm, y: norm.inverse(y))

    def check(self, batch: Any) -> tuple[Finding, ...]:
        """Say of raw data whether they are what the statistics are for.

        Samples are taken as drawn at random. Consecutive ones, such as the frames of one episode, vary less
        than the data and have means of their own, and from about 20 of them on this is found and said.

        Args:
            batch: a dict or a TensorDict, shuffled; or the path of a file or folder that `fit_contract`
                takes, of which entries that the contract does not know are not looked at.

        Returns:
            Findings as `slabnorm.audit` has them, errors first. A key is missing, unknown or of another
            width; values lie outside the training range or what is valid; means or spreads are others, by
            more than chance; the data are normalised already, scaled twice, in another unit (a power of ten,
            degrees for radians), or have their features in another order.

        Raises:
            ContractError: the batch has no names.
            DataError: the file cannot be read.
            ExtraError: SciPy, of the extra `slabnorm[study]`, is not installed, and the order of features is
                in doubt.
        """
        from slabnorm.contracts.check import check_batch

        return check_batch(self, batch)

    def attach(self, model: Model, **keys: Any) -> Model:
        """Make the contract a part of a model, which then takes raw inputs and returns outputs in units.

        The model stays the same object; see `slabnorm.contracts.attach` for what goes where.
        """
        from slabnorm.contracts.attach import attach

        return attach(self, model, **keys)

    def wrap(self, policy: Callable[..., Any], **keys: Any) -> nn.Module:
        """Return a module that normalises on the way into a policy, and inverts on the way out."""
        from slabnorm.contracts.attach import wrap

        return wrap(self, policy, **keys)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the contract to one file, which `slabnorm.contract` reads. Equal contracts give equal bytes.

        Raises:
            OptionError: the file cannot be written, or is one of those that were fitted.
        """
        from slabnorm.contracts.file import save

        save(self, path)

    def _each(self, batch: Any, role: str, apply: Callable[[Any, Tensor], Tensor]) -> Any:
        names = known_names(batch, self._entries)
        for name in names:
            if name not in self._entries:
                raise self._unknown(name)
        there = set(names)
        missing = [name for name in self.names(role) if name not in there]
        if missing:
            what = "an input" if role == "input" else "an output"
            raise ContractError(
                f"The batch has no {listing([name_of(name) for name in missing])}, {what} of the contract",
                f"it has {_some(names)}",
                "give it; or leave the key out of the contract if the model does not need it",
            )
        changed = {}
        for name in names:
            if not self.key(name).keep:
                norm, value = self[name], self._numbers(name, get(batch, name))
                try:
                    changed[name] = apply(norm, value)
                except (ShapeError, DtypeError) as error:
                    problem = f"Entry {name_of(name)}: {error.problem}"
                    raise type(error)(problem, error.got, error.fix) from None
        return replaced(batch, changed)

    def _numbers(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise ContractError(
                f"Entry {name_of(name)} of the batch is no tensor", type(value).__name__,
                f"give a tensor; or say that it passes unchanged: {name_of(name)}: \"keep\"",
            )  # fmt: skip
        return value

    def _check_units(self, units: Mapping[str, str] | None) -> None:
        if units is not None and not isinstance(units, Mapping):
            fix = 'such as units={"state": "rad"}'
            raise OptionError("units must be a dict of units by key", type(units).__name__, fix)
        for name, unit in (units or {}).items():
            known = self.key(name).unit
            if unit != known:
                raise ContractError(
                    f"Key {name_of(name)} is in {printable(repr(known)) if known else 'no known unit'}",
                    printable(repr(unit)),
                    "convert the values before, or fit a contract for this unit",
                )

    def _unknown(self, name: Any) -> ContractError:
        fix = did_you_mean(name, self._entries) or f'add it to the contract, or {name_of(name)}: "keep"'
        return ContractError(f"The contract has no key {name_of(name)}", f"it has {_some(list(self))}", fix)

    def get_extra_state(self) -> Tensor:
        """Return names, units and roles for the state_dict."""
        return extra_state.to_tensor(
            {"keys": [[name, key.to_plain()] for name, key in self._entries.items()]}
        )

    def set_extra_state(self, state: Any) -> None:
        """Raise unless a state_dict is of the same keys, units, names and roles.

        Raises:
            ContractError: it is of others.
        """
        theirs, mine = _plain_keys(state), _plain_keys(self.get_extra_state())
        for name, key in mine.items():
            if theirs.get(name) != key:
                got = _difference(key, theirs[name]) if name in theirs else "no such key"
                raise ContractError(
                    f"The checkpoint was saved with another contract: key {name_of(name)} differs", got,
                    "attach to the model what Contract.from_state_dict(state) returns, or fit again",
                )  # fmt: skip
        if len(theirs) > len(mine):
            further = [name for name in theirs if name not in mine]
            raise ContractError(
                "The checkpoint was saved with another contract, which has more keys", _some(further),
                "attach to the model what Contract.from_state_dict(state) returns, or fit again",
            )  # fmt: skip

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load the contract of a checkpoint; one that has none, or a part of one, is an error.

        Also under strict=False: a model that kept other statistics would compute something else.
        """
        if f"{prefix}_extra_state" not in state_dict:
            raise ContractError(
                "The checkpoint was saved without its contract",
                f"no entry {prefix}_extra_state",
                "attach the contract to the model before saving it; or load the checkpoint into the model "
                "first, and attach the contract of its training data then",
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
        missing = [label for label in self.state_dict(prefix=prefix) if label not in state_dict]
        if missing:
            got = f"{_some(missing)} of it are missing"
            raise ContractError("The checkpoint has a part of its contract only", got, "save the whole model")

    def extra_repr(self) -> str:
        """Return the keys, one in a line."""
        lines = []
        for name, key in self._entries.items():
            unit = f" [{printable(key.unit, 20)}]" if key.unit else ""
            lines.append(f"{name_of(name)}: {key.pattern!r}, {key.role}{unit}")
        return "\n".join(lines)


def _escaped(name: str) -> str:
    """Return a name that a module can have, unlike any other's: without dots, and no attribute of modules."""
    escaped = name.replace("%", "%25").replace(".", "%2E")
    return f"%{escaped}" if escaped in ATTRIBUTES else escaped


def _matching(name: str, key: Key, norm: FeatureNorm | None) -> Key:
    """Return a key with the scheme of its layer.

    Raises:
        ContractError: the key and the layer do not go together.
    """
    if norm is None:
        if key.keep:
            return key
        raise ContractError(f"Key {name_of(name)} has no statistics", "", 'fit them, or say "keep"')
    if key.keep:
        raise ContractError(
            f"Key {name_of(name)} passes unchanged, and so has no statistics", "", "leave them out"
        )
    if not isinstance(norm, InputNorm | GivenNorm):
        raise ContractError(
            f"The layer of key {name_of(name)} must be an InputNorm or a GivenNorm", type(norm).__name__,
            "of a RunningInputNorm give what its freeze() returns",
        )  # fmt: skip
    if norm.features.pattern != parse(key.pattern):
        raise ContractError(
            f"The statistics of key {name_of(name)} were computed with another pattern",
            f"{norm.features.pattern.text!r}, not {key.pattern!r}", "give the key their pattern",
        )  # fmt: skip
    key.check_width(norm.features.shape, name)
    return replace(key, scheme=norm.scheme)


def _plain_keys(state: Any) -> dict[str, Any]:
    """Return the keys of an extra state, by name."""
    plain = extra_state.to_plain(state, "the contract")
    try:
        return {check_name(name): key for name, key in plain["keys"]}
    except (KeyError, TypeError, ValueError) as error:
        problem = "The extra state of the contract is damaged"
        raise ContractError(problem, f"{error}"[:300], "save the model again") from error


def _key_of(name: str, plain: Any) -> Key:
    try:
        return Key.from_plain(plain)
    except (ValueError, TypeError, KeyError, OverflowError, SlabError) as error:
        problem = f"Key {name_of(name)} of the contract in the state_dict is damaged"
        raise ContractError(problem, f"{error}"[:300], "save the model again") from error


def _difference(mine: dict[str, Any], other: Any) -> str:
    if not isinstance(other, dict):
        return "a damaged entry"
    parts = [n for n in mine if mine[n] != other.get(n)]
    return printable("; ".join(f"{n} is {other.get(n)!r}, not {mine[n]!r}" for n in parts), 300)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"{', '.join(map(name_of, names[:10])) or 'nothing'}{more}"
