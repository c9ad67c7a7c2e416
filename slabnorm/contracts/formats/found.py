"""What a reader of another program's file returns for each key."""

from __future__ import annotations

from dataclasses import dataclass

from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Source, Statistics


@dataclass(frozen=True, eq=False)
class Found:
    """One key of a file of another program: what it says, and nothing else.

    Attributes:
        key: pattern, scheme, unit, names and role; where the format does not say which scheme, the one that
            the statistics allow: see `usual_scheme`.
        statistics: what is known.
        sample: the shape of one sample; None for an axis that may have any size.
        source: format, split and number of samples, as far as they are known.
    """

    key: Key
    statistics: Statistics
    sample: tuple[int | None, ...]
    source: Source


def usual_scheme(statistics: Statistics) -> str:
    """Return the name of the first scheme that statistics allow: "zscore", "minmax" or "quantile".

    `fixed` needs no statistics, and so is a choice that a format, or the user, has to make.
    """
    known = statistics.known()
    if {"mean", "std"} <= known.keys():
        return "zscore"
    return "minmax" if {"min", "max"} <= known.keys() else "quantile"
