"""openpi: `norm_stats.json`, in the assets of a checkpoint.

Documented by Physical-Intelligence/openpi, `src/openpi/shared/normalize.py`: {"norm_stats": {"state": ...,
"actions": ...}}, each with mean, std, q01 and q99, of which the last two may be null. Statistics belong to
the last axis; variances are divided by the count. The file does not say the count, the split, names or units.
Nor does it say whether a model uses means or quantiles, which its configuration does, for all keys alike:

    use_quantile_norm=False    slabnorm.ZScore()
    use_quantile_norm=True     slabnorm.QuantileRange()

openpi adds 1e-6 to what it divides by, which no scheme does: its results are smaller than those of slabnorm
by the factor std / (std + 1e-6). A feature without spread it divides by 1e-6, slabnorm by 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slabnorm.contracts.formats.found import Found, last_axes, last_axes_of, usual_scheme
from slabnorm.contracts.formats.json_file import (
    AGAIN,
    begins,
    object_of,
    read_object,
    statistics_of,
    unusable,
    write_json,
)
from slabnorm.contracts.key import Key, name_of
from slabnorm.contracts.statistics import Provenance, Statistics
from slabnorm.errors import ContractError, DataError
from slabnorm.inputs.schemes import QuantileRange, Scheme, ZScore
from slabnorm.text import listing, printable

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract

TITLE = "openpi's norm_stats.json"
FILE = "norm_stats.json"
RANKS = {0.01: "q01", 0.99: "q99"}
SCHEMES: dict[str, Scheme] = {"use_quantile_norm=False": ZScore(), "use_quantile_norm=True": QuantileRange()}


def recognises(source: Any) -> bool:
    """Whether a source is norm_stats.json, or a folder that has it."""
    if not isinstance(source, Path):
        return False
    path = source / FILE if source.is_dir() else source
    return b'"norm_stats"' in begins(path)


def read(source: Any) -> dict[str, Found]:
    """Return the keys; those whose names begin with "action" are outputs.

    Raises:
        DataError: the file is damaged, or holds numbers that no data have.
    """
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    where = printable(path)
    plain = read_object(path)
    if "norm_stats" not in plain:
        raise DataError(f"No norm_stats: {where}", printable(", ".join(plain)), AGAIN)
    stats = object_of(plain["norm_stats"], "norm_stats", where)
    raws = {key: object_of(raw, f"Key {name_of(key)}", where) for key, raw in stats.items()}
    return {key: _found(key, raw, where) for key, raw in raws.items()}


def _found(key: str, raw: dict[str, Any], where: str) -> Found:
    parts: dict[str, Any] = {name: raw[name] for name in ("mean", "std") if name in raw}
    ranks = {rank: raw[name] for rank, name in RANKS.items() if raw.get(name) is not None}
    statistics = statistics_of(parts, ranks, key, where)
    if len(statistics.shape) != 1:
        raise unusable(key, where, f"they have the shape {statistics.shape}, not one axis")
    pattern, sample = last_axes(statistics.shape)
    role = "output" if key.startswith("action") else "input"
    return Found(Key(pattern, usual_scheme(statistics), role=role), statistics, sample, Provenance("openpi"))


def write(contract: Contract, path: Path) -> None:
    """Write a contract as `norm_stats.json`.

    Keys that pass unchanged are left out, and so are units, names, splits, extremes and counts.

    Raises:
        ContractError: a key does not say its mean and standard deviation, is scaled as openpi does not, or
            otherwise than the other keys.
        OptionError: the file cannot be written.
    """
    norms: dict[str, Any] = {name: norm for name, (_, norm) in contract.entries().items() if norm}
    for name, norm in norms.items():
        _check(name, contract.key(name), norm, next(iter(norms.values())))
    plain = {name: _plain(Statistics.of(norm)) for name, norm in norms.items()}
    write_json(path, {"norm_stats": plain})


def _plain(statistics: Statistics) -> dict[str, Any]:
    parts: dict[str, Any] = {"mean": statistics.mean, "std": statistics.std}
    parts |= {name: statistics.quantile(rank) for rank, name in RANKS.items()}
    return {name: None if part is None else part.tolist() for name, part in parts.items()}


def _check(name: str, key: Key, norm: Any, first: Any) -> None:
    """Raise ContractError for what openpi cannot express, or would do otherwise."""
    statistics = Statistics.of(norm)
    missing = [part for part in ("mean", "std") if getattr(statistics, part) is None]
    missing += [f"quantile {rank:g}" for rank in norm.scheme.ranks if statistics.quantile(rank) is None]
    why, fix = "", "write slabnorm's own file with Contract.save, or plain JSON"
    if len(statistics.shape) != 1 or last_axes_of(norm) != "last":
        why = f"the features of {key.pattern!r} are not the last axis"
    elif missing:
        why, fix = f"nobody says its {listing(missing)}", "fit the data with slabnorm.fit_contract"
    elif norm.scheme not in SCHEMES.values():
        why = f"openpi does not compute {norm.scheme}"
        fix = f"take {listing([f'{scheme} ({option})' for option, scheme in SCHEMES.items()], 'or')}"
    elif norm.scheme != first.scheme:
        why = f"it has the scheme {norm.scheme}, another one {first.scheme}, and openpi has one for all keys"
        fix = "take one scheme for all keys"
    elif key.role != ("output" if name.startswith("action") else "input"):
        why = f"it is an {key.role}, and openpi calls outputs, and no inputs, actions"
    if why:
        raise ContractError(f"{TITLE} cannot hold key {name_of(name)}", why, fix)
