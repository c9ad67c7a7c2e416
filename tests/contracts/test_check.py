"""Contract.check finds what is wrong with a batch or a file, and nothing in batches of the training data."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensordict import TensorDict

import slabnorm as sn
from slabnorm.contracts import GivenNorm, Statistics
from slabnorm.errors import ContractError, DataError

RNG = np.random.default_rng(0)
N = 3000
SCALE, MEAN = np.array([0.5, 1.0, 2.0, 0.1, 0.3]), np.array([0.0, 1.0, -1.0, 0.5, 2.0])


def make() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    image = (rng.random((N, 3, 4, 4)) * np.array([255, 150, 80]).reshape(3, 1, 1)).astype(np.uint8)
    return {
        "state": torch.from_numpy(rng.normal(size=(N, 5)) * SCALE + MEAN),
        "image": torch.from_numpy(image),
        "action": torch.from_numpy(rng.normal(0.3, 0.1, (N, 2))),
        "index": torch.arange(N),
    }


DATA = make()
KEYS: Any = {
    "state": sn.Key("n c -> c", unit="rad", names=("a", "b", "c", "d", "e")),
    "image": sn.Key("n c h w -> c", "fixed"),
    "action": sn.Key("n c -> c", "minmax", unit="m", role="output", valid=(-1, 1)),
    "index": "keep",
}
CONTRACT = sn.fit_contract(DATA, KEYS, split="train")


def batch(samples: int = 32) -> dict[str, Any]:
    at = torch.from_numpy(RNG.integers(0, N, samples))
    return {name: value[at] for name, value in DATA.items()}


def test_batches_of_the_training_data_are_well() -> None:
    for samples in (1, 2, 3, 8, 19, 20, 21, 33, 64, *RNG.integers(1, 65, 51)):
        assert CONTRACT.check(batch(int(samples))) == ()
    assert CONTRACT.check(DATA) == ()
    assert CONTRACT.check(TensorDict(batch(), [32])) == ()
    half = {name: v.bfloat16() if v.is_floating_point() else v for name, v in batch().items()}
    assert CONTRACT.check(half) == ()
    assert CONTRACT.check({**batch(), "state": batch()["state"].requires_grad_()}) == ()
    assert CONTRACT.check(batch(0)) == ()


def put(name: str, change: Any) -> Any:
    return lambda b: b.update({name: change(b[name])})


def column(number: int, change: Any) -> Any:
    def changed(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, number] = change(x[:, number])
        return x

    return put("state", changed)


def at_3(value: float) -> Any:
    return lambda x: x.index_fill(0, torch.tensor([3]), value)


def normalised(x: torch.Tensor) -> torch.Tensor:
    return (x - torch.from_numpy(MEAN)) / torch.from_numpy(SCALE)


# What is done to a batch; the kind and the features of the only error or warning, and what it says.
WRONG: dict[str, tuple[Any, str, tuple[str, ...], str]] = {
    "left out": (lambda b: b.pop("state"), "names", ("state",), "no 'state', an input"),
    "unknown": (lambda b: b.update(w=1), "names", ("w",), "does not know 'w'"),
    "width": (put("state", lambda x: x[:, :4]), "width", ("state",), r"another shape: \(32, 4\)"),
    "no tensor": (put("state", lambda x: x.numpy()), "dtype", ("state",), "no tensor"),
    "complex": (put("state", lambda x: x * 1j), "dtype", ("state",), "complex128"),
    "degrees": (put("state", lambda x: x * 180 / math.pi), "scale", ("state",), "like degrees for radians"),
    "radians": (put("state", lambda x: x / 180 * math.pi), "scale", ("state",), "like radians for degrees"),
    "thousands": (put("state", lambda x: x * 1000), "scale", ("state",), "1,000 times.*which is rad"),
    "thousandths": (put("state", lambda x: x / 1000), "scale", ("state",), "1/1,000 of"),
    "one of them": (column(4, lambda x: x * 1000), "unit", ("e",), "feature “e” are 1,000 times"),
    "normalised": (put("state", normalised), "scale", ("state",), "normalised already"),
    "0 to 1": (put("image", lambda x: x / 255), "scale", ("image",), "normalised already"),
    "order": (put("state", lambda x: x[:, [1, 0, 2, 4, 3]]), "order", ("a", "b", "d", "e"), "b, a, c, e, d"),
    "BGR": (put("image", lambda x: x.flip(1)), "order", ("image[0]", "image[2]"), "BGR for RGB"),
    "NaN": (column(3, at_3(math.nan)), "missing", ("d",), "3.12%"),
    "infinite": (column(3, at_3(math.inf)), "values", ("state",), "Infinite"),
    "moved": (column(0, lambda x: x + 2), "shift", ("a",), "the mean of"),
}
WARNINGS = {"NaN", "moved"}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    change, kind, features, said = WRONG[name]
    given = batch()
    change(given)
    (found,) = [finding for finding in CONTRACT.check(given) if finding.kind != "range"]
    assert (found.kind, found.features) == (kind, features), found
    assert found.severity == ("warning" if name in WARNINGS else "error")
    assert re.search(said, found.text), found.text
    assert features[0] in found.text or found.text.startswith(("state: ", "image: "))
    assert found.advice


def test_a_dead_sensor() -> None:
    given = batch(500)
    column(2, lambda x: x * 0 + 1.5)(given)
    assert [(f.kind, f.features) for f in CONTRACT.check(given) if f.kind == "constant"] == [
        ("constant", ("c",))
    ]


def test_a_key_with_another_name_is_two_findings() -> None:
    given = batch()
    given["States"] = given.pop("state")
    first, second = CONTRACT.check(given)
    assert first.features == ("state",)
    assert second.features == ("States",)
    given = batch()
    given["stat"] = given.pop("state")
    assert CONTRACT.check(given)[0].advice == "did you mean 'stat'?"


def test_values_that_cannot_be() -> None:
    found = CONTRACT.check({**batch(), "action": batch()["action"] + 9})
    assert found[0].severity == "error"
    assert [f.kind for f in found if f.kind == "valid"] == ["valid"]


def test_outputs_may_be_left_out() -> None:
    given = batch()
    del given["action"], given["index"]
    assert CONTRACT.check(given) == ()


def test_consecutive_samples_are_no_random_batch() -> None:
    """Frames of one episode vary less than the data and have a mean of their own, and check says so."""
    walk = torch.from_numpy(np.sin(np.arange(N) / 400))[:, None].expand(N, 1)
    contract = sn.fit_contract({"x": walk}, {"x": "n c -> c"}, split="train")
    assert contract.check({"x": walk[torch.from_numpy(RNG.integers(0, N, 64))]}) == ()
    assert {f.kind for f in contract.check({"x": walk[:64]})} & {"shift", "spread"}


def test_given_statistics_without_a_range() -> None:
    key = sn.Key("n c -> c", unit="rad")
    found = Statistics(mean=MEAN, std=SCALE)
    contract = sn.Contract({"state": (key, GivenNorm(key, found, (5,)))})
    for _ in range(20):
        assert contract.check({"state": batch()["state"]}) == ()
    (found_wrong,) = contract.check({"state": batch()["state"] * 1000})
    assert found_wrong.kind == "scale"


def test_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()

    def write(path: Path, **change: Any) -> Path:
        columns = {"state": DATA["state"].tolist(), "action": DATA["action"].tolist(), **change}
        pq.write_table(pa.table({n: v for n, v in columns.items() if v is not None}), path)
        return path

    contract = sn.Contract({n: e for n, e in CONTRACT.entries().items() if n != "image"})
    assert contract.check(write(folder / "a.parquet")) == ()
    assert contract.check(str(folder)) == ()
    (found,) = contract.check(write(tmp_path / "b.parquet", state=None))
    assert (found.kind, found.features) == ("names", ("state",))
    assert contract.check(write(tmp_path / "c.parquet", action=None)) == ()
    (found,) = contract.check(write(tmp_path / "d.parquet", state=(DATA["state"] * 1000).tolist()))
    assert found.kind == "scale"
    (found,) = contract.check(write(tmp_path / "e.parquet", state=DATA["state"][:, :4].tolist()))
    assert found.kind == "width"
    with pytest.raises(DataError, match="No such data file"):
        contract.check(tmp_path / "none.parquet")
    (tmp_path / "f.parquet").write_bytes((tmp_path / "d.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"f\.parquet"):
        contract.check(tmp_path / "f.parquet")


def test_what_has_no_names() -> None:
    for given in (torch.ones(3, 5), None, 3):
        with pytest.raises(ContractError, match="needs a batch with names"):
            CONTRACT.check(given)


def test_rare_events_beyond_an_unknown_range_are_chance() -> None:
    # A feature that is 1 in 0.6% of all samples has its ones 12.9 standard deviations from the mean.
    rare = GivenNorm(sn.Key("n c -> c"), Statistics(mean=[0.006], std=[math.sqrt(0.006 * 0.994)]), (1,))
    contract = sn.Contract({"x": (sn.Key("n c -> c"), rare)})
    x = torch.zeros(200, 1)
    x[:4] = 1  # with a probability of 3%
    assert contract.check({"x": x}) == ()
    x[:20] = 1
    found = [finding for finding in contract.check({"x": x}) if finding.kind == "range"]
    assert [finding.text[:3] for finding in found] == ["x: "]
    assert "10% of the values" in found[0].text
    assert "10 standard deviations around the mean" in found[0].text


def test_a_range_of_quantiles_is_called_one() -> None:
    known = Statistics(quantiles={0.01: [-1.0], 0.99: [3.0]})
    contract = sn.Contract({"x": (key := sn.Key("n c -> c", "quantile"), GivenNorm(key, known, (1,)))})
    assert contract.check({"x": torch.linspace(-1, 3, 50)[:, None]}) == ()
    found = contract.check({"x": torch.linspace(-1, 3, 50)[:, None] * 1000})
    assert any("10 times the range of the known quantiles around their middle" in f.text for f in found)


@pytest.mark.parametrize("scheme", [sn.ZScore, sn.MinMax, sn.Robust, sn.QuantileRange])
def test_a_feature_that_hardly_varied_and_now_comes_out_large(scheme):
    rng = np.random.default_rng(0)
    state = rng.normal([1.569, 0.0], [2e-4, 1.0], (2000, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sn.errors.DataWarning)
        found = {
            policy: sn.fit_contract(
                {"s": state}, {"s": sn.Key("n c -> c", scheme(near_constant=policy))}, split="train"
            )
            for policy in ("warn", "keep")
        }
    moved = torch.from_numpy(state[:64] + np.array([0.1, 0.0]))
    constant = [f for f in found["warn"].check({"s": moved}) if f.kind == "constant"]
    assert [f.features for f in constant] == [("s[0]",)]
    # In an output range that does not begin at 0, the number is still in scales from the shift.
    norm = found["warn"]["s"]
    wanted = float(((moved[:, 0] - norm.shift[0]) / norm.scale[0]).abs().max())
    assert dict(constant[0].numbers)["largest"] == pytest.approx(wanted)
    assert "hardly varied in training" in constant[0].text
    assert not [f for f in found["keep"].check({"s": moved}) if f.kind == "constant"]
    for contract in found.values():
        assert contract.check({"s": torch.from_numpy(state[:64])}) == ()
