"""The mechanism is gradient flow: the rival explanation to that by drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite, log10
from statistics import fmean

import numpy as np

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, line, over_seeds
from slabnorm.study.claims.sweep import DEPTHS, FITTING, GAINS, RATES, short
from slabnorm.study.trials import Trial, TrialRecord, in_seeds
from slabnorm.study.watch import CLIFF, STEPS

NORMS = {"none": "no norm", "batch": "batch norm", "layer": "layer norm"}
PAIR = ("none", "batch")
DEEP, MIDDLE = DEPTHS[-1], DEPTHS[1]  # the middle one learns without a norm, too: its landscape is looked at
OWN = GAINS[0]  # PyTorch's own initial weights
LEARNS = 0.5  # the accuracy from which on a network counts as one that learns
USUAL = slice(2, 6)  # the step sizes that are usual learning rates, 0.01 to 0.3
LEAST = 1e-30  # a gradient below it counts as this

Runs = dict[Trial, list[TrialRecord]]  # of each network at its best rate those of all seeds
Value = Callable[[TrialRecord], float]


def measure(material: Material) -> Finding:
    """Measure gradients by depth, the loss along the gradient, and which of two values goes with accuracy."""
    runs = trained(material)
    views = landscapes(material, runs)
    longer = over_seeds([-d for d in compare(views, MIDDLE, FITTING, lambda run: log10(safe(run)))])
    flow, drifts = foretold(runs, spread), foretold(runs, drift)
    better = over_seeds([a - b for a, b in zip(flow, drifts, strict=True)])
    spans = {
        (norm, gain): fmean(map(spread, of(runs, norm, DEEP, gain)))
        for norm in PAIR
        for gain in (OWN, FITTING)
    }
    favoured = (
        "the data favour gradient flow" if (better.low or 0) > 0
        else "the data favour drift" if (better.high or 0) < 0 else "the data favour neither"
    )  # fmt: skip
    return Finding(
        measured=f"At the start of {DEEP} layers with PyTorch's own initial weights the gradient spans "
        f"{spans['none', OWN]:.1f} decades over the layers without a norm and {spans['batch', OWN]:.1f} with "
        f"batch norm; with the weights of He et al. {spans['none', FITTING]:.1f} and "
        f"{spans['batch', FITTING]:.1f}. The longest step along the gradient that lowers the loss is "
        f"{10**longer.mean:.1f} times as long with batch norm. Over {len(runs)} networks the rank "
        f"correlation of accuracy is {fmean(flow):.2f} with an even gradient at the start and "
        f"{fmean(drifts):.2f} with little drift: {favoured}.",
        tests=(
            Test("decades by which the longest safe step is longer with batch norm", longer, 0.0),
            Test("correlation of accuracy with an even gradient, minus that with little drift", better, 0),
        ),
        numbers=numbers(runs, views),
        pictures=(gradients(runs), along(views), scatter(runs, spread), scatter(runs, drift)),
        setting=(
            ("Networks", f"perceptrons of {', '.join(map(str, DEPTHS))} hidden layers of 64 units, ReLU; "
             "initial weights of three scales; each network at its own best rate, on validation"),
            ("Even gradient", "the decades between the largest and the smallest gradient of a hidden "
             "layer's weights, by their norms at the start"),
            ("Longest safe step", f"along a batch's gradient, of {STEPS[0]:g} to {STEPS[-1]:g} by half "
             f"decades, up to which the loss stays below that before it; {MIDDLE} layers, in training"),
        ),
    )  # fmt: skip


def trained(material: Material) -> Runs:
    """Return the trainings of every norm, depth and initial scale, each at its best rate."""
    norms, gains = (PAIR, GAINS[:2]) if material.quick else (tuple(NORMS), GAINS)
    trials = [short(material, depth, norm, gain) for norm in norms for depth in DEPTHS for gain in gains]
    best = best_rates(material, trials, RATES[2:3] if material.quick else RATES[::2], seeds=1)
    return in_all_seeds(material, best)


def landscapes(material: Material, runs: Runs) -> Runs:
    """Return the trainings of one depth, with and without a norm, with a look at the loss around them."""
    some = [t for t in runs if t.norm in PAIR and t.depth == MIDDLE and t.gain == FITTING]
    return in_all_seeds(material, [replace(trial, watch=("landscape", "useful")) for trial in some])


def in_all_seeds(material: Material, trials: Sequence[Trial]) -> Runs:
    """Return the records of each trial, one for each seed."""
    records = material.train([one for trial in trials for one in in_seeds(trial, material.seeds)])
    count = len(material.seeds)
    return {trial: records[i * count :][:count] for i, trial in enumerate(trials)}


def of(runs: Runs, norm: str, depth: int, gain: float) -> list[TrialRecord]:
    """Return the trainings of one norm, depth and initial scale."""
    return next(r for t, r in runs.items() if (t.norm, t.depth, t.gain) == (norm, depth, gain))


def compare(runs: Runs, depth: int, gain: float, value: Value) -> list[float]:
    """Return a value without a norm minus that with batch norm, seed by seed."""
    without, within = (of(runs, norm, depth, gain) for norm in PAIR)
    return [value(a) - value(b) for a, b in zip(without, within, strict=True)]


def spread(run: TrialRecord) -> float:
    """Return how many decades the gradient's norm spans over the layers, at the start."""
    norms = [max(norm, LEAST) if isfinite(norm) else CLIFF for norm in run.seen["gradient"][0]]
    return log10(max(norms) / min(norms))


def drift(run: TrialRecord) -> float:
    """Return the drift of the layers' inputs at the end, the mean over layers; inf if training diverged."""
    seen = run.seen["drift"][-1]
    mean = fmean(seen[: len(seen) // 2])
    return mean if run.status == "done" and isfinite(mean) else inf


def foretold(runs: Runs, value: Value, least: float = 0.0) -> list[float]:
    """Return the rank correlation over networks of the accuracy with a small value, for each seed.

    Args:
        runs: the networks.
        value: of a network.
        least: the least accuracy of a network that counts.
    """
    from scipy.stats import rankdata

    found = []
    for records in zip(*runs.values(), strict=True):
        pairs = [(run.accuracy, -value(run)) for run in records if run.accuracy >= least]
        ranks = [rankdata(column) for column in zip(*pairs, strict=True)]
        varies = len(ranks) == 2 and min(np.ptp(rank) for rank in ranks) > 0
        found.append(float(np.corrcoef(*ranks)[0, 1]) if varies else 0.0)
    return found


def safe(run: TrialRecord) -> float:
    """Return the longest step up to which the loss stays below its start: the geometric mean over looks."""
    found = []
    for here, *rest in run.seen["landscape"]:
        lower = [loss < here for loss in rest[: len(STEPS)]]
        count = lower.index(False) if False in lower else len(STEPS)
        found.append(log10(STEPS[max(count - 1, 0)]))
    return 10 ** fmean(found)


def rough(run: TrialRecord) -> float:
    """Return log10 of the range of the loss over usual steps along the gradient, the mean over looks."""
    ranges = []
    for _, *rest in run.seen["landscape"]:
        losses = rest[: len(STEPS)][USUAL]
        ranges.append(log10(max(max(losses) - min(losses), 1e-12)))
    return fmean(ranges)


def turn(run: TrialRecord) -> float:
    """Return how far the gradient changes over a step of 0.1, relative to its length; mean over looks."""
    place = 1 + len(STEPS) + STEPS.index(0.1)
    return fmean(min(look[place], CLIFF) for look in run.seen["landscape"])


def numbers(runs: Runs, views: Runs) -> tuple[Number, ...]:
    """Return what else was measured."""
    rougher = over_seeds(compare(views, MIDDLE, FITTING, rough))
    found = [Number("decades by which the loss varies more along the gradient without a norm", rougher)]
    for gain, weights in ((OWN, "PyTorch's weights"), (FITTING, "He's weights")):
        flat = over_seeds(compare(runs, DEEP, gain, spread))
        found.append(Number(f"decades that the gradient spans, no norm minus batch norm, {weights}", flat))
    for what, value in (("an even gradient", spread), ("little drift", drift)):
        for least, which in ((0.0, "all networks"), (LEARNS, f"those above {LEARNS:.0%}")):
            every = over_seeds(foretold(runs, value, least))
            found.append(Number(f"rank correlation of accuracy with {what}, {which}", every))
    for gain, weights in ((OWN, "PyTorch's weights"), (FITTING, "He's weights")):
        for norm in PAIR:
            reached = over_seeds([run.accuracy for run in of(runs, norm, DEEP, gain)])
            found.append(Number(f"test accuracy, {DEEP} layers, {weights}, {NORMS[norm]}", reached, "%"))
    for norm in PAIR:
        seen = of(views, norm, MIDDLE, FITTING)
        turned = over_seeds([turn(run) for run in seen])
        found.append(Number(f"relative change of the gradient after a step of 0.1, {NORMS[norm]}", turned))
        both = over_seeds([fmean(run.seen["useful"][-1]) for run in seen])
        found.append(Number(f"units that use both sides of ReLU at the end, {NORMS[norm]}", both, "%"))
    return tuple(found)


def gradients(runs: Runs) -> Picture:
    """Draw the gradient's norm by layer at the start, with and without batch norm, for two initial scales."""
    lines = []
    for norm in PAIR:
        for gain, weights in ((OWN, "PyTorch's weights"), (FITTING, "He's weights")):
            columns = [run.seen["gradient"][0] for run in of(runs, norm, DEEP, gain)]
            rows = [
                [max(value, LEAST) if isfinite(value) else CLIFF for value in row]
                for row in zip(*columns, strict=True)
            ]
            lines.append(line(f"{NORMS[norm]}, {weights}", range(1, DEEP + 1), rows))
    return Picture(
        f"The gradient of each of {DEEP} layers at the start",
        "layer, 1 is the first",
        "norm of the gradient of the layer's weights",
        tuple(lines),
        log="y",
    )


def along(views: Runs) -> Picture:
    """Draw the loss along the gradient, relative to where it starts, at the middle of training."""
    lines = []
    for norm in PAIR:
        looks = [run.seen["landscape"] for run in of(views, norm, MIDDLE, FITTING)]
        middle = [seen[len(seen) // 2] for seen in looks]
        rows = [[min(look[1 + i] / max(look[0], 1e-12), 1e3) for look in middle] for i in range(len(STEPS))]
        lines.append(line(NORMS[norm], STEPS, rows))
    return Picture(
        "The loss after one step along the gradient, halfway through the training",
        "step size",
        "loss after the step over loss before it (at most 1000)",
        tuple(lines),
        log="xy",
        marks=(("as before the step", 1.0),),
    )


def scatter(runs: Runs, value: Value) -> Picture:
    """Draw the accuracy of all networks against a value of theirs."""
    clouds = []
    for norm, name in NORMS.items():
        records = [run for trial, some in runs.items() if trial.norm == norm for run in some]
        records = [run for run in records if isfinite(value(run))]
        if records:
            clouds.append(Series(name, tuple(map(value, records)), tuple(run.accuracy for run in records)))
    by_flow = value is spread
    return Picture(
        "Does an even gradient go with accuracy?" if by_flow else "Does little drift go with accuracy?",
        "decades that the gradient spans over the layers, at the start"
        if by_flow
        else "drift at the end, in initial standard deviations",
        "test accuracy",
        tuple(clouds),
        kind="points",
        log="" if by_flow else "x",
    )


CLAIM = Claim(
    claim="What makes norms work is the flow of gradients, rather than less drift of the layers' inputs.",
    question="Batch norm makes training faster, and it makes the inputs of layers drift less. How would you "
    "find out whether one causes the other?",
    explanation="Santurkar et al. added drift on purpose after batch norm, and the network still trained "
    "fast: they hold that batch norm makes the loss smoother, so that the gradient at a point still says "
    "something a long step further. Bjorck et al. found that without it large steps make the values explode. "
    "And in a deep network with unfit initial weights the gradient of the first layers is too small, or too "
    "large, to learn with at any rate. Here many networks are trained, and it is asked with which the "
    "accuracy goes: with a gradient of equal size in all layers at the start, or with little drift. A "
    "correlation is no cause, and a network that learns nothing does not drift, so that networks that learn "
    "are looked at alone, too.",
    source="Santurkar et al. 2018, https://arxiv.org/abs/1805.11604; Bjorck et al. 2018, "
    "https://arxiv.org/abs/1806.02375; He et al. 2015, https://arxiv.org/abs/1502.01852",
    example="""import torch
import slabnorm as sn

torch.manual_seed(0)
for norm in (lambda: torch.nn.Identity(), lambda: sn.BatchNorm(64)):
    layers = [torch.nn.Sequential(torch.nn.Linear(64, 64), norm(), torch.nn.ReLU()) for _ in range(20)]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
    loss = torch.nn.functional.cross_entropy(network(torch.randn(128, 64)), torch.arange(128) % 10)
    loss.backward()
    norms = [layer[0].weight.grad.norm().item() for layer in layers]
    print("first layer", norms[0], "last", norms[-1])""",
    measure=measure,
)
