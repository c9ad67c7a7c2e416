"""One cause for all features: data normalised already, on another scale, or with channels in another order.

Each cause says what the new data's means and spreads would be if it held. How far a feature is from that:

    distance = abs(mean' - mean) / max(sd', sd) + abs(log(sd' / sd))

A cause is found where the data are near what it says and far from the training data as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from slabnorm.inputs.drift import differences
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.sides import Side
from slabnorm.report.audit import Finding

NEAR = 0.5  # the distance of all but a quarter of the features, such as a mean off by half a spread
FAR = 1.5  # ... such as a mean off by one spread, and a spread off by a factor of 1.6
ORDER_NEAR = 0.25  # channels are alike already, so that only a close fit says something
ORDER_GAIN = 50.0  # by which chi^2 must fall, of which chance takes 2 per feature
ORDER_PART = 0.25  # of chi^2 that may be left
ORDERS = (3, 4)  # features among which an order is looked for: images, with and without transparency


@dataclass(frozen=True)
class Cause:
    """`x * factor + offset` of what training saw, and what to say of it."""

    factor: np.ndarray | float
    offset: np.ndarray | float
    text: str
    advice: str


# The range of training and of the new data, that which one divides by the other gives.
_SCALES = (
    (0, 255, 0, 1), (0, 255, -1, 1), (0, 1, 0, 255), (-1, 1, 0, 255), (0, 255, 0, 65535), (0, 65535, 0, 255),
    (0, 65535, 0, 1), (0, 1, 0, 65535), (0, 1, -1, 1), (-1, 1, 0, 1),
)  # fmt: skip


def find_scale(norm: InputNorm, train: Side, new: Side, dtype: str) -> tuple[list[Finding], Side]:
    """Return a finding if one change of scale explains the new data, and what training says after it."""
    apart = distance(train, new)
    if not apart > FAR:
        return [], train
    best, found, left = NEAR, None, train
    for cause in _causes(norm, train, dtype):
        moved = train.moved(np.asarray(cause.factor), np.asarray(cause.offset))
        near = min(distance(moved.reordered(order), new) for order in _orders(len(train.mean)))
        if near < best:
            best, found, left = near, cause, moved
    if found is None:
        return [], train
    numbers = (("distance", apart), ("distance_left", best))
    return [Finding("scale", "error", found.text, found.advice, numbers=numbers)], left


def find_order(names: list[str], train: Side, new: Side) -> list[Finding]:
    """Return a finding if another order of 3 or 4 features explains the new data far better."""
    if len(names) not in ORDERS:
        return []
    identity = tuple(range(len(names)))
    misfit = {order: _misfit(train.reordered(order), new) for order in _orders(len(names))}
    best = min(misfit, key=misfit.__getitem__)
    now, left = misfit[identity], misfit[best]
    if not (now - left > ORDER_GAIN and left < ORDER_PART * now):
        return []
    if not distance(train.reordered(best), new) < ORDER_NEAR:
        return []
    order = ", ".join(names[i] for i in best)
    swapped = ", as BGR for RGB" if best[:3] == (2, 1, 0) else ""
    return [Finding(
        "order", "error",
        f"the features look as if they came in the order {order}{swapped}",
        "bring them into the order of the training data before they are normalised",
        tuple(names[i] for i in identity if best[i] != i),
        (("misfit", now), ("misfit_left", left)),
    )]  # fmt: skip


def _orders(features: int) -> list[tuple[int, ...]]:
    """Return the orders that are thought of: all of few features, else their own."""
    own = tuple(range(features))
    return list(permutations(own)) if features in ORDERS else [own]


def distance(said: Side, new: Side) -> float:
    """Return how far all but a quarter of the features are from what is said; NaN where nothing varies."""
    varies = (said.std > 0) & (new.std > 0) & np.isfinite(said.std) & np.isfinite(new.std)
    if not varies.any():
        return math.nan
    a, b, x, y = (values[varies] for values in (said.mean, new.mean, said.std, new.std))
    apart = np.abs(b - a) / np.maximum(x, y) + np.abs(np.log(y / x))
    return float(np.quantile(apart, 0.75))


def _causes(norm: InputNorm, train: Side, dtype: str) -> list[Cause]:
    scale, shift = (values.reshape(-1).numpy() for values in (norm.scale.cpu(), norm.shift.cpu()))
    low, span = norm.scheme.target[1], norm.scheme.target[0]
    causes = [Cause(
        span / scale, low - shift * span / scale,
        "the data look as if they were normalised already, as by these very statistics",
        "give the raw data, or leave the second normalisation out",
    )]  # fmt: skip
    for a, b, c, d in _SCALES:
        # Half of the range at least is in use: a table whose values run from 0 to 1 is no image of 255.
        used = (np.nanmin(train.min) >= a) and (b / 2 < np.nanmax(train.max) <= b)
        factor = (d - c) / (b - a)
        types = f" ({norm.dtype} then, {dtype} now)" if norm.dtype != dtype else ""
        if used:
            causes.append(Cause(
                factor, c - a * factor,
                f"the data look scaled to {c}..{d}, where training had {a}..{b}{types}",
                "scale them as the training data were, before they are normalised",
            ))  # fmt: skip
    return causes


def _misfit(said: Side, new: Side) -> float:
    """Return chi^2: squared differences of means and spreads in standard errors."""
    shift, error, spread, wide = differences(said, new)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (shift / error) ** 2 + (np.log(spread) / wide) ** 2
    return float(np.where(np.isfinite(terms), terms, 0.0).sum())
