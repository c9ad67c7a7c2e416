"""The package as a whole: what it exports, what importing it costs, examples that run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import slabnorm as sn

ROOT = Path(sn.__file__).parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT / "slabnorm")], "slabnorm."))


def test_public_names() -> None:
    assert sorted(sn.__all__) == sn.__all__
    for name in sn.__all__:
        assert getattr(sn, name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_importing_is_light() -> None:
    """`import slabnorm` loads nothing, its names torch and little else; nothing is compiled."""
    code = (
        "import sys, slabnorm as sn; first = {'torch', 'numpy'} & set(sys.modules)\n"
        "import torch; before = set(sys.modules)\n"
        "sn.normalize, sn.BatchNorm, sn.fit, sn.accelerate, sn.TensorBoardLog\n"
        "after = set(sys.modules) - before\n"
        "heavy = {'numba', 'llvmlite', 'sklearn', 'scipy', 'plotly', 'rich', 'typer', 'jinja2', 'PIL',"
        " 'zarr', 'pyarrow', 'ray', 'onnx', 'tensorboard', 'lightning', 'transformers'}\n"
        "print(sorted(first), sorted(heavy & {name.split('.')[0] for name in after}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_no_module_stands_where_a_public_name_is() -> None:
    # Importing slabnorm.moments would make `sn.moments` that module, as names are loaded when they are used.
    assert not {name.removeprefix("slabnorm.") for name in MODULES} & set(sn.__all__)
