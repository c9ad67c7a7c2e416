"""The Moments of one chunk when values may be missing: NaN raised or left out, infinity always raised."""

from __future__ import annotations

import torch
from torch import Tensor

from slabnorm.errors import DataError, OptionError, StatisticsError
from slabnorm.functional import moments
from slabnorm.inputs.chunks import Chunk, Schema
from slabnorm.inputs.features import Features
from slabnorm.inputs.schemes import first_features
from slabnorm.moments import Moments
from slabnorm.slab import Slab, plan

POLICIES = ("raise", "omit")
_EXACT = 2.0**53  # from here on float64 skips integers


def check_policy(nan: str) -> None:
    """Raise OptionError unless `nan` is a policy."""
    if nan not in POLICIES:
        raise OptionError(
            'nan is "raise" or "omit"', repr(nan), '"omit" leaves NaN out, feature by feature, and counts it'
        )


class ChunkMoments:
    """Takes the Moments of chunks under a NaN policy, and counts what it leaves out.

    Attributes:
        nan_count: NaN left out so far, int64, one per feature.
    """

    def __init__(self, features: Features, sizes: dict[str, int], schema: Schema, nan: str) -> None:
        self.nan_count = torch.zeros(features.shape, dtype=torch.int64, device="cpu")
        self._features, self._sizes, self._nan = features, sizes, nan
        # float64 holds the integers of all other dtypes.
        self._wide_integers = schema.dtype in ("int64", "uint64")

    def of(self, chunk: Chunk, name: str) -> Moments:
        """Return the Moments of a chunk.

        Raises:
            DataError: NaN under the policy "raise", infinity, or an integer beyond 2^53; names the row.
            StatisticsError: the sum of finite values overflows float64.
        """
        found = moments(chunk.values, self._features.pattern, **self._sizes)
        # The usual case costs no further pass: NaN or infinity anywhere makes its slab's mean non-finite.
        if not bool(torch.isfinite(found.mean).all()):
            found = self._without_nan(chunk, name)
        if self._wide_integers and float(torch.maximum(found.max.max(), -found.min.min())) >= _EXACT:
            self._refuse(chunk, chunk.values.abs() >= _EXACT, "integers lie within 2^53", name,
                         "subtract an offset, or give floats, where they are approximate")  # fmt: skip
        return found

    def _without_nan(self, chunk: Chunk, name: str) -> Moments:
        infinite = torch.isinf(chunk.values)
        if bool(infinite.any()):
            self._refuse(chunk, infinite, "data are finite", name, "mend or leave out these values")
        missing = torch.isnan(chunk.values)
        if not bool(missing.any()):
            raise StatisticsError(
                "sums of values are finite in float64",
                f"{name}, from row {chunk.first_row}: values near the end of float64's range",
                "bring the data nearer to 1 first, as by a change of units",
            )
        if self._nan == "raise":
            self._refuse(chunk, missing, 'data hold no NaN under nan="raise"', name,
                         'mend them, or leave them out and count them with nan="omit"')  # fmt: skip
        slab = plan(self._features.pattern, (), tuple(chunk.values.shape), tuple(sorted(self._sizes.items())))
        self.nan_count += slab.kept.gather(_sum(missing.reshape(slab.split), slab))
        return moments_where(chunk.values, ~missing, slab)

    def _refuse(self, chunk: Chunk, which: Tensor, rule: str, name: str, fix: str) -> None:
        first = which.nonzero()[0].tolist()
        value = chunk.values[tuple(first)].item()
        place = self._features.place((chunk.first_row + first[0], *first[1:]))
        rows = f"rows {chunk.first_row}..{chunk.first_row + len(chunk.values) - 1}"
        raise DataError(rule, f"{name}: {value} at {place}; {int(which.sum())} in {rows}", fix)


def check_left(found: Moments, name: str) -> None:
    """Raise DataError if a feature has no value left."""
    gone = found.count == 0
    if bool(gone.any()):
        raise DataError(
            "every feature has values left without its NaN",
            f"{name}: {first_features(gone)} hold NaN only",
            "leave these features out of the data",
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
