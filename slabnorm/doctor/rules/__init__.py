"""What can be wrong: pure functions from a record to findings, a file for each family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabnorm.doctor.record import ModelRecord
from slabnorm.doctor.rules import modes, numerics, over_time, signal, statistics, structure
from slabnorm.report.check import SEVERITIES, Finding

if TYPE_CHECKING:
    from slabnorm.doctor.watch import WatchRecord

FAMILIES = (signal, statistics, modes, structure, numerics)


def find(record: ModelRecord) -> list[Finding]:
    """Return all findings: errors first, and among equals the cause before its consequences.

    The order of families is that of causes: wrong inputs make wrong statistics, which make wrong modes look
    worse. Within a family findings come in the order of the forward.
    """
    found = [finding for family in FAMILIES for rule in family.RULES for finding in rule(record)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def find_over_time(record: WatchRecord) -> list[Finding]:
    """Return all findings of a training that was watched, in the same order."""
    found = [finding for rule in over_time.RULES for finding in rule(record)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
