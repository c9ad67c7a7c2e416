"""Kernels compiled ahead, by several processes at once: compiling takes longer than measuring."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from benchmarks.gpu.cases import cases
from benchmarks.gpu.peers import rotating
from benchmarks.peers import Tensors


def warm_all(processes: int, seconds: float, names: tuple[str, ...]) -> float:
    """Compile in so many processes, for so long at most; return the seconds it took."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu", "--peers", ",".join(names), "--warm"]
    running = [
        subprocess.Popen([*command, f"{number}/{processes}"], stderr=subprocess.DEVNULL)
        for number in range(processes)
    ]
    for process in running:
        left = seconds - (time.perf_counter() - begin)
        try:
            process.wait(max(0.0, left))
        except subprocess.TimeoutExpired:
            process.kill()  # what it has not compiled is compiled when it is measured
    return time.perf_counter() - begin


def warm(number: int, processes: int, names: tuple[str, ...], device: torch.device) -> None:
    """Run every so-manieth case once with every peer: the compilers keep what they compiled on disk."""
    for case in cases()[number::processes]:
        inputs = [Tensors.draw(case, device)]
        for name in names:
            try:
                rotating(case, name, inputs)
            except Exception as failure:  # reported where it is measured
                print(case.name, name, failure)
        del inputs
        torch.cuda.empty_cache()
