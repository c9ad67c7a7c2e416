"""A contract as one file: statistics, keys and units, written whole and checked strictly when it is read.

It is a safetensors file. The tensors of the key with number 3 are "3.mean" and so on; its metadata is one
line of canonical JSON with the keys in their order and a digest of everything. Shift and scale are not
stored, as they follow from the scheme and the statistics.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slabnorm.contracts.contract import Contract
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import PARTS, GivenNorm, Source, Statistics
from slabnorm.errors import ArtifactError, OptionError
from slabnorm.files import output_path
from slabnorm.inputs import artifact
from slabnorm.inputs.normalizer import FeatureNorm, InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.text import printable

FORMAT = "slabnorm.contract"
VERSION = 1
MOST_KEYS = 100_000


def save(contract: Contract, path: str | os.PathLike[str]) -> None:
    """Write a contract to a file."""
    if not isinstance(contract, Contract):
        raise OptionError("save() needs a Contract", printable(type(contract).__name__))
    path = output_path(path)
    check_outputs([path], contract.origin)
    keys: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, (name, (key, norm)) in enumerate(contract.entries().items()):
        plain, parts = _written(norm)
        keys.append({"name": name, "key": key.to_plain(), **plain})
        tensors |= {f"{number}.{part}": value for part, value in parts.items()}
    tensors = tensors or {"empty": torch.empty(0)}
    whole = {"format": FORMAT, "version": VERSION, "keys": keys, "libraries": artifact.libraries()}
    artifact.write(path, FORMAT, whole, tensors)


def _written(norm: FeatureNorm | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON and the tensors of the statistics of a key."""
    if norm is None:
        return {"kind": "keep"}, {}
    if isinstance(norm, InputNorm):
        artifact.check_scheme(norm.scheme)
        plain = {"kind": "fitted", "record": norm.record.to_plain(), "sketch": norm.sketch.size}
        return plain, artifact.tensors_of(norm)
    assert isinstance(norm, GivenNorm)
    artifact.check_scheme(norm.scheme)
    found, source = norm.statistics, norm.source
    parts = {name: getattr(found, name).contiguous() for name in PARTS if getattr(found, name) is not None}
    if found.quantiles:
        parts["quantiles"] = torch.stack(list(found.quantiles.values()))
    return {
        "kind": "given",
        "sample": list(norm.sample),
        "ranks": list(found.quantiles),
        "source": [source.format, source.split, source.samples],
    }, parts


def is_contract(content: bytes) -> bool:
    """Whether the bytes of a file are a contract's, damaged or not."""
    return content[8:9] == b"{" and f'"{FORMAT}"'.encode() in content[: 1 << 16]


def load(path: str | os.PathLike[str]) -> Contract:
    """Read a contract that `Contract.save` has written.

    Raises:
        ArtifactError: there is no such file, it is damaged or of another version, or it holds numbers that no
            data set can have.
    """
    content = artifact.read(Path(path))
    try:
        plain, tensors = artifact.parse(content, FORMAT, VERSION)
        if plain.keys() != {"format", "version", "keys", "libraries"} or type(plain["keys"]) is not list:
            raise ValueError("the metadata have other fields than version 1 has")
        if len(plain["keys"]) > MOST_KEYS:
            raise ValueError(f"it has {len(plain['keys']):,} keys, more than {MOST_KEYS:,}")
        entries: dict[str, tuple[Key, FeatureNorm | None]] = {}
        inside: dict[int, dict[str, Tensor]] = {}
        for label, value in tensors.items():
            digits, _, part = label.partition(".")
            inside.setdefault(int(digits) if digits.isdecimal() else -1, {})[part] = value
        for number, row in enumerate(plain["keys"]):
            if not isinstance(row, dict) or not isinstance(row.get("name"), str) or row["name"] in entries:
                raise ValueError(f"key {number} has no name of its own")
            key = Key.from_plain(row["key"])
            entries[row["name"]] = key, _read_norm(key, row, inside.get(number, {}))
        return Contract(entries)
    except artifact.REFUSED as error:
        fix = "save it again, or copy the file again from where it is intact"
        raise ArtifactError(f"Damaged contract: {printable(path)}", printable(error, 600), fix) from error


def _read_norm(key: Key, row: dict[str, Any], tensors: dict[str, Tensor]) -> FeatureNorm | None:
    """Return the layer of a key of a file.

    Raises:
        ValueError, SlabError: it is damaged.
    """
    kind = row["kind"]
    if kind == "keep":
        return None
    if kind == "fitted":
        if tensors.keys() != artifact.TENSORS:
            raise ValueError(f"{row['name']!r:.80} holds the tensors {', '.join(sorted(tensors))[:200]}")
        norm = artifact.norm_of(row["record"], row["sketch"], tensors)
        if norm.record.pattern != key.pattern:
            raise ValueError(f"{row['name']!r:.80} was fitted with another pattern than its key has")
        return norm
    if kind != "given":
        raise ValueError(f"{kind!r:.40} is no kind of statistics")
    ranks, sample, source = row["ranks"], row["sample"], row["source"]
    right = type(ranks) is list and type(sample) is list and type(source) is list and len(source) == 3
    if not right or len(sample) > 64 or not all(size is None or type(size) is int for size in sample):
        raise ValueError(f"the statistics of {row['name']!r:.80} are described wrongly")
    if not tensors.keys() <= {*PARTS, "quantiles"} or len(tensors.get("quantiles", ())) != len(ranks):
        raise ValueError(f"{row['name']!r:.80} holds other tensors than it says")
    for part, value in tensors.items():
        if value.dtype != (torch.int64 if part == "count" else torch.float64):
            raise ValueError(f"{part} is {value.dtype}")
    quantiles = dict(zip(map(float, ranks), tensors.get("quantiles", ()), strict=True))
    parts = {part: value for part, value in tensors.items() if part != "quantiles"}
    form, split, samples = source
    if type(form) is not str or type(split) is not str or not (samples is None or type(samples) is int):
        raise ValueError(f"the source of {row['name']!r:.80} is described wrongly")
    return GivenNorm(key, Statistics(**parts, quantiles=quantiles), tuple(sample), Source(*source))
