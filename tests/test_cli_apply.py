"""The command `slabnorm apply`, and Zarr on the command line, from the outside."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from sklearn.datasets import load_wine
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app, shell

WINE = load_wine().data


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("wine.npy", WINE)
    sn.save(sn.fit(WINE, split="train"), "inputs.safetensors")


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_there_and_back():
    done = run("apply", "inputs.safetensors", "wine.npy", "--out", "y.npy")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "178 samples: y.npy\n"  # and no bar in a pipe
    expected = sn.load("inputs.safetensors")(torch.from_numpy(WINE)).numpy()
    assert np.array_equal(np.load("y.npy"), expected)
    back = run("apply", "inputs.safetensors", "y.npy", "--out", "x.npy", "--inverse", "--batch-rows", 7)
    assert back.exit_code == 0
    assert np.allclose(np.load("x.npy"), WINE, rtol=1e-14)
    np.savez("a.npz", train=WINE, other=1)
    assert run("apply", "inputs.safetensors", "a.npz", "--key", "train", "--out", "z.npy").exit_code == 0
    assert Path("z.npy").read_bytes() == Path("y.npy").read_bytes()


def test_zarr():
    zarr.create_array("wine.zarr", data=WINE, chunks=(50, 13))
    fitted = run("fit", "wine.zarr", "--split", "train", "--out", "z.safetensors")
    assert fitted.exit_code == 0
    assert Path("z.safetensors").read_bytes() == Path("inputs.safetensors").read_bytes()
    assert run("apply", "z.safetensors", "wine.zarr", "--out", "y.zarr").exit_code == 0
    run("apply", "inputs.safetensors", "wine.npy", "--out", "y.npy")
    assert np.array_equal(zarr.open("y.zarr", mode="r")[...], np.load("y.npy"))
    Path("wine.zarr/c/1/0").unlink()
    missing = run("fit", "wine.zarr", "--split", "train")
    assert missing.exit_code == 2
    assert "chunk c/1/0 of wine.zarr, rows 50 to 99" in missing.stderr
    filled = run("fit", "wine.zarr", "--split", "train", "--missing-chunks", "fill")
    assert filled.exit_code == 0
    assert "1 chunks of wine.zarr are missing" in filled.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inputs.safetensors", "wine.npy"], "--out"),
        (["inputs.safetensors", "wine.npy", "--out", "y.txt"], "ends in"),
        (["inputs.safetensors", "wine.npy", "--out", "wine.npy"], "no part of the data"),
        (["inputs.safetensors", "wine.npy", "--out", "y.npy", "--batch-rows", 0], "1 or more"),
        (["inputs.safetensors", "none\x1b.npy", "--out", "y.npy"], "none\\x1b.npy"),
        (["wine.npy", "wine.npy", "--out", "y.npy"], "Not a file of statistics: wine.npy"),
        (["inputs.safetensors", "broken.npy", "--out", "y.npy"], "Damaged header"),
        (["inputs.safetensors", "broken.parquet", "--out", "y.parquet"], "Cannot read the table"),
        (["inputs.safetensors", "wine.npy", "--out", "y.npy", "--missing-chunks", "fill"], "for Zarr"),
        (["inputs.safetensors", "nowhere.csv", "--out", "y.csv"], "No such data file: nowhere.csv"),
        (["inputs.safetensors", "wine.npy", "--out", "y.npy", "--key", "x"], "--key is no option"),
    ],
)
def test_mistakes(arguments, says):
    for name in ("broken.npy", "broken.parquet"):
        Path(name).write_bytes(b"\x93 nothing")
    before = sorted(os.listdir())
    result = run("apply", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(os.listdir()) == before
    assert np.array_equal(np.load("wine.npy"), WINE)


def test_interrupted(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    Path("y.npy").write_text("old")
    before = sorted(os.listdir())
    monkeypatch.setattr("slabnorm.inputs.normalizer.InputNorm.forward", stop)
    assert run("apply", "inputs.safetensors", "wine.npy", "--out", "y.npy").exit_code == shell.INTERRUPTED
    assert sorted(os.listdir()) == before
    assert Path("y.npy").read_text() == "old"


def test_a_full_disk(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    Path("y.npy").write_text("old")
    before = sorted(os.listdir())
    monkeypatch.setattr(os, "fsync", full)
    done = run("apply", "inputs.safetensors", "wine.npy", "--out", "y.npy")
    assert done.exit_code == 2
    assert "No space left on device" in done.stderr
    assert sorted(os.listdir()) == before
    assert Path("y.npy").read_text() == "old"
