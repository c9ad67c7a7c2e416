"""gymnasium: `NormalizeObservation`, around one environment or around a vector of them.

Documented by gymnasium: y = (x - mean) / sqrt(var + epsilon), in float32. Its running statistics begin with
a mean of 0 and a variance of 1, which count as 0.0001 observations: so their count is no whole number, and
nobody says it of single values. How many observations there were is that count, rounded down.

Rewards are not read: they are divided by the spread of their returns, which is not their own.
"""

from __future__ import annotations

import math
from typing import Any

from slabnorm.contracts.formats.found import Found, last_axes
from slabnorm.contracts.formats.objects import attribute, class_of, numbers, root, statistics, unusable
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import OptionError
from slabnorm.inputs.schemes import ZScore

TITLE = "gymnasium's NormalizeObservation"
KEY = "observation"


def recognises(source: Any) -> bool:
    """Whether an object is a NormalizeObservation, of gymnasium or of the older gym."""
    module, _, name = class_of(source).rpartition(".")
    return name == "NormalizeObservation" and module.startswith(("gymnasium.wrappers.", "gym.wrappers."))


def read(source: Any) -> dict[str, Found]:
    """Return the one key, "observation".

    Raises:
        DataError: the wrapper has counted nothing, or its numbers cannot be used.
    """
    if not recognises(source):
        raise unusable(KEY, f"a {class_of(source)}", "give the NormalizeObservation itself")
    running, epsilon = attribute(source, "obs_rms", KEY), attribute(source, "epsilon", KEY)
    parts = {name: attribute(running, name, KEY) for name in ("mean", "var", "count")}
    return {KEY: running_key(KEY, parts, epsilon, None, "gymnasium")}


def running_key(
    key: str, parts: dict[str, Any], epsilon: Any, clip: tuple[float, float] | None, form: str
) -> Found:
    """Return a key of running statistics: of gymnasium, and of stable-baselines3, which has the same.

    Args:
        key: its name.
        parts: mean, var and count of a RunningMeanStd.
        epsilon: what is added to the variance.
        clip: the ends at which observations are cut off.
        form: the format, for the source.

    Raises:
        DataError: nothing was counted, or the numbers cannot be used.
    """
    count = numbers(parts["count"], "count", key)
    if count.numel() != 1 or count.item() < 1:
        fix = "save the statistics after training, or fit the data"
        raise unusable(key, "no observation was counted: mean 0 and variance 1 are where it begins", fix)
    spread = root(numbers(parts["var"], "variance", key), key)
    try:
        scheme = ZScore(eps=numbers(epsilon, "epsilon", key).item(), clip=clip)
    except (OptionError, RuntimeError) as error:
        raise unusable(key, f"{error}") from error
    if scheme.eps == 0 and bool((spread == 0).any()):
        raise unusable(key, "a variance is 0, and nothing is added to it before it divides")
    found = statistics(key, mean=parts["mean"], std=spread)
    pattern, sample = last_axes(found.shape)
    samples = math.floor(count.item())
    return Found(Key(pattern, scheme), found, sample, Provenance(form, samples=samples))
