"""What a study found, as plain records: numbers, text and tuples, nothing of torch.

`study` writes them, `report` reads them, and `--json` prints them as they are. A number that does
not exist (a cell that failed, an interval over one seed) is None, never NaN.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval by Student's t.

    Args:
        mean: in the units of what was measured; accuracies are shares from 0 to 1.
        low, high: the ends of the interval; None where one value gives none.
        count: the number of values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class CurvePoint:
    """One look at the validation split during training.

    Args:
        step: optimiser steps done.
        epoch: the same in passes over the training split.
        accuracy: validation accuracy in eval mode, 0 to 1.
        loss: mean training loss since the last look.
    """

    step: int
    epoch: float
    accuracy: float
    loss: float | None


@dataclass(frozen=True)
class RunRecord:
    """One network, trained once.

    Args:
        scheme, norm, batch_size, seed: which run it is.
        status: "done", "diverged" (a loss that is not finite ended the training) or "failed".
        reason: why, for a run that is not "done".
        test_accuracy: in eval mode, of the weights at the end, 0 to 1; None where the run failed.
        gap: train-mode minus eval-mode accuracy on the same test samples.
        steps: optimiser steps done.
        steps_to_target: steps to the first look at or above the stated validation accuracy; None: never.
        seconds_per_step: median of forward, backward and optimiser, warm-up excluded.
        curve: the looks at the validation split.
        weights: a fingerprint of the initial weights outside the norm layers; equal in paired runs.
        notes: slabnorm's warnings during the run, once each.
        rate: multiple of the study's learning rate.
    """

    scheme: str
    norm: str
    batch_size: int
    seed: int
    status: str
    reason: str = ""
    test_accuracy: float | None = None
    gap: float | None = None
    steps: int = 0
    steps_to_target: int | None = None
    seconds_per_step: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    weights: str = ""
    notes: tuple[str, ...] = ()
    rate: float = 1.0


@dataclass(frozen=True)
class CellRecord:
    """The runs of one scheme, norm and batch size, over all seeds.

    Args:
        accuracy, gap: over the seeds; None where any run failed.
        steps_to_target: median over the seeds, "never" counted as infinity; None where that is infinite.
        reached: how many of the runs reached the stated accuracy.
        seconds_per_step: median over the seeds.
        runs, diverged, failed: counts.
        reason: the first run's reason, where one diverged or failed.
    """

    scheme: str
    norm: str
    batch_size: int
    accuracy: Interval | None
    gap: Interval | None
    steps_to_target: float | None
    reached: int
    seconds_per_step: float | None
    runs: int
    diverged: int = 0
    failed: int = 0
    reason: str = ""


@dataclass(frozen=True)
class CurveRecord:
    """The learning curve of a cell: mean over seeds, and the lowest and highest seed."""

    scheme: str
    norm: str
    batch_size: int
    epochs: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class DifferenceRecord:
    """A paired difference of test accuracy, `better - other`, seed by seed.

    Args:
        better, other: what is compared, in words.
        difference: its interval, in shares.
        clear: whether the 95% interval leaves out zero.
    """

    better: str
    other: str
    difference: Interval
    clear: bool


@dataclass(frozen=True)
class SchemeRecord:
    """One input scheme: its name, and what it does to the raw values in words.

    Args:
        name, text: the scheme, and what it does.
        reason: why it was left out.
        rate: the multiple of the study's learning rate it was compared at; None where it was not.
    """

    name: str
    text: str
    reason: str = ""
    rate: float | None = None


@dataclass(frozen=True)
class DataRecord:
    """The data set: its name, its size, its splits, and how its axes were read."""

    name: str
    samples: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    axes: str
    raw_range: tuple[float, float]


@dataclass(frozen=True)
class StudyRecord:
    """A whole comparison: the verdict, the numbers under it, and how they were measured."""

    verdict: str
    inputs_verdict: str
    data: DataRecord
    model: str
    parameters: int
    norms: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    epochs: int
    target: float
    scheme: str
    schemes: tuple[SchemeRecord, ...]
    inputs_norm: str
    inputs_batch_size: int
    cells: tuple[CellRecord, ...]
    inputs: tuple[CellRecord, ...]
    curves: tuple[CurveRecord, ...]
    inputs_curves: tuple[CurveRecord, ...]
    differences: tuple[DifferenceRecord, ...]
    method: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the whole record as dicts, lists, text and numbers, ready for `json.dumps`."""
        return asdict(self)
