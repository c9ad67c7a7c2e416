"""Zarr arrays: the statistics of the same array in memory, and every kind of damage named with its chunk."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from sklearn.datasets import load_digits, load_sample_images
from zarr.codecs import Crc32cCodec

import slabnorm as sn
from slabnorm.errors import (
    DataError,
    DataWarning,
    ExtraError,
    LeakageError,
    LedgerError,
    OptionError,
    ShapeError,
)
from slabnorm.inputs import fit, save
from slabnorm.inputs.sources import open_source
from tests.inputs.chunking import small

DIGITS = load_digits().data.astype(np.float32)  # (1797, 64)
PHOTOS = np.stack(load_sample_images().images)[:, :64].reshape(16, 8, 640, 3)
pytestmark = pytest.mark.filterwarnings("ignore:.*constant:slabnorm.errors.DataWarning")

LAYOUTS = {
    "v3": {"chunks": (100, 64)},
    "v3 in columns": {"chunks": (100, 20)},
    "v3 sharded": {"chunks": (50, 16), "shards": (200, 64)},
    "v3 index first": {
        "chunks": (50, 64), "shards": {"shape": (200, 64), "index_location": "start"},
    },
    "v3 crc32c": {"chunks": (100, 64), "compressors": [Crc32cCodec()]},
    "v3 raw": {"chunks": (100, 64), "compressors": None},
    "v2": {"chunks": (100, 64), "zarr_format": 2},
    "v2 fortran": {"chunks": (100, 20), "zarr_format": 2, "order": "F"},
    "one chunk": {"chunks": (1797, 64)},
    "few rows a chunk": {"chunks": (10, 64), "shards": (600, 64)},
    "big-endian": {"chunks": (100, 64), "dtype": ">f4"},
}  # fmt: skip


def write(store, data=DIGITS, **layout):
    layout = {"dtype": data.dtype, "config": {"write_empty_chunks": True}, **layout}
    array = zarr.create_array(store, shape=data.shape, **layout)
    if data.size:
        array[...] = data
    return array


def same(norm, other):
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


CHUNK = 1024  # values: shards are 16 of them, so that the digits have 8 of 256 rows


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.zarr.BLOCK_BYTES", 20_000)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bits_of_the_array_in_memory(layout, tmp_path):
    write(tmp_path / "a.zarr", **LAYOUTS[layout])
    norm = fit(tmp_path / "a.zarr", split="train")
    assert same(norm, fit(DIGITS, split="train"))
    assert norm.record.dtype == "float32"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_images(zarr_format, tmp_path):
    write(tmp_path / "a.zarr", PHOTOS, chunks=(3, 8, 100, 3), zarr_format=zarr_format)
    found = fit(str(tmp_path / "a.zarr"), "zscore", "n h w c -> c", split="train")
    assert same(found, fit(PHOTOS, "zscore", "n h w c -> c", split="train"))


def test_shards_share_no_chunk(tmp_path, small_blocks):
    write(tmp_path / "a.zarr", chunks=(100, 64))
    shards = small(tmp_path / "a.zarr", CHUNK).shards()
    assert [(shard.first, shard.last) for shard in shards][:2] == [(0, 200), (200, 400)]
    assert shards[-1].last == 1797
    assert pickle.loads(pickle.dumps(shards)) == shards
    found = fit(small(tmp_path / "a.zarr", CHUNK), split="train")
    expected = fit(small(DIGITS, CHUNK), split="train")
    assert torch.equal(found.moments.count, expected.moments.count)
    assert torch.allclose(found.moments.var(), expected.moments.var(), rtol=1e-13, atol=0)
    assert torch.allclose(found.moments.mean, expected.moments.mean, rtol=1e-13, atol=0)
    assert found.record.content == expected.record.content
    # Where chunks end where shards of an array in memory do, the bits are the same.
    write(tmp_path / "b.zarr", chunks=(64, 64))
    assert same(fit(small(tmp_path / "b.zarr", CHUNK), split="train"), expected)


def test_where_arrays_are_found(tmp_path, monkeypatch):
    expected = fit(DIGITS, split="train")
    array = write(tmp_path / "a.zarr", chunks=(100, 64))
    with zarr.storage.ZipStore(tmp_path / "train.zarr.zip", mode="w") as store:
        write(store, chunks=(100, 64))
    write("memory://train.zarr", chunks=(100, 64))
    memory = zarr.storage.MemoryStore()
    places = [
        array,
        tmp_path / "train.zarr.zip",
        "memory://train.zarr",
        f"file://{tmp_path}/a.zarr",
        write(memory, chunks=(100, 64)),
        zarr.open(tmp_path / "a.zarr", mode="r"),
    ]
    assert all(same(fit(place, split="train"), expected) for place in places)
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "no suffix")
    assert same(fit(tmp_path / "no suffix", split="train"), expected)
    marks = [{shard.fingerprint for shard in open_source(place).shards()} for place in places]
    assert all(len(mark) == 1 and len(*mark) == 64 for mark in marks[:4])
    assert marks[4] == {""}
    with pytest.raises(OptionError, match="A ledger needs files"):
        fit(places[4], split="train", ledger=tmp_path / "ledger")


def test_groups(tmp_path):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("images", data=DIGITS)
    group.create_group("more").create_array("test", data=-DIGITS)
    expected = fit(DIGITS, split="train")
    assert same(fit(tmp_path / "g.zarr", split="train", key="images"), expected)
    assert same(fit(group, split="train", key="images"), expected)
    assert same(fit(group["images"], split="train"), expected)
    assert same(fit(tmp_path / "g.zarr" / "images", split="train"), expected)
    with pytest.raises(DataError, match="it holds 'images', 'more/test'"):
        fit(tmp_path / "g.zarr", split="train")
    with pytest.raises(DataError, match=r"No entry 'labels' in .*\n  got: it holds 'images'"):
        fit(tmp_path / "g.zarr", split="train", key="labels")
    with pytest.raises(LeakageError, match="test"):
        fit(tmp_path / "g.zarr", split="train", key="more/test")
    with pytest.raises(DataError, match="key="):
        fit(group["images"], split="train", key="images")
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    with pytest.raises(DataError, match="No entries in"):
        fit(tmp_path / "empty.zarr", split="train")


def test_workers_and_a_resumed_ledger(tmp_path, small_blocks):
    write(tmp_path / "a.zarr", chunks=(100, 20), shards=(200, 80))

    def artifact(name, **options):
        save(fit(small(tmp_path / "a.zarr", CHUNK), split="train", **options), tmp_path / name)
        return (tmp_path / name).read_bytes()

    one = artifact("1.safetensors", workers=1)
    assert artifact("2.safetensors", workers=2) == one
    seen = []

    def stop(*_):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact("3.safetensors", ledger=tmp_path / "ledger", progress=stop, workers=1)
    shutil.copy(tmp_path / "ledger", tmp_path / "ledger 2")
    resumed = artifact("3.safetensors", ledger=tmp_path / "ledger", resume=True, workers=1)
    assert resumed == one
    # A chunk that has been written since.
    zarr.open(tmp_path / "a.zarr", mode="r+")[0, 0] = 7
    with pytest.raises(LedgerError, match="has changed"):
        artifact("3.safetensors", ledger=tmp_path / "ledger 2", resume=True)


@pytest.mark.parametrize("layout", ["v2", "v3", "v3 in columns", "v3 sharded"])
def test_a_missing_chunk(layout, tmp_path):
    path = tmp_path / "a.zarr"
    array = write(path, **LAYOUTS[layout])
    key = array.metadata.encode_chunk_key((3, 0))
    (path / key).unlink()
    first = 3 * (array.shards or array.chunks)[0]
    with pytest.raises(
        DataError, match=rf"chunk {key} of .*a\.zarr, rows {first} to(.|\n)*missing"
    ) as caught:
        fit(path, split="train")
    assert "write_empty_chunks" in caught.value.fix
    assert 'missing_chunks="fill"' in caught.value.fix
    rows = (array.shards or array.chunks)[0]
    zeros, left = DIGITS.copy(), np.delete(DIGITS, slice(first, first + rows), axis=0)
    zeros[first : first + rows, : (array.shards or array.chunks)[1]] = 0
    with pytest.warns(DataWarning, match="1 chunks of .* are missing and count as the fill value 0"):
        filled = fit(path, split="train", missing_chunks="fill")
    assert same(filled, fit(zeros, split="train"))
    skipped = fit(path, split="train", skip_bad=True)
    assert torch.equal(skipped.moments.mean, fit(left, split="train").moments.mean)
    assert len(skipped.skipped) == rows // array.chunks[0]


def test_a_chunk_missing_in_a_shard(tmp_path):
    part = DIGITS.copy()
    part[250:300] = 0  # which Zarr leaves out
    for place in ("end", "start"):
        path = tmp_path / f"{place}.zarr"
        shards = {"shape": (200, 64), "index_location": place}
        write(path, part, chunks=(50, 64), shards=shards, config={"write_empty_chunks": False})
        with pytest.raises(DataError, match=r"c/1/0 of .*, rows 250 to 299"):
            fit(path, split="train")
        assert fit(path, split="train", missing_chunks="fill").samples == 1797
        assert fit(path, split="train", skip_bad=True).samples == 1747


def test_a_chunk_that_is_a_folder(tmp_path):
    write(tmp_path / "a.zarr", chunks=(100, 64))
    (tmp_path / "a.zarr/c/3/0").unlink()
    (tmp_path / "a.zarr/c/3/0").mkdir()
    with pytest.raises(DataError, match="chunk c/3/0"):
        fit(tmp_path / "a.zarr", split="train")


def test_no_fill_value(tmp_path):
    write(tmp_path / "a.zarr", chunks=(100, 64), zarr_format=2)
    text = json.loads((tmp_path / "a.zarr/.zarray").read_text())
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps({**text, "fill_value": None}))
    assert same(fit(tmp_path / "a.zarr", split="train"), fit(DIGITS, split="train"))
    with pytest.raises(DataError, match="No fill value"):
        fit(tmp_path / "a.zarr", split="train", missing_chunks="fill")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("layout", "damage"),
    [("v3 crc32c", flip), ("v3 crc32c", cut), ("v3", cut), ("v3 raw", cut), ("v2", cut), ("v3 sharded", cut)],
)
def test_a_damaged_chunk(layout, damage, tmp_path):
    path = tmp_path / "a.zarr"
    array = write(path, **LAYOUTS[layout])
    key = array.metadata.encode_chunk_key((2, 0))
    damage(path / key)
    with pytest.raises(DataError, match=f"chunk {key} of .*a.zarr, rows"):
        fit(path, split="train")
    norm = fit(path, split="train", skip_bad=True)
    assert all(key in name for name, _ in norm.skipped)
    assert norm.samples == 1797 - len(norm.skipped) * array.chunks[0]


def test_damaged_stores(tmp_path):
    for layout, name in (("v3", "zarr.json"), ("v2", ".zarray")):
        array = write(tmp_path / f"{layout}.zarr", **LAYOUTS[layout])
        path = tmp_path / f"{layout}.zarr" / name
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:size])
            with pytest.raises(DataError, match="No readable Zarr array or group"):
                fit(tmp_path / f"{layout}.zarr", split="train")
        path.write_bytes(b'{"zarr_format": 3, "node_type": "array", "shape": "many"}')
        with pytest.raises(DataError, match="No readable Zarr array or group"):
            fit(array, split="train")
    with zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w") as store:
        write(store, chunks=(100, 64))
    cut(tmp_path / "a.zarr.zip")
    for missing in (tmp_path / "a.zarr.zip", "memory://nothing.zarr"):
        with pytest.raises(DataError, match="No readable Zarr array or group"):
            fit(missing, split="train")
    with pytest.raises(DataError, match="No such data file"):
        fit(tmp_path / "nothing.zarr", split="train")


def test_metadata_that_change_meanwhile(tmp_path):
    write(tmp_path / "a.zarr", chunks=(100, 64))
    (shard,) = open_source(tmp_path / "a.zarr").shards()
    write(tmp_path / "a.zarr", DIGITS * 2, chunks=(200, 64), overwrite=True)
    with pytest.raises(DataError, match="Changed while it was read"):
        next(shard.blocks())


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("dtype", ["c8", "U5", "datetime64[s]", "S3", [("a", "i4"), ("b", "f4")]])
def test_dtypes_that_are_no_numbers(dtype, tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(4, 2), dtype=np.dtype(dtype))
    with pytest.raises(DataError, match="bool, integers, or floats"):
        fit(tmp_path / "a.zarr", split="train")


def test_shapes_that_hold_no_samples(tmp_path):
    for number, (shape, says) in enumerate(
        [((), "single number"), ((0, 4), "is empty"), ((4, 0), "Samples without values")]
    ):
        write(tmp_path / f"{number}.zarr", np.zeros(shape))
        with pytest.raises(DataError, match=says):
            fit(tmp_path / f"{number}.zarr", "zscore", "n c -> c", split="train")


def test_nothing_is_unpickled(tmp_path):
    write(tmp_path / "a.zarr", chunks=(100, 64), zarr_format=2)
    text = json.loads((tmp_path / "a.zarr/.zarray").read_text())
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps({**text, "compressor": {"id": "pickle"}}))
    with pytest.raises(DataError, match=r"Pickled data|No readable Zarr array"):
        fit(tmp_path / "a.zarr", split="train")


def test_options(tmp_path):
    with pytest.raises(OptionError, match="'raise' or 'fill'"):
        fit(DIGITS, split="train", missing_chunks="zero")
    with pytest.raises(OptionError, match="missing_chunks= is for Zarr arrays"):
        fit(DIGITS, split="train", missing_chunks="fill")
    write(tmp_path / "test.zarr")
    with pytest.raises(LeakageError, match=r"test\.zarr"):
        sn.fit(tmp_path / "test.zarr", split="train")


@pytest.mark.parametrize("place", ["test/sub/a.zarr", "x_test.zarr/images", "split=test/b/c/d/e/a.zarr"])
def test_the_split_guard_reads_the_folders_above(place, tmp_path):
    (tmp_path / place).parent.mkdir(parents=True)
    write(tmp_path / place)
    # An array within a store is none by its URL alone.
    url = f"file://{tmp_path / place}" if place.endswith(".zarr") else tmp_path / place
    for source in (tmp_path / place, zarr.open_array(tmp_path / place), url):
        with pytest.raises(LeakageError, match=r"the folder .*test.* of the file"):
            sn.fit(source, split="train")


def test_the_extra(tmp_path, monkeypatch):
    Path(tmp_path / "a.zarr").mkdir()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ExtraError, match=r"slabnorm\[zarr\]"):
        fit(tmp_path / "a.zarr", split="train")


def says(path, **changes):
    """A store of one array without chunks, whose metadata say something else."""
    array = write(path, chunks=(100, 64), compressors=None)
    array.attrs["comment"] = "pickled cucumbers"
    file = path / "zarr.json"
    plain = json.loads(file.read_text())
    size = changes.pop("chunks", None)
    if size:
        plain["chunk_grid"]["configuration"]["chunk_shape"] = size
    file.write_text(json.dumps(plain | changes))
    return path


CLAIMS = {
    "10^15 rows": ({"shape": [10**15, 64]}, "at most 2\\^44 values"),
    "2^62 rows of nothing": ({"shape": [2**62, 0], "chunks": [1, 1]}, r"samples of shape \(0,\)"),
    "chunks of no rows": ({"chunks": [0, 64]}, "Impossible chunks"),
    "negative chunks": ({"chunks": [-1, 64]}, "No readable Zarr array|Impossible chunks"),
    "chunks of one axis": ({"chunks": [100]}, "No readable Zarr array|Impossible chunks"),
    "201 axes": ({"shape": [1] * 201, "chunks": [1] * 201}, "201, at most 64"),
    "chunks of 10^12 rows": ({"chunks": [10**12, 64]}, "at most 4 GiB"),
    "samples of 10^12": ({"shape": [10, 10**12], "chunks": [1, 1000]}, "at most 4 GiB"),
    "10^9 chunks": ({"shape": [10**9, 1], "chunks": [1, 1]}, "Too many chunks"),
    "2*10^5 chunks": ({"shape": [200_000, 1], "chunks": [1, 1]}, "More than 131,072 chunks are missing"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_metadata_that_claim_too_much_are_refused_at_once(kind, tmp_path):
    changes, words = CLAIMS[kind]
    path = says(tmp_path / "a.zarr", **changes)
    with pytest.raises(DataError, match=words) as caught:
        fit(path, pattern="n ... ->", split="train", skip_bad=True)
    assert "a.zarr" in str(caught.value)


def test_an_attribute_is_no_codec(tmp_path):
    assert same(fit(says(tmp_path / "a.zarr"), split="train"), fit(DIGITS, split="train"))


def test_a_pattern_that_does_not_fit_is_said_before_chunks_are_looked_for(tmp_path):
    path = says(tmp_path / "a.zarr", shape=[10**6, 1], chunks=[1, 1])
    with pytest.raises(ShapeError, match="names 4 axes"):
        fit(path, pattern="n c h w -> c", split="train")
