"""With batch norm a network is less sensitive to the scale of its initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log10
from statistics import fmean

from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, line, over_seeds
from slabnorm.study.claims.sweep import FITTING, GAINS, short
from slabnorm.study.trials import in_seeds

NORMS = {"none": "no norm", "batch": "batch norm"}
DEPTH = 6
SCALES = (0.25, 0.5, *GAINS, 12.0, 24.0)  # two decades, three of the values shared with the sweep
RATES, QUICK_RATES = (0.003, 0.03, 0.3, 3.0), (0.03, 0.3)  # under a norm large weights need large steps
POINTS = 0.05  # of accuracy below the best of both networks, within which one counts as trained


def measure(material: Material) -> Finding:
    """Train with initial weights of many scales, each at its own best rate, and see which scales work."""
    scales = SCALES[1:-1:2] if material.quick else SCALES
    trials = [short(material, DEPTH, norm, gain) for norm in NORMS for gain in scales]
    best = best_rates(material, trials, QUICK_RATES if material.quick else RATES, seeds=1)
    material.train([one for trial in best for one in in_seeds(trial, material.seeds)])
    accuracies = {
        norm: [
            [run.accuracy for run in material.train(in_seeds(trial, material.seeds))]
            for trial in best
            if trial.norm == norm
        ]
        for norm in NORMS
    }
    # From the better of the two: a network that learns at no scale would else train at all of them.
    by_seed = {norm: list(zip(*accuracies[norm], strict=True)) for norm in NORMS}
    bars = [max(max(pair[0]), max(pair[1])) - POINTS for pair in zip(*by_seed.values(), strict=True)]
    widths = {
        norm: [decades(scales, seed, bar) for seed, bar in zip(by_seed[norm], bars, strict=True)]
        for norm in NORMS
    }
    wider = over_seeds([b - a for a, b in zip(widths["none"], widths["batch"], strict=True)])
    ranges = {norm: 10 ** fmean(widths[norm]) for norm in NORMS}
    relative = [scale / FITTING for scale in scales]
    return Finding(
        measured=f"Within {POINTS * 100:.0f} points of the best accuracy of both the network without a norm "
        f"trains over a factor of {ranges['none']:.1f} of initial scales, and the one with batch norm over a "
        f"factor of {ranges['batch']:.0f}, of {scales[-1] / scales[0]:.0f} that were tried.",
        tests=(
            Test("decades of initial scale that train with batch norm, minus those without", wider, 0.0),
        ),
        numbers=(
            *(Number(f"decades that train, {NORMS[norm]}", over_seeds(widths[norm])) for norm in NORMS),
            *(
                Number(f"test accuracy at {relative[i]:.2g} times He's weights, {NORMS[norm]}",
                       over_seeds(accuracies[norm][i]), "%")
                for norm in NORMS
                for i in range(len(scales))
            ),
        ),
        pictures=(
            Picture(
                "Test accuracy by the scale of the initial weights",
                "initial weights, in multiples of those of He et al. 2015",
                "test accuracy",
                tuple(line(NORMS[norm], relative, accuracies[norm]) for norm in NORMS),
                log="x",
            ),
        ),
        setting=(
            ("Network", f"{DEPTH} hidden layers of 64 units, ReLU, {NORMS['none']} or {NORMS['batch']}"),
            ("Rate", "for each scale and norm its own best, on validation"),
        ),
    )  # fmt: skip


def decades(scales: Sequence[float], accuracies: Sequence[float], bar: float) -> float:
    """Return over how many decades of scale the accuracy is `bar` or more.

    Between two scales it is taken to change in a straight line over the logarithm of the scale.
    """
    width = 0.0
    for (low, first), (high, second) in pairwise(zip(scales, accuracies, strict=True)):
        above = max(first, second) - bar
        share = 1.0 if min(first, second) >= bar else above / abs(first - second) if above > 0 else 0.0
        width += share * log10(high / low)
    return width


CLAIM = Claim(
    claim="Batch norm makes a network less sensitive to the scale of its initial weights.",
    question="All initial weights of a network are multiplied by ten. What becomes of the values in its "
    "sixth layer, without a norm and with one?",
    explanation="Each layer multiplies what it gets by the size of its weights, so that a factor of ten "
    "becomes a million after six layers: too small and nothing reaches the end, too large and the first step "
    "throws everything about. Batch norm divides by the spread of each unit, whatever it is, so that the "
    "output does not depend on the scale of the weights before it, as long as it lies well above eps. What "
    "scale does change is the gradient: larger weights get smaller gradients, and turn more slowly.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; He et al. 2015, "
    "https://arxiv.org/abs/1502.01852",
    example="""import torch
import slabnorm as sn

x = torch.randn(128, 64)
for scale in (0.1, 1.0, 10.0):
    plain = normed = x
    for _ in range(6):
        weight = scale * torch.randn(64, 64) * (2 / 64) ** 0.5
        plain = (plain @ weight).relu()
        normed = sn.normalize(normed @ weight, "n c -> c").relu()
    print(scale, plain.std().item(), normed.std().item())""",
    measure=measure,
)
