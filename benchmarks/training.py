"""Whole training steps: a network plain, accelerated and without norms, on the same batches in turns."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from torch import nn

import slabnorm as sn
from benchmarks.load import Others
from benchmarks.memory import saved_bytes
from benchmarks.tasks import TASKS, Batch, Task
from benchmarks.timing import no_garbage_collection, spread

VARIANTS = ("plain", "accelerated", "without")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Seconds of steps per network, and at least so many steps; of those the first ones warm up and are not timed.
SECONDS = {"quick": 3.0, "full": 95.0}
FEWEST, MOST, WARMING = 5, 150, 2
LEAST = 0.03  # of a step: norms that take less are lost in its noise


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Return the time per step, saved bytes and loss curves of a network of `tasks.TASKS`, or why not."""
    try:
        return compare(TASKS[name](quick), SECONDS["quick" if quick else "full"])
    except Exception as error:  # a long run's other parts are not lost for it
        return {"failed": f"{type(error).__name__}: {error}"}


def compare(task: Task, budget: float) -> dict[str, Any]:
    """Train a task's network plain and accelerated, for `budget` seconds, and return how they differ."""
    torch.manual_seed(0)
    plain = task.network().train()
    accelerated = copy.deepcopy(plain)
    report = sn.accelerate(accelerated)
    networks = {"plain": plain, "accelerated": accelerated, "without": without_norms(copy.deepcopy(plain))}
    saved = {which: saved_by(task, networks[which]) for which in VARIANTS}
    others = Others()
    seconds, losses = train(task, networks, budget)
    step = {which: spread(seconds[which][WARMING:]) for which in VARIANTS}
    return {
        "described": task.described,
        "report": str(report),
        "step": step,
        "steps": len(seconds["plain"]),
        "others": others.share(),
        "share_saved": share_saved(seconds),
        "saved_bytes": saved,
        "losses": losses,
        "first_loss_difference": abs(losses["plain"][0] - losses["accelerated"][0]),
        "loss_difference": max(
            abs(a - b) for a, b in zip(losses["plain"], losses["accelerated"], strict=True)
        ),
    }


def share_saved(seconds: dict[str, list[float]]) -> float | None:
    """Return which share of the norm layers' time the accelerated network does without.

    The norm layers' time is what a step takes longer than the same step without them; None where that is
    too little to divide by. More than all of it can disappear, as activations are fused, too. Differences
    are taken within a round, so that a machine that slows down for a while counts in both terms.
    """
    plain, accelerated, without = (seconds[which][WARMING:] for which in VARIANTS)
    saved = statistics.median(a - b for a, b in zip(plain, accelerated, strict=True))
    norms = statistics.median(a - b for a, b in zip(plain, without, strict=True))
    return saved / norms if norms > LEAST * statistics.median(plain) else None


def without_norms(network: nn.Module) -> nn.Module:
    """Replace every norm by Identity; activations stay."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NORMS):
                setattr(parent, name, nn.Identity())
    return network


def saved_by(task: Task, network: nn.Module) -> int:
    """Return the bytes that one forward keeps for its backward."""
    inputs, targets = task.batch(torch.Generator().manual_seed(0))
    twin = copy.deepcopy(network)  # a forward in train mode moves the running statistics
    return saved_bytes(lambda: task.loss(twin(inputs), targets), twin.parameters())


def train(
    task: Task, networks: dict[str, nn.Module], budget: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Train every network on the same batches in turns; return the seconds and losses of every step."""
    optimizers = {which: task.optimizer(network) for which, network in networks.items()}
    for group in optimizers["without"].param_groups:
        group["lr"] = 0.0  # it is there for its time; trained without norms it may diverge
    seconds: dict[str, list[float]] = {which: [] for which in networks}
    losses: dict[str, list[float]] = {which: [] for which in networks}
    generator = torch.Generator().manual_seed(1)
    with no_garbage_collection():
        begin, number = time.perf_counter(), 0
        while number < FEWEST or (number < MOST and time.perf_counter() - begin < budget):
            batch = task.batch(generator)
            # Plain and accelerated change places, so that neither always follows the other.
            for which in VARIANTS if number % 2 else VARIANTS[::-1]:
                taken, loss = step_once(task, networks[which], optimizers[which], batch)
                seconds[which].append(taken)
                losses[which].append(loss)
            number += 1
    return seconds, losses


def step_once(
    task: Task, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch
) -> tuple[float, float]:
    """Return the seconds of one training step, and its loss."""
    inputs, targets = batch
    begin = time.perf_counter()
    optimizer.zero_grad()
    loss = task.loss(network(inputs), targets)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - begin, float(loss.detach())
