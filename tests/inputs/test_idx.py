"""IDX files: the bits of their arrays, which file of a folder is read, and every kind of damage named."""

from __future__ import annotations

import gzip
import random
import shutil
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataError, DataWarning, LeakageError, OptionError
from slabnorm.inputs.sources.idx import list_folder, open_idx, read_idx, role_of

FASHION = Path("/usr/share/datasets/fashion-mnist")
CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
IMAGES = np.random.default_rng(1).integers(0, 256, (40, 6, 5)).astype(np.uint8)
MOST = 1 << 30


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file, written here by the description of the format."""
    code = CODES[array.dtype.str[1:]]
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, array: np.ndarray = IMAGES) -> Path:
    content = idx(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def mnist(folder: Path, suffix: str = ".gz") -> Path:
    """A folder of four files, as those of MNIST are called."""
    for split, count in (("train", 40), ("t10k", 20)):
        write(folder / f"{split}-images-idx3-ubyte{suffix}", IMAGES[:count])
        write(folder / f"{split}-labels-idx1-ubyte{suffix}", (np.arange(count) % 4).astype(np.uint8))
    return folder


def same(norm, other):
    pairs = zip(norm.state_dict().values(), other.state_dict().values(), strict=True)
    return norm.record.content == other.record.content and all(torch.equal(a, b) for a, b in pairs)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_fashion_mnist_gives_the_bits_of_its_array():
    assert FASHION.is_dir(), "run: apt install dataset-fashion-mnist"
    path = FASHION / "train-images-idx3-ubyte.gz"
    raw = np.frombuffer(gzip.decompress(path.read_bytes())[16:], np.uint8).reshape(60000, 28, 28)
    norm = sn.fit(path, "zscore", "n h w ->", split="train")
    assert same(norm, sn.fit(raw, "zscore", "n h w ->", split="train"))
    assert norm.record.samples == 60000
    # The mean and deviation that tutorials give for Fashion-MNIST, of pixels divided by 255.
    assert round(norm.moments.mean.item() / 255, 4) == 0.2860
    assert round(norm.moments.std().item() / 255, 4) == 0.3530


@pytest.mark.parametrize("name", ["a-idx3-ubyte", "a.idx3-ubyte", "a-idx3-ubyte.gz", "a.idx", "a.idx.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f8"])
def test_a_file_gives_the_bits_of_its_array(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.npy.BLOCK_BYTES", 500)  # several blocks, the last one cut
    monkeypatch.setattr("slabnorm.inputs.sources.base.CHUNK", 100)
    array = IMAGES.astype(dtype)
    norm = sn.fit(write(tmp_path / name, array), "zscore", "n h w -> w", split="train")
    assert same(norm, sn.fit(array, "zscore", "n h w -> w", split="train"))


def test_several_shards_and_a_ledger(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (300, 256, 256)).astype(np.uint8)
    plain = write(tmp_path / "train-images-idx3-ubyte", array)
    expected = sn.fit(array, "minmax", "n h w ->", split="train")
    assert len(open_idx(str(plain)).shards()) == 2
    ledger = tmp_path / "a.ledger"
    assert same(sn.fit(plain, "minmax", "n h w ->", split="train", workers=2, ledger=ledger), expected)
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
    assert same(sn.fit(packed, "minmax", "n h w ->", split="train"), expected)
    with pytest.raises(OptionError, match="can be read only once"):
        sn.fit(packed, "minmax", "n h w ->", split="train", ledger=ledger, resume=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(sorted(CODES)), packed=st.booleans())
def test_any_array_is_read_as_it_was_written(data, dtype, packed, tmp_path):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=5, max_side=6))
    array = data.draw(arrays.arrays(np.dtype(dtype), shape))
    path = write(tmp_path / f"a.idx{'.gz' if packed else ''}", array)
    read = read_idx(path, MOST)
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()  # NaN, too
    source = open_idx(str(path))
    parts = source.shards() if hasattr(source, "shards") else [source]
    blocks = [block for part in parts for block in part.blocks()]
    assert np.concatenate(blocks).astype(dtype).tobytes() == array.tobytes()
    assert (source.schema().sample, source.schema().dtype) == (shape[1:], array.dtype.name)


def header(code=8, *sizes):
    return bytes([0, 0, code, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)


GOOD = idx(IMAGES)
DAMAGED = {
    "Not an IDX file: .*it is empty": b"",
    "Not an IDX file: .*begins with the bytes 00 00 08,": GOOD[:3],
    "Not an IDX file: .*begins with the bytes 89 50 4e 47": b"\x89PNG" + GOOD[4:],
    "Unknown type of values: .*code 0x0A; known are 0x08, 0x09": b"\0\0\x0a" + GOOD[3:],
    "Truncated header: .*5 bytes for the sizes of 3 axes, which take 12": GOOD[:9],
    r"Truncated.*shape \(40, 6, 5\) of uint8 are 1200 bytes, the file has 1199": GOOD[:-1],
    "More data than the header says": GOOD + b"\0",
    "Truncated": header(8, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100),
    "Truncated header: .*254 axes|Truncated header: .*255 axes": b"\0\0\x08\xff" + bytes(30),
    "No axis of samples": header(8) + b"\1",
    "No samples": header(8, 0, 6, 5),
    "Samples without values": header(8, 5, 0),
}


@pytest.mark.parametrize("says", DAMAGED)
@pytest.mark.parametrize("name", ["d-idx3-ubyte", "d-idx3-ubyte.gz"])
def test_damage_is_named_with_its_file(says, name, tmp_path):
    path = tmp_path / name
    content = DAMAGED[says]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    if path.suffix == ".gz" and says.startswith("Truncated.*shape"):
        says = "Truncated while it was read: .*row 0 and after"
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        sn.fit(path, "zscore", "n ... ->", split="train")
    assert name in str(caught.value)
    assert "fix: " in str(caught.value)


def test_a_packed_file_that_is_cut_or_changed_is_refused(tmp_path):
    path = write(tmp_path / "a-idx3-ubyte.gz")
    whole = path.read_bytes()
    for cut in range(2, len(whole), 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"Damaged gzip file: .*a-idx3-ubyte\.gz|Truncated"):
            read_idx(path, MOST)
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    with pytest.raises(DataError, match=r"Damaged gzip file: .*\n  got: CRC check failed"):
        sn.fit(path, "zscore", "n h w ->", split="train")
    path.write_bytes(whole + b"more")
    with pytest.raises(DataError, match="Damaged gzip file"):
        read_idx(path, MOST)
    half = len(GOOD) // 2
    path.write_bytes(gzip.compress(GOOD[:half]) + gzip.compress(GOOD[half:]))  # as gzip allows
    assert np.array_equal(read_idx(path, MOST), IMAGES)


@pytest.mark.parametrize("packed", [False, True])
def test_flipped_bits_give_an_error_or_what_was_written(packed, tmp_path):
    suffix = ".gz" if packed else ""
    path = write(tmp_path / f"a-idx3-ubyte{suffix}")
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    tracemalloc.start()
    for at in [*range(16), *(draw.randrange(16, len(whole)) for _ in range(300 * packed))]:
        for bit in range(8) if at < 16 else [draw.randrange(8)]:
            mutant = bytearray(whole)
            mutant[at] ^= 1 << bit
            path.write_bytes(mutant)
            try:
                read = read_idx(path, MOST)
            except DataError:
                refused += 1
                continue
            # Of a packed file only bytes that say when and by whom it was made may change.
            assert read.size == IMAGES.size if not packed else np.array_equal(read, IMAGES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > (300 if packed else 100)
    assert peak < 4 << 20


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    """Bombs: 60 MB of zeros behind a small array; and a header that claims more than can be there."""
    pack = zlib.compressobj(9, wbits=31)
    content = pack.compress(GOOD) + b"".join(pack.compress(bytes(1 << 20)) for _ in range(60)) + pack.flush()
    path = tmp_path / "bomb-idx3-ubyte.gz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"More data than the header says: .*bomb"):
        read_idx(path, MOST)
    path.write_bytes(gzip.compress(header(8, 60000, 2**16, 28) + bytes(10000)))
    with pytest.raises(DataError, match=r"a damaged header: .*bomb.*\n.* cannot unpack"):
        read_idx(path, 1 << 40)
    path.write_bytes(gzip.compress(header(8, 6000, 28) + bytes(168_000)))
    with pytest.raises(DataError, match=r"Too large for memory: .*bomb.*\n.*168,000 bytes, at most 1,000"):
        read_idx(path, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_name_says_nothing_about_packing(tmp_path):
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(GOOD)  # a server unpacked it, and left its name
    (tmp_path / "b-idx3-ubyte").write_bytes(gzip.compress(GOOD))
    for name in ("a-idx3-ubyte.gz", "b-idx3-ubyte"):
        assert np.array_equal(read_idx(tmp_path / name, MOST), IMAGES)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_of_a_folder_the_training_images_are_read(suffix, tmp_path):
    mnist(tmp_path, suffix)
    with pytest.warns(DataWarning, match=r"train-images.* is read, and not .*t10k-images"):
        norm = sn.fit(tmp_path, "zscore", "n h w ->", split="train")
    assert same(norm, sn.fit(IMAGES, "zscore", "n h w ->", split="train"))
    assert same(sn.fit(tmp_path, "zscore", "n h w ->", split="train", key="train"), norm)
    with pytest.raises(LeakageError, match="t10k"):
        sn.fit(tmp_path, "zscore", "n h w ->", split="train", key="t10k")
    with pytest.raises(DataError, match=r"No entry 'tran' in the folder .*\n.*'train', 't10k'\n.*'train'"):
        sn.fit(tmp_path, "zscore", "n h w ->", split="train", key="tran")
    with pytest.raises(OptionError, match="key= is for a folder of IDX files"):
        sn.fit(
            tmp_path / f"train-images-idx3-ubyte{suffix}", "zscore", "n h w ->", split="train", key="train"
        )


def test_of_a_file_that_is_there_twice_the_plain_one_is_read(tmp_path):
    raw = mnist(tmp_path / "MNIST" / "raw")  # as torchvision leaves them
    for path in list(raw.iterdir()):
        shutil.copy(path, path.with_suffix(""))
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    found = list_folder(str(tmp_path))
    assert list(found) == ["MNIST/raw/t10k", "MNIST/raw/train"]
    assert found["MNIST/raw/train"] == raw / "train-images-idx3-ubyte"
    with pytest.warns(DataWarning, match="is read"):
        assert sn.fit(tmp_path, "zscore", "n h w ->", split="train").record.samples == 40


def test_a_folder_that_leaves_a_choice_is_refused(tmp_path):
    for name in ("emnist-letters-train", "emnist-digits-train", "emnist-digits-test"):
        write(tmp_path / f"{name}-images-idx3-ubyte.gz")
    with pytest.raises(
        DataError,
        match=r"Cannot tell which entry of the folder .*\n.*\n.*'emnist-digits-train'",
    ):
        sn.fit(tmp_path, "zscore", "n h w ->", split="train")
    assert (
        sn.fit(tmp_path, "zscore", "n h w ->", split="train", key="emnist-letters-train").record.samples == 40
    )
    only = tmp_path / "only"
    write(only / "train-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    with pytest.raises(DataError, match="No IDX file but labels"):
        sn.fit(only, split="train")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("t10k-images-idx3-ubyte.gz", "t10k"),
        ("T10K-images.idx3-ubyte", "t10k"),
        ("a-test-images-idx3-ubyte", "test"),
    ],
)
def test_test_images_are_held_out(name, word, tmp_path):
    path = write(tmp_path / name)
    with pytest.raises(LeakageError, match=f"the word '{word}'"):
        sn.fit(path, "zscore", "n h w ->", split="train")
    with pytest.raises(LeakageError, match=f"the word '{word}'"):
        sn.fit(tmp_path, "zscore", "n h w ->", split="train")
    with pytest.warns(DataWarning, match="held-out"):
        sn.fit(path, "zscore", "n h w ->", split="t10k", leak=True)


@pytest.mark.parametrize(
    ("entry", "role"),
    [
        ("train", "train"),
        ("t10k", "test"),
        ("test/train", "train"),
        ("train/test", "test"),
        ("test/images", "test"),
        ("qmnist-train", "train"),
        ("MNIST/raw/a", ""),
        ("contest", ""),
        ("set10k", ""),
    ],
)
def test_the_nearest_name_says_which_split_a_file_is(entry, role):
    assert role_of(entry) == role


def test_missing_values_of_floats(tmp_path):
    array = IMAGES.astype("f4")
    array[3, 2, 1] = np.nan
    path = write(tmp_path / "a.idx.gz", array)
    with pytest.raises(DataError, match=r"NaN in .*a.idx.gz\n  got: nan at"):
        sn.fit(path, "zscore", "n h w ->", split="train")
    assert same(
        sn.fit(path, "zscore", "n h w ->", split="train", nan="omit"),
        sn.fit(array, "zscore", "n h w ->", split="train", nan="omit"),
    )


def test_at_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, suffix in (("packed", ".gz"), ("plain", "")):
        mnist(tmp_path / folder, suffix)
        fitted = run(
            "fit", folder, "--split", "train", "--pattern", "n h w ->", "--out", f"{folder}.safetensors"
        )
        assert fitted.exit_code == 0
        assert "40 samples of uint8" in fitted.stdout
        assert f"{folder}/train-images-idx3-ubyte{suffix} is read, and not {folder}/t10k" in fitted.stderr
        assert "--key would name" in " ".join(fitted.stderr.split())
    test = "packed/t10k-images-idx3-ubyte.gz"
    # The test images are the first training images: audit finds them.
    audited = run("audit", "packed.safetensors", "--against", test)
    assert audited.exit_code == 1
    assert "20 of 20 distinct samples" in " ".join(audited.stdout.split())
    applied = run("apply", "packed.safetensors", test, "--out", "t10k.npy")
    assert applied.exit_code == 0
    norm = sn.load("packed.safetensors")
    assert np.array_equal(np.load("t10k.npy"), norm(torch.from_numpy(IMAGES[:20])).numpy())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: whole[:-9], "Damaged gzip file: train-images-idx3-ubyte.gz"),
        (lambda whole: gzip.compress(GOOD[:-1]), "Truncated while it was read: train-images-idx3-ubyte.gz"),
        (lambda whole: gzip.compress(b"<html>"), "Not an IDX file: train-images-idx3-ubyte.gz"),
    ],
)
def test_damage_at_the_command_line(damage, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(Path("train-images-idx3-ubyte.gz"))
    path.write_bytes(damage(path.read_bytes()))
    for command in (["fit", path], ["fit", ".", "--key", "train"]):
        result = run(*command, "--split", "train", "--pattern", "n h w ->")
        assert result.exit_code == 2
        assert f"error: {says}" in result.stderr
        assert "fix: " in result.stderr
    assert not Path("inputs.safetensors").exists()
