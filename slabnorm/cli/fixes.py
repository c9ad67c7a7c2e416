"""`slabnorm check --fix`: what the doctor can mend in the state of a model, and what is left to its code."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slabnorm.doctor import fixes
from slabnorm.doctor.fixes import BY_LOADER, GAP
from slabnorm.errors import ModelError, OptionError, SlabError
from slabnorm.files import write_atomically
from slabnorm.report.check import CheckRecord
from slabnorm.report.fixes import FixRecord, Unfixed
from slabnorm.text import printable

if TYPE_CHECKING:
    from slabnorm.study.data import Dataset

ENDINGS = (".safetensors", ".pt", ".pth")


def check_ending(path: Path) -> None:
    """Raise OptionError unless a state_dict can be written to a file of this name."""
    if path.suffix not in ENDINGS:
        raise OptionError("--save must end in .safetensors, .pt or .pth", printable(path), "--save fixed.pt")


def mend(
    model: nn.Module, batch: Tensor, found: CheckRecord, dataset: Dataset | None, batch_size: int
) -> FixRecord:
    """Mend a model's running statistics with the training split, and return what was done and what is left.

    A state_dict has to fit the code that made it. So only statistics are changed here; what the code says,
    such as a bias or a momentum, is left to it.

    Raises:
        ModelError: the model does not run on the training split.
    """
    if dataset is None:
        reasons = dict.fromkeys((*BY_LOADER, GAP), "it takes --data, the training data")
        left = [Unfixed(f.code, f.layer, f.fix, reasons.get(f.code, "in the code")) for f in found.findings]
        return FixRecord(found.model, (), tuple(left))
    loader = _batches(dataset, batch_size)
    try:
        metric = _accuracy(model, dataset, batch_size)
        record = fixes(model, batch, loader=loader, metric=metric, codes=BY_LOADER).apply()
    except SlabError:
        raise
    except Exception as error:
        problem, fix = "The model does not run on the training split", "fix it, or give other --data"
        raise ModelError(problem, f"{type(error).__name__}: {error}"[:600], fix) from error
    anew = {fix.layer for fix in record.fixed}
    left = list(record.left)
    for f in found.findings:
        if f.code == GAP and f.layer not in anew:
            left.append(Unfixed(f.code, f.layer, f.fix))
        elif f.code not in (*BY_LOADER, GAP):
            left.append(Unfixed(f.code, f.layer, f.fix, "in the code"))
    return replace(record, left=tuple(left))


def write_state(model: nn.Module, path: Path) -> None:
    """Write a model's state_dict.

    Raises:
        OptionError: it holds more than tensors, and safetensors nothing else.
    """
    from safetensors.torch import save

    state = model.state_dict()
    if path.suffix != ".safetensors":
        file = io.BytesIO()
        torch.save(state, file)
        write_atomically(path, file.getvalue())
        return
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise OptionError("safetensors holds tensors alone", printable(other[0]), "--save fixed.pt")
    # Copies, as the format refuses tensors that share memory: those of a module with two names.
    write_atomically(path, save({name: value.detach().clone().contiguous() for name, value in state.items()}))


def _batches(dataset: Dataset, size: int) -> Iterator[Tensor]:
    """Yield the training split in batches of about one size: a last one of one sample has no variance."""
    rows = dataset.split.train
    return (_samples(dataset, some) for some in np.array_split(rows, max(1, len(rows) // size)))


def _samples(dataset: Dataset, rows: Any) -> Tensor:
    return torch.as_tensor(dataset.x[rows]).float()


def _accuracy(model: nn.Module, dataset: Dataset, size: int) -> Callable[[nn.Module], float] | None:
    """Return what measures the accuracy on the test split; None if a model gives no number for each class."""
    rows, some = dataset.split.test, _samples(dataset, dataset.split.train[:size])
    with torch.no_grad():
        scores = copy.deepcopy(model).eval()(some)
    if not isinstance(scores, Tensor) or scores.shape != (len(some), len(dataset.classes)):
        return None

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        right = 0
        for some in np.array_split(rows, max(1, len(rows) // size)):
            right += int((model(_samples(dataset, some)).argmax(1).numpy() == dataset.y[some]).sum())
        return right / len(rows)

    return accuracy
