"""The sweep: many short trainings of one perceptron, which the page has on its sliders."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from slabnorm.report.claims import SweepRecord
from slabnorm.study.claims.claim import Material
from slabnorm.study.trials import Trial, TrialRecord
from slabnorm.study.watch import CLIFF

NORMS = ("none", "batch", "layer", "group")
BATCH_SIZES = (8, 32, 128)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
DEPTHS = (2, 6, 20)
# Factors of PyTorch's own initial weights, whose variance is 1/(3 inputs). With sqrt(6) it is 2/inputs, as He
# et al. 2015 derive for ReLU; 1 is too small by that, and 6 too large by as much.
GAINS = (1.0, 2.449, 6.0)
FITTING = GAINS[1]
SAMPLES, QUICK_SAMPLES = 4_000, 2_000  # that a training sees in all
LOOKS = 8
DIGITS = 4  # of a number in a record: the page shows no more, and is to be small


def short(material: Material, depth: int, norm: str = "none", gain: float = FITTING) -> Trial:
    """Return a short training of a perceptron that is watched; the claims on depth and gain share it."""
    sees = QUICK_SAMPLES if material.quick else SAMPLES
    samples = min(sees, len(material.data.split.train))
    return Trial(
        "mlp",
        norm,
        depth=depth,
        gain=gain,
        batch_size=32,
        epochs=round(sees / samples),
        samples=samples,
        looks=LOOKS,
        watch=("drift", "gradient"),
    )


def sweep(material: Material) -> tuple[SweepRecord, ...]:
    """Return one short training of every norm, batch size, rate, depth and gain; if quick, of some of them.

    Args:
        material: the data, the first seed, and what trains.
    """
    sizes, rates, gains = ((32,), RATES[1::2], GAINS[:2]) if material.quick else (BATCH_SIZES, RATES, GAINS)
    seed = material.seeds[0]
    trials = [
        replace(short(material, depth, norm, gain), batch_size=size, rate=rate, seed=seed)
        for norm in NORMS
        for size, rate, depth, gain in product(sizes, rates, DEPTHS, gains)
    ]
    return tuple(map(record, trials, material.train(trials)))


def record(trial: Trial, found: TrialRecord) -> SweepRecord:
    """Return what the page shows of one training."""
    drift, gradient = found.seen["drift"], found.seen["gradient"]
    return SweepRecord(
        norm=trial.norm,
        batch_size=trial.batch_size,
        rate=trial.rate,
        depth=trial.depth,
        gain=trial.gain,
        status=found.status,
        accuracy=rounded(found.accuracy) or 0.0,
        steps=tuple(point.step for point in found.curve),
        loss=tuple(rounded(point.loss) for point in found.curve),
        validation=tuple(rounded(point.accuracy) or 0.0 for point in found.curve),
        drift=tuple(map(rounded, drift[-1][: trial.depth])),
        gradient=tuple(map(rounded, gradient[0][: trial.depth])),
    )


def rounded(value: float | None) -> float | None:
    """Return a number with four digits, and None for one that is not finite."""
    if value is None or not abs(value) < CLIFF:
        return None
    return float(f"{value:.{DIGITS}g}")
