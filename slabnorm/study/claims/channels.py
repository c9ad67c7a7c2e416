"""A convolution's statistics pool batch and space per channel."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import (
    Claim,
    Finding,
    Material,
    best_rate,
    exactly,
    learning_curve,
    over_seeds,
)
from slabnorm.study.claims.first_layer import check_images, samples
from slabnorm.study.statistics import paired
from slabnorm.study.trials import Trial, in_seeds

NETWORKS = {"conv": "per channel", "conv per pixel": "per pixel and channel"}
PATTERNS = {"conv": "n c h w -> c", "conv per pixel": "n c h w -> c h w"}
BATCH = 8  # small, where the size of a slab matters most
RATES = (0.01, 0.03, 0.1)


def measure(material: Material) -> Finding:
    """Count the slabs of both kinds, and train a convolutional network with each at its best rate."""
    check_images(material.data, "channels")
    resolution = 1 / len(material.data.split.test)
    x = samples(material.data, "zscore", BATCH)
    counts = {kind: int(sn.moments(x, pattern).count.max()) for kind, pattern in PATTERNS.items()}
    rates, runs = {}, {}
    for kind in NETWORKS:
        # Half the usual length: small batches take many steps.
        trial = Trial(kind, "batch", batch_size=BATCH, epochs=max(1, material.epochs // 2))
        rates[kind] = best_rate(material, trial, RATES)
        runs[kind] = material.train(in_seeds(replace(trial, rate=rates[kind]), material.seeds))
    found = {kind: [run.accuracy for run in records] for kind, records in runs.items()}
    better = paired(found["conv"], found["conv per pixel"], resolution)
    return Finding(
        measured=f"In a batch of {BATCH} images a slab of the first layer holds {counts['conv']:,} values "
        f"per channel, and {counts['conv per pixel']} per pixel and channel; the test accuracy is "
        f"{fmean(found['conv']):.1%} against {fmean(found['conv per pixel']):.1%}.",
        tests=(Test("test accuracy per channel minus per pixel and channel", better, 0.0, "%"),),
        numbers=tuple(
            number
            for kind, name in NETWORKS.items()
            for number in (
                Number(f"values in a slab, {name}", exactly(counts[kind])),
                Number(f"test accuracy, {name}", over_seeds(found[kind], resolution), "%"),
                Number(f"best learning rate, {name}", exactly(rates[kind])),
            )
        ),
        pictures=(
            Picture(
                "Statistics per channel, and per pixel and channel",
                "optimiser steps",
                "validation accuracy",
                tuple(learning_curve(NETWORKS[kind], records) for kind, records in runs.items()),
            ),
            Picture(
                "Values in a slab of the first layer",
                "statistics",
                f"values in a batch of {BATCH}",
                (Series("values", tuple(NETWORKS.values()), tuple(map(float, counts.values()))),),
                kind="bars",
                log="y",
            ),
        ),
        setting=(
            ("Data", material.data.name),
            ("Network", f"three convolutions, batch norm after each; batches of {BATCH}"),
        ),
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
