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
from slabnorm.study.statistics import paired
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

UNITS, SAMPLES = 32, 2_000
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
DRAWS = 100  # batches of each size
NEAR = 0.05  # of the slope from -1/2
NORMS = {"batch": "batch norm", "layer": "layer norm"}
# Batch sizes, and the learning rates around 0.1 per 128 samples at each (Goyal et al. 2017).
RATES = {8: (0.01, 0.03), 128: (0.1, 0.3)}


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
    seen = run.seen["fit"][-1]
    difference = seen[which] - seen[which + 2]
    return difference if which == 0 else -difference


def change(shrinks: float) -> str:
    """Return by how many points a gap changes, in words."""
    return f"{'shrinks' if shrinks >= 0 else 'grows'} by {100 * abs(shrinks):.1f} points"


def measure(material: Material) -> Finding:
    """Measure the noise of batch means, and what small batches do to the gap of train and test."""
    x = rows(material.data, "zscore", SAMPLES)
    noises = [
        noise(x @ RULES[KAIMING](UNITS, x.shape[1], seeded(seed, 11)).T, seeded(seed, 12))
        for seed in material.seeds
    ]
    slopes = over_seeds([slope(one) for one in noises])
    distance = over_seeds([abs(slope(one) + 0.5) for one in noises])
    runs = trained(material)
    small, large = RATES

    def shrinks(norm: str, which: int) -> list[float]:
        pairs = zip(runs[norm, large], runs[norm, small], strict=True)
        return [gap(a, which) - gap(b, which) for a, b in pairs]

    by_batch, by_layer = shrinks("batch", 0), shrinks("layer", 0)
    resolution = math.sqrt(2) / len(material.data.split.test)
    return Finding(
        measured=f"The noise of a batch mean falls as the batch size to the power {slopes.mean:.2f}. In "
        f"batches of {small} instead of {large} the gap between train and test accuracy "
        f"{change(fmean(by_batch))} with batch norm, and {change(fmean(by_layer))} with layer norm, which "
        "has no such noise.",
        tests=(
            Test("distance of the noise's power from -1/2", distance, NEAR, below=True),
            Test(
                f"how far batches of {small} shrink the gap, batch norm minus layer norm",
                paired(by_batch, by_layer, resolution),
                0.0,
                "%",
            ),
        ),
        numbers=tuple(
            number
            for (norm, size), records in runs.items()
            for number in (
                Number(
                    f"train minus test accuracy, {NORMS[norm]}, batches of {size}",
                    over_seeds([gap(run, 0) for run in records]),
                    "%",
                ),
                Number(
                    f"test minus train cross-entropy, {NORMS[norm]}, batches of {size}",
                    over_seeds([gap(run, 1) for run in records]),
                ),
                Number(
                    f"test accuracy, {NORMS[norm]}, batches of {size}",
                    over_seeds([run.accuracy for run in records]),
                    "%",
                ),
            )
        ),
        pictures=(
            Picture(
                "Noise of a batch mean",
                "batch size m",
                "error of the mean [standard deviations]",
                (
                    line("measured", SIZES, list(zip(*noises, strict=True))),
                    Series("1/sqrt(m)", SIZES, tuple(size**-0.5 for size in SIZES)),
                ),
                log="xy",
            ),
            Picture(
                "Gap between training and test",
                "batch size",
                "train minus test accuracy [%]",
                tuple(bars(norm, runs) for norm in NORMS),
                kind="bars",
            ),
        ),
        setting=(
            ("Data", material.data.name),
            ("Noise", f"{DRAWS} batches of each size, {UNITS} random units"),
            ("Network", "2 hidden layers of 64 units, each setting at its best rate"),
        ),
    )


def bars(norm: str, runs: dict[tuple[str, int], list[TrialRecord]]) -> Series:
    """Return the gaps of one norm by batch size, with the lowest and highest seed."""
    columns = [[100 * gap(run, 0) for run in runs[norm, size]] for size in RATES]
    return Series(
        NORMS[norm],
        tuple(map(str, RATES)),
        tuple(map(fmean, columns)),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
    )


CLAIM = Claim(
    claim="Batch norm's statistics are noisy, by 1/sqrt(m) for a batch of m, and so it is a mild "
    "regulariser.",
    question="Each time a sample comes by, its batch mates are others, and so are the mean and variance "
    "that it is normalised with. How large is this noise, and might it do any good?",
    explanation="A mean of m independent values scatters by 1/sqrt(m) of their standard deviation. In train "
    "mode batch norm therefore adds a little noise to each sample, the more the smaller the batch, and "
    "noise keeps a network from learning single samples by heart. But small batches make training noisy "
    "under every norm, by the gradient of fewer samples. So what small batches do to the gap between "
    "training and test accuracy is measured with layer norm too, which does not look at the batch; only what "
    "batch norm has beyond it is the work of its statistics.",
    source="Ioffe and Szegedy 2015, section 3.4, https://arxiv.org/abs/1502.03167; "
    "Luo et al. 2019, https://arxiv.org/abs/1809.00846",
    example="""import torch
import slabnorm as sn

x = torch.randn(10_000, 1)
for m in (2, 8, 32, 128):
    batches = x[torch.randint(len(x), (1000, m))]
    means = sn.moments(batches, "k m c -> k c").mean
    print(f"m = {m:3}: noise {means.std().item():.3f}, 1/sqrt(m) = {m ** -0.5:.3f}")""",
    measure=measure,
)
