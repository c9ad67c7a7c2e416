"""With small batches the statistics of batch norm fail; group norm does not care."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import torch

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, exactly, line, over_seeds
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

NORMS = {"batch": "batch norm", "group": "group norm"}
SIZES, QUICK_SIZES = (1, 2, 4, 8, 16, 32, 128), (2, 8, 32)
FEW, MANY = 2, 32  # the ends of the group norm paper's curve, which are compared
# At a batch of 32: a smaller batch takes proportionally smaller steps (Goyal et al. 2017), and for each size
# and norm the best of these is taken.
RATES, QUICK_RATES = (0.03, 0.1, 0.3), (0.1,)

Runs = dict[str, dict[int, list[TrialRecord]]]  # of each norm and batch size those of all seeds


def measure(material: Material) -> Finding:
    """Train with batches of 1 to 128, each norm at its own best rate, for equally many epochs."""
    usual = network(material)
    runs = trained(material, usual)
    errors = {n: {size: [1 - r.accuracy for r in some] for size, some in runs[n].items()} for n in NORMS}
    rise = {n: [a - b for a, b in zip(errors[n][FEW], errors[n][MANY], strict=True)] for n in NORMS}
    more = over_seeds([a - b for a, b in zip(rise["batch"], rise["group"], strict=True)])
    rises = {norm: over_seeds(rise[norm]) for norm in NORMS}
    refused = alone()
    sizes = sorted(errors["batch"])
    return Finding(
        measured=f"From batches of {MANY} to batches of {FEW} the test error of batch norm changes by "
        f"{rises['batch'].mean * 100:+.1f} points, to {fmean(errors['batch'][FEW]):.1%}, and that of group "
        f"norm by {rises['group'].mean * 100:+.1f}, to {fmean(errors['group'][FEW]):.1%}. "
        + one_sample(runs)
        + (" A slab of one value is refused, with a StatisticsError." if refused else ""),
        tests=(
            Test(f"batch norm: error at {FEW} minus error at {MANY} samples", rises["batch"], 0.0, "%"),
            Test("the rise of batch norm's error minus that of group norm's", more, 0.0, "%"),
            Test("batch norm refuses a slab of one value", exactly(float(refused)), 0.5),
        ),
        numbers=(
            *(
                Number(f"test error, {NORMS[norm]}, batches of {size}", over_seeds(errors[norm][size]), "%")
                for norm in NORMS
                for size in sizes
            ),
            *(
                Number(f"accuracy in train mode minus eval mode, batch norm, batches of {size}",
                       over_seeds([run.gap for run in runs["batch"][size]]), "%")
                for size in sizes
            ),
        ),
        pictures=(
            Picture(
                "Test error by batch size",
                "samples in a batch",
                "test error",
                tuple(line(NORMS[n], sizes, [errors[n][size] for size in sizes]) for n in NORMS),
                log="x",
            ),
        ),
        setting=(
            ("Network", f"{usual.network}, ReLU; {usual.epochs} epochs of "
             f"{usual.samples or len(material.data.split.train):,} samples at every batch size"),
            ("Rate", "in proportion to the batch size, times the best of a grid for each size and norm"),
        ),
    )  # fmt: skip


def network(material: Material) -> Trial:
    """Return what is trained: a convolutional network, or a perceptron on a table."""
    sees, samples = (1_000, 500) if material.quick else (2_400, 800)
    samples = min(samples, len(material.data.split.train))
    table = material.data.x.ndim == 2
    return Trial(
        "mlp" if table else "deep conv", depth=4, epochs=round(sees / samples), samples=samples, looks=4
    )


def trained(material: Material, usual: Trial) -> Runs:
    """Return the trainings of both norms at every batch size, each at its own best rate."""
    sizes = QUICK_SIZES if material.quick else SIZES
    trials = [replace(usual, norm=norm, batch_size=size) for norm in NORMS for size in sizes]
    rates = [rate / MANY for rate in (QUICK_RATES if material.quick else RATES)]
    best = best_rates(material, trials, rates, seeds=1, per_sample=True)
    records = material.train([one for trial in best for one in in_seeds(trial, material.seeds)])
    count, runs = len(material.seeds), {norm: {} for norm in NORMS}
    for i, trial in enumerate(best):
        runs[trial.norm][trial.batch_size] = records[i * count :][:count]
    return runs
