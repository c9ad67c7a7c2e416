"""Errors and warnings on the command line name its options, not the arguments of Python's functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm import cli
from slabnorm.cli import app
from slabnorm.cli.shell import in_options

COMMANDS = {name: getattr(cli, name) for name in ("fit", "audit", "apply", "export", "compare")}


def options() -> list[Any]:
    commands: Any = typer.main.get_command(app)
    return [
        pytest.param(name, option, id=f"{name} {option.opts[0]}")
        for name in COMMANDS
        for option in commands.commands[name].params
        if option.param_type_name == "option" and option.name != "help"
    ]


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_is_named_as_it_is_typed(command: str, option: Any) -> None:
    name, typed = option.name, option.opts[0]
    words = {f"{name}=True": typed, f"{name}=False": f"no {typed}"}
    if option.secondary_opts:
        words[f"{name}=False"] = option.secondary_opts[0]
    if not option.is_flag:
        words = {f'{name}="two words"': f'{typed} "two words"', f"{name}=2_000": f"{typed} 2000"}
        words |= {f"{name}='x'": f"{typed} x", f"{name}=": typed, f"{name}=None": f"no {typed}"}
    words |= {f"`{name}`": typed}
    for python, shell in words.items():
        for around in ("{}", "fix: take {}, or leave it", "give it ({})", "as in {}; else nothing"):
            wanted = around.format(shell)
            assert in_options(around.format(python), COMMANDS[command]) == wanted
    assert in_options(f"{name} must be whole", COMMANDS[command]) == f"{typed} must be whole"
    for other in (
        f"data/{name}='x'/a.npy",
        f"it has no {name}",
        f"sn.fit(x, {name}=1)",
        f"x.{name}=1",
        f"f({name}=(1, 2))",
    ):
        assert in_options(other, COMMANDS[command]) == other


def test_several_values_are_an_option_repeated() -> None:
    assert in_options('as columns=["a b", "c"]', cli.fit) == 'as --column "a b" --column c'
    assert in_options("batch_sizes=(2, 16)", cli.compare) == "--batch-size 2 --batch-size 16"
    assert in_options("add g=<size>", cli.fit) == "add --size g=<size>"
    assert in_options(r'as delimiter="\t"', cli.fit) == r'as --delimiter "\t"'


def test_what_was_typed_stays_as_it_was() -> None:
    assert (
        in_options("No such data file: split='x'", cli.fit, ["split='x'"]) == "No such data file: split='x'"
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(40, 3))
    np.save("train.npy", rows)
    rows[3, 1] = np.nan
    np.save("gaps.npy", rows)
    Path("split=train").mkdir()
    sn.save(sn.fit("train.npy", split="train"), "inputs.safetensors")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("fit train.npy", "--split train"),
        ("fit train.npy --split test", "--leak"),
        ("fit gaps.npy --split train", "--nan omit"),
        ("fit train.npy --split train --memory much", "--memory 2GB"),
        ("fit train.npy --split train --workers 0", "1 or more"),
        ("fit train.npy --split train --scheme zscor", "did you mean 'zscore'"),
        ("fit train.npy --split train --collumn a", "--column"),
        ("fit split=train/no.npy --split train", "split=train/no.npy"),
        ("show input.safetensors", "did you mean inputs.safetensors"),
        ("export inputs.safetensors --to pmml", "onnx, torchvision, huggingface"),
        ("export inputs.safetensors --to onxx", "did you mean 'onnx'"),
        ("export inputs.safetensors --to onnx", "--out inputs.onnx"),
        ("compare --workers 0", "--workers must be"),
        ("compare --norm batsh", "did you mean 'batch'"),
        ("compare --batch-size 5000", "--batch-size"),
        ("fitt train.npy", "Did you mean 'fit'"),
    ],
)
def test_an_error_says_what_to_type(typed: str, says: str) -> None:
    result = CliRunner().invoke(app, typed.split(), catch_exceptions=False)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output
    for python in ("leak=", "nan=", "skip_bad", "out=", "batch_sizes", 'split="'):
        assert python not in result.stderr
