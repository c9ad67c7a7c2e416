"""One case: every peer checked against float64, then timed beside a copy of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.exact import error, reference
from benchmarks.gpu.cases import passes
from benchmarks.gpu.peers import Rotating, draw, rotating
from benchmarks.gpu.timing import device_times, python_time
from benchmarks.summary import EXACT


def measure(case: Case, names: tuple[str, ...], device: torch.device, l2: int) -> dict[str, Any]:
    """Return times in seconds and errors of every peer, and the least that memory allows."""
    inputs = draw(case, device, l2)
    exact = reference(case, inputs[0])
    found: dict[str, Any] = {"elements": case.elements, "dtype": case.dtype, "norm": case.norm}
    found |= {"inputs": len(inputs), "failed": {}, "error": {}, "output_error": {}, "peers": {}}
    peers: dict[str, Rotating] = {}
    for name in names:
        try:
            peer = rotating(case, name, inputs)
        except Exception as failure:  # a peer that cannot run a case must not end the run
            found["failed"][name] = f"{type(failure).__name__}: {str(failure)[:200]}"
            continue
        if peer is not None:
            results = peer.step(inputs[0])
            found["error"][name] = error(results, exact)
            found["output_error"][name] = output_error(results[0], exact[0])
            peers[name] = peer
    del exact
    calls = {f"{name} forward": peer.forwards() for name, peer in peers.items()}
    calls |= {f"{name} both": peer.steps() for name, peer in peers.items()}
    calls["copy"] = [copy_of(given.x.detach()) for given in inputs]
    times = device_times(calls, device)
    for name, peer in peers.items():
        found["peers"][name] = {
            "forward": times[f"{name} forward"],
            "both": times[f"{name} both"],
            "python": python_time(peer.steps(), device),
        }
    forward, backward = passes(case, l2)
    found["copy"] = times["copy"]
    found["floor"] = {"forward": forward * times["copy"] / 2, "backward": backward * times["copy"] / 2}
    found["passes"] = [forward, backward]
    return found


def copy_of(x: Tensor) -> Callable[[], Tensor]:
    """Return a copy, to memory of its own."""
    target = torch.empty_like(x)
    return lambda: target.copy_(x)


def output_error(y: Tensor, exact: Tensor) -> float:
    """Return the largest error of the output, relative to max(1, |y|)."""
    return float(((y.double() - exact).abs() / exact.abs().clamp(min=1)).max())


def exact_enough(case: dict[str, Any], name: str) -> bool:
    """Return whether results are as exact as slabnorm promises: 1e-6, or one unit of bfloat16."""
    gate = 1e-6 if case["dtype"] == "float32" else 2**-8
    return case["output_error"][name] <= gate and case["error"][name] <= EXACT[case["dtype"]]
