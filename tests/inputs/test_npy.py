"""`.npy` and `.npz`: streamed, and every kind of damage named with its file."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from slabnorm.errors import DataError, OptionError, ShapeError
from slabnorm.inputs import fit

DATA = np.random.default_rng(5).standard_normal((500, 3))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.npy.BLOCK_BYTES", 1000)  # 41 rows at a time


def same(norm, data):
    expected = fit(np.ascontiguousarray(data), split="train").state_dict()
    return all(torch.equal(value, expected[key]) for key, value in norm.state_dict().items())


ARRAYS = {
    "float64": DATA,
    "float32": DATA.astype("f4"),
    "float16": DATA.astype("f2"),
    "big-endian": DATA.astype(">f8"),
    "fortran": np.asfortranarray(DATA),
    "uint8": (DATA * 10).astype("u1"),
    "bool": DATA > 0,
    "1-d": DATA[:, 0],
    "images": DATA.reshape(5, 5, 4, 15),
    "one row": DATA[:1] * np.array([1, 1, 1]),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("suffix", ["npy", "npz", "compressed.npz"])
@pytest.mark.filterwarnings("ignore::slabnorm.errors.DataWarning")
def test_a_file_gives_the_bits_of_its_array(kind, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, ARRAYS[kind])
    else:
        (np.savez_compressed if "compressed" in suffix else np.savez)(path, x=ARRAYS[kind], y=np.arange(3))
    assert same(fit(path, split="train"), ARRAYS[kind])
    assert same(fit(str(path), split="train"), ARRAYS[kind])


def test_header_version_2(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, DATA, version=(2, 0))
    assert same(fit(tmp_path / "a.npy", split="train"), DATA)


def test_memory_maps_and_open_archives(tmp_path):
    np.save(tmp_path / "a.npy", DATA)
    np.savez(tmp_path / "a.npz", DATA)
    assert same(fit(np.load(tmp_path / "a.npy", mmap_mode="r"), split="train"), DATA)
    with np.load(tmp_path / "a.npz") as archive:
        assert same(fit(archive, split="train"), DATA)
    assert same(fit(tmp_path / "a.npz", split="train"), DATA)  # its only array, arr_0


def test_which_array_of_an_archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=DATA, b=-DATA)
    with pytest.raises(DataError, match=r"a\.npz is x\n  got: it holds 'a', 'b'(.|\n)*key='a'"):
        fit(path, split="train")
    with pytest.raises(DataError, match=r"No entry 'c' in .*a\.npz\n  got: it holds 'a', 'b'"):
        fit(path, split="train", key="c")
    assert same(fit(path, split="train", key="b"), -DATA)
    np.savez(path, DATA, DATA)
    with pytest.raises(DataError, match="holds 'arr_0', 'arr_1'"):
        fit(path, split="train")
    np.savez(path)
    with pytest.raises(DataError, match="No entries in"):
        fit(path, split="train")


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text: str) -> bytes:
    text = text.ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def says(shape: str) -> str:
    return f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"


WHOLE = npy(DATA)
DAMAGED = {
    "empty": (b"", "Damaged header"),
    "magic only": (WHOLE[:6], "Damaged header"),
    "half a header": (WHOLE[:60], "Damaged header"),
    "truncated": (WHOLE[:-1], "Truncated"),
    "header alone": (WHOLE[:128], "the file has 0"),
    "one byte too many": (WHOLE + b"\0", "one array per file"),
    "two arrays": (WHOLE + WHOLE, "one array per file"),
    "text": (b"1,2,3\n4,5,6\n", "magic"),
    "unknown version": (b"\x93NUMPY\x09\x00" + WHOLE[8:], "version|format"),
    "larger than the file": (header(says("(1000000000, 3)")), "the file has 0"),
    "a shape of 2^62": (header(says(f"({2**62}, {2**62})")), "the file has 0"),
    "negative": (header(says("(-1, 3)")), "0 or more"),
    "no python": (header("{'descr': '<f8', 'fortran_order"), "Damaged header"),
    "a call": (header("__import__('os').abort()"), "Damaged header"),
    "deep": (header("(" * 100), "Damaged header"),
    "no such dtype": (header(says("(1,)").replace("<f8", "nope")), "Damaged header"),
    "a header of 60 kB": (b"\x93NUMPY\x01\x00\xff\xff" + b"{" + b" " * 65534, "Damaged header"),
    "no axis, 2^62 samples": (header(says(f"({2**62}, 0)")), r"samples of shape \(0,\)"),
    "2^62 features": (header(says(f"(0, {2**62})")), "at most 2\\^44 values"),
    "2^40 features": (header(says(f"(0, {2**40})")), "is empty"),
    "bool as a size": (header(says("(True,)")) + bytes(8), "whole numbers"),
    "text as a size": (header(says("('1',)")) + bytes(8), "Damaged header"),
    "negative twice": (header(says("(-1, -3)")) + bytes(24), "0 or more"),
    "subarrays": (header(says("(2,)").replace("'<f8'", "('<f8', (3,))")) + bytes(48), "at most 64 bits"),
    "no bytes": (header(says("(3,)").replace("<f8", "|S0")), r"dtype \|S0"),
    "a header of 4 GB": (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + WHOLE[10:], "4,294,967,295 bytes of text"),
    "objects": (npy(np.array([None, 1])), "dtype object"),
    "complex": (npy(DATA.astype(complex)), "dtype complex128"),
    "structured": (npy(np.zeros(3, [("a", "f4")])), "take one field"),
    "version 3": (b"\x93NUMPY\x03" + npy(np.zeros(3, [("a", "f4")]))[7:], "version 3.0"),
    "text array": (npy(np.array(["a"])), "dtype <U1"),
    "0-d": (npy(np.array(1.0)), "single number"),
    "no samples": (npy(DATA[:0]), "is empty"),
    "no features": (npy(DATA[:, :0]), r"shape \(0,\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(kind, tmp_path):
    content, words = DAMAGED[kind]
    path = tmp_path / "part-7.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        fit(path, split="train")
    assert "part-7.npy" in str(caught.value)


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_arrays_in_archives_are_named(kind, tmp_path):
    content, words = DAMAGED[kind]
    path = tmp_path / "part-7.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=words) as caught:
        fit(path, split="train")
    assert "part-7.npz['x']" in str(caught.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_archives(compressed, tmp_path):
    path = tmp_path / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=DATA)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.npz"):
            fit(path, split="train")
    for place in (300, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"a\.npz"):
            fit(path, split="train")


def test_paths_that_lead_nowhere(tmp_path):
    for path, words in [
        (tmp_path / "none.npy", r"No such data file: .*none\.npy"),
        (tmp_path / "none.npz", r"No such data file: .*none\.npz"),
        (tmp_path, "No data in the folder"),
        ("", "path of the data is empty"),
        ("a" * 5000 + ".npy", "too long"),
    ]:
        with pytest.raises(DataError, match=words):
            fit(path, split="train")
    other = tmp_path / "a.txt"
    other.write_bytes(b"PAR1")
    with pytest.raises(
        DataError, match=r"No known kind of data file: .*a\.txt\n  got: known are \.npy, \.npz, \.zarr"
    ):
        fit(other, split="train")
    np.save(tmp_path / "a.npy", DATA)
    with pytest.raises(OptionError, match=r"key= is no option of \.npy files"):
        fit(tmp_path / "a.npy", split="train", key="x")


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    from slabnorm.inputs.sources.npy import NpySource

    path = tmp_path / "a.npy"
    np.save(path, DATA)
    (shard,) = NpySource(path).shards()
    blocks = shard.blocks()
    next(blocks)
    with open(path, "r+b") as file:
        file.truncate(600)
    with pytest.raises(DataError, match="Truncated while it was read"):
        list(blocks)
    with pytest.raises(DataError, match="Truncated"):
        fit(path, split="train")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_pattern_that_does_not_fit_is_said_before_anything_is_read(suffix, tmp_path):
    # NaN would be an error, too, if it were read.
    (np.save if suffix == "npy" else np.savez)(tmp_path / f"a.{suffix}", DATA * np.nan)
    with pytest.raises(ShapeError, match="names 4 axes"):
        fit(tmp_path / f"a.{suffix}", pattern="n c h w -> c", split="train")


def changed(whole: bytes, place: int, value: int) -> bytes:
    return whole[:place] + bytes([value]) + whole[place + 1 :]


def archive_faults() -> dict[str, tuple[bytes, str]]:
    """An archive of x and y with one byte changed, and what is said of it."""
    file = io.BytesIO()
    np.savez(file, x=DATA, y=np.arange(500.0))
    whole = file.getvalue()
    table = whole.index(b"PK\1\2")
    name = whole.index(b"x.npy", table)
    both = changed(changed(whole, whole.index(b"x.npy") + 2, ord("f")), name + 2, ord("f"))
    other = changed(whole, whole.index(b"y.npy") + 1000, 1)
    return {
        "a member that is no array": (both, r"x\.fpy"),
        "a name in the table": (changed(whole, name + 2, ord("f")), r"x\.fpy"),
        "another name in the table": (changed(whole, name, ord("z")), "differ"),
        "a name twice": (changed(whole, name, ord("y")), r"Two arrays of one name in .*y\.npy'"),
        "a bit of another member": (other, r"CRC-32 for file 'y\.npy"),
        "encrypted": (changed(whole, table + 8, 1), "encrypted"),
        "unknown compression": (changed(whole, table + 10, 77), "compression method"),
        "a name that is no text": (changed(changed(whole, table + 9, 8), name, 0xFF), "decode"),
        "a later version": (changed(whole, table + 6, 99), "version 9.9"),
    }


@pytest.mark.parametrize("kind", archive_faults())
def test_one_changed_byte_of_an_archive_is_found(kind, tmp_path):
    content, words = archive_faults()[kind]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        fit(tmp_path / "a.npz", split="train")
    assert "a.npz" in str(caught.value)
    with open(tmp_path / "a.npz", "rb") as file:
        try:
            opened = np.load(file)
        except Exception:  # NumPy's own
            return
        with pytest.raises(DataError, match=words):
            fit(opened, split="train")


def test_a_small_archive_of_zeros_in_fortran_order_is_not_inflated(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header(says(f"({1 << 23}, 17)").replace("False", "True")))
    whole = path.read_bytes()
    size = whole.index(b"PK\1\2") + 24
    path.write_bytes(whole[:size] + ((17 * 8 << 23) + 129).to_bytes(4, "little") + whole[size + 4 :])
    with pytest.raises(DataError, match=r"1,140,850,688 bytes(.|\n)*C order"):
        fit(path, split="train")


def test_a_member_that_is_longer_than_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", WHOLE + bytes(1 << 20))
    whole = (tmp_path / "a.npz").read_bytes()
    claimed = whole.rindex((len(WHOLE) + (1 << 20)).to_bytes(4, "little"))
    path = tmp_path / "b.npz"
    path.write_bytes(whole[:claimed] + len(WHOLE).to_bytes(4, "little") + whole[claimed + 4 :])
    with pytest.raises(DataError, match="CRC"):
        fit(path, split="train")


def test_a_header_that_claims_samples_beyond_all_memory(tmp_path):
    path = tmp_path / "sparse.npy"
    with open(path, "wb") as file:
        file.write(header(says("(2, 6250000000)")))
        file.truncate(file.tell() + 2 * 6250000000 * 8)  # a hole: it takes no room on the disk
    with pytest.raises(DataError, match=r"Samples too large: .*sparse\.npy\n  got: .*50,000,000,000 bytes"):
        fit(path, split="train")
