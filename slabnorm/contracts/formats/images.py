"""What packages for images say: a mean and a standard deviation for each channel."""

from __future__ import annotations

from typing import Any

from slabnorm.contracts.formats.found import Found, last_axes
from slabnorm.contracts.formats.objects import numbers, statistics, unusable
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance
from slabnorm.inputs.schemes import ZScore, first_features

RAW, SCALED = (0.0, 255.0), (0.0, 1.0)  # the values that pixels can have


def channels(
    key: str, mean: Any, std: Any, form: str, valid: tuple[float, float] | None, factor: float = 1.0
) -> dict[str, Found]:
    """Return the one key of images of shape (n, ..., c, h, w) that are normalised channel by channel.

        y = (x * factor - mean) / std = (x - mean / factor) / (std / factor)

    Args:
        key: its name.
        mean, std: of each channel; one number stands for all.
        form: the format, for the source.
        valid: the least and the largest value of x, if the format says so.
        factor: by which the package multiplies x before.

    Raises:
        DataError: they are no numbers, differ in length, or a standard deviation is not above 0.
    """
    read = {"mean": numbers(mean, "mean", key), "std": numbers(std, "std", key)}
    longest = max(read.values(), key=lambda values: values.numel()).reshape(-1)
    for name, values in read.items():
        if values.dim() > 1 or values.numel() not in (1, len(longest)):
            raise unusable(
                key, f"its {name} has shape {tuple(values.shape)}, and there are {len(longest)} channels"
            )
        read[name] = values.expand(longest.shape) / factor
    if not bool((read["std"] > 0).all()):
        raise unusable(key, f"its std is not above 0 at {first_features(read['std'] <= 0)}")
    pattern, sample = last_axes((len(longest), 1, 1))
    found = statistics(key, **read)
    return {key: Found(Key(pattern, ZScore(), valid=valid), found, sample, Provenance(form))}
