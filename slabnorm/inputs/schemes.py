"""The schemes: how the statistics of a data set become a shift and a scale.

    y = (x - shift) / scale * span + low

A scheme is a small frozen object. It reads statistics, never data, and returns an Affine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor

from slabnorm.errors import OptionError, StatisticsError
from slabnorm.mergeable_moments import Moments
from slabnorm.text import did_you_mean, printable

# A feature that varies is nearly constant if its scale is less than FLOOR times its largest absolute value:
# its values reach more than 1000 scales from 0. In scikit-learn's own tables no standard deviation is below
# 2.3e-2 of that value, and of the years 1947 to 1962 it is 2.3e-3. The range of a robot's joint that hardly
# moved is less (1.5686 to 1.5696: 6.2e-4): a value of 0 became -3200, and the loss exploded
# (https://github.com/Physical-Intelligence/openpi/issues/814).
FLOOR = 1e-3
POLICIES = ("warn", "floor", "keep")  # for such features


@dataclass(frozen=True, eq=False)
class Affine:
    """Shift and scale of every feature: z = ((x - shift) - shift_low) / scale.

    The scale is a divisor, not a factor: x / 255 then has the bits of torchvision's ToTensor, and the largest
    value of a min-max feature comes out as exactly 1.

    Attributes:
        shift: in the units of the data, float64.
        shift_low: what `shift` has lost to rounding.
        scale: in the units of the data, float64, positive and finite.
    """

    shift: Tensor
    shift_low: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Scheme:
    """The base of all schemes: a name, and the method `affine`, which returns shift and scale.

    Args:
        clip: the ends at which outputs are cut off, in units of the output; True means the output range.
        near_constant: what becomes of a feature that varies, but whose scale is less than 0.001 times its
            largest absolute value. "floor" makes its scale 0.001 times that value. "keep" passes it on as it
            is, y = x, whatever the output range, though `clip` cuts it off, too. "warn" leaves its scale, and
            `fit` warns of it if the scheme reads quantiles. A feature whose minimum is its maximum, or whose
            quantiles are equal, gets scale 1 all the same.

    Raises:
        OptionError: an argument is none of these.
    """

    name: ClassVar[str] = ""
    per_feature: ClassVar[bool] = True  # whether the scheme reads statistics at all
    ranks: ClassVar[tuple[float, ...]] = ()  # the ranks of the quantiles that it reads

    clip: tuple[float, float] | None = field(default=None, kw_only=True, repr=False)
    near_constant: str = field(default="warn", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.near_constant not in POLICIES:
            problem = "near_constant must be 'warn', 'floor' or 'keep'"
            raise OptionError(problem, printable(repr(self.near_constant)))
        clip: Any = self.clip
        if clip is True and hasattr(self, "out"):
            clip = self.out
        if clip is not None and clip is not False:
            object.__setattr__(self, "clip", as_range("clip", clip))
        else:
            object.__setattr__(self, "clip", None)

    @property
    def target(self) -> tuple[float, float]:
        """The width and the lower end of the output range; 1 and 0 for a scheme that has none."""
        out = getattr(self, "out", (0.0, 1.0))
        return out[1] - out[0], out[0]

    @classmethod
    def named(cls, dtype: str) -> Scheme:
        """Return the scheme that its name alone stands for, on data of a dtype."""
        return cls()

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        """Return shift and scale of every feature, from its moments and its quantiles at `ranks`.

        `near_constant` is not applied here, but to the result, by `shift_and_scale`.

        Raises:
            StatisticsError: the scale of a feature is not a positive float64.
        """
        raise NotImplementedError


def shift_and_scale(scheme: Scheme, moments: Moments, quantiles: Tensor) -> Affine:
    """Return shift and scale of every feature under a scheme and its policy for nearly constant features.

    Raises:
        StatisticsError: the scale of a feature is not a positive float64.
    """
    own = scheme.affine(moments, quantiles)
    if scheme.near_constant == "warn":
        return own
    near = nearly_constant(own.scale, moments, quantiles)
    if scheme.near_constant == "floor":
        return replace(own, scale=torch.where(near, FLOOR * largest(moments), own.scale))
    span, low = scheme.target  # with these as scale and shift, the output range is undone: y = x
    kept = torch.where(near, low, own.shift), torch.where(near, 0.0, own.shift_low)
    return Affine(*kept, torch.where(near, span, own.scale))


def nearly_constant(scale: Tensor, moments: Moments, quantiles: Tensor) -> Tensor:
    """Return which features vary, but have a scale of less than FLOOR times their largest absolute value.

    Args:
        scale: of every feature, as the method `affine` of a scheme returns it.
        moments, quantiles: what the scheme has made it of.
    """
    return ~(constant(moments) | flat(moments, quantiles)) & (scale < FLOOR * largest(moments))


def constant(moments: Moments) -> Tensor:
    """Return which features have one value only."""
    return moments.min == moments.max


def flat(moments: Moments, quantiles: Tensor) -> Tensor:
    """Return which features vary, but not between the quantiles that a scheme reads."""
    if not len(quantiles):
        return torch.zeros_like(moments.mean, dtype=torch.bool)
    return ~constant(moments) & (quantiles[-1] == quantiles[0])


def largest(moments: Moments) -> Tensor:
    """Return the largest absolute value of every feature."""
    return torch.maximum(moments.min.abs(), moments.max.abs())


def first_features(which: Tensor, names: Sequence[str] = ()) -> str:
    """Return the features at which a mask is true, as text: the first five, and how many more there are."""
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
    """Return the scale of every feature: its spread, or 1 if it is constant.

    Raises:
        StatisticsError: a spread is not a positive float64.
    """
    scale = torch.where(constant(moments), torch.ones_like(spread), spread)
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bool(bad.any()):
        raise StatisticsError(
            f"The {what} of {first_features(bad)} is out of the range of float64",
            f"{scale[bad][0].item()}",
            "bring the data nearer to 1 first, for instance by a change of units",
        )
    return scale


def as_range(name: str, ends: Any) -> tuple[float, float]:
    """Return two ends as floats; raise OptionError unless they are finite and in ascending order."""
    if isinstance(ends, tuple | list) and len(ends) == 2 and all(map(is_number, ends)):
        low, high = float(ends[0]), float(ends[1])
        if low < high and math.isfinite(high - low):
            return low, high
    problem = f"{name} must be two finite numbers, the first below the second"
    raise OptionError(problem, repr(ends), "such as (0, 1)")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class FixedScale(Scheme):
    """Map a known range onto another, whatever the data: y = (x - low) / (high - low), then `out`.

    Args:
        low, high: the range that values of x can take, in the units of x, the same for all features.
        out: the range that they are mapped to.

    Raises:
        OptionError: a range is not two finite numbers, the first below the second.

    The name "fixed" stands for the range of the dtype of the data, where that says the range: bool (0 to 1)
    and integers of 8 or 16 bits. Wider integers and floats say nothing about the range.

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
        low, high = as_range("low, high", (self.low, self.high))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "out", as_range("out", self.out))
        super().__post_init__()
        if self.near_constant != "warn":
            problem = "FixedScale has no near_constant, as its scale does not depend on the data"
            raise OptionError(problem, repr(self.near_constant), "leave near_constant out, or use MinMax")

    @classmethod
    def named(cls, dtype: str) -> FixedScale:
        if dtype == "bool":
            return cls(0.0, 1.0)
        if dtype in ("uint8", "int8", "uint16", "int16"):
            info = torch.iinfo(getattr(torch, dtype))
            return cls(float(info.min), float(info.max))
        raise OptionError(
            'The range of the data is not known, which the scheme "fixed" needs',
            f"data of dtype {dtype}; the range is known of bool and of 8- and 16-bit integers",
            "say in Python which values can occur, as in scheme=slabnorm.FixedScale(low=0, high=16)",
        )

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        shift = torch.full_like(moments.mean, self.low)
        scale = torch.full_like(shift, self.high - self.low)
        return Affine(shift, torch.zeros_like(shift), scale)


@dataclass(frozen=True)
class MinMax(Scheme):
    """Map each feature's fitted range onto `out`: y = (x - min) / (max - min), then `out`.

    A constant feature gets scale 1. Values outside the fitted range are mapped to values outside `out`.

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
        object.__setattr__(self, "out", as_range("out", self.out))
        super().__post_init__()

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        scale = positive(moments.max - moments.min, moments, "range")
        return Affine(moments.min.clone(), torch.zeros_like(scale), scale)


@dataclass(frozen=True)
class ZScore(Scheme):
    """Centre each feature and divide by its spread: y = (x - mean) / sqrt(var + eps).

    A feature whose minimum is its maximum is constant, and gets scale 1. The variance is exact enough to need
    no tolerance here: scikit-learn calls a feature constant whose spread is within the rounding of its sums.

    Args:
        ddof: the variance is m2 / (count - ddof): 0 as in scikit-learn, 1 for the unbiased estimate.
        eps: added to the variance, in squared units of the data, as a floor under small spreads.

    Raises:
        OptionError: `ddof` is not an integer of 0 or more, or `eps` is not a finite number of 0 or more.

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
        if not isinstance(self.ddof, int) or isinstance(self.ddof, bool) or not 0 <= self.ddof < 1 << 62:
            fix = "0 for the variance of these data, 1 for the unbiased estimate"
            raise OptionError("ddof must be an integer, 0 or more", repr(self.ddof), fix)
        if not is_number(self.eps) or self.eps < 0:
            raise OptionError("eps must be a finite number, 0 or more", repr(self.eps), "0 is usual here")
        object.__setattr__(self, "eps", float(self.eps))
        super().__post_init__()

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        if bool((moments.count <= self.ddof).any()):
            few = moments.count <= self.ddof
            raise StatisticsError(
                f"ddof={self.ddof} needs more than {self.ddof} values of every feature",
                f"{first_features(few)} with {int(moments.count.min())} values",
                "use ddof=0, or more samples",
            )
        scale = positive((moments.var(self.ddof) + self.eps).sqrt(), moments, "standard deviation")
        return Affine(moments.mean.clone(), moments.mean_low.clone(), scale)


@dataclass(frozen=True)
class Robust(Scheme):
    """Centre each feature at its median and divide by a range between quantiles, which outliers do not move.

        y = (x - median) / (quantile(high) - quantile(low))

    Quantiles come from a uniform sample of 16384 values of each feature (quantile_sample.py). Their ranks are
    off by at most 0.013 with 99% probability; with no more values than that, they are exact.
    A feature whose two quantiles are equal gets scale 1.

    Args:
        low, high: the ranks of the quantiles, between 0 and 1.
        unit: also divide by that range of N(0, 1), so that normal data come out with standard deviation 1.

    Raises:
        OptionError: `low` and `high` are not numbers with 0 <= low < 0.5 < high <= 1.

    >>> from slabnorm.inputs import fit
    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [1000.0]])
    >>> fit(x, Robust(), split="train")(x).flatten()
    tensor([ -1.0000,  -0.5000,   0.0000,   0.5000, 498.5000])
    """

    low: float = 0.25
    high: float = 0.75
    unit: bool = False

    name: ClassVar[str] = "robust"

    def __post_init__(self) -> None:
        if not (is_number(self.low) and is_number(self.high) and 0 <= self.low < 0.5 < self.high <= 1):
            problem = "low and high must be ranks with 0 <= low < 0.5 < high <= 1"
            raise OptionError(problem, f"{self.low!r}, {self.high!r}", "such as Robust(low=0.25, high=0.75)")
        super().__post_init__()

    @property
    def ranks(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.low, 0.5, self.high)

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        low, median, high = quantiles
        spread = high - low
        if self.unit:
            normal = NormalDist()
            spread = spread / (normal.inv_cdf(self.high) - normal.inv_cdf(self.low))
        spread = torch.where(spread == 0, torch.ones_like(spread), spread)
        return Affine(median.clone(), torch.zeros_like(median), positive(spread, moments, "quantile range"))


@dataclass(frozen=True)
class QuantileRange(Scheme):
    """Map the range between two quantiles of each feature onto `out`: a min-max that outliers do not move.

        y = (x - quantile(low)) / (quantile(high) - quantile(low)), then mapped onto `out`

    Values beyond the quantiles are mapped to values outside `out`, unless `clip=True` cuts them off there.
    Policies of robots are trained on such inputs. The defaults are openpi's `use_quantile_norm`, which also
    adds 1e-6 to the divisor, and LeRobot's mode QUANTILES; its QUANTILE10 is `QuantileRange(0.1, 0.9)`. None
    of them clips.

    Quantiles come from the same sample as those of `Robust`: exact up to 16384 values of a feature, else with
    ranks that are off by at most 0.013 with 99% probability. At the ranks 0.01 and 0.99 that is 0.002, as
    2.6 sqrt(0.01 * 0.99 / 16384). A feature whose two quantiles are equal gets scale 1.

    Args:
        low, high: the ranks of the quantiles, between 0 and 1.
        out: the range that the two quantiles are mapped to.

    Raises:
        OptionError: `low` and `high` are not numbers with 0 <= low < high <= 1, or `out` is not two finite
            numbers, the first below the second.

    >>> from slabnorm.inputs import fit
    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [1000.0]])
    >>> fit(x, QuantileRange(0.25, 0.75), split="train")(x).flatten()
    tensor([ -2.,  -1.,   0.,   1., 997.])
    """

    low: float = 0.01
    high: float = 0.99
    out: tuple[float, float] = (-1.0, 1.0)

    name: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        if not (is_number(self.low) and is_number(self.high) and 0 <= self.low < self.high <= 1):
            problem = "low and high must be ranks with 0 <= low < high <= 1"
            fix = "such as QuantileRange(low=0.01, high=0.99)"
            raise OptionError(problem, f"{self.low!r}, {self.high!r}", fix)
        object.__setattr__(self, "out", as_range("out", self.out))
        super().__post_init__()

    @property
    def ranks(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.low, self.high)

    def affine(self, moments: Moments, quantiles: Tensor) -> Affine:
        low, high = quantiles
        spread = torch.where(low == high, torch.ones_like(low), high - low)
        return Affine(low.clone(), torch.zeros_like(low), positive(spread, moments, "quantile range"))


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (FixedScale, MinMax, ZScore, Robust, QuantileRange)
}


def resolve(scheme: str | Scheme, dtype: str) -> Scheme:
    """Return a scheme as it is, or the one that a name stands for on data of a dtype.

    Raises:
        OptionError: no scheme has this name, or it is "fixed" and the dtype has no range.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str) and scheme in SCHEMES:
        return SCHEMES[scheme].named(dtype)
    known = ", ".join(repr(name) for name in SCHEMES)
    fix = f"use one of {known}, or in Python a scheme such as slabnorm.ZScore()"
    if isinstance(scheme, str):
        # Other ways to write a name, such as "z-score" and "Min_Max", are meant, too.
        question = did_you_mean("".join(filter(str.isalnum, scheme)), SCHEMES)
        fix = f"{question} The schemes are {known}" if question else fix
        raise OptionError(f"There is no scheme {printable(repr(scheme))}", "", fix)
    if isinstance(scheme, type) and issubclass(scheme, Scheme):
        fix = f"make an object of it: slabnorm.{scheme.__name__}()"
    raise OptionError("scheme must be a name or a scheme object", printable(repr(scheme)), fix)


def to_plain(scheme: Scheme) -> dict[str, Any]:
    """Return a scheme as JSON's own types."""
    plain = {"name": scheme.name, **asdict(scheme)}
    if plain.get("near_constant") == "warn":
        del plain["near_constant"]  # files that were written before there was a choice keep their bytes
    return plain


def from_plain(plain: dict[str, Any]) -> Scheme:
    """Return the scheme that `to_plain` wrote down.

    Raises:
        OptionError: the name or an argument is unknown, or an argument is out of range.
    """
    arguments = dict(plain)
    kind = SCHEMES.get(arguments.pop("name", ""))
    known = {field.name for field in fields(kind)} if kind else set()
    if kind is None or not set(arguments) <= known:
        raise OptionError("Unknown scheme, or unknown arguments of a scheme", printable(repr(plain)))
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    return kind(**given)
