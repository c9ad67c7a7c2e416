"""The study in a terminal: verdict, tables, notes."""

from __future__ import annotations

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from slabnorm.report import numbers
from slabnorm.report.labels import norm_label, scheme_label
from slabnorm.report.records import CellRecord, StudyRecord
from slabnorm.report.terminal import Column, Row, print_rows
from slabnorm.text import printable

MEASURES = ("test accuracy, %", "steps to {target}", "ms/step", "train/eval\ngap")
MOST_NOTES = 8
MOST_CHARACTERS = 2000  # of a sentence


def print_study(study: StudyRecord, console: Console) -> None:
    """Print a study: the verdict first, then the norms, the inputs and what to know of them.

    No text of the study is read as markup.

    Args:
        study: the record.
        console: where to; its width decides how the tables fold.
    """
    console.print(Padding(Text(shown(study.verdict), style="bold"), (1, 0)))
    print_norms(study, console)
    if study.inputs:
        console.print(Padding(Text(shown(study.inputs_verdict), style="bold"), (1, 0)))
        print_inputs(study, console)
    notes = [Text(f"• {shown(note)}", style="yellow") for note in study.notes[:MOST_NOTES]]
    if len(study.notes) > MOST_NOTES:
        notes.append(Text(f"• and {len(study.notes) - MOST_NOTES} notes more, in the report", style="yellow"))
    if notes:
        console.print(Padding(Group(*notes), (1, 0, 0, 0)))
    console.print(Padding(Text(shown(summary(study)), style="dim"), (1, 0, 0, 0)))


def shown(text: str) -> str:
    """Return a sentence of a study without what a terminal could act on."""
    return printable(text, MOST_CHARACTERS)


def print_norms(study: StudyRecord, console: Console) -> None:
    """Print the norms by batch size."""
    cells = sorted(study.cells, key=lambda cell: cell.batch_size)
    rows: list[Row] = []
    before = 0
    for cell in cells:
        if before and cell.batch_size != before:
            rows.append(Row())
        batch = "" if cell.batch_size == before else str(cell.batch_size)
        rows.append(row_of([batch, norm_label(cell.norm)], cell))
        before = cell.batch_size
    print_cells(console, [Column("batch"), Column("norm", "name")], study.target, rows)


def print_inputs(study: StudyRecord, console: Console) -> None:
    """Print the input schemes, side by side."""
    rows = [row_of([scheme_label(cell.scheme)], cell) for cell in study.inputs]
    print_cells(console, [Column("inputs", "name")], study.target, rows)


def print_cells(console: Console, heads: list[Column], target: float, rows: list[Row]) -> None:
    """Print the columns every cell has, and one for remarks if there are any."""
    measures = [Column(measure.format(target=numbers.level(target))) for measure in MEASURES]
    columns = [*heads, *measures, Column("", "name")]
    if not any(row.cells and row.cells[-1] for row in rows):
        columns.pop()
        rows = [Row(row.cells[:-1], row.style) for row in rows]
    print_rows(console, columns, rows)


def row_of(head: list[str], cell: CellRecord) -> Row:
    """Return one cell as a row; a cell in which something went wrong is marked."""
    values = [
        numbers.accuracy(cell.accuracy).replace("%", ""),
        numbers.steps(cell),
        numbers.milliseconds(cell.seconds_per_step),
        numbers.points(cell.gap),
        numbers.remark(cell),
    ]
    return Row([*head, *values], "red" if cell.failed or cell.diverged else "")


def summary(study: StudyRecord) -> str:
    """Return one line on what was compared."""
    data = study.data
    epochs = "1 epoch" if study.epochs == 1 else f"{study.epochs} epochs"
    return (
        f"{data.name}: {data.train} train, {data.validation} validation, {data.test} test; {study.model}, "
        f"{study.parameters:,} parameters; {len(study.seeds)} seeds, {epochs}; "
        f"95% intervals over seeds; {len(study.runs)} runs in {study.seconds:.0f} s"
    )
