"""`slabnorm check`, the page of a watched training, and the tables, from the outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.report.attribution import Attribution, Cost, print_attribution

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
