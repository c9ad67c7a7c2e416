"""The command `slabnorm compare`, from the outside."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from slabnorm.cli import app
from tests.study.small import table

QUICK = ["--batch-size", "8", "--norm", "none,batch", "--seeds", "1", "--epochs", "1", "--workers", "1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)


def save(name="d.npz", **arrays):
    np.savez(name, **(arrays or dict(zip("xy", table(), strict=True))))
    return name


def small(*arguments):
    return run("--data", save(), "--model", "mlp", *QUICK, *arguments)


def test_a_study_prints_its_verdict_and_writes_its_report():
    result = small("--out", "r.html")
    assert result.exit_code == 0
    assert "at batch size 8" in result.stdout.lower()
    assert "report: r.html" in result.stdout
    assert result.stderr == ""
    assert Path("r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_goes_to_a_file_or_to_stdout():
    assert small("--json", "r.json").exit_code == 0
    saved = json.loads(Path("r.json").read_text())
    result = small("--json", "-")
    record = json.loads(result.stdout)
    assert [c["accuracy"] for c in record["cells"]] == [c["accuracy"] for c in saved["cells"]]
    assert "at batch size 8" in result.stderr.lower()


def test_lists_are_given_with_commas_or_repeated():
    first = small("--json", "-", "--no-inputs")
    again = run(
        *("--data", "d.npz", "--model", "mlp", "--norm", "none", "--norm", "batch", "--batch-size", "8"),
        *("--seeds", "1", "--epochs", "1", "--workers", "1", "--json", "-", "--no-inputs"),
    )
    verdicts = [json.loads(result.stdout)["verdict"] for result in (first, again)]
    assert verdicts[0] == verdicts[1]
    assert json.loads(first.stdout)["inputs"] == []


def test_a_study_goes_on_with_resume_after_an_interrupt(monkeypatch):
    from slabnorm.study import train

    trained, real = [], train.run_once

    def interrupted(bench, run, tick):
        trained.append(run)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return real(bench, run, tick)

    monkeypatch.setattr(train, "run_once", interrupted)
    result = small("--no-inputs", "--out", "r.html")
    assert result.exit_code == 130
    assert "r.html.ledger holds the runs that are done; --resume continues from there" in result.stderr
    refused(small("--no-inputs", "--out", "r.html"), "continue it with --resume")
    result = small("--no-inputs", "--out", "r.html", "--resume")
    assert result.exit_code == 0
    assert len(trained) == len(set(trained)) + 1  # the one that was cut short was begun anew
    assert Path("r.html").exists()
    assert not Path("r.html.ledger").exists()


def test_a_users_model_lies_in_the_current_folder():
    Path("my_own_net.py").write_text(
        "from torch import nn\n"
        "def build(norm):\n"
        "    return nn.Sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 2))\n"
    )
    result = run("--data", save(), "--model", "my_own_net:build", *QUICK)
    assert result.exit_code == 0
    assert "my_own_net:build" in result.stdout
    # After all libraries: a file there called as one of them does not stand for it.
    assert sys.path[-1] == os.getcwd()


def test_the_current_folder_is_searched_for_a_users_model_only():
    assert small("--no-inputs").exit_code == 0
    assert os.getcwd() not in sys.path


def folder(*, second=(4, 4)):
    for name, size in (("a", (4, 4)), ("b", second)):
        Path("images", name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", size, 40 * i).save(Path("images", name, f"{i}.png"))
    return "images"


def test_a_folder_of_images_is_data():
    result = run(
        "--data",
        folder(),
        "--norm",
        "batch",
        "--batch-size",
        "2",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--workers",
        "1",
    )
    assert result.exit_code == 0
    assert "images: 7 train" in result.stdout


def test_hostile_names_reach_neither_terminal_nor_page():
    name = "<script>alert(1)<" + "script>[red]\x1b[31m.npz"
    x, y = table()
    save(name, x=x, y=np.array(["</script><b>", "[bold]b"])[y])
    result = run("--data", name, "--model", "mlp", *QUICK)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "[red]\\x1b[31m.npz" in result.stdout.replace("\n", "")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "</script><b>" not in page


def nan_data():
    x, y = table()
    x[3, 1] = np.nan
    return save(x=x, y=y)


def truncated():
    path = Path(folder()) / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:-20])
    return "images"


def empty():
    Path("empty").mkdir()
    return "empty"


def module(text):
    def make():
        Path("bad_net.py").write_text(text)
        sys.modules.pop("bad_net", None)
        return "bad_net:build"

    return make


BAD_DATA = {
    "no such file": (lambda: "nosuch.npz", "No such file or folder: nosuch.npz"),
    "no y": (lambda: save(x=np.ones((9, 2))), "array 'y'"),
    "lengths": (lambda: save(x=np.ones((9, 2)), y=np.arange(8)), "(9, 2), y (8,)"),
    "one class": (lambda: save(x=np.ones((9, 2)), y=np.ones(9)), "One class only"),
    "nan": (nan_data, "x[3, 1]"),
    "objects": (lambda: save(x=np.array([{}] * 9), y=np.arange(9)), "dtype object"),
    "sizes": (lambda: folder(second=(5, 4)), "b/0.png"),
    "truncated": (truncated, "b/3.png"),
    "empty folder": (empty, "no image"),
    "small class": (lambda: save(x=np.ones((9, 2)), y=np.arange(9) // 8), "Too few samples of class '1'"),
}
BAD_MODELS = {
    "no module": (lambda: "nosuch_net:build", "No module named 'nosuch_net'"),
    "no attribute": (module("x = 1"), "no 'build' in bad_net"),
    "raises": (module("def build(norm): raise ValueError('my own')"), "my own"),
    "no Module": (module("def build(norm): return 3"), "type int"),
    "classes": (
        module("from torch import nn\ndef build(norm): return nn.Sequential(nn.Linear(3, 5), norm(5))"),
        "(2, 5)",
    ),
    "no colon": (lambda: "resnet50", "resnet50"),
}
BAD_OPTIONS = {
    "unknown norm": (["--norm", "bath"], "bath"),
    "pattern typo": (["--norm", "n c -> k"], "k"),
    "pattern rank": (["--norm", "n c h w -> c"], "n c h w"),
    "batch size 0": (["--batch-size", "0"], "1 or more"),
    "batch size text": (["--batch-size", "8,x"], "x"),
    "batch size large": (["--batch-size", "37"], "36 training samples"),
    "seeds": (["--seeds", "0"], "seeds"),
    "seeds text": (["--seeds", "many"], "--seeds"),
    "epochs": (["--epochs", "0"], "epochs"),
    "scheme": (["--scheme", "z"], "z"),
    "fixed without a range": (["--scheme", "fixed"], "fixed"),
    "workers": (["--workers", "0"], "workers"),
    "engine": (["--engine", "spark"], "engine must be"),
    "address": (["--address", "auto"], "add --engine ray"),
    "log dir": (["--log-dir", "d.npz"], "--log-dir must be a folder"),
    "target": (["--target", "2"], "2.0"),
    "learning rate": (["--learning-rate", "nan"], "nan"),
    "no folder": (["--out", "nosuch/r.html"], "nosuch/r.html"),
    "out is a folder": (["--out", "."], "regular file"),
    "json": (["--json", "nosuch/r.json"], "nosuch/r.json"),
    "json empty": (["--json", ""], "--json"),
    "one path for both": (["--json", "report.html"], "one file: report.html"),
    "unknown option": (["--colour"], "--colour"),
}


def refused(result, says):
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not Path("report.html").exists()


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_a_message_and_exit_code_2(name):
    make, says = BAD_DATA[name]
    refused(run("--data", make(), "--model", "mlp", *QUICK), says)


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_a_message_and_exit_code_2(name):
    make, says = BAD_MODELS[name]
    refused(run("--data", save(), "--model", make(), *QUICK), says)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_a_message_and_exit_code_2(name):
    options, says = BAD_OPTIONS[name]
    given = {options[0], "--data", "--model"}
    others = [a for pair in zip(QUICK[::2], QUICK[1::2], strict=True) if pair[0] not in given for a in pair]
    refused(run("--data", save(), "--model", "mlp", *others, *options), says)


def test_outputs_are_checked_before_anything_is_read():
    refused(run("--data", "nosuch.npz", "--out", "nosuch/r.html"), "nosuch/r.html")


def test_an_interrupt_is_exit_code_130(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("slabnorm.study.comparison.compare", interrupted)
    result = small()
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert not Path("report.html").exists()


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "slabnorm", "compare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
    )


def test_bad_input_as_a_process():
    """And with files in the current folder that are called as libraries: they are not imported."""
    for name in ("rich", "typer", "jinja2", "sklearn"):
        Path(f"{name}.py").write_text("raise SystemExit(99)")
    process = start("--data", "nosuch.npz")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: No such file or folder: nosuch.npz\n  fix:")


def test_ctrl_c_ends_the_process_and_its_workers():
    """Ctrl-C reaches the whole process group, as from a terminal, while both workers train."""
    save()
    process = start(
        "--data", "d.npz", "--model", "mlp", "--batch-size", "2", "--epochs", "99999", "--workers", "2"
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 90
    # Two workers and multiprocessing's resource tracker.
    while process.poll() is None and len(children.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    started = children.read_text().split()
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "interrupted\n")
    assert len(started) == 3
    # The resource tracker leaves when it sees that its process is gone.
    while time.monotonic() < deadline + 30 and any(Path(f"/proc/{pid}").exists() for pid in started):
        time.sleep(0.1)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_a_closed_pipe_is_no_error():
    process = start(
        "--data", save(), "--model", "mlp", "--no-inputs", "--norm", "none", *QUICK[:2], *QUICK[4:]
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert err == ""
    assert Path("report.html").exists()


def test_help_is_short_of_training_libraries():
    heavy = ("sklearn", "plotly", "scipy", "jinja2")
    code = f"import sys, slabnorm.cli; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert loaded.stdout == "[]\n"
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_the_defaults_are_those_of_the_python_function():
    """cli.py spells them out, so that `--help` need not import torch; they must not drift apart."""
    from slabnorm.cli import compare as command
    from slabnorm.study import compare as function

    spelled, meant = (inspect.signature(each).parameters for each in (command, function))
    for name in ("seeds", "epochs", "scheme", "target", "learning_rate", "data"):
        assert spelled[name].default == meant[name].default
    assert spelled["model"].default == meant["build_model"].default
