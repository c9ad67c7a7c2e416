"""What the claims on raw inputs share: real samples in rows, and rules for the initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slabnorm.errors import DataError
from slabnorm.study.data import Dataset
from slabnorm.study.scaling import fit_inputs

SCHEMES = {"raw": "raw", "fixed": "fixed range", "minmax": "min-max", "zscore": "z-score"}
KAIMING, DEFAULT, TENTH = "Kaiming", "PyTorch's default", "normal, std 0.1"

Rule = Callable[[int, int, torch.Generator], Tensor]


def kaiming(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Return normal weights of variance 2 / inputs (He et al. 2015), made for ReLU."""
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) * math.sqrt(2 / inputs)


def default(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Return the weights of torch.nn.Linear: uniform in +-1/sqrt(inputs), of variance 1 / (3 inputs)."""
    drawn = torch.rand(outputs, inputs, generator=generator, dtype=torch.float64)
    return (2 * drawn - 1) / math.sqrt(inputs)


def tenth(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Return normal weights of standard deviation 0.1, whatever the number of inputs."""
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) / 10


RULES: dict[str, Rule] = {KAIMING: kaiming, DEFAULT: default, TENTH: tenth}


def few(data: Dataset, count: int) -> NDArray[np.int64]:
    """Return the numbers of at most `count` training samples.

    They lie evenly over the training split, which may be in the order of the classes.
    """
    train = data.split.train
    chosen: NDArray[np.int64] = train[np.linspace(0, len(train) - 1, min(count, len(train))).astype(int)]
    return chosen


def samples(data: Dataset, scheme: str, count: int) -> Tensor:
    """Return some training samples in float64, under a scheme that is fitted on the whole training split."""
    layer, _ = fit_inputs(data, scheme)
    with torch.no_grad():
        scaled: Tensor = layer(torch.as_tensor(data.x[few(data, count)]).double())
    return scaled.double()


def rows(data: Dataset, scheme: str, count: int) -> Tensor:
    """Return some training samples under an input scheme as rows (n, features), in float64."""
    return samples(data, scheme, count).flatten(1)


def check_images(data: Dataset, claim: str) -> None:
    """Raise DataError if the data are a table, or images too small for a kernel of 3x3 pixels."""
    if data.x.ndim != 4:
        raise DataError(
            f"The claim {claim} is about images, and the data are a table",
            data.axes,
            "leave this claim out, or give images",
        )
    if min(data.sample_shape[1:]) < 3:
        raise DataError(
            f"The claim {claim} needs images of 3x3 pixels or more", data.axes, "leave this claim out"
        )


def seeded(seed: int, purpose: int) -> torch.Generator:
    """Return random numbers of their own for each seed and purpose."""
    return torch.Generator().manual_seed(1_000 * purpose + seed)
