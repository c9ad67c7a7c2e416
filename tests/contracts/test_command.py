"""`slabnorm contract`: what it prints, its JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app

RNG = np.random.default_rng(0)
STATE = np.random.default_rng(1).normal(3, 2, (400, 2))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["contract", *arguments])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    keys = {"state": sn.Key("n c -> c", unit="rad"), "<b>[red]\x1b": "n c -> c", "index": "keep"}
    data = {"state": STATE, "<b>[red]\x1b": np.arange(9.0).reshape(3, 3)}
    sn.fit_contract({**data, "index": 0}, keys, split="train").save("robot.safetensors")
    np.savez("well.npz", **{"state": STATE[::2], "<b>[red]\x1b": data["<b>[red]\x1b"]})
    np.savez("wrong.npz", state=STATE * 1000)
    return "robot.safetensors"


def test_show(path: str) -> None:
    found = run("show", path)
    assert found.exit_code == 0
    for said in ("3 keys", "state", "rad", "n c -> c", "fitted, split train", "400", "<b>[red]\\x1b"):
        assert said in found.stdout, said
    assert "\x1b" not in found.stdout
    keys = json.loads(run("show", path, "--json").stdout)["keys"]
    assert [key["name"] for key in keys] == ["state", "<b>[red]\x1b", "index"]
    assert keys[0]["samples"] == 400
    assert abs(keys[0]["mean"][0] / STATE.mean(0).min() - 1) < 1e-12
    assert keys[2]["pattern"] == "keep"


def test_check(path: str) -> None:
    well = run("check", path, "well.npz")
    assert (well.exit_code, well.stdout.strip()) == (0, "well.npz: nothing found")
    wrong = run("check", path, "wrong.npz", "--json", "found.json")
    assert wrong.exit_code == 1
    assert "wrong.npz: 2 errors found" in wrong.stdout
    record = json.loads(Path("found.json").read_text())
    assert {found["kind"] for found in record["findings"]} == {"names", "scale"}
    assert json.loads(run("check", path, "wrong.npz", "--json", "-").stdout) == record


def test_convert(path: str) -> None:
    before = Path(path).read_bytes()
    found = run("convert", path, "--out", "again.safetensors")
    assert found.exit_code == 0
    assert Path("again.safetensors").read_bytes() == before
    assert run("convert", path, "--out", path).exit_code == 2
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "none.safetensors"), "No such file of statistics"),
        (("show", "well.npz"), "No known format"),
        (("show", "well.npz"), "say which it is, as --from json;"),
        (("show", "robot.safetensors", "--from", "lerobott"), "There is no format"),
        (("check", "robot.safetensors", "none.npz"), "No such data file"),
        (("check", "robot.safetensors", "well.npz", "--json", "well.npz"), "well.npz"),
        (("convert", "robot.safetensors", "--out", "x", "--to", "nothing"), "There is no format"),
        (("convert", "robot.safetensors", "--out", "no/x"), "Cannot write"),
        (("show",), "Missing argument"),
    ],
    ids=[f"{i}" for i in range(9)],
)
@pytest.mark.usefixtures("path")
def test_mistakes(arguments: tuple[str, ...], said: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 2
    assert said in " ".join(found.output.split())
    assert "Traceback" not in found.output


def test_a_damaged_file(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:-9])
    for arguments in (("show", path), ("check", path, "well.npz"), ("convert", path, "--out", "x")):
        found = run(*arguments)
        assert found.exit_code == 2
        assert "Damaged contract" in found.output
    assert not Path("x").exists()


def test_a_contract_of_one_layer() -> None:
    norm = sn.fit(torch.from_numpy(STATE), split="train")
    contract = sn.contract({"state": norm}, {"state": sn.Key("n c -> c", "minmax", unit="rad")})
    y = contract({"state": torch.from_numpy(STATE)})["state"].numpy()
    assert np.abs(y - (STATE - STATE.min(0)) / np.ptp(STATE, 0)).max() < 1e-12
    assert list(sn.contract(norm)) == ["x"]
    again = sn.contract(contract, {"state": "keep"})
    assert again.key("state").keep
