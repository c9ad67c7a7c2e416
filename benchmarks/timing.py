"""Peers timed in turns: every round runs each once, in rotating order, beside a copy of the input's size."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.load import Others
from benchmarks.peers import Peer

FEWEST, MOST = 7, 201  # rounds
Seconds = list[float]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and not while timing."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spread(values: Seconds) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "q1": low, "q3": high}


@dataclass(frozen=True)
class Rounds:
    """What every call returned, by round, and the share of the cores that other processes took meanwhile."""

    of: dict[str, list[Any]]
    others: float | None


def interleave(
    calls: dict[str, Callable[[], tuple[float, ...]]], budget: float, twice: bool = False
) -> Rounds:
    """Run every call in turns for about `budget` seconds.

    Args:
        calls: each returns the seconds that it took.
        budget: of all rounds together.
        twice: whether each turn is two calls, of which the second counts. A virtual machine may give memory
            that is free for two seconds back to its host, who makes the next one to touch it wait: 100 MB
            took 10 ms to touch, or 400 ms. A training loop comes back within milliseconds, and does not pay.
    """
    names = list(calls)
    found: dict[str, list[Any]] = {name: [] for name in names}
    with no_garbage_collection():
        start, number, others = time.perf_counter(), 0, Others()
        while number < FEWEST or (number < MOST and time.perf_counter() - start < budget):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                if twice:
                    calls[name]()
                found[name].append(calls[name]())
            number += 1
        return Rounds(found, others.share())


def training_step(peer: Peer, repeat: int = 1) -> Callable[[], tuple[float, ...]]:
    """Return a call that times forward and backward, per step; short ones with some in a row."""

    def timed() -> tuple[float, ...]:
        forward = backward = 0.0
        for _ in range(repeat):
            begin = time.perf_counter()
            y = peer.layer(*peer.arguments)
            middle = time.perf_counter()
            gradients = torch.autograd.grad(y, peer.inputs, peer.gradient)
            end = time.perf_counter()
            forward, backward = forward + middle - begin, backward + end - middle
            del y, gradients
        return forward / repeat, backward / repeat

    return timed


def forward_only(call: Callable[[], Any]) -> Callable[[], tuple[float, ...]]:
    """Return a call that times one forward without gradients."""

    def timed() -> tuple[float, ...]:
        with torch.no_grad():
            begin = time.perf_counter()
            y = call()
            end = time.perf_counter()
        del y
        return (end - begin,)

    return timed


def copy_of(x: torch.Tensor) -> Callable[[], tuple[float, ...]]:
    """Return a call that times a copy of a tensor of the same size and layout."""
    source, target = x.detach().clone(), torch.empty_like(x, requires_grad=False)
    return forward_only(lambda: target.copy_(source))


def steps(rounds: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Return the spread of forward, backward and both."""
    return {
        "forward": spread([forward for forward, _ in rounds]),
        "backward": spread([backward for _, backward in rounds]),
        "both": spread([forward + backward for forward, backward in rounds]),
    }
