"""With small batches the statistics of batch norm fail; group norm does not care."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import torch

import slabnorm as sn
from slabnorm.errors import StatisticsError
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, best_rates, exactly, line, over_seeds
from slabnorm.study.statistics import paired
from slabnorm.study.trials import Trial, TrialRecord, in_seeds

NORMS = {"batch": "batch norm", "group": "group norm"}
SIZES, QUICK_SIZES = (1, 2, 4, 8, 16, 32, 128), (2, 32)
FEW, MANY = 2, 32  # the ends of the group norm paper's curve, which are compared
# At a batch of 32: a smaller batch takes proportionally smaller steps (Goyal et al. 2017), and for each size
# and norm the best of these is taken.
RATES, QUICK_RATES = (0.03, 0.1, 0.3), (0.1,)

DESCRIPTIONS = {
    "conv with head": "two convolutions and a hidden linear layer, each with a norm and ReLU; that of the "
    "linear layer has one value of a sample in each channel",
    "mlp": "four hidden layers, each with a norm and ReLU; a norm has one value of a sample in each channel",
}

SEEDS = 5
NEAR = 0.02  # more error than that would be a rise; less error is none: small batches take more steps

Runs = dict[str, dict[int, list[TrialRecord]]]  # of each norm and batch size those of all seeds


def measure(material: Material) -> Finding:
    """Train with batches of 1 to 128, each norm at its own best rate, for equally many epochs."""
    usual = network(material)
    runs = trained(material, usual)
    errors = {
        norm: {size: [1 - run.accuracy for run in some] for size, some in runs[norm].items() if trains(some)}
        for norm in NORMS
    }
    rise = {n: [a - b for a, b in zip(errors[n][FEW], errors[n][MANY], strict=True)] for n in NORMS}
    unit = math.sqrt(2) / len(material.data.split.test)  # of a difference of two counted shares
    more = paired(rise["batch"], rise["group"], unit)
    rises = {norm: over_seeds(rise[norm], unit) for norm in NORMS}
    refused = alone()
    return Finding(
        measured=f"From batches of {MANY} to batches of {FEW} the test error of batch norm changes by "
        f"{rises['batch'].mean * 100:+.1f} points, to {fmean(errors['batch'][FEW]):.1%}, and that of group "
        f"norm by {rises['group'].mean * 100:+.1f}, to {fmean(errors['group'][FEW]):.1%}."
        + one_sample(runs)
        + (" A slab of one value is refused, with a StatisticsError." if refused else ""),
        tests=(
            Test(f"batch norm: error at {FEW} minus error at {MANY} samples", rises["batch"], 0.0, "%"),
            Test("the rise of batch norm's error minus that of group norm's", more, 0.0, "%"),
            Test(f"group norm: error at {FEW} minus error at {MANY}", rises["group"], NEAR, "%", below=True),
            Test("batch norm refuses a slab of one value", exactly(float(refused)), 0.5),
        ),
        numbers=(
            *(
                Number(f"test error, {NORMS[norm]}, batches of {size}", over_seeds(errors[norm][size]), "%")
                for norm in NORMS
                for size in errors[norm]
            ),
            *(
                Number(f"accuracy in train mode minus eval mode, batch norm, batches of {size}",
                       over_seeds([run.gap for run in runs["batch"][size]]), "%")
                for size in errors["batch"]
            ),
        ),
        pictures=(
            Picture(
                "Test error by batch size",
                "samples in a batch",
                "test error",
                tuple(line(NORMS[norm], list(errors[norm]), list(errors[norm].values())) for norm in NORMS),
                log="x",
            ),
        ),
        setting=(
            ("Network", f"{DESCRIPTIONS[usual.network]}; {usual.epochs} epochs of "
             f"{usual.samples or len(material.data.split.train):,} samples at every batch size; "
                f"{len(enough(material.seeds))} seeds"),
            ("Rate", "in proportion to the batch size, times the best of a grid for each size and norm"),
        ),
    )  # fmt: skip


def network(material: Material) -> Trial:
    """Return what is trained: a convolutional network, or a perceptron on a table."""
    sees, samples = (900, 300) if material.quick else (3_200, 800)
    samples = min(samples, len(material.data.split.train))
    table = material.data.x.ndim == 2
    return Trial(
        "mlp" if table else "conv with head", depth=4, epochs=round(sees / samples), samples=samples, looks=4
    )


def trained(material: Material, usual: Trial) -> Runs:
    """Return the trainings of both norms at every batch size, each at its own best rate."""
    sizes = QUICK_SIZES if material.quick else SIZES
    trials = [replace(usual, norm=norm, batch_size=size) for norm in NORMS for size in sizes]
    rates = QUICK_RATES if material.quick else RATES
    best = best_rates(material, trials, rates, seeds=1, reference_batch=MANY)
    seeds = enough(material.seeds)
    records = material.train([one for trial in best for one in in_seeds(trial, seeds)])
    count = len(seeds)
    runs: Runs = {norm: {} for norm in NORMS}
    for i, trial in enumerate(best):
        runs[trial.norm][trial.batch_size] = records[i * count :][:count]
    return runs


def enough(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the seeds, and those that follow up to five: short trainings vary from seed to seed."""
    return tuple(range(seeds[0], seeds[0] + max(SEEDS, len(seeds))))


def one_sample(runs: Runs) -> str:
    """Return what became of training with one sample at a time, in a sentence; empty if it was not tried."""
    if 1 not in runs["batch"] or trains(runs["batch"][1]):
        return ""
    return " With one sample at a time batch norm does not train: its last layer has slabs of one value."


def trains(runs: list[TrialRecord]) -> bool:
    """Return whether none of some trainings was refused, for a slab of one value."""
    return all(run.status != "refused" for run in runs)


def alone() -> bool:
    """Return whether batch norm refuses to train on one sample without further axes."""
    try:
        sn.BatchNorm(8)(torch.ones(1, 8))
    except StatisticsError:
        return True
    return False


CLAIM = Claim(
    claim="With small batches the statistics of batch norm fail, and group norm does not care.",
    question="Mean and variance of a channel are estimated from 32 images, from 2, from a single one. At the "
    "end one image is classified, with the averages of all these estimates. Where do the two part?",
    explanation="The fewer samples a batch has, the more its mean and variance are those of just these "
    "samples. In training a network gets used to being normalised by its own batch; in use it is normalised "
    "by running averages, which are another thing. Layers add up these errors, most of all those that pool "
    "few positions. Group norm takes its statistics from some channels of a single sample, in training "
    "and in use, so that the batch size changes nothing but the number of steps and the noise of the "
    "gradient. With one value in a slab nothing is left: value minus mean is 0 whatever the value was. "
    "Small batches also take more steps in equally many epochs, which helps both norms here.",
    source="Wu and He 2018, https://arxiv.org/abs/1803.08494",
    example="""import torch
import slabnorm as sn
from slabnorm.errors import StatisticsError

torch.manual_seed(0)
images = 3 * torch.randn(4096, 8, 2, 2) + 1
for size in (2, 4, 8, 32, 128):
    means = torch.stack([sn.moments(part, "n c h w -> c").mean for part in images.split(size)])
    print(size, "the mean of a channel varies from batch to batch by", means.std(0).mean().item())
try:
    sn.BatchNorm(8)(torch.randn(1, 8))
except StatisticsError as error:
    print(error)""",
    measure=measure,
)
