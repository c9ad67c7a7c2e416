"""What can be wrong: pure functions from a record to findings, a file for each family."""

from __future__ import annotations

from slabnorm.doctor.record import ModelRecord
from slabnorm.doctor.rules import modes, numerics, signal, statistics, structure
from slabnorm.report.check import SEVERITIES, Finding

FAMILIES = (signal, statistics, modes, structure, numerics)


def find(record: ModelRecord) -> list[Finding]:
    """Return all findings: errors first, and among equals the cause before its consequences.

    The order of families is that of causes: wrong inputs make wrong statistics, which make wrong modes look
    worse. Within a family findings come in the order of the forward.
    """
    found = [finding for family in FAMILIES for rule in family.RULES for finding in rule(record)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
