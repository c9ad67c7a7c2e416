"""Deep layers see their input drift as earlier layers train; a norm inside stops that."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from statistics import fmean

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, line, over_seeds
from slabnorm.study.claims.sweep import FITTING, GAINS, RATES, short
from slabnorm.study.trials import TrialRecord, in_seeds

DEPTH = 20
PLAIN, NORMED, OWN = "no norm", "batch norm", "no norm, PyTorch's own initial weights"
NETWORKS = {PLAIN: ("none", FITTING), NORMED: ("batch", FITTING), OWN: ("none", GAINS[0])}
LEAST = 1e-6  # the drift of a network that has not moved at all, or has diverged before the first look
END = DEPTH // 4  # layers that count as first, and as last


def measure(material: Material) -> Finding:
    """Train 20 layers with and without batch norm, and measure how far the input of each layer moves.

    They are compared where each first reaches the same validation accuracy: a network that learns nothing
    does not move.
    """
    names = (PLAIN, NORMED) if material.quick else tuple(NETWORKS)
    rates = RATES[1:4:2] if material.quick else RATES
    best = best_rates(material, [short(material, DEPTH, *NETWORKS[name]) for name in names], rates, seeds=1)
    records = material.train([one for trial in best for one in in_seeds(trial, material.seeds)])
    count = len(material.seeds)
    runs = {name: records[i * count :][:count] for i, name in enumerate(names)}
    ends = {name: over_seeds([run.validation for run in runs[name]]) for name in names}
    target = min(ends[PLAIN].mean, ends[NORMED].mean) - 0.02
    without, within = ([moved(run, target) for run in runs[name]] for name in (PLAIN, NORMED))
    depth = over_seeds([doublings(drift[-END:], drift[:END]) for drift in without])
    cure = over_seeds([doublings(a, b) for a, b in zip(without, within, strict=True)])
    return Finding(
        measured=f"Without a norm the inputs of the last {END} layers move {2**depth.mean:.1f} times as far "
        f"as those of the first {END}, and over all layers {2**cure.mean:.1f} times as far as with "
        f"batch norm, until both networks reach {target:.0%} on validation. At the end "
        f"they are at {ends[PLAIN].mean:.1%} and {ends[NORMED].mean:.1%}."
        + (f" With PyTorch's own initial weights 20 layers without a norm end at {ends[OWN].mean:.1%}, "
           "whatever the rate." if OWN in ends else ""),
        tests=(
            Test(f"doublings of drift from the first {END} layers to the last {END}, no norm", depth, 0.0),
            Test("doublings of drift from batch norm to no norm, all layers", cure, 0.0),
        ),
        numbers=(
            *(Number(f"validation accuracy at the end, {name}", ends[name], "%") for name in runs),
            *(
                Number(f"drift of the last {END} layers, in standard deviations, {name}",
                       over_seeds([fmean(drift[-END:]) for drift in drifts]))
                for name, drifts in ((PLAIN, without), (NORMED, within))
            ),
            *(
                Number(f"best learning rate, {name}", over_seeds([trial.rate]))
                for name, trial in zip(runs, best, strict=True)
            ),
        ),
        pictures=(
            Picture(
                "How far the input of each layer has moved, at equal accuracy",
                "layer, 1 is the first",
                "drift of the mean, in initial standard deviations",
                (by_layer(PLAIN, without), by_layer(NORMED, within)),
            ),
            Picture(
                "The input of the last layer moves while the network learns",
                "optimiser steps",
                f"drift of layer {DEPTH}, in initial standard deviations",
                tuple(by_step(name, runs[name]) for name in (PLAIN, NORMED)),
            ),
        ),
        setting=(
            ("Network", f"{DEPTH} hidden layers of 64 units, ReLU; initial weights of He et al. 2015"),
            ("Drift", "|mean now - mean at the start| / standard deviation at the start, of what enters the "
             "activations, averaged over a layer's units"),
        ),
    )  # fmt: skip


def moved(run: TrialRecord, target: float) -> list[float]:
    """Return the drift of each layer when a network first reaches an accuracy, or at its end."""
    looks = [i for i, point in enumerate(run.curve, 1) if point.accuracy >= target]
    return run.seen["drift"][looks[0] if looks else -1][:DEPTH]


def doublings(more: Sequence[float], less: Sequence[float]) -> float:
    """Return how often the second mean is to be doubled to give the first.

    A ratio as a logarithm: its interval over seeds would not be symmetric otherwise.
    """
    return log2(max(fmean(more), LEAST) / max(fmean(less), LEAST))


def by_layer(name: str, drifts: Sequence[Sequence[float]]) -> Series:
    """Return the drift by layer of several seeds, as a line."""
    return line(name, range(1, DEPTH + 1), list(zip(*drifts, strict=True)))


def by_step(name: str, runs: Sequence[TrialRecord]) -> Series:
    """Return the drift of the last layer by step of several seeds, as a line; it ends with the shortest."""
    looks = min(len(run.curve) for run in runs)
    steps = [0, *(point.step for point in runs[0].curve[:looks])]
    return line(name, steps, [[run.seen["drift"][i][DEPTH - 1] for run in runs] for i in range(looks + 1)])


CLAIM = Claim(
    claim="Deep layers see their input distribution drift as earlier layers train, and norm inside cures it.",
    question="Each layer learns from what the layer before it hands on. But that layer learns too. What "
    "happens to the input of layer 20 while 19 layers before it change?",
    explanation="When a layer learns, its outputs change, and with them the inputs of all layers behind it: "
    "Ioffe and Szegedy called this internal covariate shift. Batch norm fixes mean and spread of what enters "
    "each activation, except for its own bias and weight, so that it can move only as far as they do. That "
    "the drift becomes smaller is one thing; that the drift is why deep networks are slow to train is "
    "another, and disputed: the claim 'flow' looks at that. A network that learns nothing does not drift at "
    "all, which is why both are looked at when they have reached the same accuracy.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; He et al. 2015, "
    "https://arxiv.org/abs/1502.01852",
    example="""import torch
import slabnorm as sn

torch.manual_seed(0)
x = torch.randn(512, 64)
first = torch.nn.Linear(64, 64)
before = first(x)
with torch.no_grad():
    first.bias += 2  # an earlier layer learns something
    first.weight *= 3
print((first(x).mean(0) - before.mean(0)).abs().mean() / before.std())  # its output has moved
normed = sn.BatchNorm(64)
print((normed(first(x)) - normed(before)).mean(0).abs().max())  # and after batch norm it has not""",
    measure=measure,
)
