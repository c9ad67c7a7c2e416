"""Whether the GPU's kernels compile and start, and what happens where they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slabnorm.errors import KernelWarning
from slabnorm.kernels import backend

pytest.importorskip("triton", reason="the GPU kernels need Triton")
from slabnorm.kernels import gpu

# The interpreter computes with NumPy, which warns of what a GPU takes silently.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_kernels_that_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """They warn once, and plain torch computes."""

    def fail(device: torch.device) -> None:
        raise RuntimeError("no C compiler")

    backend._starts.cache_clear()
    assert backend._starts(DEVICE)
    backend._starts.cache_clear()
    monkeypatch.setattr(gpu, "start", fail)
    with pytest.warns(KernelWarning, match="no C compiler"):
        assert not backend._starts(DEVICE)
    assert not backend._starts(DEVICE)
    backend._starts.cache_clear()


def test_compiles_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter takes what the compiler may not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_for_gpu.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(script.parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {
        "backward.affine_sums", "backward.apply", "backward.looped", "backward.reduce", "backward.tokens",
        "backward.whole", "forward.apply", "forward.looped", "forward.reduce", "forward.whole",
        "merge.add_up", "merge.gradients", "merge.statistics", "merge.store_given", "merge.update_running",
    }  # fmt: skip
