"""What passes between a call and its kernel beside the data: small float64 tensors, one value per slab."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Statistics(NamedTuple):
    """What a slab is normalised with: z = ((x - mean) - low) * rstd.

    `low` is what float64 could not hold of the mean, None where it is nothing.
    """

    mean: Tensor
    low: Tensor | None
    rstd: Tensor


class Given(NamedTuple):
    """Statistics that come from elsewhere: running, fitted, or merged over processes."""

    mean: Tensor
    var: Tensor


class Found(NamedTuple):
    """Statistics of the slabs themselves: mean and sum of squared deviations."""

    mean: Tensor
    m2: Tensor
