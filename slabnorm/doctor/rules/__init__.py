"""What can be wrong: pure functions from a record to findings, a file for each family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from slabnorm.doctor.record import ModelRecord
from slabnorm.doctor.rules import modes, numerics, over_time, signal, statistics, structure
from slabnorm.report.check import SEVERITIES, Finding

if TYPE_CHECKING:
    from slabnorm.doctor.watch import WatchRecord

FAMILIES = (signal, statistics, modes, structure, numerics)
# Causes stand before what they cause: wrong inputs kill units and age statistics, a dtype that cannot hold a
# statistic makes it stale, a layer in the wrong mode drifts apart from its running statistics. What only says
# that something is off (203, 105, 404) comes last.
CAUSES = (
    402, 401, 408, 409, 501, 502, 503,
    201, 202, 204, 205, 101, 102, 103, 104, 206, 207, 307,
    303, 304, 305, 406, 405, 403, 208, 407, 404, 203,
    301, 302, 306, 105,
)  # fmt: skip


def find(record: ModelRecord) -> list[Finding]:
    """Return all findings: errors first, and among equals the cause before its consequences.

    Findings of one code come in the order of the forward.
    """
    return _sorted(finding for family in FAMILIES for rule in family.RULES for finding in rule(record))


def find_over_time(record: WatchRecord) -> list[Finding]:
    """Return all findings of a training that was watched, in the same order."""
    return _sorted(finding for rule in over_time.RULES for finding in rule(record))


def _sorted(found: Iterable[Finding]) -> list[Finding]:
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), CAUSES.index(f.code)))
