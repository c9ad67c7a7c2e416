"""Drift: what of each feature differs between training and new data, and by how much more than chance.

    shift = (mean' - mean) / sd           error = sqrt(1/N + max(1, spread)^2 / n)
    spread = sd' / sd                     error of its logarithm <= sqrt((z^2 - 1)/4 * (1/N + 1/n))

N and n: samples, as values within a sample are alike; z: the farthest value in standard deviations, because
kurtosis <= z^2. A few samples of a feature with outliers are far off by chance, says Bernstein's inequality:

    P(abs(shift) >= t) <= 2 exp(-n t^2 / (2 + 2 t z / 3))

A finding wants both a difference that matters and one that chance does not make, so that
neither large nor small data sets alarm for nothing.
"""

from __future__ import annotations

import math

import numpy as np

from slabnorm.inputs.sides import Side
from slabnorm.report.audit import FeatureAudit, Finding, Part
from slabnorm.text import printable

SHIFT = 0.25  # standard deviations: half the width of a class boundary's usual slack, and easily seen
SHIFT_ERRORS = 6.0  # of a normal: 1e-9, so that a million features are silent
SPREAD = 1.5  # a ratio; inputs then have variance 2.25, not 1
SPREAD_LEAST = 20  # samples: the logarithm of the spread of fewer is too far from a normal
SPREAD_ERRORS = 5.0  # of an upper bound of the error; rare values make the logarithm no normal
OUTSIDE = 0.01  # the share of values out of the training range
MISSING = 0.01  # difference of the shares of missing values
CHANCE = 1e-9  # how likely a finding may be without a cause
TINY = 1e-6  # of a standard deviation: a feature that varies by less has not varied


def compare(names: list[str], train: Side, new: Side, outside: np.ndarray) -> tuple[FeatureAudit, ...]:
    """Return every feature on both sides."""
    shift, error, spread, _ = differences(train, new)
    share = outside / np.maximum(new.count, 1)
    sides = [
        [Part(*row) for row in zip(*(column.tolist() for column in (
            side.count, side.missing, side.mean, side.std, side.min, side.max)), strict=True)]
        for side in (train, new)
    ]  # fmt: skip
    columns = (shift.tolist(), error.tolist(), spread.tolist(), share.tolist())
    return tuple(FeatureAudit(*row) for row in zip(names, *sides, *columns, strict=True))


def differences(train: Side, new: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return shift, its error, spread, and a bound of the error of the spread's logarithm."""
    many, some = train.independent, new.independent
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.where(train.std > 0, train.std, np.nan)
        shift, spread = (new.mean - train.mean) / sd, new.std / sd
        error = np.sqrt(1 / many + np.maximum(1.0, np.nan_to_num(spread)) ** 2 / some)
        reach = np.fmax(train.reach, new.reach)
        wide = np.sqrt(np.maximum(reach**2 - 1, 0.5) / 4 * (1 / many + 1 / some))
    return shift, error, spread, wide


def find_drift(
    names: list[str], train: Side, new: Side, below: np.ndarray, above: np.ndarray
) -> list[Finding]:
    """Return features whose mean moved, whose spread changed, and whose values leave the training range."""
    found = [*_find_shift(names, train, new), *_find_spread(names, train, new)]
    return found + _find_range(names, train, new, below, above)


def _find_shift(names: list[str], train: Side, new: Side) -> list[Finding]:
    shift, error, _, _ = differences(train, new)
    far = np.abs(shift)
    unlikely = new.independent * far**2 / (2 + far * train.reach * 2 / 3) > -math.log(CHANCE / 2)
    moved = (far > SHIFT) & (far > SHIFT_ERRORS * error) & unlikely
    if not moved.any():
        return []
    first, which = _worst(moved, far)
    text = f"the mean of {_features(names, which)} moved, by {shift[first]:+.3g} standard deviations"
    advice = (
        "look at how these data were collected and prepared; if the world has changed, train and fit again"
    )
    return [_finding("shift", text, advice, names, which, shift=shift[first], error=error[first])]


def _find_spread(names: list[str], train: Side, new: Side) -> list[Finding]:
    _, _, spread, wide = differences(train, new)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.abs(np.log(spread))
    changed = (log > math.log(SPREAD)) & (log > SPREAD_ERRORS * wide) & (spread > 0)
    changed &= np.minimum(train.independent, new.independent) >= SPREAD_LEAST
    if not changed.any():
        return []
    first, which = _worst(changed, log)
    text = f"the spread of {_features(names, which)} is {spread[first]:.3g} times that of training"
    advice = "look for other units, clipping, or smoothing"
    return [_finding("spread", text, advice, names, which, ratio=spread[first], error=wide[first])]


def _find_range(
    names: list[str], train: Side, new: Side, below: np.ndarray, above: np.ndarray
) -> list[Finding]:
    share = (below + above) / np.maximum(new.count, 1)
    varied = train.min < train.max  # what was constant is a finding of its own
    chance = _chance(np.maximum(below, above), train, new)
    out = varied & (share > OUTSIDE) & (chance < math.log(CHANCE))
    if not out.any():
        return []
    first, which = _worst(out, share)
    where = _features(names, which)
    text = f"{100 * share[first]:.3g}% of the values of {where} lie out of the training range"
    advice = "look for outliers, other units or other codes"
    numbers = {"share": share[first], "below": below[first], "above": above[first]}
    return [_finding("range", text, advice, names, which, **numbers)]


def find_constant(
    names: list[str], train: Side, new: Side, below: np.ndarray, above: np.ndarray
) -> list[Finding]:
    """Return features that were constant and are not so now, and the reverse."""
    findings = []
    # Of a feature that was constant, every value out of its range is another value.
    varies = (train.min == train.max) & (_chance(below + above, train, new) < math.log(CHANCE))
    if varies.any():
        first, which = _worst(varies, np.nan_to_num(new.max - new.min))
        text = (
            f"{_features(names, which)} had one value in training, {train.min[first]:.6g}, and now has "
            f"others: {new.min[first]:.6g} to {new.max[first]:.6g}"
        )
        findings.append(_finding("constant", text, "a constant has scale 1 and no weight was "
            "trained for it: leave it out, or train on data in which it varies", names, which,
            low=new.min[first], high=new.max[first]))  # fmt: skip
    stuck = (train.min < train.max) & (new.max - new.min <= TINY * train.std) & _too_still(train, new)
    if stuck.any():
        first, which = _worst(stuck, train.std)
        text = f"{_features(names, which)} varied in training and now has one value, {new.mean[first]:.6g}"
        findings.append(_finding("constant", text, "look for a dead sensor, a column filled "
            "with a default, or data of one kind only", names, which, value=new.mean[first]))  # fmt: skip
    return findings


def find_missing(names: list[str], train: Side, new: Side) -> list[Finding]:
    """Return features of which more, or fewer, values are missing."""
    seen = [side.count + side.missing for side in (train, new)]
    before, now = (side.missing / np.maximum(n, 1) for side, n in zip((train, new), seen, strict=True))
    pooled = (train.missing + new.missing) / np.maximum(seen[0] + seen[1], 1)
    units = [
        np.clip(np.minimum(n, side.samples), 1, None) for side, n in zip((train, new), seen, strict=True)
    ]
    error = np.sqrt(pooled * (1 - pooled) * (1 / units[0] + 1 / units[1]))
    differs = (np.abs(now - before) > MISSING) & (np.abs(now - before) > SHIFT_ERRORS * error)
    differs |= (before == 0) & (now > 0)  # what came out as NaN in training would have been seen there
    if not differs.any():
        return []
    first, which = _worst(differs, np.abs(now - before))
    text = (
        f"{100 * now[first]:.3g}% of the values of {_features(names, which)} are missing, "
        f"{100 * before[first]:.3g}% in training"
    )
    advice = "normalised NaN is NaN: fill these values as in training, or mend where they come from"
    return [_finding("missing", text, advice, names, which,
                     before=before[first], now=now[first])]  # fmt: skip


def _chance(beyond: np.ndarray, train: Side, new: Side) -> np.ndarray:
    """Return the logarithm of how likely so many values lie beyond one end, were both sides alike.

    Of N + n values in random order the k farthest are all new with probability (n / (N + n))^k at most.
    Samples are counted here, too, not values.
    """
    some, many = new.independent, train.independent
    k = np.floor(beyond * some / np.maximum(new.count, 1))
    chance: np.ndarray = k * np.log(some / (some + many))
    return chance


def _too_still(train: Side, new: Side) -> np.ndarray:
    """Whether chance would not give this one value so often, however training values are distributed.

    P(x != c) >= E(x - c)^2 / max (x - c)^2, of which training knows both.
    """
    c = new.mean
    farthest = np.maximum(np.abs(train.max - c), np.abs(train.min - c))
    with np.errstate(divide="ignore", invalid="ignore"):
        other = (train.std**2 + (train.mean - c) ** 2) / farthest**2
        still: np.ndarray = new.independent * np.log1p(-np.minimum(other, 1 - 1e-12)) < math.log(CHANCE)
    return still


def _worst(chosen: np.ndarray, size: np.ndarray) -> tuple[int, list[int]]:
    """Return the chosen features, the worst first, and that one."""
    which = np.flatnonzero(chosen)
    ordered = which[np.argsort(-size[which], kind="stable")].tolist()
    return ordered[0], ordered


def _features(names: list[str], which: list[int]) -> str:
    more = f" (and {len(which) - 1:,} more, less so)" if len(which) > 1 else ""
    name = printable(names[which[0]], 60)
    return f"feature {name}{more}" if name[:1] in "(0123456789" else f"feature “{name}”{more}"


def _finding(
    kind: str, text: str, advice: str, names: list[str], which: list[int], **numbers: float
) -> Finding:
    plain = tuple((name, float(number)) for name, number in numbers.items())
    return Finding(kind, "warning", text, advice, tuple(names[i] for i in which), plain)
