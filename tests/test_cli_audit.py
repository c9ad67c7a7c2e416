"""The command `slabnorm audit`, from the outside."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_wine
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = np.random.default_rng(0).permutation(load_wine().data)
    np.save("train.npy", data[:100])
    np.save("test.npy", data[100:])
    np.save("leaked.npy", data[95:])
    sn.save(sn.fit("train.npy", split="train"), "inputs.safetensors")


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)], catch_exceptions=False)


def test_nothing_found():
    result = run("inputs.safetensors", "--against", "test.npy", "--train", "train.npy")
    assert result.exit_code == 0
    assert "Nothing found" in result.stdout
    assert "0 of 78 distinct samples are in the training data, exactly" in result.stdout
    assert "The statistics are those of the training split alone" in result.stdout
    assert "report: audit.html" in result.stdout
    assert "Nothing found in test.npy" in Path("audit.html").read_text()


def test_findings():
    result = run("inputs.safetensors", "--against", "leaked.npy", "--out", "a.html", "--json", "a.json")
    assert result.exit_code == 1
    assert "identical to training samples" in result.stdout
    record = json.loads(Path("a.json").read_text())
    assert record["overlap"]["found"] == 5
    assert [finding["kind"] for finding in record["findings"]] == ["overlap"]
    assert record["findings"][0]["numbers"]["share"] == pytest.approx(5 / 83)
    assert record["clean"] is False
    assert not Path("audit.html").exists()


def test_json_to_stdout():
    result = run("inputs.safetensors", "--against", "leaked.npy", "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["samples"] == 83
    assert "1 error found" in result.stderr


def test_hostile_names():
    name = "<script>alert(1)<\\x1b[31m>.npy".replace("\\x1b", "\x1b")
    Path("leaked.npy").rename(name)
    result = run("inputs.safetensors", "--against", name)
    assert result.exit_code == 1
    assert "\x1b[31m" not in result.stdout
    page = Path("audit.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inputs.safetensors"], "--against"),
        (["nothing", "--against", "test.npy"], "No such file of statistics: nothing"),
        (["inputs.safetensors", "--against", "nothing.npy"], "No such data file: nothing.npy"),
        (["inputs.safetensors", "--against", "wide.npy"], "(any, 13)"),
        (["inputs.safetensors", "--against", "test.npy", "--train", "wide.npy"], "(any, 13)"),
        (["inputs.safetensors", "--against", "test.npy", "--out", "no/where"], "Cannot write no/where"),
        (["inputs.safetensors", "--against", "test.npy", "--json", "audit.html"], "one file: audit.html"),
        (["inputs.safetensors", "--against", "test.npy", "--workers", "0"], "1 or more"),
    ],
)
def test_mistakes(arguments, says):
    np.save("wide.npy", np.zeros((4, 14)))
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("audit.html").exists()
