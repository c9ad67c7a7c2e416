"""How a study was measured, in words; the report prints it as it is."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from slabnorm.report.labels import norm_label, scheme_label
from slabnorm.report.numbers import level
from slabnorm.study.data import SHARES, SPLIT_SEED, Dataset
from slabnorm.study.layers import MOST_GROUPS
from slabnorm.study.options import Options
from slabnorm.study.rates import RATES
from slabnorm.study.train import LOOKS_PER_EPOCH, WARM_UP
from slabnorm.text import listing

PACKAGES = ("torch", "numpy", "numba", "scikit-learn", "scipy")


def describe(options: Options, data: Dataset, processes: int) -> tuple[tuple[str, str], ...]:
    """Return the method as pairs of a heading and a sentence or two."""
    return (
        *training(options, data),
        *measures(options, data, processes),
        ("Versions", versions()),
        ("Machine", f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, CPU only"),
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    )


def training(options: Options, data: Dataset) -> tuple[tuple[str, str], ...]:
    """Return how the networks were trained, as pairs of a heading and a sentence or two."""
    rules, split = options.rules, data.split
    shares = " / ".join(level(share) for share in SHARES)
    return (
        (
            "Split",
            f"{shares} stratified by class with seed {SPLIT_SEED}: {len(split.train)} training, "
            f"{len(split.validation)} validation and {len(split.test)} test samples. Input statistics are "
            "fitted on the training split only.",
        ),
        (
            "Pairing",
            f"Seeds 0 to {options.seeds - 1}. Runs of one seed start from the same weights and see the "
            "samples in the same order, whatever the norm.",
        ),
        (
            "Optimiser",
            f"SGD, momentum {rules.momentum:g}, learning rate {rules.learning_rate:g} * batch size / "
            f"{rules.reference_batch} (linear scaling rule), cosine to zero over {rules.epochs} epochs; the "
            "same for every norm. A last batch of a single sample is left out.",
        ),
        (
            "Norms",
            f"Layer norm is that of a whole sample (n c ... → n); group norm has the most groups up to "
            f"{MOST_GROUPS} that divide the channels. All have weight and bias.",
        ),
    )


def measures(options: Options, data: Dataset, processes: int) -> tuple[tuple[str, str], ...]:
    """Return what each number means and how it was taken."""
    rules, split = options.rules, data.split
    return (
        (
            "Test accuracy",
            "Of the weights at the end, in eval mode with frozen statistics. The 95% interval is Student's "
            "t over seeds: it holds the luck of weights and order, not that of the test samples. It is never "
            f"narrower than counting on {len(split.test)} samples allows, and is cut to 0 to 100%.",
        ),
        (
            "Clear difference",
            "The 95% interval of the paired difference over seeds leaves out zero. Every pair is compared, "
            "and each comparison stands alone: nothing is corrected for their number, so that where nothing "
            "differs, one in twenty looks clear by luck.",
        ),
        (
            f"Steps to {level(rules.target)}",
            f"Optimiser steps to the first look at or above {level(rules.target)} validation accuracy, "
            f"with {LOOKS_PER_EPOCH} looks an epoch. The median over seeds; a run that never got there "
            "counts as infinite.",
        ),
        (
            "Time per step",
            f"Forward, backward and optimiser; the median of a run without its first {WARM_UP} steps, then "
            f"the median over seeds. Processes at a time: {processes}, with one thread each.",
        ),
        (
            "Train/eval gap",
            "Accuracy of the finished network on the test samples in train mode, in batches of the training "
            "batch size, minus eval mode; on a copy, so that running statistics stay as they are.",
        ),
        (
            "Inputs",
            f"Compared with {norm_label(options.inputs_norm)} at batch size {options.inputs_batch_size}; "
            f"norms are compared on {scheme_label(options.scheme)} inputs. Each scheme trains at "
            f"{listing([f'{rate:g}' for rate in RATES])} times the learning rate; of these, the one with the "
            "highest mean validation accuracy at the end stands for it.",
        ),
    )


def versions() -> str:
    """Return the versions that the numbers depend on."""
    found = [f"Python {platform.python_version()}"]
    for package in ("slabnorm", *PACKAGES):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
