"""A network with batch norm inside learns in fewer steps."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rate, learning_curve, over_seeds
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

NORMS = {"none": "no norm", "batch": "batch norm"}
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def measure(material: Material) -> Finding:
    """Train with and without batch norm, each at its best rate, and count the steps to one accuracy."""
    trial = Trial("mlp", depth=6, batch_size=32, epochs=material.epochs)
    runs: dict[str, list[TrialRecord]] = {}
    rates = {}
    for norm in NORMS:
        rates[norm] = best_rate(material, replace(trial, norm=norm), RATES)
        best = replace(trial, norm=norm, rate=rates[norm])
        runs[norm] = material.train(in_seeds(best, material.seeds))
    # The accuracy that the slower of the two reaches at its end, less a little, so that both get there.
    target = min(fmean(run.validation for run in records) for records in runs.values()) - 0.02
    steps = {norm: [run.steps_to(target) for run in records] for norm, records in runs.items()}
    longest = max(point.step for records in runs.values() for run in records for point in run.curve)
    ratio = over_seeds(
        [min(a, longest) / min(b, longest) for a, b in zip(steps["none"], steps["batch"], strict=True)]
    )
    return Finding(
        measured=f"To a validation accuracy of {target:.1%} the network without a norm takes {ratio.mean:.1f}"
        f" times as many steps as the one with batch norm.",
        tests=(Test("steps without a norm over steps with batch norm", ratio, 1.0, "x"),),
        numbers=tuple(
            Number(f"best learning rate, {NORMS[norm]}", over_seeds([rates[norm]])) for norm in NORMS
        ),
        pictures=(
            Picture(
                "Validation accuracy by step",
                "optimiser steps",
                "validation accuracy",
                tuple(learning_curve(NORMS[norm], records) for norm, records in runs.items()),
                marks=(("counted to here", target),),
            ),
        ),
    )


CLAIM = Claim(
    claim="Batch norm converges in fewer steps.",
    question="Two networks start from the same weights; one has batch norm after each layer. Both may choose "
    "their own learning rate. Which of them needs fewer steps, and why should that be?",
    explanation="Batch norm keeps what enters each activation centred and of spread 1, whatever the layers "
    "before it do. Gradients then have a similar size in all layers, and a larger step does no harm. Part of "
    "the gain is thus a larger learning rate, which is why each network is measured at its own best one, "
    "chosen on the validation split.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167",
    example="""import torch
import slabnorm as sn

plain = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
normed = torch.nn.Sequential(
    torch.nn.Linear(64, 64), sn.BatchNorm(64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
)
print(plain(torch.randn(32, 64)).shape, normed(torch.randn(32, 64)).shape)""",
    measure=measure,
)
