"""Damaged files by the hundred: each gives the right statistics or a typed error, and no other number.

A sample of campaigns of thousands, in which no mutant of any kind raised a bare error or took memory of note.
"""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, GzipCodec, ZstdCodec

from slabnorm.errors import SlabError
from slabnorm.inputs import fit

DATA = (np.random.default_rng(0).standard_normal((60, 4)) * 10).astype(np.float32)
VALUES = [
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    True,
    None,
    "",
    "Infinity",
    "pickle",
    [],
    [0],
    {},
]
VALUES += ["|O", "F", "zstd", "crc32c", "sharding_indexed", "/", "..", "\0", [[[[]]]], {"id": "pickle"}]
LAYOUTS = {
    "v3": {"compressors": None},
    "crc32c": {"compressors": [Crc32cCodec()]},
    "gzip": {"compressors": [GzipCodec()]},
    "zstd": {"compressors": [ZstdCodec(checksum=True)]},
    "shards": {"chunks": (10, 2), "shards": (20, 4), "compressors": [Crc32cCodec()]},
    "v2": {"zarr_format": 2},
    "v2 in columns": {"zarr_format": 2, "order": "F", "chunks": (20, 3)},
    "nan": {"fill_value": float("nan")},
}
pytestmark = pytest.mark.filterwarnings("ignore")


def outcome(path, good, **options):
    """Return what a fit of a damaged file comes to; any error that has no type fails the test."""
    try:
        norm = fit(path, pattern="n ... ->", split="train", workers=1, **options)
    except SlabError as error:
        return "named" if path.name in str(error) else "not named"
    return "same" if norm.record.content == good else "other numbers"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with a bit changed, or cut, lengthened or overwritten."""
    out, place, kind = bytearray(data), chance.randrange(len(data)), chance.random()
    if kind < 0.6:
        out[place] ^= 1 << chance.randrange(8)
    elif kind < 0.75:
        del out[place:]
    elif kind < 0.85:
        out += bytes(chance.randrange(1, 200))
    else:
        out[place : place + 4] = chance.choice((bytes(4), b"\xff" * 4, bytes(out[:40])))
    return bytes(out)


def mutated_json(text: bytes, chance: random.Random) -> bytes:
    """Return JSON of which one value is another, or gone; or that is none."""
    if chance.random() < 0.1:
        return chance.choice((b"[" * 5000 + text, text.replace(b":", b":" + b"9" * 5000, 1), text[:-9]))
    plain = json.loads(text)
    places: list[tuple] = [()]
    for place in places:
        inside = plain
        for key in place:
            inside = inside[key]
        keys = inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        places += [(*place, key) for key in keys]
    *way, last = chance.choice(places[1:])
    inside = plain
    for key in way:
        inside = inside[key]
    if chance.random() < 0.15:
        del inside[last]
    elif isinstance(inside[last], int) and chance.random() < 0.5:
        inside[last] *= chance.choice((-1, 1000003, 2))
    else:
        inside[last] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(plain).encode()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    for name, layout in LAYOUTS.items():
        array = zarr.create_array(
            folder / f"{name}.zarr", shape=DATA.shape, dtype="f4", config={"write_empty_chunks": True},
            **{"chunks": (20, 4), **layout},
        )  # fmt: skip
        array[...] = DATA
    for version in (2, 3):
        group = zarr.open_group(folder / f"group {version}.zarr", mode="w", zarr_format=version)
        group.create_array("x", shape=DATA.shape, dtype="f4", chunks=(20, 4))[...] = DATA
        zarr.consolidate_metadata(group.store)
    return folder


def one_store(stores: Path, tmp_path: Path, chance: random.Random, names: list[str], chunks: bool) -> Path:
    """Copy a store, and return one of its files, of metadata or a chunk."""
    path = tmp_path / "a.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(stores / f"{chance.choice(names)}.zarr", path)
    metadata = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".zattrs"]
    return chance.choice([file for file in files if (file.name in metadata) != chunks])


def test_zarr_metadata(stores, tmp_path):
    chance, good = random.Random(1), fit(DATA, pattern="n ... ->", split="train").record.content
    names, found = [*LAYOUTS, "group 2", "group 3"], Counter()
    for _ in range(50):
        file = one_store(stores, tmp_path, chance, names, chunks=False)
        file.write_bytes(mutated_json(file.read_bytes(), chance))
        found[outcome(tmp_path / "a.zarr", good, missing_chunks=chance.choice(["raise", "fill"]))] += 1
    assert found["named"] > 25
    assert found["not named"] == 0
    assert found["same"] > 0  # metadata have no checksum: what is there may be another array's


def test_chunks_with_checksums(stores, tmp_path):
    chance, good = random.Random(2), fit(DATA, pattern="n ... ->", split="train").record.content
    found = Counter()
    for _ in range(50):
        file = one_store(stores, tmp_path, chance, ["crc32c", "gzip", "zstd", "shards"], chunks=True)
        file.write_bytes(mutated(file.read_bytes(), chance))
        found[outcome(tmp_path / "a.zarr", good)] += 1
    assert found["other numbers"] == found["not named"] == 0
    assert found["named"] > 30


@pytest.mark.parametrize("compressed", [False, True])
def test_archives(compressed, tmp_path):
    chance, good = random.Random(3), fit(DATA, pattern="n ... ->", split="train").record.content
    file, found = io.BytesIO(), Counter()
    (np.savez_compressed if compressed else np.savez)(file, x=DATA, y=np.arange(60))
    whole = file.getvalue()
    table = whole.index(b"PK\1\2")
    for number in range(150):
        start = table if number % 2 else 0
        (tmp_path / "a.npz").write_bytes(whole[:start] + mutated(whole[start:], chance))
        found[outcome(tmp_path / "a.npz", good)] += 1
    assert found["other numbers"] == found["not named"] == 0
    assert found["named"] > 60


def test_headers(tmp_path):
    chance, found = random.Random(4), Counter()
    np.save(tmp_path / "a.npy", DATA)
    whole = (tmp_path / "a.npy").read_bytes()
    good = fit(DATA, pattern="n ... ->", split="train").record.content
    for _ in range(150):
        (tmp_path / "a.npy").write_bytes(mutated(whole[:128], chance) + whole[128:])
        found[outcome(tmp_path / "a.npy", good)] += 1
    assert found["named"] > 100
    assert found["not named"] == 0
