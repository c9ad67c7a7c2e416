"""5xx, numerics: dtypes in which a norm cannot do what its formula says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.record import ModelRecord
from slabnorm.report.check import Finding

# The smallest number above 0 and the step at 1 of each dtype.
TINIEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}
STEP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def eps_vanishes(record: ModelRecord) -> Iterator[Finding]:
    """501: eps is 0 in the dtype of the layer."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        if norm.eps <= TINIEST.get(norm.dtype, 0.0) / 2:  # rounds to 0
            yield Finding(
                501, "error", layer.name,
                f"eps={norm.eps:g} is 0 in {norm.dtype}",
                "a constant channel is divided by 0 wherever the layer computes in its own dtype",
                "eps=1e-5, or the norm in float32",
                (("eps", norm.eps),),
            )  # fmt: skip


def half_statistics(record: ModelRecord) -> Iterator[Finding]:
    """502: running statistics in half precision."""
    for layer in record.norms:
        norm = layer.norm
        assert norm is not None
        if norm.statistics_dtype in ("float16", "bfloat16"):
            step = STEP[norm.statistics_dtype]
            yield Finding(
                502, "warning", layer.name,
                f"its running statistics are kept in {norm.statistics_dtype}",
                f"updates smaller than {100 * step / 2:.1g}% of them are rounded away: they stop moving",
                "model.half() for all but norms, or layers of slabnorm, which keep them in float32",
            )  # fmt: skip


def cancellation(record: ModelRecord) -> Iterator[Finding]:
    """503: x - mean has few digits left, because the mean is large beside the spread."""
    for layer in record.norms:
        norm, seen = layer.norm, layer.input
        assert norm is not None
        if seen is None or seen.count < 2 or not norm.centers:
            continue
        spread = np.sqrt(np.maximum(np.asarray(seen.var), norm.eps))
        lost = float((np.abs(seen.mean) / spread).max()) * STEP.get(norm.dtype, 0.0) / 2
        if lost > t.CANCELLED:
            yield Finding(
                503, "warning", layer.name,
                f"in {norm.dtype}, x - mean is off by up to {lost:.0%} of a standard deviation",
                "the mean is so large beside the spread that rounding of x itself hides the differences",
                "subtract a constant before the values are rounded, as in sn.fit(...) on float64 data",
                (("lost", lost),),
            )  # fmt: skip


RULES = (eps_vanishes, half_statistics, cancellation)
