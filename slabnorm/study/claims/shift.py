"""Deep layers see their input drift as earlier layers train; a norm inside stops that."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.report.study import Interval
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, line, over_seeds
from slabnorm.study.claims.sweep import FITTING, GAINS, RATES, short
from slabnorm.study.trials import TrialRecord, in_seeds

DEPTH = 20
NETWORKS = {
    ("none", FITTING): "no norm",
    ("batch", FITTING): "batch norm",
    ("none", GAINS[0]): "no norm, PyTorch's own initial weights",
}
END = DEPTH // 4  # layers that count as first, and as last


def measure(material: Material) -> Finding:
    """Train 20 layers with and without batch norm, and measure how far the input of each layer moves.

    They are compared where each first reaches the same validation accuracy: a network that learns nothing
    does not move.
    """
    trials = [short(material, DEPTH, norm, gain) for norm, gain in NETWORKS]
    best = best_rates(material, trials, RATES, seeds=1)
    records = material.train([one for trial in best for one in in_seeds(trial, material.seeds)])
    count = len(material.seeds)
    runs = {name: records[i * count :][:count] for i, name in enumerate(NETWORKS.values())}
    ends = {name: over_seeds([run.validation for run in runs[name]]) for name in runs}
    plain, normed, torch_own = runs.values()
    target = min(ends["no norm"].mean, ends["batch norm"].mean) - 0.02
    without, within = ([moved(run, target) for run in some] for some in (plain, normed))
    depth = over_seeds([fmean(drift[-END:]) / fmean(drift[:END]) for drift in without])
    cure = over_seeds([fmean(a) / fmean(b) for a, b in zip(without, within, strict=True)])
    return Finding(
        measured=f"Without a norm the inputs of the last {END} layers move {depth.mean:.1f} times as far as "
        f"those of the first {END}, and on average over all layers {cure.mean:.1f} times as far as with "
        f"batch norm, until both networks reach {target:.0%} on validation. "
        f"With PyTorch's own initial weights 20 layers without a norm end at "
        f"{ends[NETWORKS['none', GAINS[0]]].mean:.0%}"
        + (": hardly anything is learned, and so hardly anything drifts." if idle(torch_own) else "."),
        tests=(
            Test(f"drift of the last {END} layers over that of the first {END}, no norm", depth, 1.0, "x"),
            Test("drift without a norm over drift with batch norm, all layers", cure, 1.0, "x"),
        ),
        numbers=(
            *(Number(f"validation accuracy at the end, {name}", ends[name], "%") for name in runs),
            *(
                Number(f"drift of the last {END} layers, in standard deviations, {name}", last(some, target))
                for name, some in runs.items()
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
                (by_layer("no norm", without), by_layer("batch norm", within)),
            ),
            Picture(
                "The input of the last layer moves while the network learns",
                "optimiser steps",
                f"drift of layer {DEPTH}, in initial standard deviations",
                tuple(by_step(name, runs[name]) for name in ("no norm", "batch norm")),
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


def last(runs: Sequence[TrialRecord], target: float) -> Interval:
    """Return the drift of the last layers over seeds."""
    return over_seeds([fmean(moved(run, target)[-END:]) for run in runs])


def idle(runs: Sequence[TrialRecord]) -> bool:
    """Return whether networks end where they were at the first look, or hardly above it."""
    return fmean(run.validation - run.curve[0].accuracy for run in runs if run.curve) < 0.1


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
