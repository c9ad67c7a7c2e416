"""Schemes: from the Moments of a data set to a shift and a scale.

    y = (x - shift) / scale * span + low

A scheme is a small frozen object. It reads statistics and returns an Affine; it sees no data, and
the normaliser only its numbers. So a scheme on quantiles needs only another statistic to read, and
clipping only another number beside span and low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor

from slabnorm.errors import OptionError, StatisticsError
from slabnorm.moments import Moments


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

    @property
    def target(self) -> tuple[float, float]:
        """Span and low: the width and the lower end of the output range; 1 and 0 for a scheme without."""
        out = getattr(self, "out", (0.0, 1.0))
        return out[1] - out[0], out[0]

    @classmethod
    def named(cls, dtype: str) -> Scheme:
        """Return the scheme that its bare name stands for, on data of this dtype."""
        return cls()

    def affine(self, moments: Moments) -> Affine:
        """Return shift and scale, of the shape of the moments.

        Raises:
            StatisticsError: a feature's scale is not a positive float64.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FixedScale(Scheme):
    """Map a known range onto another, whatever the data: y = (x - low) / (high - low), then `out`.

    Args:
        low, high: the range that values of x can take, in the units of x; the same for all features.
        out: the range they are mapped to.

    Raises:
        OptionError: a range is not two finite numbers, the first below the second.

    By name, "fixed" takes the range of the data's dtype where the dtype is one that says it: bool
    (0..1) and integers of 8 or 16 bits. Wider integers and floats say nothing about the range.

    >>> import numpy as np
    >>> from slabnorm.inputs import fit
    >>> pixels = np.array([[0, 51], [102, 255]], dtype=np.uint8)
    >>> fit(pixels, "fixed", split="train")(torch.from_numpy(pixels))
    tensor([[0.0000, 0.2000],
            [0.4000, 1.0000]])
    """

    low: float = 0.0
    high: float = 255.0
    out: tuple[float, float] = (0.0, 1.0)

    name: ClassVar[str] = "fixed"
    per_feature: ClassVar[bool] = False

    def __post_init__(self) -> None:
        low, high = _range("low, high", (self.low, self.high))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "out", _range("out", self.out))

    @classmethod
    def named(cls, dtype: str) -> FixedScale:
        if dtype == "bool":
            return cls(0.0, 1.0)
        if dtype in ("uint8", "int8", "uint16", "int16"):
            info = torch.iinfo(getattr(torch, dtype))
            return cls(float(info.min), float(info.max))
        raise OptionError(
            'scheme "fixed" takes the range of bool and of 8- and 16-bit integers; other dtypes have none',
            f"data of dtype {dtype}",
            "say which values can occur, as scheme=slabnorm.FixedScale(low=0, high=16)",
        )

    def affine(self, moments: Moments) -> Affine:
        shift = torch.full_like(moments.mean, self.low)
        scale = torch.full_like(shift, self.high - self.low)
        return Affine(shift, torch.zeros_like(shift), scale)


@dataclass(frozen=True)
class MinMax(Scheme):
    """Map each feature's fitted range onto `out`: y = (x - min) / (max - min), then `out`.

    A constant feature gets scale 1. Values outside the fitted range come out outside `out`.

    Args:
        out: the range that the fitted minimum and maximum are mapped to.

    Raises:
        OptionError: `out` is not two finite numbers, the first below the second.

    >>> from slabnorm.inputs import fit
    >>> x = torch.tensor([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]])
    >>> fit(x, MinMax(out=(-1, 1)), split="train")(x)
    tensor([[-1., -1.],
            [ 0.,  1.],
            [ 1.,  0.]])
    """

    out: tuple[float, float] = (0.0, 1.0)

    name: ClassVar[str] = "minmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", _range("out", self.out))

    def affine(self, moments: Moments) -> Affine:
        scale = _scale(moments.max - moments.min, moments, "range")
        return Affine(moments.min.clone(), torch.zeros_like(scale), scale)


@dataclass(frozen=True)
class ZScore(Scheme):
    """Centre each feature and divide by its spread: y = (x - mean) / sqrt(var + eps).

    A feature is constant where its minimum is its maximum, and gets scale 1. The variance is exact
    enough to need no tolerance: what scikit-learn calls constant, a spread within the rounding of
    its own sums, is here measured.

    Args:
        ddof: var = m2 / (count - ddof); 0 as in scikit-learn, 1 for the unbiased estimate.
        eps: added to the variance, in squared units of the data: a floor under small spreads.

    Raises:
        OptionError: `ddof` is not an integer of 0 or more, or `eps` not a finite number of 0 or more.

    >>> from slabnorm.inputs import fit
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> fit(x, ZScore(), split="train")(x)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """

    ddof: int = 0
    eps: float = 0.0

    name: ClassVar[str] = "zscore"

    def __post_init__(self) -> None:
        if not isinstance(self.ddof, int) or isinstance(self.ddof, bool) or self.ddof < 0:
            raise OptionError("ddof is an integer, 0 or more", repr(self.ddof), "0: population, 1: unbiased")
        if not _is_number(self.eps) or self.eps < 0:
            raise OptionError("eps is a finite number, 0 or more", repr(self.eps), "0 is the usual one here")
        object.__setattr__(self, "eps", float(self.eps))

    def affine(self, moments: Moments) -> Affine:
        if bool((moments.count <= self.ddof).any()):
            raise StatisticsError(
                f"ddof={self.ddof} needs more than {self.ddof} values of every feature",
                f"{int(moments.count.min())} of {first_features(moments.count <= self.ddof)}",
                "use ddof=0, or more samples",
            )
        scale = _scale((moments.var(self.ddof) + self.eps).sqrt(), moments, "standard deviation")
        return Affine(moments.mean.clone(), moments.mean_low.clone(), scale)


SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (FixedScale, MinMax, ZScore)}


def resolve(scheme: str | Scheme, dtype: str) -> Scheme:
    """Return the scheme itself, or the one that a name stands for on data of this dtype.

    Raises:
        OptionError: no scheme has this name, or "fixed" for a dtype without a range.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str) and scheme in SCHEMES:
        return SCHEMES[scheme].named(dtype)
    known = ", ".join(repr(name) for name in SCHEMES)
    fix = f"use one of {known}, or a scheme such as slabnorm.ZScore()"
    if isinstance(scheme, str):
        # "z-score", "Min_Max" and "zscor" are near misses alike.
        close = get_close_matches("".join(filter(str.isalnum, scheme.lower())), SCHEMES, 1)
        fix = f"did you mean {close[0]!r}? The schemes are {known}" if close else fix
    elif isinstance(scheme, type) and issubclass(scheme, Scheme):
        fix = f"make one: slabnorm.{scheme.__name__}()"
    raise OptionError("a scheme is a name or a scheme object", repr(scheme), fix)


def to_plain(scheme: Scheme) -> dict[str, Any]:
    """Return a scheme as JSON's own types."""
    return {"name": scheme.name, **asdict(scheme)}


def from_plain(plain: dict[str, Any]) -> Scheme:
    """Return the scheme that `to_plain` wrote down.

    Raises:
        OptionError: an unknown name, unknown arguments, or arguments out of range.
    """
    arguments = dict(plain)
    kind = SCHEMES.get(arguments.pop("name", ""))
    known = {field.name for field in fields(kind)} if kind else set()
    if kind is None or not set(arguments) <= known:
        raise OptionError("a scheme is written as its name and its arguments", repr(plain))
    return kind(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    )


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


def _scale(spread: Tensor, moments: Moments, what: str) -> Tensor:
    scale = torch.where(moments.min == moments.max, torch.ones_like(spread), spread)
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bool(bad.any()):
        raise StatisticsError(
            f"the {what} of a feature that varies is a positive float64",
            f"{scale[bad][0].item()} for {first_features(bad)}: it leaves the range of float64",
            "bring the data nearer to 1 first, as by a change of units",
        )
    return scale


def _range(name: str, ends: Any) -> tuple[float, float]:
    if isinstance(ends, tuple | list) and len(ends) == 2 and all(map(_is_number, ends)):
        low, high = float(ends[0]), float(ends[1])
        if low < high and math.isfinite(high - low):
            return low, high
    raise OptionError(f"{name} are two finite numbers, the first below the second", repr(ends), "as (0, 1)")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
