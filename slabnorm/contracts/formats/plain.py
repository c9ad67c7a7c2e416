"""Plain JSON, as people write it by hand: {"state": {"mean": [...], "std": [...]}, "action": ...}.

Each key has any of mean, std, min, max, count, and quantiles, called "q01" (the rank in percent) or "q0.005"
(the rank itself): numbers, or lists of them, all of one shape; a count may also be one number for all
features. What may stand beside them:

    "pattern"   which axes they belong to; by default the last: "n ... c -> c" for a list
    "scheme"    "zscore", or an object such as {"name": "zscore", "ddof": 1}
    "unit", "names", "role", "valid"    as in slabnorm.Key
    "split", "samples"                  where they come from

A file with the statistics of one key alone, {"mean": ..., "std": ...}, has the key "x". Other entries of a
key are not read. Standard deviations are taken as divided by the count.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slabnorm.contracts.formats.found import Found, last_axes, usual_scheme
from slabnorm.contracts.formats.json_file import (
    begins,
    numbers,
    object_of,
    read_object,
    statistics_of,
    unusable,
    write_json,
)
from slabnorm.contracts.key import Key, name_of
from slabnorm.contracts.statistics import Provenance, Statistics
from slabnorm.errors import ContractError, SlabError
from slabnorm.inputs.schemes import SCHEMES, from_plain, to_plain
from slabnorm.notation import ELLIPSIS, parse
from slabnorm.text import printable

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract

TITLE = "plain JSON"
PERCENT, RANK = re.compile(r"q(\d\d)"), re.compile(r"q(\d(?:\.\d+)?(?:e-\d+)?)")
PARTS = ("mean", "std", "min", "max")
FIELDS = ("unit", "names", "role", "valid")  # of Key


def recognises(source: Any) -> bool:
    """Whether a source is a JSON file, by its name or its first character."""
    if not isinstance(source, Path):
        return False
    start = begins(source).lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"{") or (source.suffix.lower() == ".json" and source.is_file())


def read(source: Any) -> dict[str, Found]:
    """Return the keys.

    Raises:
        DataError: the file is damaged, or holds numbers that no data have.
    """
    path = Path(source)
    where = printable(path)
    plain = read_object(path)
    if any(isinstance(plain.get(part), int | float | list) for part in PARTS):
        plain = {"x": plain}
    raws = {key: object_of(raw, f"Key {name_of(key)}", where) for key, raw in plain.items()}
    return {key: _found(key, raw, where) for key, raw in raws.items()}


def _found(key: str, raw: dict[str, Any], where: str) -> Found:
    parts = {part: raw[part] for part in PARTS if raw.get(part) is not None}
    statistics = statistics_of(parts, _quantiles(raw), key, where)
    split, samples = raw.get("split", ""), raw.get("samples")
    if type(split) is not str or not (samples is None or (type(samples) is int and samples >= 0)):
        raise unusable(key, where, f"split is {split!r:.80}, samples is {samples!r:.80}")
    try:
        if raw.get("count") is not None:
            count = numbers(raw["count"])
            count = count.expand(statistics.shape) if count.numel() == 1 else count
            statistics = replace(statistics, count=count)
        pattern, sample = last_axes(statistics.shape)
        if "pattern" in raw:
            pattern, sample = raw["pattern"], _sample(raw["pattern"], statistics)
        scheme = raw.get("scheme", usual_scheme(statistics))
        fields: dict[str, Any] = {name: raw[name] for name in FIELDS if raw.get(name) is not None}
        found = Key(pattern, from_plain(scheme) if isinstance(scheme, dict) else scheme, **fields)
    except SlabError as error:
        raise unusable(key, where, f"{error.problem}: {error.got}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise unusable(key, where, printable(error)) from error
    return Found(found, statistics, sample, Provenance(TITLE, split, samples))


def _quantiles(raw: dict[str, Any]) -> dict[float, Any]:
    found = {int(m[1]) / 100: value for name, value in raw.items() if (m := PERCENT.fullmatch(name))}
    return found | {float(m[1]): value for name, value in raw.items() if (m := RANK.fullmatch(name))}


def _sample(text: Any, statistics: Statistics) -> tuple[int | None, ...]:
    """Return the shape of a sample, as far as pattern and statistics say it.

    Raises:
        ValueError: they do not go together, or an axis is in brackets.
    """
    if not isinstance(text, str) or len(text) > 4096:
        raise ValueError(f"the pattern is {text!r:.80}")
    pattern = parse(text)
    if any(len(item) > 1 for item in (*pattern.left, *pattern.right)):
        raise ValueError("the pattern has brackets, whose sizes nobody says")
    if len(pattern.right) != len(statistics.shape):
        raise ValueError(f"statistics of shape {statistics.shape} do not fit the pattern {text!r}")
    sizes = dict(zip((item[0] for item in pattern.right), statistics.shape, strict=True))
    return tuple(sizes.get(item[0]) for item in pattern.left[1:] if item != (ELLIPSIS,))


def write(contract: Contract, path: Path) -> None:
    """Write a contract as plain JSON, which `slabnorm.contract` reads again.

    Keys that pass unchanged are left out, and so is how a key was fitted, except for split and samples.

    Raises:
        ContractError: the pattern of a key has brackets, or its scheme is a class of the user's own.
        OptionError: the file cannot be written.
    """
    plain = {name: _plain(name, key, norm) for name, (key, norm) in contract.entries().items() if norm}
    write_json(path, plain)


def _plain(name: str, key: Key, norm: Any) -> dict[str, Any]:
    statistics, scheme = Statistics.of(norm), norm.scheme
    why = ""
    if key.sizes:
        why = f"the pattern {key.pattern!r} has brackets"
    elif SCHEMES.get(scheme.name) is not type(scheme):
        why = f"the scheme {type(scheme).__name__} is a class of your own"
    if why:
        fix = "write slabnorm's own file with Contract.save"
        raise ContractError(f"A file of {TITLE} cannot hold key {name_of(name)}", why, fix)
    parts = {part: getattr(statistics, part) for part in (*PARTS, "count")}
    parts |= {_name(rank): value for rank, value in statistics.quantiles.items()}
    values = {part: value.tolist() for part, value in parts.items() if value is not None}
    said = {"unit": key.unit, "names": list(key.names), "valid": key.valid, "split": norm.split}
    values |= {field: value for field, value in said.items() if value}
    values |= {} if norm.samples is None else {"samples": norm.samples}
    return {**values, "pattern": key.pattern, "role": key.role, "scheme": to_plain(scheme)}


def _name(rank: float) -> str:
    percent = round(rank * 100)
    return f"q{percent:02d}" if 0 < percent < 100 and percent / 100 == rank else f"q{rank!r}"
