"""`slabnorm check`, the page of a watched training, and the tables, from the outside."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.report.attribution import Attribution, Cost, print_attribution
from slabnorm.study.read import read_data

pytestmark = pytest.mark.usefixtures("in_plain_torch")
MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=0.99), nn.ReLU())

def healthy():
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())

def broken():
    raise RuntimeError("no weights here")

def number():
    return 3

def classifier():
    return nn.Sequential(nn.BatchNorm2d(1, momentum=0.99), nn.Flatten(), nn.Linear(64, 10))

def deep():
    norms = nn.BatchNorm2d(1), nn.BatchNorm2d(4)
    layers = norms[0], nn.Conv2d(1, 4, 3, bias=False), norms[1], nn.Flatten(), nn.Linear(144, 10)
    return nn.Sequential(*layers)

class Extra(nn.BatchNorm2d):
    def get_extra_state(self):
        return "words"

    def set_extra_state(self, state):
        pass

def extra():
    return nn.Sequential(Extra(1), nn.Flatten(), nn.Linear(64, 10))

def picky():
    class Picky(nn.BatchNorm2d):
        def forward(self, x):
            if len(x) not in (2, 16, 32):
                raise RuntimeError("32 samples, please")
            return super().forward(x)
    return nn.Sequential(Picky(1), nn.Flatten(), nn.Linear(64, 10))

network = healthy()
"""
EVIL = "</script><script>alert(1)</script>\x1b[31m"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("checked_models.py").write_text(MODULE)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["check", *arguments], catch_exceptions=False)


def test_what_is_wrong_is_printed_and_the_exit_code_says_so() -> None:
    result = run("checked_models:build", "--input", "16,1,8,8", "--json", "a.json", "--sarif", "a.sarif")
    assert result.exit_code == 1
    assert "204 warning" in result.stdout
    assert "momentum is 0.99" in result.stdout
    record = json.loads(Path("a.json").read_text())
    assert [(f["code"], f["layer"]) for f in record["findings"]] == [(204, "1"), (301, "0")]
    assert record["healthy"] is False
    sarif = json.loads(Path("a.sarif").read_text())
    assert [r["ruleId"] for r in sarif["runs"][0]["results"]] == ["SN204", "SN301"]
    assert sarif["version"] == "2.1.0"


def test_a_page_is_written_on_request() -> None:
    result = run("checked_models:build", "--input", "16,1,8,8", "--out", "a.html", "--json", "-")
    assert result.exit_code == 1
    page = Path("a.html").read_text()
    kept = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL)
    assert kept is not None
    assert json.loads(kept[1]) == json.loads(result.stdout)
    layers = json.loads(result.stdout)["evidence"]["layers"]
    assert [(layer["name"], layer.get("momentum")) for layer in layers] == [
        ("0", None),
        ("1", 0.99),
        ("2", None),
    ]
    assert "momentum is 0.99" in page.lower()


@pytest.mark.parametrize("name", ["healthy", "network"])
def test_a_healthy_model(name: str) -> None:
    result = run(f"checked_models:{name}", "--input", "16,1,8,8", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["healthy"] is True


def test_real_data_and_a_checkpoint() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model[1].running_mean[0] = float("nan")
    torch.save(model.state_dict(), "weights.pt")
    arguments = ("--data", "digits", "--batch-size", "32", "--checkpoint", "weights.pt")
    result = run("checked_models:healthy", *arguments, "--json", "-")
    assert result.exit_code == 1
    assert 201 in [f["code"] for f in json.loads(result.stdout)["findings"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("checked_models:build",), "A batch is needed"),
        ((), "No model is named"),
        (("checked_models:build", "--input", "16,x"), "must be sizes, separated by commas"),
        (("checked_models:broken", "--input", "2,2"), "could not be built"),
        (("checked_models:number", "--input", "2,2"), "returned no torch.nn.Module"),
        (("checked_models:build", "--input", "16,5,8,8"), "does not run on the batch"),
        (("checked_models:healthy", "--input", "2,1,8,8", "--checkpoint", "none.pt"), "none.pt"),
        (("checked_models:healthy", "--input", "2,1,8,8", "--out", "none/a.html"), "none/a.html"),
        (("checked_models:healthy", "--input", "2,1,8,8", "--out", "a", "--json", "a"), "a"),
    ],
)
def test_mistakes_are_messages(arguments: tuple[str, ...], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_checkpoint_of_another_model_is_a_message() -> None:
    torch.save(nn.Linear(2, 2).state_dict(), "other.pt")
    result = run("checked_models:healthy", "--input", "2,1,8,8", "--checkpoint", "other.pt")
    assert result.exit_code == 2
    assert "does not fit the model" in result.stderr


def _damaged(name: str = "damaged.pt", model: str = "classifier") -> dict[str, torch.Tensor]:
    """Write a checkpoint with a NaN among its running statistics, and return it."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = getattr(importlib.import_module("checked_models"), model)().state_dict()
    state["0.running_var"][0] = float("nan")
    if model == "picky":
        torch.save(state, name)
    else:
        save_file({key: value for key, value in state.items() if isinstance(value, torch.Tensor)}, name)
    return state


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_damaged_statistics_are_taken_anew_and_written(ending: str) -> None:
    state = _damaged("damaged.safetensors")
    was = Path("damaged.safetensors").read_bytes()
    arguments = (
        "checked_models:classifier",
        "--data",
        "digits",
        "--checkpoint",
        "damaged.safetensors",
        "--fix",
    )
    result = run(*arguments, "--save", f"fixed.{ending}", "--json", "found.json")
    assert result.exit_code == 1  # the momentum is still in the code
    path = f"fixed.{ending}"
    fixed = load_file(path) if ending == "safetensors" else torch.load(path, weights_only=True)
    data = read_data("digits")
    x, y = data.x.astype(np.float64), data.y
    mean, var = x[data.split.train].mean(), x[data.split.train].var(ddof=1)
    assert float(fixed["0.running_mean"]) == pytest.approx(mean, rel=1e-6)
    assert float(fixed["0.running_var"]) == pytest.approx(var, rel=1e-6)
    rest = [key for key in state if "running" not in key and "tracked" not in key]
    assert all(torch.equal(fixed[key], state[key]) for key in rest)
    assert sorted(fixed) == sorted(state)
    # NaN scores say class 0; afterwards the formula says what is right.
    test = data.split.test
    weight, bias = (state[f"2.{key}"].double().numpy() for key in ("weight", "bias"))
    scores = ((x[test] - mean) / np.sqrt(var + 1e-5)).reshape(len(test), 64) @ weight.T + bias
    before, after = (y[test] == 0).mean(), (scores.argmax(1) == y[test]).mean()
    assert f"{before:.1%} before, {after:.1%} after" in result.stdout
    record = json.loads(Path("found.json").read_text())
    assert {finding["code"] for finding in record["findings"]} == {201, 204}
    assert [fix["code"] for fix in record["fixes"]["fixed"]] == [201]
    assert [(one["code"], one["advice"], one["reason"]) for one in record["fixes"]["left"]] == [
        (204, "momentum=0.01", "in the code")
    ]
    assert record["fixes"]["verdict"] == "Sequential, with 1 norm: 1 warning."
    assert "checked again: Sequential, with 1 norm: 1 warning." in result.stdout
    assert Path("damaged.safetensors").read_bytes() == was


def test_a_gap_between_modes_is_left_only_where_statistics_stay() -> None:
    state = _damaged("deep.safetensors", "deep")
    state["2.running_var"] *= 25
    state["2.num_batches_tracked"] += 100
    save_file(state, "deep.safetensors")
    damaged = ("--checkpoint", "deep.safetensors", "--fix", "--json", "found.json")

    def listed(*arguments: str) -> dict[int, str]:
        run("checked_models:deep", *arguments, *damaged)
        record = json.loads(Path("found.json").read_text())
        assert 105 in {finding["code"] for finding in record["findings"]}
        return {one["code"]: one["reason"] for one in record["fixes"]["left"]}

    assert listed("--input", "32,1,8,8")[105] == "it takes --data, the training data"
    assert listed("--data", "digits") == {}


def test_nothing_is_written_unasked_or_where_nothing_was_changed() -> None:
    _damaged("damaged.safetensors")
    files = sorted(Path().iterdir())
    damaged = (
        "checked_models:classifier",
        "--data",
        "digits",
        "--checkpoint",
        "damaged.safetensors",
        "--fix",
    )
    assert "nothing is written" in run(*damaged).stdout
    random = run("checked_models:build", "--input", "16,1,8,8", "--fix", "--save", "fixed.pt")
    assert random.exit_code == 1
    assert "not written" in random.stdout
    assert "momentum=0.01" in random.stdout
    without = run("checked_models:classifier", "--input", "16,1,8,8", *damaged[3:])
    assert "it takes --data" in without.stdout
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == files


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--save", "fixed.pt"), "give --fix too"),
        (("--fix", "--save", "fixed.txt"), "must end in .safetensors, .pt or .pth"),
        (("--fix", "--save", "damaged.safetensors"), "must be no part of the data that are read"),
        (("--fix", "--save", "nowhere/fixed.pt"), "nowhere"),
        (("--fix", "--save", "a.pt", "--json", "a.pt"), "Two outputs would go to one file"),
        (("--bench", "--fix"), "--bench runs the public set alone"),
    ],
)
def test_mistakes_with_fix_are_messages_and_change_nothing(arguments: tuple[str, ...], says: str) -> None:
    _damaged("damaged.safetensors")
    was = Path("damaged.safetensors").read_bytes()
    result = run(
        "checked_models:classifier", "--data", "digits", "--checkpoint", "damaged.safetensors", *arguments
    )
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert Path("damaged.safetensors").read_bytes() == was
    assert not Path("fixed.pt").exists()


def test_what_a_fixed_model_cannot_do_is_a_message() -> None:
    _damaged("picky.pt", "picky")
    damaged = ("--data", "digits", "--checkpoint", "picky.pt", "--fix", "--save", "fixed.pt")
    result = run("checked_models:picky", *damaged)
    assert result.exit_code == 2
    assert "does not run on the training split" in result.stderr
    state = importlib.import_module("checked_models").extra().state_dict()
    state["0.running_var"][0] = float("nan")
    torch.save(state, "extra.pt")
    arguments = ("--data", "digits", "--checkpoint", "extra.pt", "--fix", "--save", "fixed.safetensors")
    result = run("checked_models:extra", *arguments)
    assert result.exit_code == 2
    assert "safetensors holds tensors alone" in result.stderr
    assert not Path("fixed.pt").exists()
    assert not Path("fixed.safetensors").exists()


def test_the_page_of_a_watched_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sn.watch(model, every=2) as record:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()
    record.model = EVIL
    record.report("watch.html")
    page = Path("watch.html").read_text()
    kept = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL)
    assert kept is not None
    plain = json.loads(kept[1])
    assert plain["looks"] == [0, 2, 4]
    norm = next(track for track in plain["tracks"] if track["name"] == "1")
    assert norm["spread"] == pytest.approx(list(record.tracks["1"].spread))
    assert norm["flat"] == [None] * 3
    for figure in ("spread", "gradient", "stale", "flat", "dead"):
        assert f'id="{figure}"' in page
    assert "alert(1)</script>\x1b" not in page


def test_the_table_of_an_attribution(capsys: pytest.CaptureFixture[str]) -> None:
    cost = Cost((EVIL,), 0.4, 0.37, 0.33, 0.41, 0.91, 12.5)
    record = Attribution(0.37, 0.78, 0.35, 0.46, (cost,), ("a", "b"), 500, 6)
    print_attribution(record, Console(width=120))
    printed = capsys.readouterr().out
    assert "91%" in printed
    assert "0.33 to 0.41" in printed
    assert "\x1b[31m" not in printed
    assert json.loads(json.dumps(record.as_dict()))["gap"] == pytest.approx(0.41)
    assert "explain 91% of the gap between 0.37 and 0.78" in record.verdict
