"""What a run was measured on and with: processor, caches, versions, sources."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_L2 = 1 << 20  # a common size, where the system does not tell
PACKAGES = ("slabnorm", "torch", "numba", "llvmlite", "numpy", "onnxruntime")


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and caches."""
    return {
        "cpu": _lscpu().get("Model name") or platform.processor() or platform.machine(),
        "family": " ".join(_lscpu().get(key, "?") for key in ("CPU family", "Model")),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "caches_per_core": caches(),
        "system": platform.system(),
    }


def caches() -> dict[str, int]:
    """Return the bytes of every data cache that the first core sees, by name; L2 is always there."""
    found = {}
    for index in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = _bytes(size)
    found.setdefault("L2", UNKNOWN_L2)
    return found


def _bytes(size: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)


def _lscpu() -> dict[str, str]:
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.stdout.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, and a digest of slabnorm's sources."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    # The version number stays while the kernels change.
    found["slabnorm sources"] = _digest()
    return found


def _digest() -> str:
    import slabnorm

    root = Path(slabnorm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
