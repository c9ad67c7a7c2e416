"""A trained layer, and its state, for several tests."""

from __future__ import annotations

import torch
from torch import nn

import slabnorm as sn
from tests.cases import draw


def trained(steps: int = 3, **options: object) -> sn.BatchNorm:
    layer = sn.BatchNorm(4, **options)
    for seed in range(steps):
        layer(1 + 2 * draw((8, 4, 5), seed=seed))
    return layer


def state(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in layer.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)
