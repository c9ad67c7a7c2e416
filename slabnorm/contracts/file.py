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
from slabnorm.contracts.statistics import PARTS, GivenNorm
from slabnorm.errors import ArtifactError, OptionError
from slabnorm.files import output_path
from slabnorm.inputs import artifact
from slabnorm.inputs.normalizer import FeatureNorm, InputNorm
from slabnorm.inputs.outputs import check_outputs
from slabnorm.text import printable

FORMAT = "slabnorm.contract"
VERSION = 1
MOST_KEYS = 100_000
EMPTY = "empty"  # the tensor of a file without statistics: safetensors files have one at least


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
    tensors = tensors or {EMPTY: torch.empty(0)}
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
    found = norm.statistics
    parts = {name: getattr(found, name).contiguous() for name in PARTS if getattr(found, name) is not None}
    if found.quantiles:
        parts["quantiles"] = torch.stack(list(found.quantiles.values()))
    return {"kind": "given", **norm.to_plain()}, parts


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
        inside: dict[str, dict[str, Tensor]] = {}
        for label, value in tensors.items():
            number, _, part = label.partition(".")
            inside.setdefault(number, {})[part] = value
        for place, row in enumerate(plain["keys"]):
            if not isinstance(row, dict) or not isinstance(row.get("name"), str) or row["name"] in entries:
                raise ValueError(f"key {place} has no name of its own")
            key = Key.from_plain(row["key"])
            entries[row["name"]] = key, _read_norm(key, row, inside.pop(str(place), {}))
        if inside.keys() - {EMPTY}:
            raise ValueError(f"it holds tensors of no key: {', '.join(sorted(inside))[:200]}")
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
        if tensors:
            raise ValueError(f"{row['name']!r:.80} passes unchanged, and yet holds tensors")
        return None
    if kind == "fitted":
        if tensors.keys() != artifact.TENSORS:
            raise ValueError(f"{row['name']!r:.80} holds the tensors {', '.join(sorted(tensors))[:200]}")
        return artifact.norm_of(row["record"], row["sketch"], tensors)
    if kind != "given":
        raise ValueError(f"{kind!r:.40} is no kind of statistics")
    return GivenNorm.from_plain(row, tensors, key)
