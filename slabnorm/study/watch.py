"""What is looked at while a network trains: drift of the layers' inputs, gradients by depth.

A watcher is made anew for each training, and called with it before the first step and at every look. It
returns a list of numbers, and leaves the network, its running statistics, its gradients and the random
numbers as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.study.train import Training
from slabnorm.study.watch_end import Fit, Forgotten

PROBED = 256  # validation samples that are looked at


class Watcher(Protocol):
    """Looks at a network in training."""

    def __call__(self, training: Training) -> list[float]:
        """Return what is seen now."""


def probe(training: Training) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a copy of the network in train mode, and some validation samples and their classes."""
    few = torch.as_tensor(training.split.validation[:PROBED])
    return copy.deepcopy(training.model).train(), training.x[few], training.y[few]


def linear_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Return the linear and convolutional layers before the last, which are followed by a norm."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]


def inputs_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what enters each activation: the pre-activations, after the norm if there is one."""
    found: list[Tensor] = []
    kinds = (nn.ReLU, nn.Sigmoid, nn.Tanh)
    hooks = [
        m.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
        for m in model.modules()
        if isinstance(m, kinds)
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class Drift:
    """How far the input of each layer has moved since the start of training.

        drift_l = mean over units of |mean_l(now) - mean_l(start)| / std_l(start)

    where mean and std are over the probed samples, of what enters activation l. The list holds one number
    for each layer, then for each layer the mean over units of log2(std(now) / std(start)).
    """

    def __init__(self) -> None:
        self.start: list[tuple[Tensor, Tensor]] | None = None

    def __call__(self, training: Training) -> list[float]:
        """Return the drift of means by layer, then the change of spread by layer."""
        model, x, _ = probe(training)
        now = [moments(entered) for entered in inputs_of(model, x)]
        if self.start is None:
            self.start = now
        pairs = list(zip(now, self.start, strict=True))
        means = [((m - m0).abs() / s0).mean().item() for (m, _), (m0, s0) in pairs]
        return means + [(s / s0).log2().mean().item() for (_, s), (_, s0) in pairs]


def moments(entered: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each unit or channel; no deviation is below 1e-6."""
    dims = [0, *range(2, entered.ndim)]
    return entered.double().mean(dims), entered.double().std(dims).clamp(min=1e-6)


class Gradient:
    """The norm of the gradient of each layer's weights, first to last, on the probed samples."""

    def __call__(self, training: Training) -> list[float]:
        """Return the norms by layer."""
        model, x, y = probe(training)
        weights = [layer.weight for layer in linear_layers(model)]
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        return [gradient.norm().item() for gradient in gradients]


WATCHERS: dict[str, Callable[[], Watcher]] = {
    "drift": Drift,
    "gradient": Gradient,
    "forgotten": Forgotten,
    "fit": Fit,
}
