"""What users can set to make PyTorch's own results cost less, each in a process that starts with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.allocator import settings

ARGUMENTS = ("--quick", "--part", "layers", "--peers", "slabnorm,eager", "--dtype", "float32")


def measure(name: str) -> dict[str, Any]:
    """Return the quick cases as slabnorm and eager run them in a process with a setting, by its name."""
    environment = settings()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quick.json"
        command = [sys.executable, "-m", "benchmarks", *ARGUMENTS, "--json", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        if done.returncode:
            return {"failed": done.stderr[-500:]}
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
    kept = ("elements", "peers", "others")
    cases = {case: {key: found[key] for key in kept} for case, found in layers.items()}
    return {"environment": environment, "cases": cases}
