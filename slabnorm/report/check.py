"""What the doctor found in a model: plain records, a terminal table, JSON and SARIF."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slabnorm.text import listing, printable

if TYPE_CHECKING:
    from rich.console import Console

SEVERITIES = ("error", "warning", "note")  # results are wrong; results are worse; good to know
STYLES = {"error": "red", "warning": "yellow", "note": "blue"}
SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
# What each code means, in the words of its page docs/rules/CODE.md.
TITLES = {
    101: "A layer that pools samples is in train mode while gradients are off",
    102: "A layer is in eval mode while the model trains",
    103: "Weight and bias are frozen, yet the running statistics move",
    104: "In eval mode the output for a sample changes with the rest of its batch",
    105: "Train and eval mode give different outputs for the same batch",
    201: "Running statistics are NaN or infinite",
    202: "No batch has entered the running statistics",
    203: "Running statistics are far from those of the batch",
    204: "The momentum is that of the other convention",
    205: "Running statistics are updated more than once a step",
    206: "Too few values stand behind a statistic",
    207: "Processes with small batches each have statistics of their own",
    208: "Input channels of a norm are constant",
    301: "A bias is subtracted at once by the norm after it",
    302: "Weight decay shrinks the weights of norms",
    303: "Dropout stands before a norm that pools samples",
    304: "A norm takes the output of a norm",
    305: "A group norm has one channel a group",
    306: "A batch norm could be part of the weights before it",
    307: "Gradients are accumulated through layers that pool samples",
    401: "Inputs are raw, or on a scale far from 1",
    402: "Inputs are scaled twice",
    403: "An activation is saturated",
    404: "Channels of a ReLU are dead",
    405: "The scale grows or shrinks with depth",
    406: "Weights of a norm are gone or huge",
    407: "Inputs of a layer move faster than its running statistics",
    408: "Inputs are unlike those of the training",
    409: "Statistics are those of the wrong split",
    501: "eps is 0 in the dtype of the layer",
    502: "Running statistics are kept in half precision",
    503: "x - mean is lost in rounding",
}


@dataclass(frozen=True)
class Finding:
    """A normalisation bug, or what may become one.

    Attributes:
        code: what it is, such as 201, with its title in `TITLES`; its page is docs/rules/CODE.md.
        severity: "error", "warning" or "note".
        layer: its name in the model; "" is the model itself, or its input.
        text: what was found, with its numbers, without a full stop.
        why: why that matters, in one sentence without a full stop.
        fix: what to do, as code where code does it.
        numbers: the numbers behind the text, with their names.
    """

    code: int
    severity: str
    layer: str
    text: str
    why: str
    fix: str
    numbers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class CheckRecord:
    """What the doctor found in a model.

    Attributes:
        model: the class of the model.
        norms: how many norms it has.
        layers: how many layers were looked at.
        samples: the size of the batch.
        findings: errors first, and among equals causes before consequences.
        notes: what could not be looked at.
        evidence: numbers of the layers that a page shows beside the findings; empty where there are none.
    """

    model: str
    norms: int
    layers: int
    samples: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def healthy(self) -> bool:
        """Whether there is nothing worse than a note."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        seen = Counter(finding.severity for finding in self.findings)
        counts = [f"{seen[word]} {word}{'s' if seen[word] > 1 else ''}" for word in SEVERITIES if seen[word]]
        name = printable(self.model, 100)
        norms = f"{self.norms} norm{'' if self.norms == 1 else 's'}" if self.norms else "no norm layers"
        if not counts:
            return f"{name}, with {norms}: nothing found."
        return f"{name}, with {norms}: {listing(counts)}."

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types."""
        plain = {**asdict(self), "healthy": self.healthy, "verdict": self.verdict}
        for finding in plain["findings"]:
            numbers = dict(finding["numbers"])
            finding["numbers"] = {key: v if math.isfinite(v) else None for key, v in numbers.items()}
        return plain

    def as_sarif(self) -> dict[str, Any]:
        """Return the findings as SARIF 2.1.0, which code review tools read."""
        codes = sorted({finding.code for finding in self.findings})
        rules = [{"id": f"SN{code}", "shortDescription": {"text": f"{TITLES[code]}."}} for code in codes]
        results = [
            {
                "ruleId": f"SN{finding.code}",
                "level": finding.severity,
                "message": {"text": f"{finding.text}. {finding.why}. Fix: {finding.fix}"},
                "locations": [{"logicalLocations": [{"fullyQualifiedName": finding.layer or self.model}]}],
            }
            for finding in self.findings
        ]
        driver = {"name": "slabnorm", "rules": rules}
        return {
            "$schema": SARIF,
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write an HTML report: the findings beside what shows them, and all layers in their order.

        Raises:
            ExtraError: the extra `slabnorm[study]` is not installed.
            OptionError: the file cannot be written.
        """
        from slabnorm.files import write_atomically
        from slabnorm.report.check_page import render_check

        write_atomically(Path(path), render_check(self.as_dict()))

    def __str__(self) -> str:
        lines = [self.verdict]
        for f in self.findings:
            layer = printable(f.layer, 80) or "(the model)"
            lines += [
                f"  {f.code} {f.severity}  {layer}: {printable(f.text, 500)}",
                f"      why: {printable(f.why, 500)}",
                f"      fix: {printable(f.fix, 300)}",
            ]
        return "\n".join([*lines, *(f"  {printable(note, 400)}" for note in self.notes)])

    __repr__ = __str__


def print_check(record: CheckRecord, console: Console) -> None:
    """Print the verdict and a row for each finding. No text of the record is read as markup."""
    from rich.text import Text

    from slabnorm.report.terminal import Column, Row, print_rows, print_text

    print_text(console, record.verdict, "bold" if record.healthy else "bold red")
    console.print()
    rows = []
    for finding in record.findings:
        code = Text(f"{finding.code} {finding.severity}", style=STYLES[finding.severity])
        text = Text(printable(finding.text, 500))
        text.append(f"\n{printable(finding.why, 500)}", style="dim")
        layer = printable(finding.layer, 80) or "(the model)"
        rows += [Row([code, layer, text, printable(finding.fix, 300)]), Row()]
    columns = [
        Column("code", "name"), Column("layer", "name"), Column("what was found", "sentence"),
        Column("what to do", "sentence"),
    ]  # fmt: skip
    if rows:
        print_rows(console, columns, rows)
    for note in record.notes:
        print_text(console, f"• {printable(note, 400)}", "dim")
