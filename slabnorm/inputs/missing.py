"""Values that cannot be counted: NaN raised or left out, infinity and integers that float64 skips raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError, StatisticsError
from slabnorm.inputs.sample import Sample
from slabnorm.inputs.scheme import first_features
from slabnorm.mergeable_moments import Moments
from slabnorm.slab import Slab

POLICIES = ("raise", "omit")
EXACT = 2.0**53  # from here on float64 skips integers


class Places(Protocol):
    """Says where a value stands."""

    def place(self, index: tuple[int, ...]) -> str:
        """Return an index as text, such as "row 17, c=2"."""


@dataclass(frozen=True)
class Where:
    """Where a block of samples stands: in what, from which row on, and what its axes are called."""

    name: str
    first: int
    features: Places

    def refuse(self, values: np.ndarray, which: np.ndarray, rule: str, fix: str) -> NoReturn:
        """Raise DataError for the first of some values."""
        first = tuple(int(i[0]) for i in which.nonzero())
        place = self.features.place((self.first + first[0], *first[1:]))
        rows = f"rows {self.first}..{self.first + len(values) - 1}"
        raise DataError(
            rule, f"{self.name}: {values[first].item()} at {place}; {int(which.sum())} in {rows}", fix
        )


def check_policy(nan: str) -> None:
    """Raise OptionError unless `nan` is a policy."""
    if nan not in POLICIES:
        raise OptionError(
            'nan is "raise" or "omit"', repr(nan), '"omit" leaves NaN out, feature by feature, and counts it'
        )


def refuse_floats(values: np.ndarray, nan: str, where: Where) -> NoReturn:
    """Raise what is wrong with a block whose sums are not what the policy takes."""
    infinite = np.isinf(values)
    if infinite.any():
        where.refuse(values, infinite, "data are finite", "mend or leave out these values")
    missing = np.isnan(values)
    if nan == "raise" and missing.any():
        where.refuse(values, missing, 'data hold no NaN under nan="raise"',
                     'mend them, or leave them out and count them with nan="omit"')  # fmt: skip
    raise StatisticsError(
        "sums of values are finite in float64",
        f"{where.name}, from row {where.first}: values near the end of float64's range",
        "bring the data nearer to 1 first, as by a change of units",
    )


def refuse_integers(values: np.ndarray, where: Where) -> NoReturn:
    """Raise DataError for integers that float64 does not hold."""
    beyond = (values >= EXACT) | (values <= -EXACT)
    where.refuse(values, beyond, "integers lie within 2^53",
                 "subtract an offset, or give floats, where they are approximate")  # fmt: skip


def refuse_null(where: Where, missing: np.ndarray) -> NoReturn:
    """Raise DataError for the first null of a column."""
    gone = np.flatnonzero(missing)
    place = where.features.place((where.first + int(gone[0]),))
    rows = f"rows {where.first}..{where.first + len(missing) - 1}"
    raise DataError(
        'tables hold no null under nan="raise"',
        f"{where.name}: null at {place}; {len(gone)} in {rows}",
        'mend them, or leave them out and count them with nan="omit"',
    )


def check_left(found: Moments, name: str, names: Sequence[str] = ()) -> None:
    """Raise DataError if a feature has no value left."""
    gone = found.count == 0
    if bool(gone.any()):
        raise DataError(
            "every feature has values left without its NaN",
            f"{name}: {first_features(gone, names)} hold NaN {'or null ' if names else ''}only",
            "leave these features out of the data",
        )


def check_present(sample: Sample, name: str, names: Sequence[str] = ()) -> None:
    """Raise DataError if a sample of values, from which quantiles come, has none of a feature."""
    gone = torch.from_numpy(sample.counts == 0)
    if len(sample.keys) and bool(gone.any()):
        raise DataError(
            f"a feature has values among the {len(sample.keys)} that quantiles are taken from",
            f"{name}: of {first_features(gone, names)} almost all values are NaN or null",
            'leave these features out, or fit "zscore" or "minmax", which read every value',
        )


def moments_where(values: Tensor, keep: Tensor, slab: Slab) -> Moments:
    """Return the Moments of the values that a mask keeps; empty where it keeps none of a slab.

    As in kernels/eager.py: shifted by an element of the slab, then by the mean found.
    """
    x, keep = values.reshape(slab.split), keep.reshape(slab.split)
    count = _sum(keep, slab)
    least = _reduce(torch.where(keep, x, torch.inf), slab, torch.amin)
    most = _reduce(torch.where(keep, x, -torch.inf), slab, torch.amax)
    shift = torch.where(count > 0, least, 0.0)
    shift = shift + _sum(torch.where(keep, x - shift, 0.0), slab) / count.clamp(min=1)
    centred = torch.where(keep, x - shift, 0.0)
    low = _sum(centred, slab) / count.clamp(min=1)
    m2 = _sum(torch.where(keep, centred - low, 0.0).square(), slab)
    gather = slab.kept.gather
    return Moments(
        gather(count), gather(shift), gather(m2), gather(least), gather(most), mean_low=gather(low)
    )


def _sum(x: Tensor, slab: Slab) -> Tensor:
    return _reduce(x, slab, torch.sum)


def _reduce(x: Tensor, slab: Slab, how: object) -> Tensor:
    # The sample axis is always pooled, so there is always a dim to reduce.
    return how(x, slab.pooled, keepdim=True)  # type: ignore[operator]
