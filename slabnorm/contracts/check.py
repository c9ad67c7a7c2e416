"""Whether a batch of raw data is what the statistics of a contract are for."""

from __future__ import annotations

import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.contracts.fit import place_of
from slabnorm.contracts.key import name_of
from slabnorm.contracts.nested import get, known_names
from slabnorm.contracts.statistics import Statistics
from slabnorm.errors import DataError, DataWarning, PatternError, ShapeError, SlabError
from slabnorm.extras import extra
from slabnorm.inputs.audit.counts import Reference
from slabnorm.inputs.audit.findings import (
    CHANCE,
    FAR,
    NEAR,
    NORMALISED,
    ORDER_GAIN,
    ORDER_NEAR,
    ORDER_PART,
    SPREAD_LEAST,
    Cause,
    Side,
    distance,
    find_constant,
    find_drift,
    find_missing,
    misfits,
)
from slabnorm.inputs.fitting import Effort, Opened
from slabnorm.inputs.normalizer import FeatureNorm, InputNorm
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.schemes import FLOOR
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sources import open_source
from slabnorm.inputs.sources.base import AbsentError
from slabnorm.report.audit import Finding
from slabnorm.report.wording import minus
from slabnorm.text import did_you_mean, listing, printable

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract

# By Chebyshev's inequality at most 1% of all values lie farther from the mean, whatever the distribution.
# Where nobody knows the range of the training data, what lies beyond counts as outside of it.
REACH = 10.0
MANY = 10**6  # samples, where nobody knows how many there were: their statistics are taken as exact
DEGREES = 180 / math.pi
FACTORS = (*(10.0**k for k in range(-9, 10) if k), DEGREES, 1 / DEGREES)  # between units
UNIT_ADVICE = "convert the values before they are normalised, or fit a contract for their unit"
ORDERS = 256  # features up to which their order is looked at: the work grows with the cube


def check_batch(contract: Contract, batch: Any) -> tuple[Finding, ...]:
    """Return what is wrong with a batch or with the data of a file, errors first."""
    if isinstance(batch, str | os.PathLike):
        return _sorted(_find_in_file(contract, os.fspath(batch)))
    names = known_names(batch, list(contract))
    found = _find_keys(contract, names)
    for name in names:
        if name in contract and not contract.key(name).keep:
            found += _Entry(contract, name).find(get(batch, name))
    return _sorted(found)


def _find_in_file(contract: Contract, path: str) -> list[Finding]:
    """Return findings about the keys in a file, each of which is read alone."""
    found = []
    for name in contract.names():
        source, which = place_of(path, name)
        try:
            opened = open_source(source, **which)
        except AbsentError as error:
            if contract.key(name).role == "input":
                text = f"{printable(path)} has no {name_of(name)}, an input of the contract"
                found.append(Finding("names", "error", text, error.fix or error.problem, (name,)))
            continue
        found += _Entry(contract, name).find_in(opened)
    return found


def _sorted(found: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def _find_keys(contract: Contract, names: list[str]) -> list[Finding]:
    """Return findings about keys that are missing, and others that the contract does not know."""
    found = []
    there = set(names)
    missing = [name for name in contract.names("input") if name not in there]
    unknown = [name for name in names if name not in contract]
    for name in missing:
        meant = did_you_mean(name, [str(other) for other in unknown])
        text = f"the batch has no {name_of(name)}, an input of the contract"
        found.append(Finding("names", "error", text, meant or "give it to the model", (name,)))
    if unknown:
        text = f"the contract does not know {listing([name_of(name) for name in unknown[:10]])}"
        advice = 'name the entry as the contract does, or say "keep" for what passes unchanged'
        found.append(Finding("names", "error", text, advice, tuple(map(str, unknown))))
    return found


class _Entry:
    """One key beside the values of a batch."""

    def __init__(self, contract: Contract, name: str) -> None:
        self.name, self.key = name, contract.key(name)
        self.norm: FeatureNorm = contract[name]
        self.statistics = Statistics.of(self.norm)
        named = self.norm.record.names if isinstance(self.norm, InputNorm) else ()
        self.features = self.key.names or named or _places(name, self.norm.features.shape)

    def find(self, values: Any) -> list[Finding]:
        """Return what is wrong with the values of a batch."""
        if not isinstance(values, Tensor):
            text = f"{self.name} is {type(values).__name__}, and no tensor"
            return [Finding("dtype", "error", printable(text), "give a tensor", (self.name,))]
        try:
            self.norm.features.check(values.shape)
        except ShapeError as error:
            return [self._another_shape(tuple(values.shape), error)]
        if not len(values):
            return []
        try:
            source = open_source(values.detach().cpu())
        except DataError as error:
            return [Finding("dtype", "error", f"{self.name}: {error.problem}", error.fix, (self.name,))]
        return self.find_in(source)

    def find_in(self, source: Any) -> list[Finding]:
        """Return what is wrong with the values of a source."""
        try:
            tally = self._count(source)
        except (ShapeError, PatternError) as error:
            return [self._another_shape((), error)]
        except DataError as error:
            return [Finding("values", "error", f"{self.name}: {error.problem}", error.fix, (self.name,))]
        return [self._named(finding) for finding in self._find(tally)]

    def _another_shape(self, shape: tuple[int, ...], error: SlabError) -> Finding:
        text = f"{self.name} has another shape{f': {shape}' if shape else ''}"
        return Finding("width", "error", printable(text), error.fix, (self.name,))

    def _count(self, source: Any) -> Tally:
        key, (low, high) = self.key, self._ends()
        with plain_tensors(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            opened = Opened(source)
            self.norm.features.check((1, *(size or 1 for size in opened.schema.sample)))
            sizes = {name: int(size) for name, size in key.sizes.items()}
            counting = opened.counting(key.pattern, sizes, nan="omit", reference=Reference(low, high, 0))
            return opened.count(counting, Effort())

    def _ends(self) -> tuple[Tensor, Tensor]:
        """Return the range of the training data; where it is not known, REACH spreads around the middle."""
        found = self.statistics
        low, high = found.min, found.max
        if low is None or high is None:
            if found.mean is not None and found.std is not None:
                middle, spread = found.mean, found.std
            elif found.quantiles:
                first, *_, last = found.quantiles.values()
                middle, spread = (first + last) / 2, last - first
            else:
                middle, spread = torch.zeros(found.shape), torch.full(found.shape, torch.inf)
            low = middle - REACH * spread if low is None else low
            high = middle + REACH * spread if high is None else high
        return low.double(), high.double()

    def _knows_range(self) -> bool:
        return self.statistics.min is not None and self.statistics.max is not None

    def _side(self) -> Side:
        """Return the statistics as an audit compares them; NaN for what nobody says."""
        found, (low, high) = self.statistics, self._ends()
        nothing = np.full(math.prod(found.shape), np.nan)
        mean, std = (nothing if v is None else v.reshape(-1).numpy() for v in (found.mean, found.std))
        samples = getattr(self.norm, "samples", None) or MANY
        count = np.full(len(nothing), MANY) if found.count is None else found.count.reshape(-1).numpy()
        missing = np.zeros(len(nothing), np.int64)
        if isinstance(self.norm, InputNorm):
            missing = (self.norm.nan_count + self.norm.null_count).cpu().reshape(-1).numpy()
        return Side(samples, count, missing, mean, std, low.reshape(-1).numpy(), high.reshape(-1).numpy())

    def _find(self, tally: Tally) -> list[Finding]:
        train, new, names = self._side(), Side.of(tally), list(self.features)
        rest = (
            self._find_invalid(new) + self._find_nearly_constant(train, new) + find_missing(names, train, new)
        )
        whole = self._find_cause(train, new) + self._find_order(train, new)
        if whole:
            return whole + rest
        assert tally.audit is not None  # it was asked for
        below, above = (counts.reshape(-1).numpy() for counts in (tally.audit.below, tally.audit.above))
        if not self._knows_range():
            share = (below + above) / np.maximum(new.count, 1)
            chance = (train.min < train.max) & ~_more_than_chance(share, new.independent)
            below = below if self.statistics.min is not None else np.where(chance, 0, below)
            above = above if self.statistics.max is not None else np.where(chance, 0, above)
        drift = self._with_units(find_drift(names, train, new, below, above), train, new)
        return drift + find_constant(names, train, new, below, above) + rest

    def _find_nearly_constant(self, train: Side, new: Side) -> list[Finding]:
        """Return a finding about features that hardly varied in training, and now come out large."""
        scale, shift = (v.cpu().reshape(-1).numpy() for v in (self.norm.scale, self.norm.shift))
        size = np.maximum(abs(train.min), abs(train.max))
        was, now = (np.maximum(abs(s.min - shift), abs(s.max - shift)) / scale for s in (train, new))
        found = np.flatnonzero((train.min < train.max) & (scale < FLOOR * size) & (now > REACH * was))
        if not len(found):
            return []
        first, *_ = found = found[np.argsort(-now[found], kind="stable")]
        text = (
            f"{printable(self.features[first], 60)} hardly varied in training (scale {scale[first]:.3g} at "
            f"values up to {size[first]:.3g}), and now comes out as large as {now[first]:,.0f}"
        )
        advice = 'check the values; under a scheme with near_constant="floor" or "keep" they would stay small'
        numbers = (("scale", float(scale[first])), ("largest", float(now[first])))
        return [Finding("constant", "warning", text, advice, tuple(self.features[i] for i in found), numbers)]

    def _find_invalid(self, new: Side) -> list[Finding]:
        """Return a finding about values that cannot be."""
        if self.key.valid is None:
            return []
        low, high = self.key.valid
        wrong = np.flatnonzero((new.min < low) | (new.max > high))
        if not len(wrong):
            return []
        ends = f"{minus(f'{np.nanmin(new.min):.6g}')} to {minus(f'{np.nanmax(new.max):.6g}')}"
        text = f"values of {ends}, where {minus(f'{low:g}')} to {minus(f'{high:g}')} can occur"
        names = tuple(self.features[i] for i in wrong)
        return [Finding("valid", "error", text, "check the unit, and where the values come from", names)]

    def _find_cause(self, train: Side, new: Side) -> list[Finding]:
        """Return a finding if one change of scale explains all features."""
        apart = distance(train, new)
        if not apart > FAR or new.independent.max() < SPREAD_LEAST:
            return []
        left = [
            distance(train.moved(np.asarray(c.factor), np.asarray(c.offset)), new)
            for c in self._causes(train)
        ]
        best = int(np.nanargmin([math.inf if math.isnan(value) else value for value in left]))
        if not left[best] < NEAR:
            return []
        cause = self._causes(train)[best]
        numbers = (("distance", apart), ("distance_left", left[best]))
        return [Finding("scale", "error", cause.text, cause.advice, (), numbers)]

    def _causes(self, train: Side) -> list[Cause]:
        scale, shift = (v.cpu().reshape(-1).numpy() for v in (self.norm.scale, self.norm.shift))
        span, low = self.norm.target
        raw = not np.nanmax(train.max) <= 1.5  # 0..255 rather than 0..1
        twice = "look scaled twice: they are 1/255 of those of training"
        once, signed = (f"look scaled to {ends}, but in training they were not" for ends in ("0..1", "-1..1"))
        pixels = [
            (1 / 255, 0.0, once if raw else twice),
            (255.0, 0.0, "look like 0..255, but in training they were scaled"),
            (2 / 255 if raw else 2.0, -1.0, signed),
        ]
        advice = "scale them like the training data before they are normalised"
        return [
            Cause(span / scale, low - shift * span / scale, NORMALISED, "give the raw data"),
            *(Cause(factor, offset, f"the data {text}", advice) for factor, offset, text in pixels),
            *(Cause(factor, 0.0, self._unit_text(factor), UNIT_ADVICE) for factor in FACTORS),
        ]

    def _unit_text(self, factor: float, what: str = "the data") -> str:
        unit = f", which is {printable(self.key.unit, 40)}" if self.key.unit else ""
        return f"{what} are {_times(factor)}: another unit than that of the contract{unit}"

    def _find_order(self, train: Side, new: Side) -> list[Finding]:
        """Return a finding if another order of the features explains the data much better than their own.

        The best order is an assignment of new features to those of training (Kuhn's method, 1955), at the
        cost of the squared differences of means and spreads in standard errors.
        """
        many = len(train.mean)
        if not 1 < many <= ORDERS or not np.isfinite(train.mean).all():
            return []
        cost = np.stack([misfits(train.reordered((i,) * many), new) for i in range(many)])
        now = float(np.trace(cost))
        if now <= ORDER_GAIN:
            return []
        optimize = extra("scipy.optimize", "looking for swapped features", "'slabnorm[study]'")
        rows, columns = optimize.linear_sum_assignment(cost)
        order = tuple(int(rows[at]) for at in np.argsort(columns))
        left = float(cost[rows, columns].sum())
        if not (now - left > ORDER_GAIN and left < ORDER_PART * now):
            return []
        # A batch is small, and its means and spreads are off by chance.
        if not distance(train.reordered(order), new) < ORDER_NEAR + 2 / math.sqrt(new.independent.max()):
            return []
        moved = tuple(self.features[i] for i, j in enumerate(order) if i != j)
        shown = ", ".join(printable(self.features[j], 30) for j in order[:12]) + (", …" if many > 12 else "")
        swapped = ", as BGR for RGB" if order[:3] == (2, 1, 0) and many in (3, 4) else ""
        text = f"the features look as if they came in the order {shown}{swapped}"
        numbers = (("misfit", now), ("misfit_left", left))
        return [Finding("order", "error", text, "bring them into the order of the contract", moved, numbers)]

    def _with_units(self, drift: list[Finding], train: Side, new: Side) -> list[Finding]:
        """Return the findings of drift, those features apart that a change of unit explains."""
        spread = [name for finding in drift if finding.kind == "spread" for name in finding.features]
        at = [self.features.index(name) for name in spread]
        found, explained = [], set[str]()
        for place in at:
            alone = [_apart(train, new, place, factor) for factor in FACTORS]
            best = int(np.argmin(alone))
            if alone[best] < NEAR:
                name, factor = self.features[place], FACTORS[best]
                explained.add(name)
                numbers = (("factor", factor), ("distance_left", alone[best]))
                text = self._unit_text(factor, f"the values of feature “{printable(name, 60)}”")
                found.append(Finding("unit", "error", text, UNIT_ADVICE, (name,), numbers))
        return found + [finding for finding in drift if not set(finding.features) <= explained]

    def _named(self, finding: Finding) -> Finding:
        text = f"{printable(self.name, 60)}: {finding.text}"
        if not self._knows_range():
            found = self.statistics
            spread = "standard deviations around the mean"
            if found.mean is None or found.std is None:
                spread = "times the range of the known quantiles around their middle"
            text = text.replace("the training range", f"{REACH:g} {spread}")
        features = finding.features or (self.name,)
        return Finding(finding.kind, finding.severity, text, finding.advice, features, finding.numbers)


def _more_than_chance(share: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return whether more values lie beyond REACH spreads than there may be, by Chernoff's bound."""
    may, part = 1 / REACH**2, np.clip(share, 1e-12, 1 - 1e-12)
    unlikely = samples * (part * np.log(part / may) + (1 - part) * np.log((1 - part) / (1 - may)))
    more: np.ndarray = (share > may) & (unlikely > -math.log(CHANCE))
    return more


def _times(factor: float) -> str:
    if factor == DEGREES:
        return "180/π times those of training, like degrees for radians"
    if factor == 1 / DEGREES:
        return "π/180 times those of training, like radians for degrees"
    return (
        f"{factor:,.0f} times those of training"
        if factor > 1
        else f"1/{1 / factor:,.0f} of those of training"
    )


def _apart(train: Side, new: Side, at: int, factor: float) -> float:
    """Return the distance of a feature from the training data times a factor, as `distance` has it."""
    mean, std = train.mean[at] * factor, train.std[at] * factor
    with np.errstate(divide="ignore", invalid="ignore"):
        far = abs(new.mean[at] - mean) / max(std, new.std[at]) + abs(math.log(new.std[at] / std))
    return far if math.isfinite(far) else math.inf


def _places(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return what features are called that have no names: "state[2]"."""
    if not shape:
        return (name,)
    return tuple(f"{name}[{', '.join(map(str, at))}]" for at in np.ndindex(*shape))
