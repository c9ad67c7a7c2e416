"""Device time: calls captured in CUDA graphs, replayed in turns between events; and time from Python."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import no_garbage_collection

ROUNDS = 15
Calls = list[Callable[[], Any]]


def device_times(calls: dict[str, Calls], device: torch.device) -> dict[str, float]:
    """Return the median seconds of one call of each list; the lists take turns.

    A list is captured whole and replayed, so that no call waits for Python. Without a GPU it is called.
    """
    replay = {name: captured(listed, device) for name, listed in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with no_garbage_collection():
        for number in range(ROUNDS):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                taken[name].append(timed(replay[name], device) / len(calls[name]))
    return {name: statistics.median(values) for name, values in taken.items()}


def captured(calls: Calls, device: torch.device) -> Callable[[], None]:
    """Return what replays all calls at once."""

    def run() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return graph.replay


def timed(call: Callable[[], None], device: torch.device) -> float:
    """Return the seconds a call takes on the device."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def python_time(calls: Calls, device: torch.device) -> float:
    """Return the median seconds of one call from Python, the queue filled."""
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        for number in range(16):
            calls[number % len(calls)]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - begin) / 16)
    return statistics.median(taken)
