"""What a scheme is: from the statistics of a data set to a shift and a scale.

    y = (x - shift) / scale * span + low

A scheme is a small frozen object. It reads statistics and returns an Affine; it sees no data, and
the normaliser only its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from slabnorm.errors import OptionError, StatisticsError
from slabnorm.mergeable_moments import Moments


@dataclass(frozen=True, eq=False)
class Affine:
    """z = ((x - shift) - shift_low) / scale.

    A divisor, and not a factor: x / 255 then has the bits of torchvision's ToTensor, and the largest
    value of a min-max feature comes out as exactly 1.

    Attributes:
        shift: float64, one per feature, in the units of the data.
        shift_low: what `shift` lost to rounding.
        scale: float64, positive and finite, one per feature, in the units of the data.
    """

    shift: Tensor
    shift_low: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Scheme:
    """What all schemes share: a name, and `affine`, from statistics to shift and scale."""

    name: ClassVar[str] = ""
    per_feature: ClassVar[bool] = True  # whether it reads statistics at all
    ranks: ClassVar[tuple[float, ...]] = ()  # of the quantiles it reads

    # Where outputs end, in their own units; True for the output range.
    clip: tuple[float, float] | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        clip: Any = self.clip
        if clip is True and hasattr(self, "out"):
            clip = self.out
        if clip is not None and clip is not False:
            object.__setattr__(self, "clip", as_range("clip", clip))
        else:
            object.__setattr__(self, "clip", None)

    @property
    def target(self) -> tuple[float, float]:
        """Span and low: the width and the lower end of the output range; 1 and 0 for a scheme without."""
        out = getattr(self, "out", (0.0, 1.0))
        return out[1] - out[0], out[0]

    @classmethod
    def named(cls, dtype: str) -> Scheme:
        """Return the scheme that its bare name stands for, on data of this dtype."""
        return cls()

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        """Return shift and scale, of the shape of the moments, from these and the quantiles of `ranks`.

        Raises:
            StatisticsError: a feature's scale is not a positive float64.
        """
        raise NotImplementedError


def first_features(which: Tensor, names: Sequence[str] = ()) -> str:
    """Return the places where a mask is true, or their names, as text: the first few, and how many more."""
    if which.dim() == 0:
        return "the only feature"
    places = which.nonzero().tolist()
    if names:
        shown = [repr(names[place[0]]) for place in places[:5]]
    else:
        shown = [str(place[0]) if len(place) == 1 else str(tuple(place)) for place in places[:5]]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return f"feature{'s' if len(places) > 1 else ''} {', '.join(shown)}{more}"


def positive(spread: Tensor, moments: Moments, what: str) -> Tensor:
    """Return the scale of every feature: its spread, or 1; raise StatisticsError out of range."""
    scale = torch.where(moments.min == moments.max, torch.ones_like(spread), spread)
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bool(bad.any()):
        raise StatisticsError(
            f"the {what} of a feature that varies is a positive float64",
            f"{scale[bad][0].item()} for {first_features(bad)}: it leaves the range of float64",
            "bring the data nearer to 1 first, as by a change of units",
        )
    return scale


def as_range(name: str, ends: Any) -> tuple[float, float]:
    """Return two ends as floats; raise OptionError unless they are finite and in order."""
    if isinstance(ends, tuple | list) and len(ends) == 2 and all(map(is_number, ends)):
        low, high = float(ends[0]), float(ends[1])
        if low < high and math.isfinite(high - low):
            return low, high
    raise OptionError(f"{name} are two finite numbers, the first below the second", repr(ends), "as (0, 1)")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
