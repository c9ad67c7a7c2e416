"""Fitted statistics as a file: every bit comes back, and nothing else is taken for one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slabnorm as sn
from slabnorm.errors import ArtifactError, OptionError
from slabnorm.inputs import artifact

Header = dict[str, Any]


def table() -> np.ndarray:
    x = np.random.default_rng(0).normal(1e6, 3.0, size=(200, 5))
    x[7, 2] = np.nan
    return x


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(6, 3, 8, 8), dtype=np.uint8)


FITS: dict[str, Callable[[], sn.InputNorm]] = {
    "table with NaN": lambda: sn.fit(table(), split="train", nan="omit"),
    "images": lambda: sn.fit(images(), sn.MinMax(out=(-1, 1)), "n c h w -> c", split="train"),
    "groups": lambda: sn.fit(images(), "zscore", "n (g c) h w -> g", split="train", g=3),
    "per place": lambda: sn.fit(images(), "zscore", "n c h w -> c h w", split="train"),
    "fixed": lambda: sn.fit(images(), "fixed", split="train"),
    "numbers": lambda: sn.fit(table()[:, 0], split="training data"),
    "huge and tiny": lambda: sn.fit(np.array([[1e300, 1e-300], [-1e300, 2e-300]]), "minmax", split="train"),
}


FITS["squares beyond float64"] = lambda: sn.fit(np.array([[-1e154], [1e154]] * 50), "minmax", split="train")
FITS["sizes of NumPy"] = lambda: sn.fit(images(), "zscore", "n (g c) h w -> g", split="train", g=np.int64(3))


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (sn.BatchNorm(3), "state_dict"),
        (torch.nn.Linear(2, 2), "state_dict"),
        (sn.SlabScaler(), "to_norm"),
        ("inputs.safetensors", "first, then the path"),
        (sn.moments(torch.ones(2, 3), "n c -> c"), "slabnorm.fit"),
        (None, "slabnorm.fit"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_input_norm_is_not_saved(given: Any, fix: str, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=rf"an InputNorm, the fitted statistics\n  got: {type(given).__name__}\n"
    ) as error:
        sn.save(given, tmp_path / "inputs.safetensors")
    assert fix in error.value.fix
    assert not list(tmp_path.iterdir())


def test_a_path_is_a_path() -> None:
    norm = FITS["fixed"]()
    for call in (lambda: sn.save(norm, None), lambda: sn.load(norm), lambda: sn.load(3)):
        with pytest.raises(OptionError, match="a str or a Path"):
            call()


def test_a_checkpoint_is_no_artifact_and_the_error_says_what_reads_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state, path = torch.nn.Linear(2, 2).state_dict(), tmp_path / "model"
    for write, fix in (
        (lambda: torch.save(state, path), r"torch\.load"),
        (lambda: torch.save(state, path, _use_new_zipfile_serialization=False), r"torch\.load"),
        (lambda: save_file(state, path), r"safetensors\.torch\.load_file"),
    ):
        write()
        with pytest.raises(ArtifactError, match=fix):
            sn.load(path)


def test_schemes_of_ones_own_are_refused(tmp_path: Path) -> None:
    class Wider(sn.ZScore):
        pass

    norm = sn.fit(images(), Wider(), "n c h w -> c", split="train")
    with pytest.raises(OptionError, match="Wider"):
        sn.save(norm, tmp_path / "inputs.safetensors")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inputs.safetensors"


@pytest.mark.parametrize("name", FITS)
def test_every_bit_comes_back(name: str, path: Path) -> None:
    norm = FITS[name]()
    sn.save(norm, path)
    back = sn.load(path)
    assert back.record == norm.record
    for key, value in norm.state_dict().items():
        assert value.numpy().tobytes() == back.state_dict()[key].numpy().tobytes(), key
    first = path.read_bytes()
    sn.save(back, path)
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == [path.name]


def test_readers_of_safetensors_can_read_it(path: Path) -> None:
    from safetensors import safe_open

    norm = FITS["images"]()
    sn.save(norm, path)
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(artifact._DTYPES)
        assert np.array_equal(file.get_tensor("mean"), norm.moments.mean.numpy())
        assert json.loads(file.metadata()[artifact.FORMAT])["record"]["split"] == "train"


def forge(path: Path, change: Callable[[Header, Header, bytearray], object], digest: bool = True) -> None:
    """Change a file's header, its metadata or its numbers, with the digest made good or not."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    plain = json.loads(header["__metadata__"][artifact.FORMAT])
    data = bytearray(content[8 + length :])
    change(header, plain, data)
    if digest:
        plain.pop("digest", None)
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                kind = np.int64 if entry["dtype"] == "I64" else np.float64
                tensors[name] = torch.from_numpy(np.frombuffer(bytes(data[start:end]), kind).copy()).reshape(
                    entry["shape"]
                )
        plain["digest"] = artifact._digest(plain, tensors)
    header["__metadata__"][artifact.FORMAT] = json.dumps(plain)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def put(name: str, value: float, at: int = 0) -> Callable[[Header, Header, bytearray], None]:
    def change(header: Header, plain: Header, data: bytearray) -> None:
        entry = header[name]
        kind = "<q" if entry["dtype"] == "I64" else "<d"
        struct.pack_into(kind, data, entry["data_offsets"][0] + 8 * at, value)

    return change


def record(**fields: object) -> Callable[[Header, Header, bytearray], None]:
    return lambda header, plain, data: plain["record"].update(fields)


IMPOSSIBLE: dict[str, Callable[[Header, Header, bytearray], object]] = {
    "negative count": put("count", -1),
    "a count too small": put("count", 1),
    "negative NaN count": put("nan_count", -5),
    "negative m2": put("m2", -1.0),
    "an m2 beyond the range": put("m2", 1e30),
    "NaN mean": put("mean", float("nan")),
    "infinite max": put("max", float("inf")),
    "min above mean": put("min", 1e7),
    "mean above max": put("mean", 2e6),
    "NaN low": put("mean_low", float("nan")),
    "another version": lambda header, plain, data: plain.update(version=2),
    "version true": lambda header, plain, data: plain.update(version=True),
    "another format": lambda header, plain, data: plain.update(format="slabnorm.run"),
    "an unknown field": lambda header, plain, data: plain.update(extra=1),
    "an unknown field in the record": record(extra=1),
    "a record that is a list": lambda header, plain, data: plain.update(record=[]),
    "an unknown scheme": record(scheme={"name": "quantile"}),
    "a scheme out of range": record(scheme={"name": "zscore", "ddof": -1, "eps": 0.0}),
    "a pattern that does not fit": record(pattern="n c h w -> c"),
    "a pattern that is none": record(pattern="n c"),
    "other samples": record(samples=7),
    "samples as text": record(samples="200"),
    "a negative size": record(sample=[-5]),
    "a NaN policy that is none": record(nan="maybe"),
    "a split that is no text": record(split=3),
}


def wrapped(header: Header, plain: Header, data: bytearray) -> None:
    put("count", (1 << 63) - 1)(header, plain, data)
    put("nan_count", 3)(header, plain, data)


IMPOSSIBLE |= {
    "counts that wrap around": wrapped,
    "a large mean_low": put("mean_low", 1e3),
    "samples beyond int64": record(samples=1 << 70),
    "a range beyond float64": record(scheme={"name": "fixed", "low": 0, "high": 10**400, "out": [0, 1]}),
    "thousands of axes": record(pattern="n " + " ".join(f"a{i}" for i in range(5000)) + " ->"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_data_set_has_is_refused_whoever_signed_it(name: str, path: Path) -> None:
    sn.save(FITS["table with NaN"](), path)
    forge(path, lambda header, plain, data: None)
    sn.load(path)  # the forger's hand is good enough
    forge(path, IMPOSSIBLE[name])
    with pytest.raises(ArtifactError, match=r"inputs\.safetensors"):
        sn.load(path)


def test_every_flipped_bit_is_found(path: Path) -> None:
    sn.save(FITS["images"](), path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in [*range(0, len(whole), 7), *generator.integers(0, len(whole), 200)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(flipped))
        with pytest.raises(ArtifactError):
            sn.load(path)
    for length in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            sn.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError):
        sn.load(path)


def _file(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 62) + b"{}",  # a header of exabytes
        _file("[" * 100_000 + "]" * 100_000),
        _file('{"__metadata__": {"slabnorm.inputs": "' + "[" * 100_000 + '"}}'),
        _file('{"a": 1, "a": 2}'),
        _file('{"__metadata__": {"slabnorm.inputs": "{\\"version\\": NaN}"}}'),
        _file('{"__metadata__": {"slabnorm.inputs": "{\\"version\\": 1e999}"}}'),
        _file('{"__metadata__": {"slabnorm.inputs": {}}}'),
        _file('{"__metadata__": 3}'),
        _file("{}"),
        _file("[]"),
        _file("\ufeff{}"),
        struct.pack("<Q", 2) + b"\xff\xfe",
        pickle.dumps({"mean": 0.0}),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_hostile_files(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        sn.load(path)


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    names = ("none", "x" * 300, "a\0b", "fifo", "large")
    for where in (tmp_path, Path("/dev/zero"), *(tmp_path / name for name in names)):
        with pytest.raises(ArtifactError):
            sn.load(where)


def test_a_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sn.save(FITS["images"](), path)
    before = hashlib.sha256(path.read_bytes()).digest()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("fsync", "replace"):
        norm = FITS["fixed"]()
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OptionError, match="No space left"):
                sn.save(norm, path)
        assert hashlib.sha256(path.read_bytes()).digest() == before
        assert os.listdir(path.parent) == [path.name]
    with pytest.raises(OptionError):
        sn.save(FITS["fixed"](), path.parent / "no folder" / "inputs.safetensors")
