"""A convolution's statistics pool batch and space per channel."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rate, exactly, over_seeds
from slabnorm.study.claims.first_layer import check_images, samples
from slabnorm.study.statistics import paired
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

NETWORKS = {"conv": "per channel", "conv per pixel": "per pixel and channel"}
PATTERNS = {"conv": "n c h w -> c", "conv per pixel": "n c h w -> c h w"}
BATCHES = (8, 32)
RATES = (0.01, 0.03, 0.1, 0.3)


def measure(material: Material) -> Finding:
    """Count the slabs of both kinds, and train a convolutional network with each at its best rate."""
    check_images(material.data, "channels")
    split = material.data.split
    resolution = 1 / len(split.test)
    counts = {
        (size, kind): int(sn.moments(samples(material.data, "zscore", size), PATTERNS[kind]).count.max())
        for size in BATCHES
        for kind in NETWORKS
    }
    runs: dict[tuple[int, str], list[TrialRecord]] = {}
    rates = {}
    for size, kind in counts:
        trial = Trial(kind, "batch", batch_size=size, epochs=material.epochs)
        rates[size, kind] = best_rate(material, trial, RATES)
        best = replace(trial, rate=rates[size, kind])
        runs[size, kind] = material.train(in_seeds(best, material.seeds))
    found = {key: [run.accuracy for run in records] for key, records in runs.items()}
    better = {
        size: paired(found[size, "conv"], found[size, "conv per pixel"], resolution) for size in BATCHES
    }
    few, many = BATCHES
    return Finding(
        measured=f"In a batch of {few} images a slab of the first layer holds {counts[few, 'conv']:,} "
        f"values per channel, and {counts[few, 'conv per pixel']} per pixel and channel; test accuracy is "
        f"{fmean(found[few, 'conv']):.1%} against {fmean(found[few, 'conv per pixel']):.1%}, and in batches "
        f"of {many} {fmean(found[many, 'conv']):.1%} against {fmean(found[many, 'conv per pixel']):.1%}.",
        tests=tuple(
            Test(
                f"accuracy per channel minus per pixel and channel, batches of {size}", better[size], 0.0, "%"
            )
            for size in BATCHES
        ),
        numbers=tuple(
            number
            for (size, kind), rate in rates.items()
            for number in (
                Number(f"values in a slab, {NETWORKS[kind]}, batches of {size}", exactly(counts[size, kind])),
                Number(
                    f"test accuracy, {NETWORKS[kind]}, batches of {size}",
                    over_seeds(found[size, kind], resolution),
                    "%",
                ),
                Number(f"best learning rate, {NETWORKS[kind]}, batches of {size}", exactly(rate)),
            )
        ),
        pictures=(
            Picture(
                "Statistics per channel, and per pixel and channel",
                "batch size",
                "test accuracy [%]",
                tuple(bars(kind, found) for kind in NETWORKS),
                kind="bars",
            ),
        ),
        setting=(("Data", material.data.name), ("Network", "three convolutions, batch norm after each")),
    )


def bars(kind: str, found: dict[tuple[int, str], list[float]]) -> Series:
    """Return the accuracies of one kind of statistics by batch size, with the lowest and highest seed."""
    columns = [[100 * value for value in found[size, kind]] for size in BATCHES]
    return Series(
        NETWORKS[kind],
        tuple(map(str, BATCHES)),
        tuple(map(fmean, columns)),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
    )


CLAIM = Claim(
    claim="A convolution's statistics pool batch and space per channel, which serves better than statistics "
    "of each pixel.",
    question="A perceptron's batch norm has statistics for each unit. Why does a convolution's not have them "
    "for each pixel of each channel?",
    explanation="A convolution applies one kernel at every place, so that all places of a channel hold the "
    "same feature. Pooling over them makes a slab larger by height times width: its statistics are "
    "steadier, above all in small batches. And the layer treats all places alike, as the "
    "convolution does: a picture that is moved gives the same features, moved. Statistics of each pixel "
    "give that up, and learn a weight and a bias for each pixel. They may gain where a place has a meaning "
    "of its own, as in pictures that are all centred alike.",
    source="Ioffe and Szegedy 2015, section 3.2, https://arxiv.org/abs/1502.03167",
    example="""import torch
import slabnorm as sn

x = torch.randn(8, 16, 28, 28)
for pattern in ("n c h w -> c", "n c h w -> c h w"):
    slabs = sn.moments(x, pattern)
    spread = slabs.mean.std().item()
    print(f"{pattern}: {slabs.mean.numel()} slabs of {slabs.count.max()}, means spread by {spread:.3f}")""",
    measure=measure,
)
