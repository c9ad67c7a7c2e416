"""The two sides of an audit, training and new data, as flat arrays with a number per feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from slabnorm.inputs.normalizer import InputNorm
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.mergeable_moments import Moments


@dataclass(frozen=True, eq=False)
class Side:
    """Statistics of a data set, float64 but for the counts; NaN for what a feature without values lacks.

    Attributes:
        samples: how many.
        count: values of each feature.
        missing: NaN and null, which are not among them.
        mean, std, min, max: of each feature.
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
        """Return the statistics of a fit, or of what was counted."""
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
        """Values that are taken as independent: one per sample, as the pixels of an image are alike."""
        return np.clip(np.minimum(self.count, self.samples), 1, None).astype(float)

    @property
    def reach(self) -> np.ndarray:
        """The distance of the farthest value from the mean, in standard deviations."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.maximum(self.max - self.mean, self.mean - self.min) / self.std

    def moved(self, factor: np.ndarray, offset: np.ndarray) -> Side:
        """Return the statistics of `x * factor + offset`, factors being positive."""
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
