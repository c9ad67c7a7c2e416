"""What an audit can find: drift, one cause for all features, overlap, statistics of other data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from slabnorm.inputs.audit.counts import AuditCounts
from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sketch import Sketch
from slabnorm.mergeable_moments import Moments
from slabnorm.report.audit import FeatureAudit, Finding, Leaked, LeakedSample, Overlap, Part
from slabnorm.report.wording import MINUS, minus
from slabnorm.text import printable


@dataclass(frozen=True, eq=False)
class Side:
    """The statistics of one of the two data sets, training or new, as flat arrays with a number per feature.

    Attributes:
        samples: the number of samples.
        count: the number of values of each feature.
        missing: the number of NaN and null of each feature, which are not part of `count`.
        mean, std, min, max: of each feature, in float64; NaN for a feature without values.
    """

    samples: int
    count: np.ndarray
    missing: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray

    @classmethod
    def of(cls, source: InputNorm | Tally) -> Side:
        """Return the statistics of a fit, or of a tally."""
        m: Moments = source.moments
        if isinstance(source, InputNorm):
            missing = source.nan_count + source.null_count
        else:
            missing = source.nan + source.null
        count = _flat(m.count)
        parts = [np.where(count > 0, _flat(part), np.nan) for part in (m.mean, m.std(), m.min, m.max)]
        return cls(source.samples, count, _flat(missing), *parts)

    @property
    def independent(self) -> np.ndarray:
        """The number of independent values: one for each sample, because the pixels of an image are alike."""
        return np.clip(np.minimum(self.count, self.samples), 1, None).astype(float)

    @property
    def reach(self) -> np.ndarray:
        """The distance of the farthest value from the mean, in standard deviations."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.maximum(self.max - self.mean, self.mean - self.min) / self.std

    def moved(self, factor: np.ndarray, offset: np.ndarray) -> Side:
        """Return the statistics of `x * factor + offset`; factors are positive."""
        ends = (self.mean, self.std, self.min, self.max)
        mean, _, low, high = (end * factor + offset for end in ends)
        return Side(self.samples, self.count, self.missing, mean, self.std * factor, low, high)

    def reordered(self, order: tuple[int, ...]) -> Side:
        """Return the statistics of features in another order."""
        at = list(order)
        parts = (self.count, self.missing, self.mean, self.std, self.min, self.max)
        return Side(self.samples, *(part[at] for part in parts))


def _flat(values: Tensor) -> np.ndarray:
    flat: np.ndarray = values.detach().cpu().reshape(-1).numpy()
    return flat


# Drift: how each feature differs between training and new data, and whether by more than chance.
#
#     shift = (mean' - mean) / sd           error = sqrt(1/N + max(1, spread)^2 / n)
#     spread = sd' / sd                     error of its logarithm <= sqrt((z^2 - 1)/4 * (1/N + 1/n))
#
# N and n are numbers of samples, because values within a sample are alike. z is the distance of the farthest
# value in standard deviations, and kurtosis <= z^2. By Bernstein's inequality, the mean of a few samples of a
# feature with outliers can be far off by chance:
#
#     P(abs(shift) >= t) <= 2 exp(-n t^2 / (2 + 2 t z / 3))
#
# A difference is a finding only if it is large enough to matter and too large for chance, so that neither
# large nor small data sets raise false alarms.

SHIFT = 0.25  # standard deviations: enough to move samples over the boundary between classes
SHIFT_ERRORS = 6.0  # of a normal distribution: a chance of 1e-9, so that a million features give no alarm
SPREAD = 1.5  # a ratio: inputs then have variance 2.25, not 1
SPREAD_LEAST = 20  # samples: of fewer, the logarithm of the spread is too far from normal
SPREAD_ERRORS = 5.0  # of an upper bound of the error, because with rare values the logarithm is not normal
OUTSIDE = 0.01  # the share of values outside the training range
MISSING = 0.01  # the difference between the shares of missing values
CHANCE = 1e-9  # how likely a finding without a cause may be
TINY = 1e-6  # of a standard deviation: a feature that varies by less counts as constant


def compare(names: list[str], train: Side, new: Side, outside: np.ndarray) -> tuple[FeatureAudit, ...]:
    """Return the comparison of every feature."""
    shift, error, spread, _ = differences(train, new)
    share = outside / np.maximum(new.count, 1)
    sides = []
    for side in (train, new):
        parts = (side.count, side.missing, side.mean, side.std, side.min, side.max)
        sides.append([Part(*row) for row in zip(*(part.tolist() for part in parts), strict=True)])
    columns = (shift.tolist(), error.tolist(), spread.tolist(), share.tolist())
    return tuple(FeatureAudit(*row) for row in zip(names, *sides, *columns, strict=True))


def differences(train: Side, new: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the shift, its error, the spread, and a bound on the error of the logarithm of the spread."""
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
    """Return findings about features with another mean or spread, or values outside the training range."""
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
    by = minus(f"{shift[first]:+.3g}")
    text = f"the mean of {_features(names, which)} moved by {by} standard deviations"
    advice = "check how these data were collected and prepared; if the world has changed, fit and train again"
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
    advice = "check for other units, clipping or smoothing"
    return [_finding("spread", text, advice, names, which, ratio=spread[first], error=wide[first])]


def _find_range(
    names: list[str], train: Side, new: Side, below: np.ndarray, above: np.ndarray
) -> list[Finding]:
    share = (below + above) / np.maximum(new.count, 1)
    varied = train.min < train.max  # a feature that was constant is another kind of finding
    chance = _chance(np.maximum(below, above), train, new)
    out = varied & (share > OUTSIDE) & (chance < math.log(CHANCE))
    if not out.any():
        return []
    first, which = _worst(out, share)
    where = _features(names, which)
    text = f"{100 * share[first]:.3g}% of the values of {where} lie outside the training range"
    advice = "check for outliers, other units or other codes"
    numbers = {"share": share[first], "below": below[first], "above": above[first]}
    return [_finding("range", text, advice, names, which, **numbers)]


def find_constant(
    names: list[str], train: Side, new: Side, below: np.ndarray, above: np.ndarray
) -> list[Finding]:
    """Return findings about features that were constant and now vary, and the reverse."""
    findings = []
    # In a feature that was constant, every other value lies outside its range.
    varies = (train.min == train.max) & (_chance(below + above, train, new) < math.log(CHANCE))
    if varies.any():
        first, which = _worst(varies, np.nan_to_num(new.max - new.min))
        text = (
            f"{_features(names, which)} had one value in training, {minus(f'{train.min[first]:.6g}')}, and "
            f"now has others: {minus(f'{new.min[first]:.6g}')} to {minus(f'{new.max[first]:.6g}')}"
        )
        advice = "leave it out, or train on data in which it varies: no weight was trained for it"
        ends = {"low": new.min[first], "high": new.max[first]}
        findings.append(_finding("constant", text, advice, names, which, **ends))
    stuck = (train.min < train.max) & (new.max - new.min <= TINY * train.std) & _too_still(train, new)
    if stuck.any():
        first, which = _worst(stuck, train.std)
        value = minus(f"{new.mean[first]:.6g}")
        text = f"{_features(names, which)} varied in training and now has one value, {value}"
        advice = "check for a dead sensor, a column filled with a default, or data of one kind only"
        findings.append(_finding("constant", text, advice, names, which, value=new.mean[first]))
    return findings


def find_missing(names: list[str], train: Side, new: Side) -> list[Finding]:
    """Return a finding about features with another share of missing values."""
    seen = [side.count + side.missing for side in (train, new)]
    before, now = (side.missing / np.maximum(n, 1) for side, n in zip((train, new), seen, strict=True))
    pooled = (train.missing + new.missing) / np.maximum(seen[0] + seen[1], 1)
    units = [
        np.clip(np.minimum(n, side.samples), 1, None) for side, n in zip((train, new), seen, strict=True)
    ]
    error = np.sqrt(pooled * (1 - pooled) * (1 / units[0] + 1 / units[1]))
    differs = (np.abs(now - before) > MISSING) & (np.abs(now - before) > SHIFT_ERRORS * error)
    differs |= (before == 0) & (now > 0)  # nobody has trained on what comes out as NaN
    if not differs.any():
        return []
    first, which = _worst(differs, np.abs(now - before))
    text = (
        f"{100 * now[first]:.3g}% of the values of {_features(names, which)} are missing, but "
        f"{100 * before[first]:.3g}% in training"
    )
    advice = "fill these values as in training, or mend their source: normalised NaN stays NaN"
    return [_finding("missing", text, advice, names, which, before=before[first], now=now[first])]


def _chance(beyond: np.ndarray, train: Side, new: Side) -> np.ndarray:
    """Return the logarithm of the probability that so many values lie beyond one end, were both sides alike.

    The k farthest of N + n values are all new with a probability of at most (n / (N + n))^k. N and n are
    numbers of samples, not of values.
    """
    some, many = new.independent, train.independent
    k = np.floor(beyond * some / np.maximum(new.count, 1))
    chance: np.ndarray = k * np.log(some / (some + many))
    return chance


def _too_still(train: Side, new: Side) -> np.ndarray:
    """Return whether one value comes too often for chance, whatever the distribution of training values.

    P(x != c) >= E(x - c)^2 / max (x - c)^2, and both are known of the training data.
    """
    c = new.mean
    farthest = np.maximum(np.abs(train.max - c), np.abs(train.min - c))
    with np.errstate(divide="ignore", invalid="ignore"):
        other = (train.std**2 + (train.mean - c) ** 2) / farthest**2
        still: np.ndarray = new.independent * np.log1p(-np.minimum(other, 1 - 1e-12)) < math.log(CHANCE)
    return still


def _worst(chosen: np.ndarray, size: np.ndarray) -> tuple[int, list[int]]:
    """Return the worst of the chosen features, and all of them with the worst first."""
    which = np.flatnonzero(chosen)
    ordered = which[np.argsort(-size[which], kind="stable")].tolist()
    return ordered[0], ordered


def _features(names: list[str], which: list[int]) -> str:
    more = f" (and {len(which) - 1:,} more, by less)" if len(which) > 1 else ""
    name = printable(names[which[0]], 60)
    return f"feature {name}{more}" if name[:1] in "(0123456789" else f"feature “{name}”{more}"


def _finding(
    kind: str, text: str, advice: str, names: list[str], which: list[int], **numbers: float
) -> Finding:
    plain = tuple((name, float(number)) for name, number in numbers.items())
    return Finding(kind, "warning", text, advice, tuple(names[i] for i in which), plain)


# One cause for all features: the data are normalised already, on another scale, or have channels in another
# order.
#
# Each cause predicts the means and spreads of the new data. A feature has this distance from the prediction:
#
#     distance = abs(mean' - mean) / max(sd', sd) + abs(log(sd' / sd))
#
# A cause is found if the new data are near its prediction and far from the training data.

NEAR = 0.5  # the largest distance of three quarters of the features, such as a mean off by half a spread
FAR = 1.5  # the same from the training data, such as a mean off by one spread and a spread by a factor of 1.6
ORDER_NEAR = 0.25  # smaller, because channels resemble each other anyway
ORDER_GAIN = 50.0  # the least decrease of chi^2, of which chance alone explains 2 per feature
ORDER_PART = 0.25  # the largest part of chi^2 that may be left
ORDERS = (3, 4)  # numbers of features for which other orders are tried: images with and without transparency


@dataclass(frozen=True)
class Cause:
    """A change of the training data to `x * factor + offset`, and what to say if it is found."""

    factor: np.ndarray | float
    offset: np.ndarray | float
    text: str
    advice: str


NORMALISED = "the data look as if they had been normalised already, with these statistics"
_RANGES = ((0, 255), (0, 65535), (0, 1), (-1, 1))  # in which images and the like are stored


def find_scale(norm: InputNorm, train: Side, new: Side, dtype: str) -> tuple[list[Finding], Side]:
    """Return a finding if a change of scale explains the new data, and the training statistics after it."""
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
    """Return a finding if another order of 3 or 4 features explains the new data much better."""
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
    text = f"the features look as if they came in the order {order}{swapped}"
    advice = "bring them into the order of the training data before they are normalised"
    moved = tuple(names[i] for i in identity if best[i] != i)
    return [Finding("order", "error", text, advice, moved, (("misfit", now), ("misfit_left", left)))]


def _orders(features: int) -> list[tuple[int, ...]]:
    """Return the orders of features that are tried: all of 3 or 4, else only their own."""
    own = tuple(range(features))
    return list(permutations(own)) if features in ORDERS else [own]


def distance(said: Side, new: Side) -> float:
    """Return the largest distance of three quarters of the features; NaN if no feature varies."""
    varies = (said.std > 0) & (new.std > 0) & np.isfinite(said.std) & np.isfinite(new.std)
    if not varies.any():
        return math.nan
    a, b, x, y = (values[varies] for values in (said.mean, new.mean, said.std, new.std))
    apart = np.abs(b - a) / np.maximum(x, y) + np.abs(np.log(y / x))
    return float(np.quantile(apart, 0.75))


def _causes(norm: InputNorm, train: Side, dtype: str) -> list[Cause]:
    scale, shift = (values.reshape(-1).numpy() for values in (norm.scale.cpu(), norm.shift.cpu()))
    low, span = norm.scheme.target[1], norm.scheme.target[0]
    causes = [
        Cause(
            span / scale,
            low - shift * span / scale,
            NORMALISED,
            "give the raw data, or leave out the second normalisation; predictions take norm.inverse(...)",
        )
    ]
    for (a, b), (c, d) in permutations(_RANGES, 2):
        # At least half of the range is in use: a table with values from 0 to 1 is not an image of 0 to 255.
        used = (np.nanmin(train.min) >= a) and (b / 2 < np.nanmax(train.max) <= b)
        factor = (d - c) / (b - a)
        types = f" ({norm.dtype} in training, {dtype} now)" if norm.dtype != dtype else ""
        if used:
            text = f"the data look scaled to {c}..{d}, but in training they had {a}..{b}".replace("-", MINUS)
            advice = "scale them like the training data before they are normalised"
            causes.append(Cause(factor, c - a * factor, text + types, advice))
    return causes


def _misfit(said: Side, new: Side) -> float:
    """Return chi^2: the sum of squared differences of means and spreads in standard errors."""
    return float(misfits(said, new).sum())


def misfits(said: Side, new: Side) -> np.ndarray:
    """Return the share of each feature in chi^2."""
    shift, error, spread, wide = differences(said, new)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (shift / error) ** 2 + (np.log(spread) / wide) ** 2
    found: np.ndarray = np.where(np.isfinite(terms), terms, 0.0)
    return found


# How many samples of a data set were in the training data, estimated from the training sketch alone.
#
# For every hash below its bound, the sketch tells whether training had it. Hashes are uniform, so that the
# distinct new samples below the bound are a fair sample of all distinct new samples:
#
#     share = found / told        95% interval by Clopper and Pearson
#
# ("The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika, 1934).
# Sampling is without replacement, so that the interval is wider than necessary if most samples are told.

LEVEL = 0.95
ALL = 1 << 64


def overlap_of(sketch: Sketch, counted: AuditCounts, samples: int) -> Overlap | None:
    """Return the estimated overlap; None if the statistics keep no sketch.

    Args:
        sketch: that of the training data.
        counted: what was counted in the new data.
        samples: the number of new samples.
    """
    if not len(sketch.hashes):
        return None
    bound = min(sketch.bound, counted.sketch.bound)
    hashes = counted.sketch.hashes
    hashes = hashes if bound == ALL else hashes[hashes < np.uint64(bound)]
    told, found = len(hashes), int(np.isin(hashes, sketch.hashes, assume_unique=True).sum())
    if bound == ALL:
        share = found / told
        return Overlap(told, found, share, share, share, told, True)
    low, high = interval(found, told)
    repeated = told / counted.comparable if bound == sketch.bound and counted.comparable else 1.0
    distinct = round(samples * repeated) if bound == sketch.bound else round(told * (ALL / bound))
    return Overlap(told, found, found / told if told else 0.0, low, high, min(distinct, samples), False)


def leaked_of(sketch: Sketch, counted: AuditCounts) -> Leaked | None:
    """Return the new samples that the sketch finds in the training data; None if there are none."""
    if not counted.leaked:
        return None
    # Only samples with a hash below the bound can be told, and hashes are uniform.
    about = counted.leaked if sketch.bound == ALL else round(counted.leaked * (ALL / sketch.bound))
    samples = tuple(LeakedSample(name, row) for name, row in counted.places)
    return Leaked(samples, counted.leaked, about, sketch.bound == ALL)


def interval(found: int, told: int) -> tuple[float, float]:
    """Return the exact binomial interval of `found / told`.

    >>> interval(0, 100)[1]  # doctest: +ELLIPSIS
    0.0362...
    """
    from scipy.stats import beta

    if not told:
        return 0.0, 1.0
    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, found, told - found + 1)) if found else 0.0
    high = float(beta.ppf(1 - tail, found + 1, told - found)) if found < told else 1.0
    return low, high


def find_overlap(
    overlap: Overlap | None, sketch: Sketch, counted: AuditCounts, train_samples: int, samples: int
) -> list[Finding]:
    """Return a finding about the overlap: leaked samples, or data that repeat themselves."""
    if overlap is None or not overlap.found:
        return []
    repeats = 1 - overlap.told / max(counted.comparable, overlap.told)
    natural = natural_share(sketch, repeats, train_samples, samples)
    names = ("share", "low", "high", "told", "found", "distinct")
    numbers = (*((name, getattr(overlap, name)) for name in names), ("natural", natural))
    if overlap.low <= natural:
        text = (
            f"{amount(overlap)} are identical to training samples; these data repeat themselves, and any two "
            "parts of them would have about as many samples in common"
        )
        advice = "remove duplicates before splitting, or evaluate on samples that training has not seen"
        return [Finding("duplicates", "warning", text, advice, numbers=numbers)]
    text = f"{amount(overlap)} are identical to training samples"
    advice = (
        "remove these samples, which are listed, from one of the two: results on them say nothing about new "
        "samples. If samples are naturally alike, remove duplicates before splitting"
    )
    return [Finding("overlap", "error", text, advice, numbers=numbers)]


def natural_share(sketch: Sketch, repeats: float, train_samples: int, samples: int) -> float:
    """Return the share of new samples that is expected in the training data because data repeat themselves.

    A new sample has a twin in the training data as often as a training sample has one there: up to twice the
    share of samples that are repeats. Repeats within the new data show the same with fewer samples, in
    proportion to their number.
    """
    kept = len(sketch.hashes)
    whole = sketch.bound == ALL
    distinct = kept if whole else kept * (ALL / sketch.bound) * (1 + 3 / kept**0.5)
    in_train = max(0.0, 1 - distinct / max(1, train_samples))
    return min(1.0, max(2 * in_train, 2 * repeats * max(1.0, train_samples / max(1, samples))))


def amount(overlap: Overlap) -> str:
    """Return the number of overlapping samples as text."""
    total = f"{overlap.distinct:,} distinct samples"
    if overlap.exact:
        return f"{overlap.found:,} of {total} ({100 * overlap.share:.3g}%)"
    about = round(overlap.share * overlap.distinct)
    ends = f"95% interval {100 * overlap.low:.2g} to {100 * overlap.high:.2g}%"
    return f"about {about:,} of {total} ({100 * overlap.share:.2g}%, {ends})"


# Which data the fitted statistics come from: the training split, also the new data, or others.
#
# Statistics belong to data if count, mean and squared deviations agree within 1e-9, since another order of
# the samples rounds differently; or if the sum of the hashes of all samples is the same.

CLOSE = 1e-9  # relative; Moments of the same samples in another order differ by at most 1e-13


def find_leak(norm: InputNorm, new: Tally, train: Tally | None, name: str) -> tuple[list[Finding], list[str]]:
    """Return findings and notes on whether the statistics include the new data, or are of other data."""
    advice = "fit on the training split alone and train again: these results are of data seen before"
    if comes_from(norm, new):
        text = f"the statistics are those of {name} itself"
        return [Finding("leak", "error", text, advice)], []
    if train is None:
        return [], []
    if comes_from(norm, train):
        return [], ["The statistics are those of the training split alone."]
    if comes_from(norm, train.merge(new)):
        text = f"the statistics are those of the training split and {name} together"
        return [Finding("leak", "error", text, advice)], []
    counts = (("fitted", norm.samples), ("train", train.samples), ("both", train.samples + new.samples))
    text = (
        f"the statistics, of {norm.samples:,} samples, are neither those of the given training split, of "
        f"{train.samples:,}, nor those of both data sets together"
    )
    return [Finding("source", "warning", text, "give the split that was fitted, unchanged", (), counts)], []


def comes_from(norm: InputNorm, tally: Tally) -> bool:
    """Return whether statistics are those of a tally."""
    if norm.samples != tally.samples:
        return False
    content = norm.record.content
    if content and content == f"{tally.content:016x}":
        return True
    return match(norm.moments, tally.moments)


def match(a: Moments, b: Moments) -> bool:
    """Return whether two Moments are those of the same values."""
    if a.shape != b.shape or not torch.equal(a.count, b.count):
        return False
    size = torch.maximum(a.mean.abs(), a.std())
    means = (a.mean - b.mean).abs() <= CLOSE * size
    spreads = (a.m2 - b.m2).abs() <= CLOSE * a.m2
    return bool((means & spreads).all())
