"""Small data sets and models that several tests share."""

import numpy as np
import torch
from torch import nn

from slabnorm.study.data import Dataset, digits, from_arrays


def few_digits(count: int = 150) -> Dataset:
    """The first digits of four classes, 8x8 images."""
    whole = digits()
    chosen = np.flatnonzero(whole.y < 4)[:count]
    return from_arrays(whole.x[chosen, 0], whole.y[chosen], "few digits")


def table(count: int = 60, classes: int = 2, features: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A table whose classes differ in their means."""
    y = np.arange(count) % classes
    x = np.random.default_rng(0).normal(size=(count, features)) + y[:, None]
    return x.astype(np.float32), y


def tiny(norm):
    """A network for `table()` with one norm layer; at module level, so that workers find it."""
    return nn.Sequential(nn.Linear(3, 8), norm(8), nn.ReLU(), nn.Linear(8, 2))


def greedy(norm):
    """Draws from the random stream by the norm it gets, so that pairing cannot hold."""
    layer = norm(8)
    torch.rand(sum(p.numel() for p in layer.parameters()) + 1)
    return nn.Sequential(nn.Linear(3, 8), layer, nn.ReLU(), nn.Linear(8, 2))


def lazy(norm):
    """A network that takes the shape of its input from the first batch."""
    return nn.Sequential(nn.LazyLinear(8), norm(8), nn.ReLU(), nn.LazyLinear(2))


class _Scales(nn.Module):
    def forward(self, x):
        return x.mul_(3.0)


def in_place(norm):
    """A network that works on its input in place, before a lazy layer."""
    return nn.Sequential(_Scales(), nn.LazyLinear(8), norm(8), nn.ReLU(), nn.Linear(8, 2))
