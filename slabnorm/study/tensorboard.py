"""Runs as logs for TensorBoard: extra `slabnorm[tensorboard]`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from slabnorm.errors import OptionError
from slabnorm.extras import extra
from slabnorm.report.study import RunRecord
from slabnorm.study.train import Rules
from slabnorm.text import printable


def logger(folder: str | Path, rules: Rules) -> Callable[[RunRecord, bool], None]:
    """Return a function that writes a run into a folder of its own, as soon as the run is done.

    Args:
        folder: where the folders of the runs are made.
        rules: how every run is trained.

    Raises:
        ExtraError: TensorBoard is not installed.
        OptionError: the folder cannot be made.
    """
    extra("tensorboard", "writing logs", "'slabnorm[tensorboard]'")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        problem = "log_dir must be a folder that can be written to"
        raise OptionError(problem, f"{printable(folder)}: {why}", "name another one") from error
    return lambda record, recalled: log_run(record, recalled, Path(folder), rules)


def log_run(record: RunRecord, recalled: bool, folder: Path, rules: Rules) -> None:
    """Write the looks of a run during training, its test accuracy, and what it was.

    A run that is recalled from a ledger is written only if the study that did it has not written it.
    """
    from torch.utils.tensorboard import SummaryWriter

    rate = record.rate * rules.rate(0, 1, record.batch_size)
    norm = re.sub(r"[^\w.-]+", "_", record.norm)
    name = f"{record.scheme}/{norm}/batch-{record.batch_size}/rate-{rate:.2g}/seed-{record.seed}"
    if recalled and (folder / name).exists():
        return
    writer = SummaryWriter(str(folder / name))
    for point in record.curve:
        writer.add_scalar("accuracy/validation", point.accuracy, point.step)
        if point.loss is not None:
            writer.add_scalar("loss/training", point.loss, point.step)
    if record.test_accuracy is not None:
        writer.add_scalar("accuracy/test", record.test_accuracy, record.steps)
    said = {
        "inputs": record.scheme,
        "norm": record.norm,
        "batch size": record.batch_size,
        "learning rate": f"{rate:g}",
        "seed": record.seed,
        "epochs": rules.epochs,
        "momentum": rules.momentum,
        "status": f"{record.status}. {record.reason}".strip(". "),
    }
    text = "| | |\n|---|---|\n" + "\n".join(f"| {key} | `{value}` |" for key, value in said.items())
    writer.add_text("run", text)
    writer.close()
