"""What a claim is made of, what it is given, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

from slabnorm.report.claims import Number, Picture, Series, Test
from slabnorm.report.study import Interval
from slabnorm.study.data import Dataset
from slabnorm.study.statistics import interval
from slabnorm.study.trials import Trial, TrialRecord, Windows


@dataclass(frozen=True)
class Material:
    """What a claim is measured on.

    Args:
        data: labelled images.
        pixels: labelled images of 8-bit pixels, 0 to 255: the data themselves if they are such.
        text: windows of English text.
        seeds: one training for each.
        quick: whether a rough answer within seconds is wanted.
        train: trains networks, in several processes, and returns their records in order. It keeps what it
            has done, so that trials that several claims ask for are done once.
    """

    data: Dataset
    pixels: Dataset
    text: Windows
    seeds: tuple[int, ...]
    quick: bool
    train: Callable[[Sequence[Trial]], list[TrialRecord]]

    @property
    def epochs(self) -> int:
        """Passes over the training split of a usual trial: it sees some 20,000 samples, or 4,000 if quick."""
        samples = len(self.data.split.train)
        return max(1, round((4_000 if self.quick else 20_000) / samples))


@dataclass(frozen=True)
class Finding:
    """What a claim found.

    Args:
        measured: one plain sentence with the numbers.
        tests: the inequalities that decide.
        numbers: what else was measured.
        pictures: what there is to see.
        setting: how it was measured, as pairs of a heading and a few words.
    """

    measured: str
    tests: tuple[Test, ...]
    numbers: tuple[Number, ...] = ()
    pictures: tuple[Picture, ...] = ()
    setting: tuple[tuple[str, str], ...] = ()


class Measure(Protocol):
    """A claim's own function."""

    def __call__(self, material: Material) -> Finding:
        """Measure the claim."""


@dataclass(frozen=True)
class Claim:
    """A claim of the field; the fields are those of `ClaimRecord`.

    Args:
        claim: what it says, as a sentence.
        question: what the reader should think about first.
        explanation: a few plain sentences for a newcomer, that stay true whatever was measured.
        source: the paper where it comes from.
        example: some ten lines of Python that a reader can run; they use the public names alone.
        measure: the function that measures it.
    """

    claim: str
    question: str
    explanation: str
    source: str
    example: str
    measure: Measure


def exactly(value: float) -> Interval:
    """Return a number without uncertainty."""
    return Interval(value, value, value, 1)


def over_seeds(values: Sequence[float], resolution: float = 0.0) -> Interval:
    """Return mean and 95% interval of one value for each seed."""
    return interval(list(values), resolution)


def best_rate(material: Material, trial: Trial, rates: Sequence[float]) -> float:
    """Return the learning rate with the highest validation accuracy at the end, over the first seed or two.

    The test split plays no part. Of equal rates the first is taken.

    Args:
        material: trains.
        trial: what is trained, at each of the rates.
        rates: the learning rates.
    """
    return best_rates(material, [trial], rates)[0].rate


def best_rates(
    material: Material,
    trials: Sequence[Trial],
    rates: Sequence[float],
    seeds: int = 2,
    reference_batch: int | None = None,
) -> list[Trial]:
    """Return each of some trials at its own best learning rate, chosen as by `best_rate`.

    All are trained in one go.

    Args:
        material: trains.
        trials: what is trained, at each of the rates.
        rates: the learning rates.
        seeds: over how many seeds the accuracy is averaged; over one if quick.
        reference_batch: the batch size that the rates are meant for; other sizes get them in proportion
            (Goyal et al. 2017). By default all sizes get the same.
    """
    chosen = material.seeds[: 1 if material.quick else seeds]
    paces = [trial.batch_size / reference_batch if reference_batch else 1.0 for trial in trials]
    grid = [
        [[replace(trial, rate=rate * pace, seed=seed) for seed in chosen] for rate in rates]
        for trial, pace in zip(trials, paces, strict=True)
    ]
    every = list(dict.fromkeys(one for row in grid for cell in row for one in cell))
    found = dict(zip(every, material.train(every), strict=True))
    best = []
    for trial, row in zip(trials, grid, strict=True):
        means = [fmean(found[one].validation for one in cell) for cell in row]
        best.append(replace(trial, rate=row[means.index(max(means))][0].rate))
    return best


def line(name: str, x: Sequence[float], columns: Sequence[Sequence[float]]) -> Series:
    """Return a line through the means over seeds, with the lowest and highest seed as its band.

    Args:
        name: as the legend has it.
        x: where on the axis.
        columns: for each x the values of all seeds.
    """
    means = tuple(sum(column) / len(column) for column in columns)
    return Series(name, tuple(x), means, tuple(map(min, columns)), tuple(map(max, columns)))


def learning_curve(name: str, records: Sequence[TrialRecord]) -> Series:
    """Return the validation accuracy by step of several seeds, as a line; it ends with the shortest."""
    shortest = min(len(record.curve) for record in records)
    steps = [point.step for point in records[0].curve[:shortest]]
    return line(name, steps, [[r.curve[i].accuracy for r in records] for i in range(shortest)])
