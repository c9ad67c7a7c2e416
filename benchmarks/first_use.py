"""What the first call of a layer costs: kernels compiled, or read from disk by a second process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

# Runs in a process of its own. Packages are imported, Numba has set itself up, and torch has had its first
# backward, which takes it 0.35 s, before the clock starts.
PROGRAM = """
import json, sys, time
import torch, numba
import slabnorm as sn

numba.njit(lambda a: a + 1)(1)
once = torch.ones(1, requires_grad=True)
torch.autograd.grad(once * 2, once, torch.ones(1))
layer, shape = {layer}, {shape}
x = torch.randn(shape, requires_grad=True)
inputs = [x, *layer.parameters()]

def step():
    begin = time.perf_counter()
    y = layer(x)
    middle = time.perf_counter()
    torch.autograd.grad(y, inputs, torch.ones_like(y))
    return middle - begin, time.perf_counter() - middle

first = step()
warm = [min(times) for times in zip(*(step() for _ in range(5)))]
print(json.dumps([a - b for a, b in zip(first, warm)]))
"""
LAYERS = {
    "batch norm, relu": ("sn.BatchNorm(16, activation='relu')", (4, 16, 32, 32)),
    "group norm, silu": ("sn.GroupNorm(8, 16, activation='silu')", (4, 16, 32, 32)),
    "layer norm": ("sn.LayerNorm(256)", (64, 256)),
}


def names(quick: bool) -> list[str]:
    """Return the layers to start."""
    return list(LAYERS)[: 1 if quick else None]


def measure(name: str) -> dict[str, Any]:
    """Return the seconds of a layer's first forward and backward beyond a warm one, in two processes."""
    layer, shape = LAYERS[name]
    program = PROGRAM.format(layer=layer, shape=shape)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SLABNORM_CACHE_DIR": folder}
        found = {}
        for process in ("compiled", "cached"):
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                return {"failed": done.stderr[-500:]}
            forward, backward = json.loads(done.stdout)
            found[process] = {"forward": forward, "backward": backward}
    return found
