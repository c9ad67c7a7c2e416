"""What is found when claims are measured, as plain records, and their report: one card for each claim.

`slabnorm.study.claims` writes the records, `--json` prints them as they are, and the page of `slabnorm lab`
reads them. A
number that does not exist is None, never NaN.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slabnorm.report.study import DataRecord, Interval

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"


@dataclass(frozen=True)
class Series:
    """One line, one set of bars or one cloud of points of a picture.

    Args:
        name: as the legend has it.
        x: where on the axis: numbers, or names for bars.
        y: the values; None where there is none.
        low, high: the ends of each value's interval or band; empty for none.
    """

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Picture:
    """What a picture shows; reports and the page draw it.

    Args:
        title: what is to be seen, in a few words.
        x, y: the labels of the axes, with units.
        series: what is drawn.
        kind: "lines", "bars" or "points".
        log: the axes with a logarithmic scale: "", "x", "y" or "xy".
        marks: horizontal lines to compare with, as (label, height).
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    kind: str = "lines"
    log: str = ""
    marks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Number:
    """One measured number.

    Args:
        what: what was measured, in words.
        value: the mean, with its 95% interval over seeds where there are several.
        unit: "%" for shares (from 0 to 1), "x" for factors, or a unit as it is written; empty for none.
    """

    what: str
    value: Interval
    unit: str = ""


@dataclass(frozen=True)
class Test:
    """One inequality that the claim stands or falls with: `value > bound`.

    Args:
        what: the inequality in words.
        value: what was measured, with its interval over seeds.
        bound: what it must exceed.
        unit: as in Number.
    """

    what: str
    value: Interval
    bound: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """HOLDS if the whole interval lies above the bound, FAILS if it lies below, and else UNDECIDED.

        One exact value has an interval without width, low = mean = high.
        """
        if self.value.low is None or self.value.high is None:
            return UNDECIDED
        if self.value.low > self.bound:
            return HOLDS
        return FAILS if self.value.high <= self.bound else UNDECIDED


@dataclass(frozen=True)
class ClaimRecord:
    """A claim, what was measured, and whether it held.

    Args:
        id, claim: its name, and what it says.
        question: what to think about first.
        measured: what was found, one sentence with its numbers.
        tests: the inequalities that decide the verdict.
        verdict: HOLDS if all tests hold, FAILS if one fails, and else UNDECIDED.
        numbers: what else was measured.
        pictures: what there is to see.
        explanation: a few plain sentences for a newcomer.
        source: the paper, or papers, where the claim comes from.
        example: some ten lines of Python that do it.
        code: the source of the function that measured it.
        setting: how it was measured, as pairs of a heading and a few words.
        seconds: how long that took.
    """

    id: str
    claim: str
    question: str
    measured: str
    tests: tuple[Test, ...]
    verdict: str
    numbers: tuple[Number, ...]
    pictures: tuple[Picture, ...]
    explanation: str
    source: str
    example: str
    code: str
    setting: tuple[tuple[str, str], ...]
    seconds: float


@dataclass(frozen=True)
class SweepRecord:
    """One network of the sweep that the page has on its sliders, trained once.

    Args:
        norm, batch_size, rate, depth, gain: which network; `rate` is the learning rate, `gain` a factor of
            the initial weights.
        status: "done" or "diverged".
        accuracy: on the test split in eval mode, 0 to 1.
        steps: the optimiser steps at which was looked.
        loss: the training loss there; None where it is not finite.
        validation: the validation accuracy there.
        drift: for each hidden layer, how far the mean of its input has moved since the start, in standard
            deviations of then, averaged over units; the end of training.
        gradient: for each hidden layer, the norm of the gradient of its weights, at the start.
    """

    norm: str
    batch_size: int
    rate: float
    depth: int
    gain: float
    status: str
    accuracy: float
    steps: tuple[int, ...]
    loss: tuple[float | None, ...]
    validation: tuple[float, ...]
    drift: tuple[float | None, ...]
    gradient: tuple[float | None, ...]


@dataclass(frozen=True)
class ClaimsRecord:
    """All claims that were measured, the data, the sweep if there was one, and the method."""

    data: DataRecord
    claims: tuple[ClaimRecord, ...]
    sweep: tuple[SweepRecord, ...]
    seeds: tuple[int, ...]
    method: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the whole record as dicts, lists, text and numbers, ready for `json.dumps`."""
        return asdict(self)
