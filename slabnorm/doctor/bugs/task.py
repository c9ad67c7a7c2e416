"""What the scripts share: scikit-learn's digits, a small network, a training loop and an accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.doctor.reference import drifts
from slabnorm.doctor.rules.signal import unlike
from slabnorm.errors import DataWarning
from slabnorm.extras import extra
from slabnorm.inputs import InputNorm, fit
from slabnorm.inputs.audit import audit
from slabnorm.report.check import Finding

TRAINING = 1200  # of 1797 digits; the rest is by other writers


@dataclass(frozen=True)
class Case:
    """What came of a script.

    Attributes:
        metric: the number in which the bug shows.
        findings: what the doctor says, first things first.
    """

    metric: float
    findings: tuple[Finding, ...]


class Data(NamedTuple):
    """A training and a test split."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@cache
def digits() -> Data:
    """Return the digits as rows of 64 pixels between 0 and 1, and their classes."""
    x, y = extra("sklearn.datasets", "the bug set", "'slabnorm[study]'").load_digits(return_X_y=True)
    return _split(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


@cache
def table(name: str) -> Data:
    """Return a table that comes with scikit-learn, such as "wine", with its rows shuffled."""
    datasets = extra("sklearn.datasets", "the bug set", "'slabnorm[study]'")
    loaded = getattr(datasets, f"load_{name}")()
    x, y = torch.tensor(loaded.data, dtype=torch.float32), torch.tensor(loaded.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return _split(x[order], y[order], 2 * len(x) // 3)


def _split(x: Tensor, y: Tensor, training: int = TRAINING) -> Data:
    return Data(x[:training], y[:training], x[training:], y[training:])


def images(x: Tensor) -> Tensor:
    """Return rows of 64 pixels as images (n, 1, 8, 8)."""
    return x.unflatten(1, (1, 8, 8))


def coloured(x: Tensor) -> Tensor:
    """Return rows of 64 pixels as orange images on blue (n, 3, 8, 8), between 0 and 1."""
    ink = images(x)
    return torch.cat([0.1 + 0.9 * ink, 0.2 + 0.3 * ink, 0.6 - 0.5 * ink], 1)


def network(
    norm: Callable[[int], nn.Module] = nn.BatchNorm1d, inputs: int = 64, outputs: int = 10, width: int = 32
) -> nn.Sequential:
    """Return a perceptron of three layers with norms; its weights are always the same."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, width, bias=False), norm(width), nn.ReLU(),
        nn.Linear(width, width, bias=False), norm(width), nn.ReLU(),
        nn.Linear(width, outputs),
    )  # fmt: skip


def convolutions(
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d, inputs: int = 1, width: int = 16
) -> nn.Sequential:
    """Return a network of two convolutions with norms, for images of 8x8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False), norm(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


def train(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor,
    epochs: int = 4, size: int = 64, rate: float = 0.1,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    step: Callable[[], object] | None = None,
) -> None:  # fmt: skip
    """Train a model in the mode that it is in, on batches of one size.

    Args:
        model, x, y: the model and its data. A function needs an optimizer.
        epochs, size, rate: how often, in batches of how many samples, at which learning rate.
        optimizer: another than SGD with momentum.
        loss: of outputs and targets.
        step: called after each step.
    """
    if optimizer is None:
        assert isinstance(model, nn.Module)
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for batch in order.split(size)[: len(x) // size]:
            optimizer.zero_grad()
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
            if step is not None:
                step()


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, size: int = 1000) -> float:
    """Return the share of samples that are classified right, in the mode that the model is in."""
    right = [(model(a).argmax(1) == b).sum() for a, b in zip(x.split(size), y.split(size), strict=True)]
    return float(sum(right)) / len(x)


def explained(predicted: Tensor, y: Tensor) -> float:
    """Return R^2: the share of the variance of y that predictions explain."""
    return float(1 - (predicted - y).square().mean() / y.var(correction=0))


def statistics(x: Tensor) -> InputNorm:
    """Return the z-score statistics of training data as a layer. Pixels that never vary are no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return fit(x, "zscore", split="train")


def audited(norm: InputNorm, x: Tensor, train: Tensor | None = None) -> tuple[Finding, ...]:
    """Return what an audit of other data finds, as the doctor's findings."""
    return tuple(unlike(drifts(audit(norm, x, train=train)), "the data"))
