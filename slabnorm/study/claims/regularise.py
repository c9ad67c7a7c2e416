"""Batch norm's statistics are noisy, which makes it a mild regulariser."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rate, line, over_seeds
from slabnorm.study.claims.first_layer import KAIMING, RULES, rows, seeded
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

UNITS, SAMPLES = 32, 2_000
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
DRAWS = 100  # batches of each size
NEAR = 0.05  # of the slope, whose own error over 8 sizes of 100 draws and 32 units is below 0.02
NORMS = {"batch": "batch norm", "layer": "layer norm"}
# Batch sizes, and the learning rates around 0.1 per 128 samples at each (Goyal et al. 2017).
RATES = {8: (0.003, 0.01, 0.03), 128: (0.03, 0.1, 0.3)}


def noise(z: Tensor, generator: torch.Generator) -> list[float]:
    """Return how much batch means scatter, in standard deviations of a unit, for each batch size.

    The samples of a batch are drawn with replacement, so that the population is as good as infinite.

    Args:
        z: the population, (n, units).
        generator: draws.
    """
    population, found = sn.moments(z, "n c -> c"), []
    for size in SIZES:
        drawn = torch.randint(len(z), (DRAWS, size), generator=generator)
        means = sn.moments(z[drawn], "k n c -> k c").mean
        off = (means - population.mean) / population.std()
        found.append(off.square().mean().sqrt().item())
    return found


def slope(noises: list[float]) -> float:
    """Return the slope of log noise over log batch size."""
    return float(np.polyfit(np.log(SIZES), np.log(noises), 1)[0])


def trained(material: Material) -> dict[tuple[str, int], list[TrialRecord]]:
    """Return networks with each norm and batch size, at their best rates, once for each seed."""
    runs = {}
    for norm in NORMS:
        for size, rates in RATES.items():
            trial = Trial("mlp", norm, batch_size=size, epochs=material.epochs)
            best = replace(trial, rate=best_rate(material, trial, rates), watch=("fit",))
            runs[norm, size] = material.train(in_seeds(best, material.seeds))
    return runs


def gap(run: TrialRecord, which: int) -> float:
    """Return train minus test accuracy (0), or test minus train cross-entropy (1)."""
    seen = run.seen["fit"][-1] or [0.0] * 4
    difference = seen[which] - seen[which + 2]
    return difference if which == 0 else -difference


def measure(material: Material) -> Finding:
    """Measure the noise of batch means, and what small batches do to the gap of train and test."""
    x = rows(material.data, "zscore", SAMPLES)
    noises = [
        noise(x @ RULES[KAIMING](UNITS, x.shape[1], seeded(seed, 11)).T, seeded(seed, 12))
        for seed in material.seeds
    ]
    slopes = over_seeds([slope(one) for one in noises])
    distance = over_seeds([NEAR - abs(slope(one) + 0.5) for one in noises])
    runs = trained(material)
    small, large = RATES

    def shrinks(norm: str, which: int) -> list[float]:
        pairs = zip(runs[norm, large], runs[norm, small], strict=True)
        return [gap(a, which) - gap(b, which) for a, b in pairs]

    more = [
        over_seeds([a - b for a, b in zip(shrinks("batch", i), shrinks("layer", i), strict=True)])
        for i in (0, 1)
    ]
    gaps = {key: fmean(gap(run, 0) for run in records) for key, records in runs.items()}
    return Finding(
        measured=f"{slopes}{gaps}",
        tests=(
            Test("0.05 minus the distance of the slope from -1/2", distance, 0.0),
            Test("acc", more[0], 0.0, "%"),
            Test("loss", more[1], 0.0, "%"),
        ),
        numbers=tuple(
            Number(f"{k} {i}", over_seeds([r.seen["fit"][-1][i] for r in v]))
            for k, v in runs.items()
            for i in range(4)
        ),
    )


CLAIM = Claim("", "", "", "", "", measure)
