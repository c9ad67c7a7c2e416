"""The input schemes: statistics of the training split, and what they do in words."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from slabnorm.errors import OptionError, SlabWarning
from slabnorm.inputs import FixedScale, InputNorm, MinMax, fit
from slabnorm.study.data import Dataset
from slabnorm.text import listing, printable

SCHEMES = ("raw", "fixed", "minmax", "zscore")


class Raw(nn.Module):
    """No normalisation: raw values as float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` in float32."""
        return x.float()


def check_scheme(name: str) -> None:
    """Raise OptionError unless `name` is one of the schemes."""
    if name not in SCHEMES:
        raise OptionError(f"scheme must be {listing(list(SCHEMES), 'or')}", printable(name))


def fit_inputs(data: Dataset, scheme: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the input layer of a scheme, fitted on the training split only, and its warnings.

    Args:
        data: the data set; its split says which samples are seen.
        scheme: one of SCHEMES.

    Raises:
        SlabError: the scheme does not fit the data, such as "fixed" for values of unknown range.
    """
    check_scheme(scheme)
    if scheme == "raw":
        return Raw(), ()
    # By its name alone "fixed" knows the range of uint8 and its like, and refuses floats.
    how: str | FixedScale = scheme
    if scheme == "fixed" and data.value_range is not None:
        how = FixedScale(*data.value_range)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SlabWarning)
        layer = fit(data.x[data.split.train], scheme=how, pattern=data.pattern, split="train")
    return layer, tuple(str(w.message).split("\n")[0] for w in caught if issubclass(w.category, SlabWarning))


def apply(layer: nn.Module, data: Dataset) -> torch.Tensor:
    """Return all samples of a data set as the network sees them, in float32 whatever they are stored as."""
    with torch.no_grad():
        scaled: torch.Tensor = layer(torch.as_tensor(data.x))
    return scaled.float()


def describe(layer: nn.Module) -> str:
    """Return what an input layer does to a raw value, in words, with its numbers where they are few."""
    if not isinstance(layer, InputNorm):
        return "the values as they are"
    scheme, moments = layer.scheme, layer.moments
    if isinstance(scheme, FixedScale):
        return f"(x - {scheme.low:g}) / {scheme.high - scheme.low:g}, a range known beforehand"
    if isinstance(scheme, MinMax):
        low, high = in_words(moments.min), in_words(moments.max)
        return f"(x - min) / (max - min); min {low}, max {high} over the training split"
    mean, std = in_words(moments.mean), in_words(moments.std())
    return f"(x - mean) / std; mean {mean}, std {std} over the training split"


def in_words(values: torch.Tensor) -> str:
    """Return a few numbers, or how many there are and between which they lie."""
    flat = values.flatten().tolist()
    if len(flat) <= 4:
        return ", ".join(f"{value:.4g}" for value in flat)
    return f"of {len(flat)} features from {min(flat):.4g} to {max(flat):.4g}"
