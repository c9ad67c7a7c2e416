"""How a study was measured, in words that the report prints as they are."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from slabnorm.report.wording import level, norm_label, scheme_label
from slabnorm.study.data import Dataset
from slabnorm.study.models import MOST_GROUPS, NORM_FREE
from slabnorm.study.options import Options
from slabnorm.study.rates import RATES
from slabnorm.study.train import LOOKS_PER_EPOCH, WARM_UP
from slabnorm.text import listing

PACKAGES = ("torch", "numpy", "numba", "scikit-learn", "scipy")

NORM_FREE_WORDS = (
    " Dynamic tanh (Zhu et al. 2025) is weight * tanh(alpha * x) + bias, dynamic erf (Chen et al. 2025) "
    "weight * erf(alpha * x + shift) + bias; weight and bias are per channel, alpha is 0.5 at first."
)


def describe(options: Options, data: Dataset, processes: int) -> tuple[tuple[str, str], ...]:
    """Return the method as pairs of a heading and a few sentences."""
    return (
        *training(options, data),
        *measures(options, data, processes),
        ("Versions", versions()),
        ("Machine", machine()),
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    )


def training(options: Options, data: Dataset) -> tuple[tuple[str, str], ...]:
    """Return how the networks were trained, as pairs of a heading and a few sentences."""
    rules, split = options.rules, data.split
    rates, searched = [f"{rate:g}" for rate in RATES], [str(seed) for seed in options.search_seeds]
    return (
        (
            "Split",
            f"{data.split_by}: {len(split.train):,} training, {len(split.validation):,} validation and "
            f"{len(split.test):,} test samples. Input statistics are fitted on the training split only.",
        ),
        (
            "Pairing",
            f"Seeds 0 to {options.seeds - 1}. Runs of one seed start from the same weights and see the "
            "samples in the same order, whatever the norm.",
        ),
        (
            "Learning rate",
            f"Chosen for every norm, batch size and input scheme by itself: {listing(rates)} times the base "
            f"rate {rules.learning_rate:g} * batch size / {rules.reference_batch} (linear scaling rule) were "
            f"tried, and one more beyond where the best was at an edge. The highest validation accuracy at "
            f"the end is taken, of equal ones the nearest to the base rate; a run that failed or diverged "
            f"counts as 0. The test split plays no part. These runs have "
            f"{'seed' if len(searched) == 1 else 'seeds'} {listing(searched)}, which no result has: the luck "
            "of the run that won does not get into the results.",
        ),
        (
            "Optimiser",
            f"SGD, momentum {rules.momentum:g}; the learning rate falls along a cosine to zero over "
            f"{rules.epochs} epochs. A last batch of a single sample is left out.",
        ),
        (
            "Norms",
            f"Layer norm is that of a whole sample (n c ... → n). Group norm has as many groups, up to "
            f"{MOST_GROUPS}, as divide the number of channels. All norms have weight and bias."
            + (NORM_FREE_WORDS if set(NORM_FREE) & set(options.norms) else ""),
        ),
    )


def measures(options: Options, data: Dataset, processes: int) -> tuple[tuple[str, str], ...]:
    """Return what each number means and how it was measured."""
    rules, split = options.rules, data.split
    return (
        (
            "Test accuracy",
            "Measured at the end, in eval mode with frozen statistics. The 95% interval is Student's t over "
            "seeds: it covers chance in weights and order, but not in the test samples. It is never narrower "
            f"than counting on {len(split.test)} samples allows, and is cut off at 0 and 100%.",
        ),
        (
            "Clear difference",
            "A difference is clear if the interval of the paired difference over seeds leaves out zero. All "
            "intervals between the norms of one batch size, and all between the inputs, hold together with "
            "95%: they are widened for the number of pairs (Bonferroni), since the best is picked after the "
            "fact.",
        ),
        (
            f"Steps to {level(rules.target)}",
            f"The number of optimiser steps until the validation accuracy is {level(rules.target)} or more. "
            f"It is measured {LOOKS_PER_EPOCH} times an epoch. The table has the median over seeds, in which "
            "a run that never got there counts as infinite.",
        ),
        (
            "Time per step",
            f"Forward, backward and optimiser: the median of a run without its first {WARM_UP} steps, then "
            f"the median over seeds. Processes at a time: {processes}, each with one thread.",
        ),
        (
            "Train/eval gap",
            "The accuracy of the finished network on the test samples in train mode, in batches of the "
            "training batch size, minus that in eval mode. It is measured on a copy of the network.",
        ),
        (
            "Inputs",
            f"Compared with {norm_label(options.inputs_norm)} at batch size {options.inputs_batch_size}; "
            f"norms are compared on {scheme_label(options.scheme)} inputs.",
        ),
    )


def machine() -> str:
    """Return what the numbers were measured on."""
    return f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, CPU only"


def versions() -> str:
    """Return the versions that the numbers depend on."""
    found = [f"Python {platform.python_version()}"]
    for package in ("slabnorm", *PACKAGES):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
