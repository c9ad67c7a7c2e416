"""What a reader of another program's file returns for each key."""

from __future__ import annotations

from dataclasses import dataclass

from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import Provenance, Statistics
from slabnorm.inputs.normalizer import FeatureNorm


@dataclass(frozen=True, eq=False)
class Found:
    """One key of a file of another program: what it says, and nothing else.

    Attributes:
        key: pattern, scheme, unit, names and role; where the format does not say which scheme, the one that
            the statistics allow: see `usual_scheme`.
        statistics: what is known; None of a key that passes unchanged.
        sample: the shape of one sample; None for an axis that may have any size.
        source: format, split and number of samples, as far as they are known.
    """

    key: Key
    statistics: Statistics | None
    sample: tuple[int | None, ...]
    source: Provenance


def usual_scheme(statistics: Statistics) -> str:
    """Return the name of the first scheme that statistics allow: "zscore", "minmax" or "quantile".

    `fixed` needs no statistics, and so is a choice that a format, or the user, has to make.
    """
    known = statistics.known()
    if {"mean", "std"} <= known.keys():
        return "zscore"
    return "minmax" if {"min", "max"} <= known.keys() else "quantile"


def last_axes(shape: tuple[int, ...]) -> tuple[str, tuple[int | None, ...]]:
    """Return pattern and sample of statistics that belong to the last axes of a batch.

    The axes between the samples and these are pooled, whatever there are: a batch of states (n, c) and one of
    sequences of states (n, t, c) both fit. Statistics of shape () are those of single values, and those of
    shape (c, 1, 1) of the channels of images.

    >>> last_axes((7,))
    ('n ... c -> c', (7,))
    >>> last_axes((3, 1, 1))
    ('n ... c h w -> c', (3, None, None))
    """
    if shape[1:] == (1, 1):
        return "n ... c h w -> c", (shape[0], None, None)
    names = " ".join("cdefghij"[: len(shape)])
    return f"n ... {names} -> {names}" if names else "n ... ->", shape


def last_axes_of(norm: FeatureNorm) -> str:
    """Say which axes of a batch the features of a layer are: "last", "images", or "" for others.

    Those of images are the channels of (n, ..., c, h, w).
    """
    pattern = norm.features.pattern
    if any(len(item) > 1 for item in (*pattern.left, *pattern.right)):
        return ""
    left, right = [item[0] for item in pattern.left], [item[0] for item in pattern.right]
    if left[len(left) - len(right) :] == right:
        return "last"
    return "images" if left[-3:-2] == right else ""
