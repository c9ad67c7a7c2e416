"""Training steps of the ResNet and the UNet: plain, compiled, accelerated, and both."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import slabnorm as sn
from benchmarks.gpu.timing import timed
from benchmarks.tasks import Task, digits, photos

TASKS = {"ResNet-18": lambda: digits(1024), "UNet": lambda: photos(64, 96)}
VARIANTS = ("plain", "compiled", "accelerated", "accelerated, compiled")
STEPS = 20


def training(device: torch.device) -> dict[str, Any]:
    """Return seconds per step and the first loss, in bfloat16 by autocast and channels_last."""
    found: dict[str, Any] = {}
    for name, make in TASKS.items():
        task = make()
        torch.manual_seed(0)
        plain = task.network().to(device, memory_format=torch.channels_last)
        inputs, targets = (t.to(device) for t in task.batch(torch.Generator().manual_seed(1)))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        steps: dict[str, Any] = {}
        losses: dict[str, list[float]] = {}
        for variant in VARIANTS:
            network = copy.deepcopy(plain)
            if variant.startswith("accelerated"):
                sn.accelerate(network, always=True)
            losses[variant] = []
            steps[variant] = step_of(task, network, variant, inputs, targets, losses[variant])
        taken: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(STEPS + 3):
            for variant in VARIANTS if number % 2 else VARIANTS[::-1]:
                seconds = timed(steps[variant], device)
                if number >= 3:
                    taken[variant].append(seconds)
        found[name] = {
            "described": task.described,
            "step": {variant: statistics.median(values) for variant, values in taken.items()},
            "losses": losses,
        }
    return found


def step_of(
    task: Task, network: nn.Module, variant: str, inputs: Tensor, targets: Tensor, losses: list[float]
) -> Callable[[], None]:
    """Return a training step."""
    optimizer = task.optimizer(network)
    call = torch.compile(network) if variant.endswith("compiled") else network

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(inputs.device.type, torch.bfloat16):
            output = call(inputs)
        loss = task.loss(output.float(), targets)
        loss.backward()
        optimizer.step()
        if len(losses) < 3:
            losses.append(float(loss.detach()))

    return step
