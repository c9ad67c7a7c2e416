"""Statistics of the inputs come from the training split only."""

from __future__ import annotations

import warnings
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

import slabnorm as sn
from slabnorm.errors import LeakageError, SlabWarning
from slabnorm.inputs import InputNorm
from slabnorm.report.claims import Number, Picture, Test
from slabnorm.study.claims.claim import Claim, Finding, Material, exactly, line, over_seeds
from slabnorm.study.claims.first_layer import seeded
from slabnorm.study.data import Dataset

SIZES, QUICK_SIZES = (20, 50, 100, 200, 500, 1000), (20, 100, 500)
DRAWS, QUICK_DRAWS = 10, 3  # of training samples, for each seed
TESTED = 1_000
CONTRAST, BRIGHTNESS = 0.6, 1.0  # of another camera; the brightness in standard deviations of the data


class Parts(NamedTuple):
    """Samples as rows, and their classes: for training, for test, and the test samples of another camera."""

    x: Tensor
    y: Tensor
    test: Tensor
    truth: Tensor
    shifted: Tensor


def parts_of(data: Dataset) -> Parts:
    """Return the training samples and up to a thousand test samples."""
    split, x, y = data.split, torch.as_tensor(data.x).double().flatten(1), torch.as_tensor(data.y)
    train, test = torch.as_tensor(split.train), torch.as_tensor(split.test[:TESTED])
    shifted = CONTRAST * x[test] + BRIGHTNESS * x[train].std()
    return Parts(x[train], y[train], x[test], y[test], shifted)


def fitted(x: Tensor, split: str) -> InputNorm:
    """Return z-scores of each feature, of test samples too: a leak on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlabWarning)  # of constant pixels, and of the leak
        return sn.fit(x, "zscore", "n f -> f", split=split, leak=split == "test")


def accuracy(centres: Tensor, known: Tensor, x: Tensor, y: Tensor) -> float:
    """Return the share of samples whose nearest centre is that of their class."""
    nearest = torch.cdist(x, centres).argmin(1)
    return (known[nearest] == y).double().mean().item()


def results(parts: Parts, few: Tensor) -> tuple[float, float, float, float]:
    """Return the accuracy of the nearest class mean, honest and leaked, on test samples and on shifted ones.

    Leaked means that the test samples are normalised with statistics of their own.

    Args:
        parts: samples and classes.
        few: the numbers of the training samples to use.
    """
    x, y = parts.x[few], parts.y[few]
    norm = fitted(x, "train")
    known, scaled = y.unique(), norm(x)
    centres = torch.stack([scaled[y == label].mean(0) for label in known])
    found = [
        accuracy(centres, known, how(test), parts.truth)
        for test in (parts.test, parts.shifted)
        for how in (norm, fitted(test, "test"))
    ]
    return found[0], found[1], found[2], found[3]


def refuses(parts: Parts) -> bool:
    """Return whether `fit` refuses to take statistics of the test split."""
    try:
        sn.fit(parts.test, "zscore", "n f -> f", split="test")
    except LeakageError:
        return True
    return False


def measure(material: Material) -> Finding:
    """Classify by the nearest class mean, with statistics of few training samples and of the test split."""
    parts = parts_of(material.data)
    wanted = QUICK_SIZES if material.quick else SIZES
    sizes = sorted({min(size, len(parts.x)) for size in wanted})
    draws = QUICK_DRAWS if material.quick else DRAWS
    found: dict[int, list[list[tuple[float, ...]]]] = {size: [] for size in sizes}
    for seed in material.seeds:
        generator = seeded(seed, 10)
        orders = [torch.randperm(len(parts.x), generator=generator) for _ in range(draws)]
        for size in sizes:
            found[size].append([results(parts, order[:size]) for order in orders])

    def means(size: int, which: int) -> list[float]:
        return [fmean(one[which] for one in every) for every in found[size]]

    moves = {
        size: over_seeds([fmean(abs(one[1] - one[0]) for one in every) for every in found[size]])
        for size in sizes
    }
    honest, leaked = means(sizes[-1], 2), means(sizes[-1], 3)
    flattery = over_seeds([b - a for a, b in zip(honest, leaked, strict=True)], 1 / len(parts.truth))
    names = ("honest", "leaked", "honest, another camera", "leaked, another camera")
    return Finding(
        measured=f"Statistics of the test split move the measured accuracy by "
        f"{100 * moves[sizes[0]].mean:.1f} points with {sizes[0]} training samples and by "
        f"{100 * moves[sizes[-1]].mean:.1f} with {sizes[-1]}. On test "
        f"samples of another contrast and brightness it is {fmean(leaked):.1%} with them, and "
        f"{fmean(honest):.1%} without.",
        tests=(
            Test("fit refuses the test split", exactly(float(refuses(parts))), 0.5),
            Test("accuracy leaked minus honest, another contrast and brightness", flattery, 0.0, "%"),
        ),
        numbers=tuple(
            Number(f"accuracy moved by the leak, {size} training samples", move, "%")
            for size, move in moves.items()
        ),
        pictures=(
            Picture(
                "Accuracy with statistics of the training samples, and of the test samples",
                "training samples",
                "test accuracy [%]",
                tuple(
                    line(name, sizes, [[100 * value for value in means(size, which)] for size in sizes])
                    for which, name in enumerate(names)
                ),
                log="x",
            ),
        ),
        setting=(
            ("Data", material.data.name),
            ("Classifier", f"the nearest class mean of z-scored features; {draws} draws for each seed"),
        ),
    )


CLAIM = Claim(
    claim="Statistics of the inputs come from the training split only.",
    question="The test samples are normalised with their own mean and standard deviation. It is not as if "
    "one looked at their classes: can that make the measured accuracy wrong?",
    explanation="What is measured on the test split should be what one gets in use, where samples come one "
    "by one and have no statistics of their own. Whoever normalises the test samples by themselves lets "
    "each of them know the others. With few training samples that moves the result, one way or the other. "
    "If the test samples come from another camera, their own statistics take the difference out, and the "
    "measured accuracy hides a fault that will show in use. So `fit` asks for the name of the split, and "
    "refuses one that is held out.",
    source="Kaufman, Rosset and Perlich 2011, https://doi.org/10.1145/2020408.2020496; "
    "Kapoor and Narayanan 2023, https://doi.org/10.1016/j.patter.2023.100804",
    example="""import torch
import slabnorm as sn

train, test = torch.randn(50, 4), 0.6 * torch.randn(50, 4) + 1  # from another camera
norm = sn.fit(train, "zscore", "n f -> f", split="train")
print("honest:", norm(test).mean().item())
try:
    sn.fit(test, "zscore", "n f -> f", split="test")
except sn.SlabError as error:
    print(error)""",
    measure=measure,
)
