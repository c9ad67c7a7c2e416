"""`contract`: statistics that are there already, of slabnorm or of another program, as a Contract."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slabnorm.contracts import file
from slabnorm.contracts.contract import Contract
from slabnorm.contracts.formats import FORMATS, Format
from slabnorm.contracts.formats.found import Found
from slabnorm.contracts.formats.objects import class_of
from slabnorm.contracts.key import Key, as_key, name_of
from slabnorm.contracts.statistics import GivenNorm
from slabnorm.errors import ContractError, DataError, OptionError, SlabError
from slabnorm.files import output_path
from slabnorm.inputs.normalizer import FeatureNorm, InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.text import did_you_mean, listing, printable

FIRST_BYTES = 1 << 16
OWN = "slabnorm"  # as --from and --to say the format of Contract.save


def contract(source: Any, keys: Mapping[str, str | Key] | None = None, *, format: str = "") -> Contract:
    """Read the statistics of many keys, of slabnorm or of another program.

    Args:
        source: the path of a file or a folder, or an object in memory. One of: a file that `Contract.save`
            has written; an InputNorm, which becomes the key "x", or a dict of them; or one of the other
            formats in docs/contract.md, such as LeRobot's meta/stats.json.
        keys: what to read otherwise than the source says, by name: a Key with another scheme, unit or role,
            or a pattern; or "keep" for an entry that passes unchanged, which may be none of the source's.
        format: which format it is, such as "lerobot"; by default it is recognised.

    What a format does not say, such as the split or the number of samples, stays unknown.

    Raises:
        DataError: there is no such file, it is damaged, or of no known format.
        ArtifactError: a file of `Contract.save` is damaged.
        ContractError: `keys` names a key that the source does not have.
        StatisticsError: the statistics do not say what a scheme reads.
        OptionError: there is no such format.

    >>> import torch, slabnorm as sn
    >>> norm = sn.fit(torch.tensor([[1.0], [3.0]]), split="train")
    >>> contract = sn.contract({"state": norm}, {"state": sn.Key("n c -> c", "minmax", unit="m")})
    >>> contract({"state": torch.tensor([[2.0]])})
    {'state': tensor([[0.5000]])}
    """
    given = {name: as_key(key, name) for name, key in (keys or {}).items()}
    if isinstance(source, FeatureNorm):
        source = {"x": source}
    if isinstance(source, Mapping) and source and all(isinstance(v, FeatureNorm) for v in source.values()):
        return _changed({name: (_key_of(norm), norm) for name, norm in source.items()}, given)
    if isinstance(source, Contract):
        return _changed(source.entries(), given)
    if not isinstance(source, str | os.PathLike):
        return _read(_format(source, format), source, given)
    source = Path(source)
    try:
        if not source.exists():
            raise DataError(f"No such file of statistics: {printable(source)}", "", "check the path")
        if format == OWN or (not format and _is_own(source)):
            return _changed(file.load(source).entries(), given)
        return _read(_format(source, format), source, given)
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"Cannot read {printable(source)}", why, "check the path and its rights") from error


def write(contract: Contract, path: str | os.PathLike[str], format: str = OWN) -> None:
    """Write a contract in a format: slabnorm's own, or another program's.

    Raises:
        OptionError: there is no such format, it is only read, or the file cannot be written.
        ContractError: the format cannot hold what the contract says.
    """
    if format == OWN:
        contract.save(path)
        return
    writes = [OWN, *(form.name for form in FORMATS if form.write is not None)]
    found = _named(format, writes)
    if found.write is None:
        problem = f"{found.title} is only read, not written"
        raise OptionError(problem, printable(format), f"one of {listing(writes, 'or')}")
    target = output_path(path)
    check_outputs([target], contract.origin)
    found.write(contract, target)


def _is_own(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as opened:
        return file.is_contract(opened.read(FIRST_BYTES))


def _named(name: str, known: list[str]) -> Format:
    """Return the format of a name, or raise OptionError with the known names that may be meant."""
    found = next((form for form in FORMATS if form.name == name), None)
    if found is None:
        fix = did_you_mean(name, known) or f"one of {listing(known, 'or')}"
        raise OptionError(f"There is no format {printable(repr(name), 60)}", "", fix)
    return found


def _format(source: Any, name: str) -> Format:
    """Return the format of a source: the one that is named, or else the first that recognises it."""
    if name:
        return _named(name, [OWN, *(form.name for form in FORMATS)])
    found = next((form for form in FORMATS if form.recognises(source)), None)
    if found is None:
        what = printable(source) if isinstance(source, Path) else type(source).__name__
        raise DataError(
            f"No known format of statistics: {what}",
            f"known are {listing([form.title for form in FORMATS])}, and files of slabnorm.Contract.save",
            'say which it is, as format="json"; or fit the data',
        )
    return found


def _read(form: Format, source: Any, given: dict[str, Key]) -> Contract:
    if not isinstance(source, Path) and not form.recognises(source):
        fix = "give that, or the path of a file"
        raise DataError(f"Not {form.title}: a {printable(class_of(source))}", "", fix)
    found = form.read(source)
    if not found:
        raise DataError(f"No statistics in {printable(source)}", f"read as {form.title}", "check the file")
    _check_known(list(found), given)
    entries: dict[str, tuple[Key, FeatureNorm | None]] = {}
    for name, each in found.items():
        key = given.get(name, each.key)
        try:
            entries[name] = key, None if key.keep else _norm(name, key, each)
        except SlabError as error:
            where = f" of {printable(source)}" if isinstance(source, Path) else ""
            raise type(error)(f"Key {name_of(name)}{where}: {error.problem}", error.got, error.fix) from error
    return Contract(entries | {name: (key, None) for name, key in given.items() if name not in found})


def _norm(name: str, key: Key, found: Found) -> GivenNorm:
    if found.statistics is None:
        raise ContractError("It passes unchanged, and so has no statistics", "", "fit them")
    key.check_width(found.statistics.shape, name)
    return GivenNorm(key, found.statistics, found.sample, found.source)


def _key_of(norm: FeatureNorm) -> Key:
    if not isinstance(norm, InputNorm):
        raise ContractError(
            "Only an InputNorm knows its pattern, and so becomes a key", type(norm).__name__,
            "of a RunningInputNorm give what its freeze() returns, of a GivenNorm its Contract",
        )  # fmt: skip
    record = norm.record
    return Key(record.pattern, record.scheme, names=record.names, sizes=dict(record.sizes))


def _changed(entries: Mapping[str, tuple[Key, FeatureNorm | None]], given: dict[str, Key]) -> Contract:
    """Return a contract in which some keys are what the caller says."""
    _check_known(list(entries), given)
    changed = dict(entries)
    for name, key in given.items():
        _, norm = entries.get(name, (key, None))
        changed[name] = key, None if key.keep else _with_key(name, key, norm)
    return Contract(changed)


def _with_key(name: str, key: Key, norm: FeatureNorm | None) -> FeatureNorm:
    """Return the layer of a key with another scheme, on the same statistics."""
    if isinstance(norm, GivenNorm):
        return GivenNorm(key, norm.statistics, norm.sample, norm.source)
    if not isinstance(norm, InputNorm):
        raise ContractError(f"Key {name_of(name)} passes unchanged, and so has no statistics", "", "fit them")
    if key.pattern != norm.record.pattern:
        raise ContractError(
            f"Key {name_of(name)} was fitted with another pattern",
            f"{norm.record.pattern!r}, not {key.pattern!r}", "fit it again",
        )  # fmt: skip
    return norm.with_scheme(key.scheme)


def _check_known(names: list[str], given: dict[str, Key]) -> None:
    for name, key in given.items():
        if name not in names and not key.keep:
            has = ", ".join(map(name_of, names[:10]))
            fix = did_you_mean(name, names) or "name a key that is there"
            raise ContractError(f"There are no statistics of key {name_of(name)}", f"it has {has}", fix)
