"""slabnorm as it is installed: the wheel, beside nothing but what it depends on."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CORE = ("numba", "numpy", "safetensors", "torch")


def distributions(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Return these packages and all that they depend on."""
    found: dict[str, metadata.Distribution] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        needs = [Requirement(text) for text in found[name].requires or ()]
        wanted += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds slabnorm and its core dependencies, these as links."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True
    )
    (site,) = folder.glob("venv/lib/python*/site-packages")
    for distribution in distributions(CORE).values():
        entries = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for entry in entries:
            if not (site / entry).exists():
                (site / entry).symlink_to(distribution.locate_file(entry))
    return folder / "venv" / "bin"


def test_it_depends_on_the_core_alone(installed: Path) -> None:
    (site,) = installed.parent.glob("lib/python*/site-packages")
    (package,) = metadata.distributions(name="slabnorm", path=[str(site)])
    needs = [Requirement(text) for text in package.requires or ()]
    extras = set(package.metadata.get_all("Provides-Extra") or ())
    assert sorted(need.name for need in needs if not need.marker) == list(CORE)
    assert {"cli", "study", "images", "tables", "zarr", "ray", "onnx", "all"} <= extras


def test_the_page_is_installed_whole(installed: Path) -> None:
    (site,) = installed.parent.glob("lib/python*/site-packages")
    ours, theirs = (
        {
            str(file.relative_to(root))
            for file in (root / "slabnorm/page").rglob("*.*")
            if file.suffix != ".pyc"
        }
        for root in (ROOT, site)
    )
    assert ours == theirs
    assert "slabnorm/page/vendor/three.LICENSE" in theirs


SCRIPT = """
import os, sys
import numpy as np, torch
import slabnorm as sn
from slabnorm import *
from slabnorm.inputs.exports import export

x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
layer, plain = sn.BatchNorm(4), torch.nn.BatchNorm2d(4)
torch.testing.assert_close(layer(x), plain(x))
layer(x).square().sum().backward()
norm = sn.fit(x.detach().numpy(), "zscore", "n c h w -> c", split="train")
sn.save(norm, "inputs.safetensors")
assert torch.equal(sn.load("inputs.safetensors")(x), norm(x))
model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
want = model.eval()(x)
sn.accelerate(model, always=True)
torch.testing.assert_close(model(x), want)

os.mkdir("photos")
for name in ("photos/a.png", "x.parquet", "x.csv"):
    open(name, "wb").close()
os.mkdir("x.zarr")
fit = lambda source, **options: sn.fit(source, split="train", **options)
for install, use in {
    "slabnorm[images]": [lambda: fit("photos")],
    "slabnorm[tables]": [lambda: fit("x.parquet"), lambda: fit("x.csv")],
    "slabnorm[zarr]": [lambda: fit("x.zarr")],
    "slabnorm[ray]": [lambda: fit(x.detach().numpy()[:, :, 0, 0], engine="ray")],
    "slabnorm[study]": [lambda: sn.compare(), lambda: sn.audit(norm, x.detach().numpy())],
    "slabnorm[onnx]": [lambda: export(norm, "onnx")],
    "scikit-learn": [lambda: sn.SlabScaler],
}.items():
    for each in use:
        try:
            each()
        except sn.errors.ExtraError as error:
            assert install in error.fix, (install, error.fix)
            assert "pip install" in error.fix, error.fix
        else:
            raise AssertionError(install)
print("done")
"""


def test_the_core_does_its_work_and_every_extra_is_named(installed: Path, tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(installed / "python"), "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "done\n", done.stderr


def test_the_command_says_what_it_needs(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(installed / "slabnorm"), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'slabnorm[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
