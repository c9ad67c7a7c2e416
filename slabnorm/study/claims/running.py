"""Running averages approach the statistics of the population."""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, line, over_seeds
from slabnorm.study.claims.first_layer import KAIMING, RULES, rows, seeded

UNITS, BATCH, SAMPLES = 32, 32, 2_000
STEPS, QUICK_STEPS = 400, 150
MOMENTA = {0.1: "running average, momentum 0.1", None: "average over all batches, momentum None"}


def batches(count: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Return the sample numbers of each step, in a new order for each pass over the samples."""
    size = min(BATCH, count)
    passes = math.ceil(steps / (count // size))
    parts = [torch.randperm(count, generator=generator)[: count // size * size] for _ in range(passes)]
    return list(torch.cat(parts).split(size))[:steps]


def errors(mean: Tensor, var: Tensor, population: sn.Moments) -> tuple[float, float]:
    """Return how far a mean is off, in standard deviations, and a standard deviation, as a share of it.

    Both are root mean squares over the units.
    """
    std = population.std()
    of_mean = ((mean - population.mean) / std).square().mean().sqrt().item()
    of_std = (var.sqrt() / std - 1).square().mean().sqrt().item()
    return of_mean, of_std


def follow(z: Tensor, momentum: float | None, parts: list[Tensor]) -> list[tuple[float, float]]:
    """Return the errors of a layer's running statistics before the first batch, and after each.

    Args:
        z: the population, (n, units).
        momentum: of the layer.
        parts: the samples of each batch.
    """
    layer, population = sn.BatchNorm(z.shape[1], momentum=momentum, dtype=z.dtype), sn.moments(z, "n c -> c")
    running = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    found = [errors(*running, population)]
    with torch.enable_grad():  # train mode without gradients is what slabnorm warns of
        for part in parts:
            layer(z[part])
            found.append(errors(*running, population))
    return found


def measure(material: Material) -> Finding:
    """Feed a layer batches of real data, and compare its running statistics with those of all the data."""
    data = material.data
    x, steps = rows(data, "zscore", SAMPLES), QUICK_STEPS if material.quick else STEPS
    runs: dict[float | None, list[list[tuple[float, float]]]] = {momentum: [] for momentum in MOMENTA}
    single: list[tuple[float, float]] = []
    for seed in material.seeds:
        z = x @ RULES[KAIMING](UNITS, x.shape[1], seeded(seed, 7)).T + 1  # with means that are not 0
        parts, population = batches(len(z), steps, seeded(seed, 8)), sn.moments(z, "n c -> c")
        for momentum, found in runs.items():
            found.append(follow(z, momentum, parts))
        alone = [errors(z[part].mean(0), z[part].var(0), population) for part in parts]
        single.append((fmean(a for a, _ in alone), fmean(b for _, b in alone)))
    late = steps // 2  # the second half, in which the start is forgotten
    tests, numbers, said = [], [], {}
    for which, what in enumerate(("mean", "standard deviation")):
        numbers.append(Number(f"error of one batch's {what}", over_seeds([s[which] for s in single]), "%"))
        for momentum, name in MOMENTA.items():
            ends = [fmean(errs[which] for errs in run[late:]) for run in runs[momentum]]
            starts = over_seeds([run[0][which] for run in runs[momentum]])
            better = over_seeds([s[which] / e for s, e in zip(single, ends, strict=True)])
            # An average that is no nearer than a single batch is not needed.
            tests.append(Test(f"error of one batch's {what} over that of the {name}", better, 1.0, "x"))
            numbers.append(Number(f"error of the {what} at the start, {name}", starts, "%"))
            numbers.append(Number(f"error of the {what} in the second half, {name}", over_seeds(ends), "%"))
            said[what, momentum] = fmean(ends)
    one = fmean(of_mean for of_mean, _ in single)
    return Finding(
        measured=f"One batch's mean is off by {one:.1%} of a standard deviation. Over the second half of "
        f"{steps} batches the running mean is off by {said['mean', 0.1]:.1%} with momentum 0.1, and by "
        f"{said['mean', None]:.2%} as an average over all batches.",
        tests=tuple(tests),
        numbers=tuple(numbers),
        pictures=tuple(
            Picture(
                f"How far the running {what} is off",
                "batches seen",
                unit,
                tuple(
                    line(name, range(steps + 1), [[r[i][which] for r in runs[m]] for i in range(steps + 1)])
                    for m, name in MOMENTA.items()
                ),
                log="y",
                marks=(("one batch alone", fmean(s[which] for s in single)),),
            )
            for which, (what, unit) in enumerate(
                (("mean", "error [standard deviations]"), ("standard deviation", "error [share of it]"))
            )
        ),
        setting=(
            ("Data", data.name),
            ("Layer", f"{UNITS} units whose weights stay as they are; batches of {BATCH}, {len(x)} samples"),
        ),
    )


CLAIM = Claim(
    claim="Running averages approach the statistics of the population.",
    question="With momentum 0.1 each batch counts for a tenth, and what was before for nine tenths. After a "
    "thousand batches, is the running mean exact?",
    explanation="For eval mode a layer remembers what its batches looked like. With momentum 0.1 it moves a "
    "tenth of the way to each new batch. The start is forgotten within some fifty batches; after that the "
    "error stays where it is, since only the last twenty batches or so count: that of one batch times "
    "sqrt(0.1 / 1.9), about a quarter, if batches are drawn independently. With momentum None all batches "
    "count alike, and the error keeps falling. The weights stand still here. In training they move, "
    "and what is long ago should be forgotten; that is what momentum is for.",
    source="Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; "
    "Wu and Johnson 2021, https://arxiv.org/abs/2105.07576",
    example="""import torch
import slabnorm as sn

recent, average = sn.BatchNorm(1, momentum=0.1), sn.BatchNorm(1, momentum=None)
for step in range(1, 1001):
    batch = 3 + 2 * torch.randn(32, 1)  # a population of mean 3 and variance 4
    recent(batch)
    average(batch)
    if step in (1, 10, 100, 1000):
        print(step, recent.running_mean.item(), average.running_mean.item())""",
    measure=measure,
)
