"""What is looked at while a network trains: drift, gradients by depth, the loss's landscape, norms' weights.

A watcher is made anew for each training. It is called with it before the first step and at every look, or
once at the end. It returns a list of numbers, and leaves the network, its running statistics, its gradients
and the random numbers as they were.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.nn import SlabNorm
from slabnorm.study.train import CHUNK, Training, accuracy, batches, train_eval_gap

PROBED = 256  # validation samples that are looked at
STEPS = tuple(10 ** (half / 2) for half in range(-6, 5))  # along the gradient: 0.001 to 100
CLIFF = 1e30  # stands for a loss that is not finite
MATES = (2, 4, 8, 16, 32, 64, 128)  # the sizes of the batches with eval() forgotten
TESTED = 512  # test samples that are looked at


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
    hooks = [
        m.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
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


class Landscape:
    """The loss along the gradient, as Santurkar et al. 2018 and Bjorck et al. 2018 look at it.

        loss(theta - s g) and |g(theta - s g) - g| / |g|, g = gradient(theta), for each step size s of STEPS

    The list holds the loss at theta, then the losses by s, then the changes of the gradient by s; what is not
    finite is CLIFF.
    """

    def __call__(self, training: Training) -> list[float]:
        """Return the loss here, the losses by step size, and how far the gradient turns."""
        model, x, y = probe(training)
        weights = [p for p in model.parameters() if p.requires_grad]
        starts = [weight.detach().clone() for weight in weights]

        def slope() -> tuple[float, list[Tensor]]:
            loss = F.cross_entropy(model(x), y)
            return loss.item(), list(torch.autograd.grad(loss, weights))

        here, gradient = slope()
        losses, turns = [], []
        for size in STEPS:
            with torch.no_grad():
                for weight, start, way in zip(weights, starts, gradient, strict=True):
                    weight.copy_(start - size * way)
            loss, there = slope()
            losses.append(loss)
            turns.append(length([a - b for a, b in zip(there, gradient, strict=True)]) / length(gradient))
        return [value if math.isfinite(value) else CLIFF for value in (here, *losses, *turns)]


def length(parts: list[Tensor]) -> float:
    """Return the Euclidean norm of tensors taken together; no norm is below 1e-30."""
    return max(1e-30, torch.stack([part.double().norm() for part in parts]).norm().item())


class NormWeights:
    """The weights of all norm layers, first to last, and then their biases."""

    def __call__(self, training: Training) -> list[float]:
        """Return weights, then biases; both are empty for a network without norm layers."""
        layers = norm_layers(training.model)
        weights = [value for layer in layers for value in layer.weight.tolist()]
        return weights + [value for layer in layers for value in layer.bias.tolist()]


class Erased:
    """The validation loss as it is, and with the weight of every norm layer put back to 1, its bias to 0.

    In train mode, on the probed samples: the running statistics would be those of other inputs.
    """

    def __call__(self, training: Training) -> list[float]:
        """Return the loss as it is, with the weights put back, with the biases, and with both."""
        found = []
        for weights, biases in ((False, False), (True, False), (False, True), (True, True)):
            model, x, y = probe(training)
            with torch.no_grad():
                for layer in norm_layers(model):
                    if weights:
                        layer.weight.fill_(1)
                    if biases:
                        layer.bias.zero_()
            # With gradients: without them slabnorm would warn of train mode, as of a forgotten eval().
            found.append(F.cross_entropy(model(x), y).item())
        return found


def norm_layers(model: nn.Module) -> list[Any]:
    """Return the norm layers that have weight and bias."""
    return [m for m in model.modules() if isinstance(m, SlabNorm) and m.weight is not None]


class Useful:
    """The share of each layer's units that use both sides of their activation.

    Such a unit gets values above 0 for 5% to 95% of the probed samples. One that never does is dead, and one
    that always does is linear, with ReLU.
    """

    def __call__(self, training: Training) -> list[float]:
        """Return the shares by layer."""
        model, x, _ = probe(training)
        found = []
        for entered in inputs_of(model, x):
            above = (entered > 0).double().mean([0, *range(2, entered.ndim)])
            found.append(((above >= 0.05) & (above <= 0.95)).double().mean().item())
        return found


class Forgotten:
    """The accuracy in train mode minus that in eval mode, on test samples, by the size of the batch.

    The list holds one number for each size of MATES, with the samples in random order, and then the same with
    the samples in the order of their classes.
    """

    def __call__(self, training: Training) -> list[float]:
        """Return the differences."""
        few = torch.as_tensor(training.split.test[:TESTED])
        x, y = training.x[few], training.y[few]
        shuffled = torch.randperm(len(few), generator=torch.Generator().manual_seed(training.run.seed))
        sorted_by_class = torch.argsort(y, stable=True)
        return [
            train_eval_gap(training.model, x, y, batches(order, size))
            for order in (shuffled, sorted_by_class)
            for size in MATES
        ]


class Fit:
    """Accuracy and cross-entropy of the training split, then of the test split, both in eval mode."""

    def __call__(self, training: Training) -> list[float]:
        """Return the four numbers."""
        found = []
        for part in (training.split.train, training.split.test):
            x, y = training.x[torch.as_tensor(part)], training.y[torch.as_tensor(part)]
            found.append(accuracy(training.model, x, y))
            with torch.no_grad():
                scores = torch.cat([training.model(few) for few in x.split(CHUNK)])
            found.append(F.cross_entropy(scores, y).item())
        return found


WATCHERS: dict[str, Callable[[], Watcher]] = {
    "drift": Drift,
    "gradient": Gradient,
    "landscape": Landscape,
    "affine": NormWeights,
    "erased": Erased,
    "useful": Useful,
}
# What is looked at once, when the training has ended.
LAST: dict[str, Callable[[], Watcher]] = {"forgotten": Forgotten, "fit": Fit}
