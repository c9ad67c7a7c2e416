"""Statistics as another program wrote them down, and the layer that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.contracts import extra_state
from slabnorm.contracts.key import Key
from slabnorm.errors import ContractError, ShapeError, SlabError, StatisticsError
from slabnorm.inputs.features import Features
from slabnorm.inputs.normalizer import AFFINE, CLOSE, FeatureNorm, InputNorm
from slabnorm.inputs.schemes import Affine, Scheme, first_features, resolve, shift_and_scale
from slabnorm.mergeable_moments import Moments
from slabnorm.notation import parse

PARTS = ("mean", "std", "min", "max", "count")
NEEDS = {"zscore": ("mean", "std"), "minmax": ("min", "max"), "fixed": ()}  # what a scheme reads
SAME_RANK = 1e-9
GIVEN = "given_"  # before the names of the buffers of a GivenNorm


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of one key. What nobody has said is None: nothing is made up.

    Args:
        mean, std, min, max: of each feature, in units of the data; tensors of one shape, or None.
        count: how many values stand behind them, for each feature; None if nobody says.
        quantiles: of each feature, by rank, as in {0.01: ..., 0.99: ...}.

    `std` is the root of the mean squared deviation: divided by the count, not by the count less one.

    Raises:
        ShapeError: the shapes differ, or there are no numbers at all.
        StatisticsError: a number is not finite, a spread or a count is negative, or a minimum is larger than
            a maximum.

    >>> from slabnorm.contracts import Statistics
    >>> a = Statistics(mean=[1.0], std=[0.0], min=[1.0], max=[1.0], count=[3])
    >>> b = Statistics(mean=[3.0], std=[1.0], min=[2.0], max=[4.0], count=[2])
    >>> a.merge(b).mean
    tensor([1.8000], dtype=torch.float64)
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    min: Tensor | None = None
    max: Tensor | None = None
    count: Tensor | None = None
    quantiles: dict[float, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Convert the parts, and check them."""
        store = object.__setattr__
        for name in PARTS:
            value = getattr(self, name)
            if value is not None:
                store(self, name, _tensor(value, torch.int64 if name == "count" else torch.float64))
        quantiles = {float(rank): _tensor(value, torch.float64) for rank, value in self.quantiles.items()}
        store(self, "quantiles", dict(sorted(quantiles.items())))
        known = self.known()
        shapes = {name: tuple(value.shape) for name, value in known.items()}
        if len(set(shapes.values())) != 1:
            what = "Statistics differ in shape" if shapes else "Statistics without a number"
            raise ShapeError(what, str(shapes)[:200], "give one number of each kind for every feature")
        rules = {f"{name} is finite": value.isfinite() for name, value in known.items()}
        rules |= {f"{name} is not negative": known[name] >= 0 for name in ("std", "count") if name in known}
        if self.min is not None and self.max is not None:
            rules["min <= max"] = self.min <= self.max
        ranks = list(self.quantiles)
        rules["ranks lie between 0 and 1"] = torch.tensor(all(0 <= rank <= 1 for rank in ranks))
        for low, high in pairwise(ranks):
            rules[f"quantile {low:g} <= quantile {high:g}"] = self.quantiles[low] <= self.quantiles[high]
        for rule, holds in rules.items():
            if not bool(holds.all()):
                raise StatisticsError(
                    "Statistics that no data have", f"{first_features(~holds)} breaks the rule: {rule}",
                    "mend them where they were written",
                )  # fmt: skip

    @classmethod
    def of(cls, norm: FeatureNorm) -> Statistics:
        """Return the statistics of a layer."""
        if isinstance(norm, GivenNorm):
            return norm.statistics
        assert isinstance(norm, InputNorm)
        moments = norm.moments
        quantiles = dict(zip(norm.scheme.ranks, norm.quantiles.cpu(), strict=True))
        count = None if norm.record.weights == "real" else moments.count.cpu()
        return cls(
            moments.mean.cpu(), moments.std().cpu(), moments.min.cpu(), moments.max.cpu(), count, quantiles
        )

    def known(self) -> dict[str, Tensor]:
        """Return what is known, by name; of quantiles "quantile 0.01" and the like."""
        found = {name: getattr(self, name) for name in PARTS}
        found |= {f"quantile {rank:g}": value for rank, value in self.quantiles.items()}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all of them."""
        return tuple(next(iter(self.known().values())).shape)

    def reshaped(self, shape: tuple[int, ...]) -> Statistics:
        """Return the same numbers in another shape."""
        parts = {name: getattr(self, name) for name in PARTS}
        parts = {name: None if value is None else value.reshape(shape) for name, value in parts.items()}
        quantiles = {rank: value.reshape(shape) for rank, value in self.quantiles.items()}
        return Statistics(**parts, quantiles=quantiles)

    def quantile(self, rank: float) -> Tensor | None:
        """Return the quantiles of a rank; None if nobody says."""
        near = [value for known, value in self.quantiles.items() if abs(known - rank) < SAME_RANK]
        return near[0] if near else None

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of values, as if they had been counted together.

        Quantiles are left out: those of the parts do not say what those of the whole are. So is a minimum or
        a maximum that only one of them knows.

        Raises:
            StatisticsError: a mean, a spread or a count is not known.
            ShapeError: they have other features.
        """
        if self.shape != other.shape:
            got = f"{self.shape} and {other.shape}"
            raise ShapeError("Statistics of other features cannot be merged", got, "merge those of one key")
        merged = self.moments().merge(other.moments())
        low, high = merged.min, merged.max
        ends = (self.min, other.min, self.max, other.max)
        known = all(end is not None for end in ends)
        return Statistics(
            merged.mean, merged.std(), low if known else None, high if known else None, merged.count
        )

    def moments(self) -> Moments:
        """Return them as Moments; a minimum or a maximum that nobody says is the mean there.

        Raises:
            StatisticsError: a mean, a spread or a count is not known.
        """
        missing = [name for name in ("mean", "std", "count") if getattr(self, name) is None]
        if self.mean is None or self.std is None or self.count is None:
            fix = "give statistics with counts, or fit the data"
            raise StatisticsError("These statistics cannot be merged", f"no {', '.join(missing)}", fix)
        ends = (self.mean if end is None else end for end in (self.min, self.max))
        return Moments(self.count, self.mean, self.std.square() * self.count, *ends)

    def affine(self, scheme: Scheme) -> Affine:
        """Return shift and scale of every feature, as a scheme has it.

        Raises:
            StatisticsError: they do not say what the scheme reads.
        """
        needs = [*NEEDS.get(scheme.name, ())]
        needs += ["count"] if getattr(scheme, "ddof", 0) else []
        needs += ["min", "max"] if scheme.near_constant != "warn" else []
        missing = [name for name in dict.fromkeys(needs) if getattr(self, name) is None]
        rows = [self.quantile(rank) for rank in scheme.ranks]
        missing += [f"quantile {r:g}" for r, row in zip(scheme.ranks, rows, strict=True) if row is None]
        if missing:
            has = ", ".join(self.known())
            raise StatisticsError(
                f"The scheme {scheme} cannot be had from these statistics",
                f"no {', '.join(missing)}; they say {has}",
                "choose a scheme that reads what is there, or fit the data",
            )
        found = [row for row in rows if row is not None]
        quantiles = torch.stack(found) if found else torch.empty((0, *self.shape), dtype=torch.float64)
        return shift_and_scale(scheme, self._stand_in(scheme), quantiles)

    def _stand_in(self, scheme: Scheme) -> Moments:
        """Return Moments in which a scheme finds what it reads; the rest of them says nothing.

        Counted once, as the root of a square is the number itself: the scale is then exactly the spread.
        Where nobody knows the ends, they lie a spread from the middle: apart, unless there is no spread.
        """
        zero = torch.zeros(self.shape, dtype=torch.float64)
        rows = list(self.quantiles.values()) or [zero]
        mean = (rows[0] + rows[-1]) / 2 if self.mean is None else self.mean
        std = (rows[-1] - rows[0]) / 2 if self.std is None else self.std
        whole = bool(getattr(scheme, "ddof", 0)) and self.count is not None
        count = self.count if whole and self.count is not None else torch.ones_like(zero)
        # Without a spread the ends meet, and the scale is 1; the root of eps where a scheme adds that.
        reach = torch.where(std == 0, getattr(scheme, "eps", 0) ** 0.5, std)
        low = mean - reach if self.min is None else self.min
        high = mean + reach if self.max is None else self.max
        return Moments(count, mean, std.square() * count, low, high)


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """Return numbers as a tensor on the CPU; lists by way of NumPy, as torch would round them to float32."""
    try:
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise StatisticsError("Statistics must be numbers", f"{value!r:.80}", "give a tensor") from error
    if dtype == torch.int64 and found.is_floating_point() and not bool((found == found.round()).all()):
        raise StatisticsError("A count is no whole number", f"{found.flatten()[0].item()}", "give integers")
    return found.detach().cpu().to(dtype)


@dataclass(frozen=True)
class Provenance:
    """Where statistics were read from, as far as it says.

    Attributes:
        format: such as "LeRobot".
        split: the split that they come from; "" if nobody says.
        samples: how many there were; None if nobody says.
    """

    format: str = ""
    split: str = ""
    samples: int | None = None

    @classmethod
    def from_plain(cls, plain: Any) -> Provenance:
        """Return the source of a list of format, split and samples.

        Raises:
            ValueError, TypeError: it is damaged.
        """
        form, split, samples = plain
        known = samples is None or (type(samples) is int and samples >= 0)
        if type(form) is not str or type(split) is not str or not known:
            raise ValueError(f"where statistics come from is described wrongly: {plain!r:.200}")
        return cls(form, split, samples)


class GivenNorm(FeatureNorm):
    """Normalises by statistics that another program wrote down.

    The formula is that of InputNorm, with shift and scale as the scheme of the key has them.

    Args:
        key: what the entry is.
        statistics: in the shape of the pattern's right side, or with axes of size 1 besides.
        sample: the shape of one sample, None for axes that may have any size.
        source: where they come from.

    Raises:
        ShapeError, PatternError: the pattern does not fit them.
        StatisticsError: they do not say what the scheme reads.
    """

    def __init__(
        self,
        key: Key,
        statistics: Statistics,
        sample: tuple[int | None, ...],
        source: Provenance = Provenance(),
    ) -> None:
        features = Features.of(parse(key.pattern), sample, tuple(sorted(key.sizes.items())))
        if statistics.shape != features.shape:
            if torch.Size(statistics.shape).numel() != torch.Size(features.shape).numel():
                raise ShapeError(
                    f'Statistics of shape {statistics.shape} do not fit "{key.pattern}"',
                    f"samples of shape {sample} have features of shape {features.shape}",
                    "give the pattern that they were computed with",
                )
            statistics = statistics.reshaped(features.shape)
        self.scheme = scheme = resolve(key.scheme, "")
        super().__init__()
        self._features = features
        self._normalise_by(statistics.affine(scheme), scheme)
        self.sample, self.source = sample, source
        self.ranks = tuple(statistics.quantiles)
        self._known = tuple(name for name in PARTS if getattr(statistics, name) is not None)
        for name in self._known:
            self.register_buffer(GIVEN + name, getattr(statistics, name).clone())
        empty = torch.empty((0, *features.shape), dtype=torch.float64)
        rows = list(statistics.quantiles.values())
        self.register_buffer(f"{GIVEN}quantiles", torch.stack(rows) if rows else empty)

    @property
    def statistics(self) -> Statistics:
        """What is known."""
        parts = {name: self.get_buffer(GIVEN + name) for name in self._known}
        quantiles = dict(zip(self.ranks, self.get_buffer(f"{GIVEN}quantiles"), strict=True))
        return Statistics(**parts, quantiles=quantiles)

    @property
    def split(self) -> str:
        """The split that they come from; "" if nobody says."""
        return self.source.split

    @property
    def samples(self) -> int | None:
        """How many samples they come from; None if nobody says."""
        return self.source.samples

    def to_plain(self) -> dict[str, Any]:
        """Return what is known besides the numbers, as JSON's own types."""
        return {
            "sample": list(self.sample),
            "ranks": list(self.ranks),
            "source": list(astuple(self.source)),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], parts: Mapping[str, Tensor], key: Key) -> GivenNorm:
        """Return the layer of what `to_plain` wrote, and of its numbers.

        Args:
            plain: the plain values.
            parts: mean, std, min, max, count and quantiles, as far as they are known; the latter a row for
                each rank.
            key: what the entry is.

        Raises:
            ValueError, TypeError, KeyError, SlabError: they are damaged, or do not fit the key.
        """
        sample, ranks, source = plain["sample"], plain["ranks"], Provenance.from_plain(plain["source"])
        if type(sample) is not list or type(ranks) is not list:
            raise ValueError("the statistics are described wrongly")
        if len(sample) > 64 or not all(n is None or (type(n) is int and n > 0) for n in sample):
            raise ValueError(f"a sample has no shape {sample!r:.80}")
        if not all(type(rank) is float for rank in ranks) or len(set(ranks)) < len(ranks):
            raise ValueError(f"ranks are no numbers of their own: {ranks!r:.80}")
        for name, value in parts.items():
            if name not in (*PARTS, "quantiles"):
                raise ValueError(f"there is no statistic {name!r:.40}")
            if value.dtype != (torch.int64 if name == "count" else torch.float64):
                raise ValueError(f"{name} is {value.dtype}")
        rows = parts.get("quantiles", torch.empty(0))
        if rows.dim() == 0 or len(rows) != len(ranks):
            raise ValueError(f"{len(ranks)} ranks have quantiles of shape {tuple(rows.shape)}")
        known = {name: value for name, value in parts.items() if name != "quantiles"}
        found = Statistics(**known, quantiles=dict(zip(ranks, rows, strict=True)))
        return cls(key, found, tuple(sample), source)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], key: Key) -> GivenNorm:
        """Return the layer of a `state_dict`.

        Raises:
            ContractError: an entry is missing or damaged.
        """
        what = f"the statistics of {key.pattern!r}"
        plain = extra_state.to_plain(state.get("_extra_state"), what)
        parts: dict[str, Tensor] = {}
        for label, value in state.items():
            if label.startswith(GIVEN) and isinstance(value, Tensor):
                name = label.removeprefix(GIVEN)
                parts[name] = value.cpu().to(torch.int64 if name == "count" else torch.float64)
        try:
            return cls.from_plain(plain, parts, key)
        except (ValueError, TypeError, KeyError, SlabError) as error:
            problem = f"The state_dict is damaged: {what}"
            raise ContractError(problem, f"{error}"[:300], "save the model again") from error

    def get_extra_state(self) -> Tensor:
        """Return what is known besides the numbers, for the state_dict."""
        return extra_state.to_tensor(self.to_plain())

    def set_extra_state(self, state: Any) -> None:
        """Take from a state_dict where the statistics come from."""
        plain = extra_state.to_plain(state, "the statistics")
        mine = self.to_plain()
        if any(plain.get(name) != mine[name] for name in ("sample", "ranks")):
            got = f"{plain.get('sample')!r:.80}, {plain.get('ranks')!r:.80}"
            fix = "attach to the model what Contract.from_state_dict(state) returns"
            raise ContractError("The state_dict has statistics of other samples, or other ranks", got, fix)
        try:
            self.source = Provenance.from_plain(plain["source"])
        except (TypeError, ValueError, KeyError) as error:
            problem = "The extra state of the statistics is damaged"
            raise ContractError(problem, f"{error}"[:300], "save the model again") from error

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load statistics, and raise before that unless shift and scale follow from them."""
        given: dict[str, Tensor] = {}
        exact = True
        for name, mine in self._buffers.items():
            value = state_dict.get(prefix + name)
            if mine is None or not isinstance(value, Tensor) or value.shape != mine.shape:
                continue  # which torch reports
            exact = exact and value.dtype == mine.dtype and not value.is_meta
            # assign=True would take a checkpoint's half precision over as it is
            state_dict[prefix + name] = given[name] = value.to(mine.dtype)
        if exact and given.keys() == self._buffers.keys():
            self._check(given, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._note_range()

    def _check(self, given: dict[str, Tensor], prefix: str) -> None:
        """Raise StatisticsError unless shift and scale follow from the statistics beside them."""
        parts = {name: given[GIVEN + name] for name in self._known}
        rows = given[f"{GIVEN}quantiles"]
        found = Statistics(**parts, quantiles=dict(zip(self.ranks, rows, strict=True)))
        wanted = found.affine(self.scheme)
        for name in AFFINE:
            if not torch.allclose(given[name].cpu(), getattr(wanted, name), rtol=CLOSE, atol=0):
                raise StatisticsError(
                    f"{prefix}{name} does not follow from the statistics beside it",
                    "a state_dict with parts of several contracts", "load the whole state_dict of one",
                )  # fmt: skip

    def extra_repr(self) -> str:
        """Return in one line what is known."""
        found = self.source
        samples = "unknown" if found.samples is None else found.samples
        said = f"split={found.split or 'unknown'}, samples={samples}"
        return f"{self.scheme}, from {found.format or 'statistics'}, {said}, {', '.join(self._known)}"
