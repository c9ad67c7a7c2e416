"""Moments: the one statistic of slabnorm, and its one operation, merge.

The statistics of a data set (merge over shards), of a run (merge over batches), of a group of
processes (merge over ranks) and of one slab inside a kernel (merge over tiles) are all this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.errors import OptionError, ShapeError, StatisticsError
from slabnorm.tracing import plain, readable, traced


def _tensor(values: object, dtype: torch.dtype) -> Tensor:
    # as_tensor would move a tensor to torch's default device.
    if isinstance(values, Tensor):
        return values if values.dtype == dtype else values.to(dtype)
    return torch.as_tensor(values, dtype=dtype)


def two_sum(a: Any, b: Any, of: Any = torch) -> tuple[Any, Any]:
    """Return the rounded sum of two tensors and its rounding error (Knuth, TAOCP 2, 4.2.2).

    Args:
        a, b: tensors, or arrays of NumPy.
        of: the module that they are of.
    """
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    # inf - inf above is NaN; the error of an infinite sum is none.
    return total, of.where(of.isfinite(error), error, of.zeros_like(error))


def _by_numpy(fields: Sequence[Tensor]) -> bool:
    """Return whether NumPy may compute with tensors, which takes it half as long (64 features: 0.27 ms)."""
    here = not traced()
    return here and all(plain(x) and x.device.type == "cpu" and not x.requires_grad for x in fields)


def _merge(a: Sequence[Any], b: Sequence[Any], of: Any = torch) -> list[Any]:
    """Return the fields of merged Moments, from those of both; counts as float64 come after these."""
    (count_a, mean_a, m2_a, min_a, max_a, low_a, m2_low_a, na) = a
    (count_b, mean_b, m2_b, min_b, max_b, low_b, m2_low_b, nb) = b
    count = count_a + count_b
    share = nb / (count + (count == 0))
    # The high parts may be huge and nearly equal; their difference is exact where it matters.
    high, error = two_sum(mean_b, -mean_a, of)
    delta = high + (error + (low_b - low_a))
    mean, mean_low = two_sum(mean_a, delta * share, of)
    mean, mean_low = two_sum(mean, mean_low + low_a, of)
    m2, m2_low = two_sum(m2_a, m2_b, of)
    m2, extra = two_sum(m2, delta * delta * na * share, of)
    m2, m2_low = two_sum(m2, m2_low + extra + m2_low_a + m2_low_b, of)
    merged = mean, m2, of.minimum(min_a, min_b), of.maximum(max_a, max_b), mean_low, m2_low
    only_a, only_b = count_b == 0, count_a == 0
    choices = zip(a[1:7], b[1:7], merged, strict=True)
    return [count, *(of.where(only_a, x, of.where(only_b, y, z)) for x, y, z in choices)]


FIELDS = ("count", "mean", "m2", "min", "max", "mean_low", "m2_low")  # of Moments, each a tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum, one per slab.

        mean = sum(x) / count        m2 = sum((x - mean)^2)        var = m2 / (count - ddof)

    All these are tensors of one shape: `count` int64, the others float64. `mean_low` and `m2_low`
    hold what `mean` and `m2` lost to rounding, so that merging a million chunks of numbers around
    1e12 with a spread of 1 still gives the variance to 13 digits, in any order.

    Args:
        count: elements in each slab.
        mean: their mean, in the units of the data.
        m2: their sum of squared deviations from the mean, in squared units.
        min: the smallest element; +inf where count is 0.
        max: the largest element; -inf where count is 0.
        weighted: whether elements have real weights: `count` is then their sum, float64, and so are all sums.

    Raises:
        StatisticsError: a negative count or a negative `m2`.
        ShapeError: fields of different shapes.

    The merge is that of Chan, Golub and LeVeque (1979), carried in twice the precision.

    >>> import slabnorm as sn, torch
    >>> x = torch.arange(12.0).reshape(6, 2)
    >>> whole = sn.moments(x, "n c -> c")
    >>> halves = sn.moments(x[:4], "n c -> c") + sn.moments(x[4:], "n c -> c")
    >>> halves.mean, torch.equal(halves.var(), whole.var())
    (tensor([5., 6.], dtype=torch.float64), True)
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    min: Tensor
    max: Tensor
    mean_low: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    m2_low: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    weighted: Any = field(default=False, repr=False, kw_only=True)  # a bool; Any for Moments(**tensors)

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "count", _tensor(self.count, torch.float64 if self.weighted else torch.int64))
        for name in ("mean", "m2", "min", "max"):
            store(self, name, _tensor(getattr(self, name), torch.float64))
        for name, of in (("mean_low", self.mean), ("m2_low", self.m2)):
            low = getattr(self, name)
            low = torch.zeros_like(of) if low is None else _tensor(low, torch.float64)
            store(self, name, low)
        if traced():
            return  # sizes and values may be unknown
        shapes = {name: tuple(getattr(self, name).shape) for name in ("count", "mean", "m2", "min", "max")}
        if len(set(shapes.values())) > 1:
            raise ShapeError(
                "The fields of Moments differ in shape", str(shapes), "give one count, mean, ... per slab"
            )
        count: Any = self.count
        m2: Any = self.m2
        if _by_numpy((count, m2)):
            count, m2 = count.numpy(), m2.numpy()
        elif not readable(count):
            return
        if bool((~(count >= 0) | (m2 < 0)).any()):
            raise StatisticsError(
                "Moments have a negative count or sum of squares",
                f"count {self.count.min().item()}, m2 {self.m2.min().item()}",
            )

    @classmethod
    def empty(cls, shape: tuple[int, ...] = (), device: Any = None) -> Moments:
        """Return the moments of no elements, the neutral element of `merge`.

        Without a shape they merge with moments of any shape, and of any device.

        >>> from slabnorm import Moments
        >>> Moments.empty().count
        tensor(0)
        """
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        inf = torch.full(shape, float("inf"), dtype=torch.float64, device=device)
        return cls(zero.to(torch.int64), zero, zero.clone(), inf, -inf)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every field: one value per slab."""
        return tuple(self.mean.shape)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of elements together; `a + b` is the same.

            n = n_a + n_b,   d = mean_b - mean_a
            mean = mean_a + d * n_b / n,   m2 = m2_a + m2_b + d^2 * n_a * n_b / n

        Shapes broadcast, so `Moments.empty()` is neutral for every shape.

        Raises:
            ShapeError: the shapes do not broadcast.
        """
        try:
            # broadcast_shapes imports sympy, 0.6 s.
            same = self.shape == other.shape
            shape = self.mean.shape if same else torch.broadcast_shapes(self.shape, other.shape)
        except RuntimeError:
            raise ShapeError(
                f"Moments of shapes {self.shape} and {other.shape} cannot be merged",
                fix="take both with the same pattern and sizes",
            ) from None
        a: Any = self._expand(shape, other)._fields()
        b: Any = other._expand(shape, self)._fields()
        weighted = self.weighted or other.weighted
        if not _by_numpy(a + b):
            merged = _merge([*a, a[0].double()], [*b, b[0].double()])
            return Moments(*merged, weighted=weighted)
        a, b = ([*(x.numpy() for x in fields), fields[0].double().numpy()] for fields in (a, b))
        with np.errstate(all="ignore"):
            merged = [torch.from_numpy(np.asarray(x)) for x in _merge(a, b, np)]
        return Moments(*merged, weighted=weighted)

    def __add__(self, other: object) -> Moments:
        return self.merge(other) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other: object) -> Moments:
        # sum() starts with 0.
        return self if other == 0 else NotImplemented

    def var(self, ddof: int = 0) -> Tensor:
        """Return the variance, `m2 / (count - ddof)`; NaN where count <= ddof.

        Args:
            ddof: 0 for the variance of these elements, 1 for the unbiased estimate of their source's.

        Raises:
            OptionError: `ddof` is negative.
        """
        if ddof < 0:
            raise OptionError("ddof must be 0 or more", str(ddof), "0: population, 1: unbiased")
        freedom = (self.count - ddof).double()
        return torch.where(freedom > 0, self.m2 / freedom, torch.full_like(freedom, float("nan")))

    def std(self, ddof: int = 0) -> Tensor:
        """Return the standard deviation, `sqrt(var(ddof))`, in the units of the data."""
        return self.var(ddof).sqrt()

    def _fields(self) -> tuple[Tensor, ...]:
        return self.count, self.mean, self.m2, self.min, self.max, self.mean_low, self.m2_low

    def _expand(self, shape: torch.Size, other: Moments) -> Moments:
        if self.mean.shape == shape:
            return self
        # A scalar on the CPU, such as the neutral element, meets tensors of any device.
        device = other.mean.device if self.mean.ndim == 0 else self.mean.device
        parts = (value.to(device).expand(shape) for value in self._fields())
        return Moments(*parts, weighted=self.weighted)
