"""check(): a model looked at once, on one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slabnorm.doctor.evidence import evidence
from slabnorm.doctor.probes import examine
from slabnorm.doctor.reference import fitted
from slabnorm.doctor.rules import find
from slabnorm.errors import ModelError
from slabnorm.report.check import CheckRecord


def check(
    model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer | None = None, *, reference: Any = None
) -> CheckRecord:
    """Find normalisation bugs in a model.

    Copies of the model run one step in train mode and three forwards in eval mode: two of the batch, and one
    of its first half. Rules compare what is seen with the running statistics, the modes, the structure and
    the scale of signals. The model, its mode, its gradients and the random numbers stay as they are.

    Args:
        model: any module; its norms may be those of torch.nn or slabnorm.
        batch: what a training step sees: a tensor, a tuple of positional or a dict of keyword arguments. Use
            real data, of the size that you train with: what is found is true of this batch.
        optimizer: the model's optimiser, to find weight decay of norms.
        reference: what the first input is compared with by `slabnorm.audit`, if the batch is not of the
            training data but of a test split or from service: an InputNorm that was fitted on the training
            inputs, or these themselves. An InputNorm in the model is compared with its input anyway.

    Returns:
        A CheckRecord: print it, or write a page with `record.report("check.html")`. `record.healthy` is true
        if nothing is worse than a note.

    Raises:
        ModelError: the model cannot be copied, or does not run on the batch.
        SlabError: the reference cannot be fitted.

    Rules: 301 follows Ioffe and Szegedy (2015); 303 Li et al., "Understanding the disharmony between dropout
    and batch normalization by variance shift" (2019); 207 Peng et al., "MegDet" (2018).

    >>> import torch, slabnorm as sn
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.99), nn.ReLU())
    >>> record = sn.check(model, torch.randn(16, 3, 8, 8))
    >>> [(finding.code, finding.layer) for finding in record.findings]
    [(204, '1'), (301, '0')]
    """
    if not isinstance(model, nn.Module):
        raise ModelError("check() needs a torch.nn.Module", type(model).__name__, "give it the model")
    record = examine(model, batch, optimizer, None if reference is None else fitted(reference))
    notes = list(record.notes)
    if not record.norms:
        notes.append("the model has no norm layers that are known here: inputs and signals were looked at")
    findings = tuple(find(record))
    return CheckRecord(
        record.name, len(record.norms), len(record.layers), record.samples, findings, tuple(notes),
        evidence(record, findings),
    )  # fmt: skip


def assert_healthy(
    model: nn.Module,
    batch: Any,
    optimizer: torch.optim.Optimizer | None = None,
    allow: tuple[int, ...] = (),
    *,
    reference: Any = None,
) -> None:
    """Raise AssertionError if `check` finds an error or a warning: a line for a test of one's own.

    Args:
        model, batch, optimizer, reference: as in `check`.
        allow: codes that are known and accepted.

    >>> import torch, slabnorm as sn
    >>> sn.assert_healthy(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()), torch.randn(8, 4))
    """
    record = check(model, batch, optimizer, reference=reference)
    kept = tuple(f for f in record.findings if f.severity != "note" and f.code not in allow)
    if kept:
        raise AssertionError(CheckRecord(record.model, record.norms, record.layers, record.samples, kept))
