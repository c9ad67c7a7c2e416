"""The commands `slabnorm fit` and `slabnorm show`, from the outside."""

import json
import subprocess
import sys
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
    np.save("wine.npy", load_wine().data)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_fit_then_show():
    fitted = run("fit", "wine.npy", "--split", "train")
    assert fitted.exit_code == 0
    assert 'fitted on split "train": 178 samples of float64, 13 features' in fitted.stdout
    assert "statistics: inputs.safetensors" in fitted.stderr
    shown = run("show", "inputs.safetensors")
    assert shown.exit_code == 0
    assert shown.stdout == fitted.stdout
    rows = shown.stdout.splitlines()[3:16]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(13)]
    assert all(row.rstrip().endswith("┤") and "█" in row for row in rows)
    norm = sn.load("inputs.safetensors")
    assert np.allclose(norm.moments.mean, load_wine().data.mean(0), rtol=1e-12)


def test_show_as_json():
    run("fit", "wine.npy", "--split", "train", "--scheme", "minmax", "--out", "w.safetensors")
    shown = json.loads(run("show", "w.safetensors", "--json").stdout)
    data = load_wine().data
    assert [f["min"] for f in shown["features"]] == data.min(0).tolist()
    assert [f["scale"] for f in shown["features"]] == (data.max(0) - data.min(0)).tolist()
    assert shown["scheme"] == "MinMax(out=(0.0, 1.0))"


def test_numbers_that_json_does_not_have():
    np.save("huge.npy", np.array([[-1e200], [1e200]]))
    assert run("fit", "huge.npy", "--split", "train", "--scheme", "minmax").exit_code == 0
    shown = json.loads(run("show", "inputs.safetensors", "--json").stdout)
    assert shown["features"][0]["std"] is None


def test_many_features_and_groups():
    np.save("wide.npy", np.random.default_rng(0).normal(size=(4, 60)))
    run("fit", "wide.npy", "--split", "train")
    assert "and 20 more features" in run("show", "inputs.safetensors").stdout
    assert "more features" not in run("show", "inputs.safetensors", "--all").stdout
    np.save("images.npy", np.zeros((2, 6, 4, 4), np.uint8))
    result = run("fit", "images.npy", "--split", "train", "--pattern", "n (g c) h w -> g", "--size", "g=2")
    assert result.exit_code == 0
    assert "warning: 2 of 2 features are constant and get scale 1" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "wine.npy"], "The split is not named"),
        (["fit", "wine.npy", "--split", "test"], "test"),
        (["fit", "nothing.npy", "--split", "train"], "No such data file: nothing.npy"),
        (["fit", "wine.npy", "--split", "train", "--scheme", "zscor"], "did you mean 'zscore'"),
        (["fit", "wine.npy", "--split", "train", "--size", "g"], "--size g=32"),
        (["fit", "wine.npy", "--split", "train", "--size", "split=2"], "--size g=32"),
        (["show", "no\x1b[31mthing"], "no\\x1b[31mthing"),
        (["fit", "wine.npy", "--split", "train", "--pattern", "n c ->"], None),
        (["fit", "wine.npy", "--split", "train", "--pattern", "n c h -> c"], "n c h -> c"),
        (["fit", "wine.npy", "--split", "train", "--nan", "drop"], "drop"),
        (["fit", "wine.npy", "--split", "train", "--out", "no/where"], "Cannot write no/where"),
        (["show", "wine.npy"], "Not a file of statistics: wine.npy"),
        (["show", "nothing"], "No such file of statistics: nothing"),
    ],
)
def test_mistakes(arguments, says):
    result = run(*arguments)
    if says is None:
        assert result.exit_code == 0
        return
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("inputs.safetensors").exists()


def test_held_out_data_are_taken_when_asked_for_and_said_so():
    result = run("fit", "wine.npy", "--split", "test", "--leak")
    assert result.exit_code == 0
    assert "warning:" in result.stderr
    assert "statistics from held-out data" in run("show", "inputs.safetensors").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "wine.npy", "--split", "train", "--out", "wine.npy"),
        ("fit", "data", "--split", "train", "--out", "data/a.parquet"),
        ("fit", "data/a.parquet", "--split", "train", "--out", "link.parquet"),
        ("audit", "s.safetensors", "--against", "wine.npy", "--out", "wine.npy"),
        ("audit", "s.safetensors", "--against", "wine.npy", "--json", "wine.npy"),
        ("audit", "s.safetensors", "--against", "wine.npy", "--out", "s.safetensors"),
        ("export", "s.safetensors", "--to", "json", "--out", "s.safetensors"),
    ],
)
def test_an_output_never_takes_the_place_of_what_is_read(arguments):
    run("fit", "wine.npy", "--split", "train", "--out", "s.safetensors")
    Path("data").mkdir()
    load_wine(as_frame=True).data.to_parquet("data/a.parquet")
    Path("link.parquet").symlink_to("data/a.parquet")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run(*arguments)
    assert result.exit_code == 2
    assert "no part of the data" in result.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_artifact_may_lie_beside_the_data():
    Path("data").mkdir()
    load_wine(as_frame=True).data.to_parquet("data/a.parquet")
    for _ in range(2):
        assert run("fit", "data", "--split", "train", "--out", "data/s.safetensors").exit_code == 0


def test_a_closed_stdout():
    run("fit", "wine.npy", "--split", "train")
    done = subprocess.run(
        f"{sys.executable} -m slabnorm show inputs.safetensors >&-",
        shell=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
