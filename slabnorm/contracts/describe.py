"""A contract as a plain record, for reports."""

from __future__ import annotations

from math import prod

from torch import Tensor

from slabnorm.contracts.contract import Contract
from slabnorm.contracts.key import Key
from slabnorm.contracts.statistics import GivenNorm, Statistics
from slabnorm.inputs.normalizer import FeatureNorm
from slabnorm.report.contract import ContractRecord, KeyRecord


def describe(contract: Contract) -> ContractRecord:
    """Return what a contract says of each key."""
    return ContractRecord(tuple(_described(name, *entry) for name, entry in contract.entries().items()))


def _described(name: str, key: Key, norm: FeatureNorm | None) -> KeyRecord:
    if norm is None:
        return KeyRecord(name, key.role, key.pattern, key.unit)
    found = Statistics.of(norm)
    origin = norm.source.format or "given" if isinstance(norm, GivenNorm) else "fitted"
    return KeyRecord(
        name,
        key.role,
        key.pattern,
        key.unit,
        str(norm.scheme),
        prod(norm.features.shape),
        key.names,
        origin,
        str(norm.split),
        norm.samples,  # type: ignore[arg-type]
        key.valid,
        *(_ends(part) for part in (found.mean, found.std, found.min, found.max)),
    )


def _ends(values: Tensor | None) -> tuple[float, float] | None:
    return None if values is None else (float(values.min()), float(values.max()))
