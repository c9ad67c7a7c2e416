"""Data counted in small chunks, tables given to an estimator in pieces, and statistics that are the same."""

from __future__ import annotations

from itertools import pairwise

import torch

from slabnorm import Moments
from slabnorm.inputs.sources import open_source

FIELDS = ("count", "mean", "m2", "min", "max", "mean_low", "m2_low")


def same(a: Moments, b: Moments) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def in_chunks(scaler, x, edges, weights=None):
    for start, stop in pairwise([0, *sorted(edges), len(x)]):
        if start < stop:
            scaler.partial_fit(x[start:stop], sample_weight=None if weights is None else weights[start:stop])
    return scaler


def small(data, chunk_values):
    """Open data to be counted in chunks of so many values, and in shards of 16 of them."""
    source = open_source(data)
    source.chunk_values = chunk_values
    return source
