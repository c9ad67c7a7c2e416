"""The warnings of `fit` about features that are constant, hardly vary, or lie outside a fixed range."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from slabnorm.errors import DataWarning
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.schemes import FixedScale, constant, first_features, flat, largest, nearly_constant
from slabnorm.text import printable

# A feature hardly varies, except for a few values, if its farthest value lies FAR scales away, or its
# standard deviation is WIDE scales. Measured on a million values each: normal values reach 3.5 quartile
# ranges, exponential 12, log-normal 75, Student's t with 3 degrees of freedom 84; their standard deviations
# are 0.7 to 1.5 quartile ranges. A feature in which one value of a million is not 0 reaches 1000 standard
# deviations.
FAR, WIDE = 1000.0, 30.0
FEW = 100  # with fewer values, a single outlier makes the standard deviation


def warn_of_flags(name: str) -> None:
    """Warn of data of bool, which are hardly ever meant to be scaled."""
    _warn(f"{name} holds data of bool, which are counted as 0 and 1; cast them to uint8 if that is meant")


def warn_of(norm: InputNorm) -> None:
    """Warn of values outside a fixed range, and of features that are constant or hardly vary.

    The warning points at the line that called `fit` or `SlabScaler.to_norm`.
    """
    scheme, moments, quantiles, names = norm.scheme, norm.moments, norm.quantiles, norm.record.names
    if isinstance(scheme, FixedScale):
        low, high = float(moments.min.min()), float(moments.max.max())
        if (low < scheme.low or high > scheme.high) and scheme.clip is None:
            _warn(f"The data have values from {low:g} to {high:g}, outside the range of {scheme}")
        return
    same, level = constant(moments), flat(moments, quantiles)
    if bool(same.any()):
        some = f"{int(same.sum())} of {same.numel()} features are constant and get scale 1"
        _warn(f"{some}: {first_features(same, names)}")
    if bool(level.any()):
        some = f"{int(level.sum())} of {level.numel()} features have equal quantiles and get scale 1"
        _warn(f"{some}: {first_features(level, names)}")
    near = nearly_constant(scheme.affine(moments, quantiles).scale, moments, quantiles)
    settled = near if scheme.near_constant != "warn" else torch.zeros_like(near)
    _warn_of_small_scales(norm, ~(same | level | settled), near)


def _warn_of_small_scales(norm: InputNorm, varies: Tensor, near: Tensor) -> None:
    """Warn of features whose scale is tiny compared with their own values, in any units.

    Args:
        norm: the statistics.
        varies: the features that are looked at.
        near: those that are nearly constant as `near_constant` has it.
    """
    moments, names, scale = norm.moments, norm.record.names, norm.scale
    rounding = _rounding(norm.record.dtype) * largest(moments)
    noise = varies & (moments.count >= FEW) & (scale <= rounding)
    if bool(noise.any()):
        at = int(noise.reshape(-1).nonzero()[0])
        _warn(
            f"{_some(noise)} constant except for rounding: {first_features(noise, names)}. The scale of the "
            f"first, {float(scale.reshape(-1)[at]):.3g}, is within the rounding of {norm.record.dtype} at "
            "its values, so that only rounding errors would be left of it. Leave it out, or subtract a "
            "constant from its values before they are rounded",
            above=5,
        )
    if norm.scheme.clip is not None:
        return
    far = torch.maximum((moments.max - norm.shift).abs(), (moments.min - norm.shift).abs()) / scale
    std = moments.var().sqrt()
    wide = (moments.count >= FEW) & std.isfinite() & (std >= WIDE * scale)
    small = varies & ~noise & ((far >= FAR) | wide)
    if bool(small.any()):
        at = int(torch.where(small, far, 0).argmax())
        reached, own, name = float(far.reshape(-1)[at]), float(scale.reshape(-1)[at]), _name(names, at)
        _warn(
            f"{_some(small)} nearly constant except for a few values, which become large: "
            f"{first_features(small, names)}. The scale of {name} is {own:.3g}, so that its farthest "
            f"value becomes {reached:,.0f} in size. Leave it out (of a table with `columns`), use another "
            f"scheme, or clip, in Python with slabnorm.{type(norm.scheme).__name__}(clip=(-10, 10))",
            above=5,
        )
    # A mean or a range is made of all values, and data far from 0 are healthy: of the speed of light that
    # Michelson measured, the scale is 2.6e-4 of the values. Quantiles say nothing of the values beyond them.
    close = near & varies & ~noise & ~small
    if norm.scheme.ranks and bool(close.any()):
        times = torch.where(close, largest(moments) / scale, 0)
        at = int(times.argmax())
        own, name, kind = float(scale.reshape(-1)[at]), _name(names, at), type(norm.scheme).__name__
        _warn(
            f"{_some(close)} nearly constant between quantiles: {first_features(close, names)}. The scale of "
            f"{name} is {own:.3g}, and its values are up to {float(times.max()):,.0f} times as large: noise "
            f"becomes large, and so would a value of 0. Use slabnorm.{kind}(near_constant='keep') in Python, "
            "or 'floor', or leave the feature out; if its small differences matter, subtract a constant from "
            "its values",
            above=5,
        )


def _some(which: Tensor) -> str:
    count = int(which.sum())
    return f"{count} of {which.numel()} features {'is' if count == 1 else 'are'}"


def _name(names: tuple[str, ...], at: int) -> str:
    return printable(repr(names[at])) if names else f"feature {at}"


def _rounding(dtype: str) -> float:
    """Return the relative rounding error of a dtype; 0 for integers, and for tables of several dtypes."""
    known = getattr(torch, dtype, None)
    return torch.finfo(known).eps if isinstance(known, torch.dtype) and known.is_floating_point else 0.0


def _warn(text: str, above: int = 4) -> None:
    warnings.warn(text, DataWarning, stacklevel=above)
