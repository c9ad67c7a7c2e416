"""Inputs compared with those that a model was trained on, by `slabnorm.audit`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slabnorm.doctor.record import Drift
from slabnorm.errors import DataWarning, ExtraError, SlabError
from slabnorm.inputs import InputNorm, fit
from slabnorm.inputs.audit import audit
from slabnorm.inputs.audit.findings import NORMALISED
from slabnorm.report.audit import AuditRecord

# What an audit says of values. Leaks and overlaps are questions of splits, and a batch of the training data
# overlaps with it; dtypes change on the way from a file to a batch.
OF_VALUES = ("scale", "order", "shift", "spread", "range", "constant", "missing")
OF_SPLITS = ("leak",)


def fitted(reference: Any) -> InputNorm:
    """Return the statistics of a reference: an InputNorm, or the training inputs themselves."""
    if isinstance(reference, InputNorm):
        return reference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # a pixel that never varies is no question here
        return fit(reference, "zscore", split="train")


def drift_of(norm: InputNorm, x: Tensor, notes: list[str]) -> list[Drift]:
    """Return what an audit says of the values of a batch; what it cannot say is added to the notes."""
    try:
        return drifts(audit(norm, x.detach().cpu()), OF_VALUES)
    except ExtraError as error:
        notes.append(f"the inputs were not compared with the fitted statistics: {error}")
    except SlabError as error:
        notes.append(f"the inputs do not compare with the fitted statistics: {error}")
    return []


def drifts(record: AuditRecord, kinds: tuple[str, ...] = OF_VALUES + OF_SPLITS) -> list[Drift]:
    """Return the findings of an audit as plain data."""
    ratios = [feature.spread for feature in record.features if np.isfinite(feature.spread)]
    ratio = float(np.median(ratios)) if ratios else 1.0
    return [
        Drift(
            "normalised" if found.text == NORMALISED else found.kind,
            found.severity,
            found.text,
            found.advice,
            ratio,
            dict(found.numbers),
        )
        for found in record.findings
        if found.kind in kinds
    ]


def is_comparable(x: Any) -> bool:
    """Whether a tensor is a batch of numbers."""
    return (
        isinstance(x, Tensor) and x.dim() > 1 and x.dtype not in (torch.bool, torch.complex64) and len(x) > 1
    )
