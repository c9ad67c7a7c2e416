"""Every page does what it says: its Python blocks, its commands, and what it says they print."""

from __future__ import annotations

import gzip
import re
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image
from sklearn.datasets import load_digits, load_wine
from torch import nn
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.study import read
from slabnorm.study.data import from_arrays
from tests.inputs.test_idx import idx

ROOT = Path(sn.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RNG = np.random.default_rng(0)

# What cannot run in a test, and why.
NOT_RUN = {
    "slabnorm fit s3://bucket/train/ --split train --engine ray --address auto": "a bucket and a cluster",
}
LONG = ("claims", "claims --quick", "claims small --show", "claims --data fashion-mnist")
NOT_RUN |= dict.fromkeys((f"slabnorm {command}" for command in LONG), "minutes of training")
NEEDS_A_GPU = ["docs/gpu.md"]
# With these every `compare` trains as little as it can.
LITTLE = ["--seeds", "1", "--epochs", "1", "--workers", "1", "--no-inputs"]
LARGE = ["--batch-size", "64"]  # in few steps, where the page names no other


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[tuple[int, str]]:
        """Each line that calls slabnorm, without its comment, and where it stands on the page."""
        lines = enumerate(self.text.splitlines(), self.line) if not self.language else ()
        return [(n, re.sub(r"\s+#.*", "", line)) for n, line in lines if re.match(r"slabnorm [a-z]+\b", line)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def shown(page: str, beginning: str) -> str:
    """The text of the one block of a page that begins so."""
    (found,) = [block.text for block in blocks(ROOT / page) if block.text.startswith(beginning)]
    return found


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


def norms_of_all_kinds() -> nn.Module:
    """The model of docs/accelerate.md, whose report stands on the page."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU())
    return nn.Sequential(stem, Residual(), nn.GroupNorm(2, 8), nn.LocalResponseNorm(2))


# What a page leaves to its reader.
GIVEN = {
    "docs/accelerate.md": lambda: {"model": norms_of_all_kinds(), "batch": torch.randn(2, 3, 12, 12)},
    "docs/inputs.md": lambda: {"network": nn.Conv2d(3, 8, 3)},
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files under all the names that the pages use; of the digits there are a few."""
    digits = load_digits()
    few = from_arrays(digits.images[:240], digits.target[:240], "a few digits")
    monkeypatch.setattr(read, "digits", lambda: few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    train = RNG.normal(size=(40, 3, 6, 6)).astype("f4")
    np.save("train.npy", train)
    np.save("test.npy", np.concatenate([RNG.normal(size=(20, 3, 6, 6)).astype("f4"), train[:5]]))
    sn.save(sn.fit("train.npy", split="train"), "inputs.safetensors")
    np.save("often.npy", RNG.integers(1, 4, 40).astype("f8"))
    zarr.create_array("train.zarr", data=train, chunks=(10, 3, 6, 6))
    people = pd.DataFrame({"height": RNG.normal(1.7, 0.1, 30), "age": RNG.integers(20, 60, 30)})
    people.assign(often=RNG.integers(1, 4, 30)).to_parquet("train.parquet")
    Path("data/train").mkdir(parents=True)
    for number in range(2):
        people.to_parquet(f"data/part-{number}.parquet")
        people.to_parquet(f"data/train/part-{number}.parquet")
    pictures = Path("photos/train"), Path("images/cat"), Path("images/dog")
    for folder in pictures:
        folder.mkdir(parents=True)
        for number in range(30):
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    Path("shards").mkdir()
    for number in range(10):
        with tarfile.open(f"shards/train-{number:03}.tar", "w") as shard:
            shard.add(f"photos/train/{number}.png", f"{number}.png")
    pixels = RNG.integers(0, 256, (40, 8, 8), np.uint8)
    Path("train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    Path("t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:5])))
    np.savez("x.npz", x=RNG.normal(size=(240, 4)), y=np.arange(240) % 2)
    frames = {"state": RNG.normal(size=(40, 3)), "action": RNG.normal(size=(40, 2))}
    np.savez("frames.npz", **frames)
    sn.fit_contract(frames, dict.fromkeys(frames, "n c -> c"), split="train").save("robot.safetensors")
    Path("mypackage").mkdir()
    Path("mypackage/__init__.py").touch()
    Path("mypackage/models.py").write_text(shown("README.md", "import torch.nn as nn"))
    return tmp_path


def same(printed: str, said: str) -> bool:
    """Whether all that a page says is printed is, in its order; `...` stands for anything."""
    wanted = ".*".join(re.escape(part) for part in said.rstrip().split("..."))
    return re.search(wanted, printed, re.DOTALL) is not None


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def with_python() -> list[Any]:
    found = [name(page) for page in PAGES if any(block.language == "python" for block in blocks(page))]
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="its example runs on a GPU")
    return [pytest.param(page, marks=[no_gpu] if page in NEEDS_A_GPU else []) for page in found]


@pytest.mark.usefixtures("files", "in_plain_torch")
@pytest.mark.filterwarnings("ignore:3 of 64 features are constant")  # as docs/data.md says
@pytest.mark.parametrize("page", with_python())
def test_python_runs_as_it_is_written(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of a page, one after another, and what their comments say of what they print."""
    names: dict[str, Any] = GIVEN.get(page, dict)()
    for block in blocks(ROOT / page):
        if block.language != "python":
            continue
        code = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's lines
        exec(compile(code, str(ROOT / page), "exec"), names)
        printed = capsys.readouterr().out
        for said in re.findall(r"^\s*print\(.*\)(?:\n|  )# (.*)$", block.text, re.MULTILINE):
            assert same(printed, said), f"{page}:{block.line} prints {printed}"


def with_commands() -> list[str]:
    return [name(page) for page in PAGES if any(block.commands for block in blocks(page))]


@pytest.mark.usefixtures("files", "in_plain_torch")
@pytest.mark.parametrize("page", with_commands())
def test_commands_run_as_they_are_written(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of a page, one after another, in one folder; an audit finds what the test set hides."""
    monkeypatch.setattr(
        "slabnorm.study.rates.RATES", (1.0,)
    )  # each `compare` tries two learning rates, not five
    for line, command in [found for block in blocks(ROOT / page) for found in block.commands]:
        if command in NOT_RUN:
            continue
        _, *arguments = shlex.split(command)
        if arguments[0] == "compare":
            arguments += LITTLE + (LARGE if "--batch-size" not in arguments else [])
        if arguments[0] == "claims":  # one without training, in place of all
            arguments = ["claims", "unit", *(word for word in arguments[1:] if word != "--sweep")]
        if arguments[0] == "lab":
            arguments += ["--no-open"]
        result = run(*arguments)
        wanted = 1 if arguments[0] == "audit" else 0
        assert result.exit_code == wanted, f"{page}:{line}: {command}\n{result.output}"


def test_what_is_not_run_stands_on_a_page() -> None:
    commands = {command for page in PAGES for block in blocks(page) for _, command in block.commands}
    assert set(NOT_RUN) <= commands
    assert set(NEEDS_A_GPU) <= {name(page) for page in PAGES}


@pytest.mark.usefixtures("in_plain_torch")
def test_accelerate_reports_what_its_page_shows() -> None:
    report = sn.accelerate(norms_of_all_kinds(), verify=torch.randn(2, 3, 12, 12))
    assert str(report).rstrip() == shown("docs/accelerate.md", "4 replaced").rstrip()


def test_accelerate_recognises_what_its_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    exec(shown("docs/accelerate.md", "import torch\nimport slabnorm as sn\n\n\nclass MyNorm"), {})
    assert capsys.readouterr().out == shown("docs/accelerate.md", "2 replaced")


def test_show_prints_what_its_page_shows(tmp_path: Path) -> None:
    sn.save(sn.fit(load_wine().data, split="train"), tmp_path / "wine.safetensors")
    printed = run("show", str(tmp_path / "wine.safetensors")).stdout
    assert not any(line.endswith(" ") for line in printed.splitlines())
    assert same(printed, shown("docs/inputs.md", "ZScore("))


def test_a_typo_is_marked_as_its_page_shows() -> None:
    with pytest.raises(sn.errors.PatternError) as raised:
        sn.moments(torch.zeros(2, 3, 4, 4), "n c h w -> C")
    said = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8").partition("    PatternError: ")[2]
    assert str(raised.value).splitlines() == [line.removeprefix("    ") for line in said.splitlines()]
