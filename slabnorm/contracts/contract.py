"""Contract: the statistics of many keys as one object, which normalises batches and travels with a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from slabnorm.contracts.key import Key, name_of
from slabnorm.contracts.nested import get, known_names, replaced
from slabnorm.errors import ContractError, ShapeError
from slabnorm.inputs.normalizer import FeatureNorm
from slabnorm.text import did_you_mean, listing, printable

if TYPE_CHECKING:
    from slabnorm.report.audit import Finding

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
VERSION = 1


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
        for name, (key, norm) in entries.items():
            if not isinstance(name, str) or not name:
                raise ContractError("The name of a key must be text", f"{name!r:.80}", "as batches have it")
            if key.keep != (norm is None):
                problem = f"Key {name_of(name)} passes unchanged, and so has no statistics"
                raise ContractError(problem if key.keep else f"Key {name_of(name)} has no statistics")
            if norm is not None:
                key.check_width(norm.features.shape, name)
            self._entries[name] = key
            self.norms[_escaped(name)] = Keep() if norm is None else norm

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
        """
        self._check_units(units)
        return self._each(batch, "input", lambda norm, x: norm(x))

    def inverse(self, batch: Batch, units: Mapping[str, str] | None = None) -> Batch:
        """Return a batch with its entries back in units of the data.

        All outputs have to be there. Inputs may be.

        Raises:
            ContractError: a key is unknown or missing, or a unit is not that of the contract.
            ShapeError: an entry has another width.
        """
        self._check_units(units)
        return self._each(batch, "output", lambda norm, y: norm.inverse(y))

    def check(self, batch: Any) -> tuple[Finding, ...]:
        """Say of raw data whether they are what the statistics are for.

        Args:
            batch: a dict or a TensorDict; or the path of a file or folder that `fit_contract` takes, of which
                entries that the contract does not know are not looked at.

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
        missing = [
            n for n, key in self._entries.items() if key.role == role and not key.keep and n not in names
        ]
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
                _check_width(name, norm, value)
                changed[name] = apply(norm, value)
        return replaced(batch, changed)

    def _numbers(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise ContractError(
                f"Entry {name_of(name)} of the batch is no tensor", type(value).__name__,
                f"give a tensor; or say that it passes unchanged: {name_of(name)}: \"keep\"",
            )  # fmt: skip
        return value

    def _check_units(self, units: Mapping[str, str] | None) -> None:
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
        text = json.dumps({"version": VERSION, "keys": self._plain_keys()}, sort_keys=True)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Raise unless a state_dict is of the same keys, units, names and roles.

        Raises:
            ContractError: it is of others.
        """
        try:
            plain = json.loads(bytes(state.cpu().tolist()).decode())
            theirs = dict(plain["keys"])
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ContractError(
                "The extra state of the contract is damaged", f"{error}", "save it again"
            ) from None
        for name, mine in self._plain_keys():
            other = theirs.pop(name, None)
            if other != mine:
                got = "no such key" if other is None else _difference(mine, other)
                raise ContractError(
                    f"The checkpoint was saved with another contract: key {name_of(name)} differs", got,
                    "load it into a model with its own contract: Contract.from_state_dict(state) returns it",
                )  # fmt: skip
        if theirs:
            raise ContractError(f"The checkpoint's contract has further keys: {_some(list(theirs))}")

    def _plain_keys(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, key.to_plain()) for name, key in self._entries.items()]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load, also under strict=False only from a checkpoint that has a contract."""
        if not any(key.startswith(prefix) for key in state_dict):
            raise ContractError(
                "The checkpoint was saved without its contract",
                f"no entry begins with {prefix!r}",
                "attach the contract to the model before saving it; or load the checkpoint into the model "
                "first, and attach the contract of its training data then",
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Return the keys, one in a line."""
        lines = []
        for name, key in self._entries.items():
            unit = f" [{printable(key.unit, 20)}]" if key.unit else ""
            lines.append(f"{name_of(name)}: {key.pattern!r}, {key.role}{unit}")
        return "\n".join(lines)


def _check_width(name: str, norm: FeatureNorm, value: Tensor) -> None:
    try:
        norm.features.check(value.shape)
    except ShapeError as error:
        raise ShapeError(f"Entry {name_of(name)}: {error.problem}", error.got, error.fix) from None


def _escaped(name: str) -> str:
    """Return a name without dots, which names of modules must not have, and unlike any other's."""
    return name.replace("%", "%25").replace(".", "%2E")


def _difference(mine: dict[str, Any], other: Any) -> str:
    if not isinstance(other, dict):
        return "a damaged entry"
    parts = [n for n in mine if mine[n] != other.get(n)]
    return printable("; ".join(f"{n} is {other.get(n)!r}, not {mine[n]!r}" for n in parts), 300)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"{', '.join(map(name_of, names[:10])) or 'nothing'}{more}"
