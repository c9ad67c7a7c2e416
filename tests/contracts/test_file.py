"""A contract as a file: every bit comes back, and nothing else is taken for one."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

import slabnorm as sn
from slabnorm.contracts import GivenNorm, Statistics
from slabnorm.contracts import file as contract_file
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import ArtifactError, DataError, OptionError
from slabnorm.inputs import artifact

Plain = dict[str, Any]
FORMAT = contract_file.FORMAT


def make() -> sn.Contract:
    rng = np.random.default_rng(0)
    state = rng.normal(5, 2, (40, 3))
    state[3, 1] = np.nan
    data = {"observation.state": state, "image": rng.integers(0, 255, (40, 3, 2, 2), np.uint8)}
    valid = sn.Key("n c -> c", "minmax", unit="rad", names=("a", "b", "c"), valid=(-9, 20), role="output")
    keys = {"observation.state": valid, "image": sn.Key("n (g c) h w -> g", sizes={"g": 3}), "task": "keep"}
    fitted = sn.fit_contract(data, keys, split="train", nan="omit")  # type: ignore[arg-type]
    key = sn.Key("n c -> c", "minmax", unit="m")
    found = Statistics(min=[0.0, -1.0], max=[2.0, 1.0], quantiles={0.01: [0.1, -0.9], 0.99: [1.9, 0.9]})
    return sn.Contract(
        {**fitted.entries(), "action": (key, GivenNorm(key, found, (2,), Provenance("X", "", None)))}
    )


@pytest.fixture(scope="module")
def contract() -> sn.Contract:
    return make()


@pytest.fixture
def path(tmp_path: Path, contract: sn.Contract) -> Path:
    contract.save(tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def test_every_bit_comes_back(path: Path, contract: sn.Contract) -> None:
    back = sn.contract(path)
    assert list(back) == list(contract)
    for name in contract:
        assert back.key(name) == contract.key(name)
    for label, value in contract.state_dict().items():
        assert value.numpy().tobytes() == back.state_dict()[label].numpy().tobytes(), label
    back.save(path.with_name("again"))
    make().save(path.with_name("anew"))
    assert path.read_bytes() == path.with_name("again").read_bytes() == path.with_name("anew").read_bytes()
    assert back["action"].source == Provenance("X", "", None)
    assert len(back["observation.state"].sketch.hashes) == 40


def test_a_scheme_by_name_and_as_an_object_give_the_same_bytes(tmp_path: Path) -> None:
    x = {"x": torch.tensor([[1.0], [3.0]])}
    for name, scheme in (("a", "zscore"), ("b", sn.ZScore())):
        sn.fit_contract(x, {"x": sn.Key("n c -> c", scheme)}, split="train").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_contract_of_what_passes_alone(tmp_path: Path) -> None:
    sn.Contract({"index": (sn.Key("keep"), None)}).save(tmp_path / "c")
    assert list(sn.contract(tmp_path / "c")) == ["index"]


def test_readers_of_safetensors_can_read_it(path: Path, contract: sn.Contract) -> None:
    tensors = load(path.read_bytes())
    assert torch.equal(tensors["0.mean"], contract["observation.state"].moments.mean)
    assert torch.equal(tensors["3.quantiles"], torch.tensor([[0.1, -0.9], [1.9, 0.9]], dtype=torch.float64))


def forge(path: Path, change: Callable[[Plain, dict[str, torch.Tensor]], Any]) -> None:
    """Change the JSON or the tensors of a file, and sign it anew."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    plain = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][FORMAT])
    tensors = load(content)
    plain.pop("digest")
    change(plain, tensors)
    artifact.write(path, FORMAT, plain, tensors)


def row(number: int, **fields: Any) -> Callable[[Plain, Any], Any]:
    return lambda plain, _: plain["keys"][number].update(fields)


def key(number: int, **fields: Any) -> Callable[[Plain, Any], Any]:
    return lambda plain, _: plain["keys"][number]["key"].update(fields)


def tensor(label: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Any, Any], Any]:
    def put(_: Any, tensors: dict[str, torch.Tensor]) -> None:
        value = change(tensors.pop(label))
        if value is not None:
            tensors[label] = value.contiguous()

    return put


def double(plain: Plain, tensors: Any) -> None:
    plain["keys"][1]["name"] = plain["keys"][0]["name"]


DAMAGE: dict[str, Callable[[Plain, dict[str, torch.Tensor]], Any]] = {
    "another version": lambda plain, _: plain.update(version=2),
    "version true": lambda plain, _: plain.update(version=True),
    "a field more": lambda plain, _: plain.update(more=1),
    "no keys": lambda plain, tensors: (plain.update(keys=[]), tensors.clear()),
    "keys that are a dict": lambda plain, _: plain.update(keys={}),
    "a key that is text": lambda plain, _: plain["keys"].__setitem__(0, "state"),
    "a key fewer": lambda plain, _: plain["keys"].pop(),
    "two keys of one name": double,
    "an empty name": row(0, name=""),
    "a name that is a number": row(0, name=3),
    "another kind": row(0, kind="guessed"),
    "a kind that is a list": row(0, kind=[]),
    "given for fitted": row(0, kind="given"),
    "keep for fitted": row(0, kind="keep"),
    "no record": lambda plain, _: plain["keys"][0].pop("record"),
    "a pattern that does not fit": key(0, pattern="n c h w -> c"),
    "a pattern that is none": key(0, pattern="n c"),
    "thousands of axes": key(0, pattern="n " + " ".join(f"a{i}" for i in range(5000)) + " ->"),
    "too few names": key(0, names=["a"]),
    "names twice": key(0, names=["a", "a", "b"]),
    "another role": key(0, role="both"),
    "a unit that is a number": key(0, unit=3),
    "valid the wrong way": key(0, valid=[3, -3]),
    "valid that is text": key(0, valid="all"),
    "an unknown scheme": key(0, scheme="robuster"),
    "a scheme of numbers": key(0, scheme=3),
    "a field of a key more": key(0, more=1),
    "a size of 0": key(1, sizes={"g": 0}),
    "a key without fields": row(0, key={}),
    "a key that is a list": row(0, key=[]),
    "a record that is a list": row(0, record=[]),
    "a sketch too large": row(0, sketch=-1),
    "a sample of text": row(3, sample=["a"]),
    "a sample of two": row(3, sample=[3]),
    "a negative sample": row(3, sample=[-2]),
    "100 axes": row(3, sample=[1] * 100),
    "ranks of text": row(3, ranks=["0.01", "0.99"]),
    "ranks twice": row(3, ranks=[0.01, 0.01]),
    "too few ranks": row(3, ranks=[0.01]),
    "ranks beyond 1": row(3, ranks=[0.01, 99.0]),
    "ranks that are a dict": row(3, ranks={}),
    "a source of two": row(3, source=["X", ""]),
    "a source of numbers": row(3, source=[1, 2, 3]),
    "samples below 0": row(3, source=["X", "", -3]),
    "a tensor of no key": lambda _, tensors: tensors.update({"7.mean": torch.ones(2)}),
    "a tensor without a number": lambda _, tensors: tensors.update(mean=torch.ones(2)),
    "a number with a zero before it": lambda _, tensors: tensors.update({"00.mean": torch.ones(2)}),
    "a tensor more": lambda _, tensors: tensors.update({"3.median": torch.ones(2, dtype=torch.float64)}),
    "a tensor of what passes": lambda _, tensors: tensors.update({"2.mean": torch.ones(2)}),
    "a tensor fewer": tensor("0.m2", lambda _: None),
    "a given tensor fewer": tensor("3.max", lambda _: None),
    "no quantiles": tensor("3.quantiles", lambda _: None),
    "quantiles of no axis": tensor("3.quantiles", lambda _: torch.tensor(0.5, dtype=torch.float64)),
    "quantiles that fall": tensor("3.quantiles", lambda v: v.flip(0)),
    "another dtype": tensor("0.mean", lambda v: v.float()),
    "a given one of another dtype": tensor("3.min", lambda v: v.float()),
    "another shape": tensor("0.mean", lambda v: v[:2]),
    "a given one of another shape": tensor("3.min", lambda v: v[:1]),
    "a negative m2": tensor("0.m2", lambda v: -v),
    "NaN": tensor("0.mean", lambda v: v * torch.nan),
    "a given NaN": tensor("3.min", lambda v: v * torch.nan),
    "an infinite maximum": tensor("3.max", lambda v: v + torch.inf),
    "min above max": tensor("3.min", lambda v: v + 9),
    "a count of 0": tensor("0.count", lambda v: v * 0),
}  # fmt: skip


def test_the_forger_is_good_enough(path: Path) -> None:
    before = path.read_bytes()
    forge(path, lambda plain, tensors: None)
    assert path.read_bytes() == before
    forge(path, row(3, source=["Y", "train", 9]))
    assert sn.contract(path)["action"].samples == 9


@pytest.mark.parametrize("name", DAMAGE)
def test_what_no_contract_has_is_refused_whoever_signed_it(name: str, path: Path) -> None:
    forge(path, DAMAGE[name])
    with pytest.raises(ArtifactError, match=r"Damaged contract: .*c\.safetensors"):
        sn.contract(path)


VALUES: list[Any] = [
    None,
    True,
    -1,
    3,
    0.5,
    1e300,
    "",
    "x",
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    "n c -> c",
    1 << 70,
]


def test_any_value_at_any_place(path: Path) -> None:
    """Each place of the JSON in turn holds another value: a typed error, or a contract that works."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    plain = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"][FORMAT])
    tensors = load(whole)
    plain.pop("digest")

    def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        return [before, *(place for name, part in inside for place in places(part, (*before, name)))]

    rng, refused, tried = np.random.default_rng(0), 0, 0
    for place in places(plain)[1:]:
        inner = changed = copy.deepcopy(plain)
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = VALUES[rng.integers(len(VALUES))]
        artifact.write(path, FORMAT, changed, tensors)
        tried += 1
        try:
            found = sn.contract(path)
        except DataError:  # ArtifactError is one; of another format it is "no known format"
            refused += 1
        else:
            found.save(path)
    assert refused > 0.6 * tried


def test_every_flipped_bit_is_found(path: Path) -> None:
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(60), *rng.integers(0, len(whole), 250)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        with pytest.raises(DataError):
            sn.contract(path)
        with pytest.raises(ArtifactError):
            contract_file.load(path)
    for content in (whole[:0], whole[:8], whole[:100], whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            contract_file.load(path)


def _file(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 40) + b'{"__metadata__": {"slabnorm.contract": ""}}',  # a header of gigabytes
        _file("[" * 100_000),
        _file('{"__metadata__": {"slabnorm.contract": "' + "[" * 100_000 + '"}}'),
        _file('{"a": 1, "a": 2, "slabnorm.contract": 3}'),
        _file('{"__metadata__": {"slabnorm.contract": "{\\"version\\": NaN}"}}'),
        _file('{"__metadata__": {"slabnorm.contract": "{\\"version\\": 1e999}"}}'),
        _file('{"__metadata__": {"slabnorm.contract": {}}}'),
        _file('{"__metadata__": {"slabnorm.inputs": "{}"}}'),
        _file("{}"),
        b"PK\x03\x04" + bytes(100),
        pickle.dumps({"mean": 0.0}),
    ],
    ids=[f"{i}" for i in range(11)],
)
def test_hostile_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        contract_file.load(path)
    with pytest.raises(DataError):
        sn.contract(path)


def test_files_of_the_other_kind_are_told_apart(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"slabnorm\.contract reads"):
        sn.load(path)
    sn.save(sn.fit(torch.ones(3, 2).cumsum(0), split="train"), tmp_path / "norm")
    with pytest.raises(DataError):
        sn.contract(tmp_path / "norm")
    with pytest.raises(DataError, match="No such file of statistics"):
        sn.contract(tmp_path / "none")


def test_what_a_file_cannot_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: sn.Contract
) -> None:
    class Wider(sn.ZScore):
        pass

    own = sn.fit_contract({"x": torch.eye(3)}, {"x": sn.Key("n c -> c", Wider())}, split="train")
    with pytest.raises(OptionError, match="Wider"):
        own.save(tmp_path / "c")
    with pytest.raises(OptionError, match="no folder"):
        contract.save(tmp_path / "no folder" / "c")
    monkeypatch.setattr(artifact, "_HEADER", 1000)  # of a file with many keys
    with pytest.raises(OptionError, match="too many for one file"):
        contract.save(tmp_path / "c")
    assert not list(tmp_path.iterdir())
