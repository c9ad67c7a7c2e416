"""The keys of a contract in a terminal, and what a check of data has found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slabnorm.report.audit import Finding, print_findings
from slabnorm.report.wording import NONE, minus
from slabnorm.text import printable

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = "unknown"


@dataclass(frozen=True)
class KeyRecord:
    """What a contract says of one key. What nobody has said is None, or "" for text.

    Attributes:
        name, role, pattern, unit: as the key has them; the pattern is "keep" for one that passes unchanged.
        scheme: as text.
        features: how many.
        names: of the features, if they have names.
        origin: "fitted", or the format that the statistics were read from.
        split, samples: that the statistics come from.
        valid: the least and the largest value that can occur.
        mean, std, min, max: the smallest and the largest of all features.
    """

    name: str
    role: str
    pattern: str
    unit: str = ""
    scheme: str = ""
    features: int = 0
    names: tuple[str, ...] = ()
    origin: str = ""
    split: str = ""
    samples: int | None = None
    valid: tuple[float, float] | None = None
    mean: tuple[float, float] | None = None
    std: tuple[float, float] | None = None
    min: tuple[float, float] | None = None
    max: tuple[float, float] | None = None


@dataclass(frozen=True)
class ContractRecord:
    """The keys of a contract, in their order."""

    keys: tuple[KeyRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types."""
        return asdict(self)


@dataclass(frozen=True)
class ContractCheck:
    """What a check of data has found.

    Attributes:
        data: the name of the data.
        findings: what is wrong, errors first.
    """

    data: str
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types."""
        rows = [asdict(finding) for finding in self.findings]
        for row in rows:
            row["numbers"] = {n: v if math.isfinite(v) else None for n, v in row["numbers"]}
        return {"data": self.data, "findings": rows}


def print_contract(record: ContractRecord, console: Console) -> None:
    """Print a row for each key."""
    from slabnorm.report.terminal import Column, Row, print_rows, print_text

    many = len(record.keys)
    print_text(console, f"{many:,} key{'' if many == 1 else 's'}", "bold")
    rows = [Row(_cells(key), "dim" if key.pattern == "keep" else "") for key in record.keys]
    heads = ("role", "pattern", "scheme", "unit", "from")
    numbers = ("features", "samples", "mean", "std", "min", "max")
    columns = [Column("key", "name"), *(Column(head, "name") for head in heads), *map(Column, numbers)]
    print_rows(console, columns, rows)


def _cells(key: KeyRecord) -> list[str]:
    if key.pattern == "keep":
        return [printable(key.name, 60), key.role, "keep", *([NONE] * 9)]
    where = f"{key.origin}, split {key.split or UNKNOWN}"
    samples = UNKNOWN if key.samples is None else f"{key.samples:,}"
    texts = (key.name, key.role, key.pattern, key.scheme, key.unit or UNKNOWN, where)
    ends = (_ends(value) for value in (key.mean, key.std, key.min, key.max))
    return [*(printable(text, 60) for text in texts), f"{key.features:,}", samples, *ends]


def _ends(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return UNKNOWN
    low, high = (minus(f"{end:.4g}") for end in ends)
    return low if low == high else f"{low}..{high}"


def print_check(record: ContractCheck, console: Console) -> None:
    """Print what was found."""
    from slabnorm.report.terminal import print_text

    errors = sum(finding.severity == "error" for finding in record.findings)
    warnings = len(record.findings) - errors
    counts = [
        f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((errors, "error"), (warnings, "warning")) if n
    ]
    style = "bold red" if record.findings else "bold"
    print_text(console, f"{printable(record.data)}: {' and '.join(counts) or 'nothing'} found", style)
    if record.findings:
        console.print()
        print_findings(record.findings, console)
