"""Fixed range, min-max and z-score each put the input where training works."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import (
    Claim,
    Finding,
    Material,
    best_rate,
    exactly,
    learning_curve,
    over_seeds,
)
from slabnorm.study.claims.first_layer import SCHEMES
from slabnorm.study.trials import Trial, in_seeds

RATES = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3)
SHORT = 0.05  # counted are the steps to this much below the best scheme's accuracy at the end


def measure(material: Material) -> Finding:
    """Train with raw and with scaled inputs, each at its best rate, and count the steps to one accuracy."""
    trial = Trial("mlp", batch_size=32, epochs=max(material.epochs, 2))
    known = material.data.value_range is not None or material.data.x.dtype.kind in "iu"
    schemes = [scheme for scheme in SCHEMES if scheme != "fixed" or known]
    rates, runs = {}, {}
    for scheme in schemes:
        rates[scheme] = best_rate(material, replace(trial, scheme=scheme), RATES)
        best = replace(trial, scheme=scheme, rate=rates[scheme])
        runs[scheme] = material.train(in_seeds(best, material.seeds))
    target = max(fmean(run.validation for run in records) for records in runs.values()) - SHORT
    last = max(point.step for records in runs.values() for run in records for point in run.curve)
    steps = {scheme: [min(run.steps_to(target), last) for run in records] for scheme, records in runs.items()}
    # A difference and no ratio: of small numbers of steps a ratio is noisy, and both say the same.
    saved = {
        scheme: over_seeds([a - b for a, b in zip(steps["raw"], steps[scheme], strict=True)])
        for scheme in schemes
        if scheme != "raw"
    }
    counted = ", ".join(f"{fmean(steps[scheme]):.0f} with {SCHEMES[scheme]} inputs" for scheme in schemes)
    return Finding(
        measured=f"Each at its own best learning rate, a validation accuracy of {target:.1%} takes these "
        f"steps: {counted} ({last} if never reached).",
        tests=tuple(
            Test(
                f"steps with raw inputs minus steps with {SCHEMES[scheme]} inputs", steps_saved, 0.0, "steps"
            )
            for scheme, steps_saved in saved.items()
        ),
        numbers=tuple(
            number
            for scheme in schemes
            for number in (
                Number(f"best learning rate, {SCHEMES[scheme]}", exactly(rates[scheme])),
                Number(f"steps, {SCHEMES[scheme]}", over_seeds(steps[scheme])),
                Number(
                    f"test accuracy, {SCHEMES[scheme]}", over_seeds([r.accuracy for r in runs[scheme]]), "%"
                ),
            )
        ),
        pictures=(
            Picture(
                "Validation accuracy by step",
                "optimiser steps",
                "validation accuracy",
                tuple(learning_curve(SCHEMES[scheme], records) for scheme, records in runs.items()),
                marks=(("counted to here", target),),
            ),
        ),
        setting=(
            ("Data", material.data.name),
            ("Network", "2 hidden layers of 64 ReLU units, batches of 32"),
        ),
    )


CLAIM = Claim(
    claim="Fixed range, min-max and z-score each put the input where training works, in fewer steps than raw "
    "inputs take.",
    question="If raw inputs are a hundred times too large, can a learning rate that is smaller make up for "
    "it?",
    explanation="Larger inputs make larger gradients of the first layer's weights, so that raw inputs need a "
    "smaller learning rate, which is then too small for all other layers. That is why each scheme has its "
    "own best rate here: otherwise one would measure the rate and not the scheme. Where raw values are not "
    "far from 1 anyway, as the digits' 0 to 16, a good rate can make up for it. Fixed range and min-max "
    "leave the mean above 0; z-score moves it to 0, and is the usual choice.",
    source="LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, "
    "http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf",
    example="""import torch
from sklearn.datasets import load_digits
import slabnorm as sn

x = torch.tensor(load_digits().images).unsqueeze(1)
schemes = (sn.FixedScale(0, 16), "minmax", "zscore")
for scheme in schemes:
    y = sn.fit(x, scheme, "n c h w -> c", split="train")(x)
    print(scheme, f"from {y.min():.2f} to {y.max():.2f}, mean {y.mean():.2f}, std {y.std():.2f}")""",
    measure=measure,
)
