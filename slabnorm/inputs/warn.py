"""What a fit warns of."""

from __future__ import annotations

import warnings

from torch import Tensor

from slabnorm.errors import DataWarning
from slabnorm.inputs.scheme import Scheme, first_features
from slabnorm.inputs.schemes import FixedScale
from slabnorm.moments import Moments


def warn_of(scheme: Scheme, moments: Moments, quantiles: Tensor, names: tuple[str, ...]) -> None:
    """Warn of values outside a fixed range, and of features without a range of their own.

    The warning is of the line that called the caller: fit, or SlabScaler.to_norm.
    """
    if isinstance(scheme, FixedScale):
        low, high = float(moments.min.min()), float(moments.max.max())
        if (low < scheme.low or high > scheme.high) and scheme.clip is None:
            warnings.warn(
                f"values from {low:g} to {high:g} lie outside the range of {scheme}",
                DataWarning,
                stacklevel=3,
            )
        return
    constant = moments.min == moments.max
    if bool(constant.any()):
        some = f"{int(constant.sum())} of {constant.numel()} features are constant and get scale 1"
        warnings.warn(f"{some}: {first_features(constant, names)}", DataWarning, stacklevel=3)
    flat = ~constant & (quantiles[-1] == quantiles[0]) if len(quantiles) else constant & False
    if bool(flat.any()):
        some = f"{int(flat.sum())} of {flat.numel()} features have no range between their quantiles"
        warnings.warn(f"{some} and get scale 1: {first_features(flat, names)}", DataWarning, stacklevel=3)
