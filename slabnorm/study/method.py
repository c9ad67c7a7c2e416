"""How a study was measured, in words that the report prints as they are."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from slabnorm.report.wording import level, norm_label, scheme_label
from slabnorm.study.data import SHARES, SPLIT_SEED, Dataset
from slabnorm.study.models import MOST_GROUPS
from slabnorm.study.options import RATES, Options
from slabnorm.study.train import LOOKS_PER_EPOCH, WARM_UP
from slabnorm.text import listing

PACKAGES = ("torch", "numpy", "numba", "scikit-learn", "scipy")


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
            f"Layer norm is that of a whole sample (n c ... → n). Group norm has as many groups, up to "
            f"{MOST_GROUPS}, as divide the number of channels. All norms have weight and bias.",
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
            "A difference is clear if the 95% interval of the paired difference over seeds leaves out zero. "
            "Every pair is compared by itself, and nothing is corrected for the number of pairs: if nothing "
            "differs, one pair in twenty looks clear by chance.",
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
            f"norms are compared on {scheme_label(options.scheme)} inputs. Each scheme is trained at "
            f"{listing([f'{rate:g}' for rate in RATES])} times the learning rate, and the rate with the "
            "highest mean validation accuracy at the end is taken.",
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
