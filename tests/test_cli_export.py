"""The command `slabnorm export`, from the outside."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_wine
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.inputs import exports

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sn.save(sn.fit(load_wine().data, split="train"), "wine.safetensors")
    sn.save(sn.fit(PIXELS, "zscore", "n c h w -> c", split="train"), "images.safetensors")


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("to", ["torchvision", "huggingface", "json"])
def test_text_goes_to_stdout_or_to_a_file(to):
    shown = run("images.safetensors", "--to", to)
    assert shown.exit_code == 0
    assert shown.stderr == ""
    assert shown.stdout == exports.content(sn.load("images.safetensors"), to)
    written = run("images.safetensors", "--to", to, "--out", "made")
    assert (written.exit_code, written.stdout) == (0, "")
    assert f"{to}: made" in written.stderr
    assert Path("made").read_text() == shown.stdout


def test_onnx():
    assert run("images.safetensors", "--to", "onnx", "--out", "inputs.onnx").exit_code == 0
    norm = sn.load("images.safetensors")
    session = onnxruntime.InferenceSession("inputs.onnx", providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": PIXELS})[0], norm(torch.from_numpy(PIXELS)).numpy())
    assert run("images.safetensors", "--to", "onnx", "--dtype", "float32", "--out", "f.onnx").exit_code == 0
    session = onnxruntime.InferenceSession("f.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(float)"


def test_scaled_by():
    assert "# of x / 1000" in run("images.safetensors", "--to", "torchvision", "--scaled-by", 1000).stdout
    keys = json.loads(run("images.safetensors", "--to", "huggingface", "--scaled-by", "1").stdout)
    assert (keys["do_rescale"], keys["rescale_factor"]) == (False, 1.0)


def test_a_configuration_keeps_its_other_keys():
    Path("preprocessor_config.json").write_text('{"do_resize": true, "image_mean": null}')
    made = run("images.safetensors", "--to", "huggingface", "--out", "preprocessor_config.json")
    assert made.exit_code == 0
    found = json.loads(Path("preprocessor_config.json").read_text())
    assert found["do_resize"] is True
    assert len(found["image_mean"]) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wine.safetensors"], "--to"),
        (["wine.safetensors", "--to", "onxx"], "did you mean 'onnx'"),
        (["wine.safetensors", "--to", "x\x1b[31m"], "x\\x1b[31m"),
        (["wine.safetensors", "--to", "onnx"], "--out inputs.onnx"),
        (["wine.safetensors", "--to", "sklearn"], "pickle"),
        (["wine.safetensors", "--to", "sklearn", "--out", "made"], "pickle"),
        (["wine.safetensors", "--to", "torchvision", "--out", "made"], "one per channel"),
        (["wine.safetensors", "--to", "json", "--dtype", "float32"], "does not take --dtype"),
        (["wine.safetensors", "--to", "json", "--scaled-by", "2"], "does not take --scaled-by"),
        (["images.safetensors", "--to", "torchvision", "--scaled-by", "nan"], "positive number"),
        (["images.safetensors", "--to", "torchvision", "--scaled-by", "lots"], "valid number"),
        (["wine.safetensors", "--to", "onnx", "--out", "made", "--dtype", "float\x1b8"], "float\\x1b8"),
        (["wine.safetensors", "--to", "json", "--out", "no/where"], "Cannot write no/where"),
        (["wine.safetensors", "--to", "json", "--out", "."], "regular file"),
        (["nothing", "--to", "json"], "No such file of statistics: nothing"),
        (["broken", "--to", "json", "--out", "made"], "Not a file of statistics: broken"),
        (["images.safetensors", "--to", "huggingface", "--out", "broken"], "Cannot merge into broken"),
    ],
)
def test_mistakes(arguments, says):
    Path("broken").write_bytes(b"\x93 no artifact")
    before = sorted(os.listdir())
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(os.listdir()) == before
    assert Path("broken").read_bytes() == b"\x93 no artifact"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run("wine.safetensors", "--to", "onnx", "--out", "made.onnx")
    assert result.exit_code == 2
    assert "pip install 'slabnorm[onnx]'" in result.stderr
    assert not Path("made.onnx").exists()


def test_help_says_where_scikit_learn_is():
    text = " ".join(run("--help").stdout.split())
    assert "pickle" in text
