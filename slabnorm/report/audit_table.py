"""An audit in a terminal: the verdict, and a row per finding."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from slabnorm.report.audit import AuditRecord, Leaked, Overlap
from slabnorm.report.terminal import Column, Row, print_rows
from slabnorm.text import printable

STYLES = {"error": "red", "warning": "yellow"}
MOST = 6  # names of features in a row
MOST_LEAKED = 10  # leaked samples


def print_audit(record: AuditRecord, console: Console) -> None:
    """Print what was found. No text of the record is read as markup."""
    new = f"{record.data}: {record.samples:,} samples of {record.dtype}"
    fitted = f'split "{record.split}": {record.train_samples:,} samples of {record.train_dtype}'
    console.print(Text(printable(f"{new}, beside {fitted}, {record.pattern}", 600), style="dim"))
    counts = "nothing found" if record.clean else f"{len(record.findings)} found"
    console.print(Padding(Text(counts, style="bold" if record.clean else "bold red"), (1, 0)))
    if record.findings:
        _print_findings(record, console)
    console.print(Text(f"overlap: {overlap_text(record.overlap)}"))
    if record.leaked is not None:
        _print_leaked(record.leaked, console)
    for note in record.notes:
        console.print(Text(f"• {printable(note, 400)}", style="dim"))


def _print_leaked(leaked: Leaked, console: Console) -> None:
    """Print where the first samples stand that were in the training data."""
    console.print(Text(f"{leaked.text}:"))
    for sample in leaked.samples[:MOST_LEAKED]:
        console.print(Text(f"  {printable(sample, 400)}"), soft_wrap=True)
    if leaked.known > MOST_LEAKED:
        more = f"and {leaked.known - MOST_LEAKED:,} more; --json lists the first {len(leaked.samples):,}"
        console.print(Text(f"  {more}", style="dim"))


def overlap_text(overlap: Overlap | None) -> str:
    """Return how much of the new data was in training, in one line."""
    if overlap is None:
        return "not looked for"
    if overlap.exact:
        return f"{overlap.found:,} of {overlap.told:,} distinct samples were in training, exactly"
    ends = f"95% interval {100 * overlap.low:.2g} to {100 * overlap.high:.2g}% of all"
    return f"{overlap.found:,} of {overlap.told:,} samples that the sketch tells were in training; {ends}"


def _print_findings(record: AuditRecord, console: Console) -> None:
    rows = []
    for finding in record.findings:
        text = Text(printable(finding.text, 500))
        if len(finding.features) > 1:
            names = ", ".join(printable(name, 40) for name in finding.features[:MOST])
            text.append(f"\n{names}{', …' if len(finding.features) > MOST else ''}", style="dim")
        kind = Text(finding.kind, style=STYLES[finding.severity])
        rows += [Row([kind, text, printable(finding.advice, 500)]), Row()]
    columns = [Column("kind", "name"), Column("what was found", "sentence"), Column("what to do", "sentence")]
    print_rows(console, columns, rows)
