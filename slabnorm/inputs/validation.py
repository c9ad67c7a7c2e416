"""What fitted numbers can be: checks of what comes from a file or a state_dict."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slabnorm.errors import StatisticsError
from slabnorm.inputs.record import Record
from slabnorm.mergeable_moments import Moments

MOMENTS = ("count", "mean", "m2", "min", "max", "mean_low", "m2_low")
AFFINE = ("shift", "shift_low", "scale")
_FINITE = ("mean", "min", "max", "mean_low")
MOST_WEIGHT = 1 << 62  # that a feature's values may have together


def check_state(given: dict[str, Tensor], prefix: str) -> None:
    """Raise StatisticsError unless shift and scale can normalise, and the moments can be."""
    for name in AFFINE:
        if name in given and given[name].device.type != "meta":
            wide = given[name].double()
            bad = ~torch.isfinite(wide) | ((wide <= 0) & (name == "scale"))
            if bool(bad.any()):
                raise StatisticsError(
                    "shift and scale are finite, and the scale positive",
                    f"{prefix}{name} holds {wide[bad][0].item()}",
                    "the file is damaged, or a training run diverged: fit again",
                )
    if all(f"moments_{name}" in given for name in MOMENTS):
        counts = given["moments_count"]
        Moments(*(given[f"moments_{name}"] for name in MOMENTS), weighted=counts.is_floating_point())


def check_moments(tensors: dict[str, Tensor], record: Record) -> None:
    """Raise ValueError for numbers that no data set has, whoever wrote them."""
    count, mean, m2, low, high = (tensors[name] for name in MOMENTS[:5])
    known = None not in record.sample  # the number of values in a sample
    values = record.samples * math.prod(record.sample) if known else int(count.sum())  # type: ignore[arg-type]
    alike = not record.weights  # whether counts are of values, and no sums of weights
    nans = tensors["nan_count"] + tensors["null_count"]
    if values >= 1 << 62:
        raise ValueError(f"{values} values")
    # Sums of these do not wrap.
    within = (count > 0) & (nans >= 0) & (nans <= values) & (count <= (values if alike else MOST_WEIGHT))
    room = 4 * torch.finfo(torch.float64).eps * torch.maximum(low.abs(), high.abs())  # for rounding
    most = (high / 2 - low / 2).square() * (1 + 1e-9) + 1e-300
    quantiles = torch.cat([low[None], tensors["quantiles"], high[None]])
    rules = {
        "quantiles rise from minimum to maximum": quantiles.diff(dim=0) >= 0,
        "counts are positive, and no more than the values": within,
        "counts and NaN counts add up to all values": (count + nans == values // count.numel())
        | torch.tensor(not (known and alike)),
        "numbers are finite": torch.stack([tensors[name].isfinite() for name in _FINITE]).all(0),
        "min <= mean <= max": (low <= high) & (low - room <= mean) & (mean <= high + room),
        # Popoviciu's inequality, with room for rounding. Where the square of the range leaves float64 there
        # is no m2, and only min-max scaling, which does not need it.
        "what the mean lost to rounding is little": tensors["mean_low"].abs() <= room + 1e-300,
        "0 <= m2 <= count * ((max - min) / 2)^2": (count * most).isinf()
        | (tensors["m2_low"].isfinite() & (m2 >= 0) & (m2 / torch.where(count > 0, count, 1) <= most)),
    }
    for rule, holds in rules.items():
        if not bool(holds.all()):
            raise ValueError(f"not of any data: {rule}")
