"""The study in a terminal: verdict, tables, notes."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from slabnorm.report import numbers
from slabnorm.report.names import norm_label, scheme_label
from slabnorm.report.records import CellRecord, StudyRecord

MEASURES = ("test accuracy, %", "steps to {target}", "ms/step", "train/eval\ngap")
MOST_NOTES = 8


class Terminal(Console):
    """A console that leaves a closed pipe to its caller, where Rich would exit with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise what Rich has caught."""
        raise


def terminal(stderr: bool = False) -> Console:
    """Return a console on stdout or stderr that takes text as it is."""
    return Terminal(stderr=stderr, highlight=False, markup=False)


def print_study(study: StudyRecord, console: Console) -> None:
    """Print a study: the verdict first, then the norms, the inputs and what to know of them.

    Args:
        study: the record.
        console: where to; its width decides how the table folds.
    """
    console.print(render_study(study))


def render_study(study: StudyRecord) -> RenderableType:
    """Return a study as something Rich prints. No text of the study is read as markup."""
    parts: list[RenderableType] = [Padding(Text(study.verdict, style="bold"), (1, 0))]
    parts.append(norms_table(study))
    if study.inputs:
        parts.append(Padding(Text(study.inputs_verdict, style="bold"), (1, 0)))
        parts.append(inputs_table(study))
    shown = [Text(f"• {note}", style="yellow") for note in study.notes[:MOST_NOTES]]
    if len(study.notes) > MOST_NOTES:
        shown.append(Text(f"• and {len(study.notes) - MOST_NOTES} notes more, in the report", style="yellow"))
    if shown:
        parts.append(Padding(Group(*shown), (1, 0, 0, 0)))
    parts.append(Padding(Text(summary(study), style="dim"), (1, 0, 0, 0)))
    return Group(*parts)


def norms_table(study: StudyRecord) -> Table:
    """Return the norms by batch size."""
    cells = sorted(study.cells, key=lambda cell: cell.batch_size)
    table = new_table(["batch", "norm"], study.target, cells)
    before = 0
    for cell in cells:
        if before and cell.batch_size != before:
            table.add_row()
        add(table, ["" if cell.batch_size == before else str(cell.batch_size), norm_label(cell.norm)], cell)
        before = cell.batch_size
    return table


def inputs_table(study: StudyRecord) -> Table:
    """Return the input schemes, side by side."""
    table = new_table(["inputs"], study.target, study.inputs)
    for cell in study.inputs:
        add(table, [scheme_label(cell.scheme)], cell)
    return table


def new_table(heads: list[str], target: float, cells: Iterable[CellRecord]) -> Table:
    """Return an empty table with the columns every cell has, and one for remarks if there are any."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(Text(head), justify="right" if head == "batch" else "left", no_wrap=head == "batch")
    for measure in MEASURES:
        text = measure.format(target=numbers.level(target))
        table.add_column(Text(text), justify="right", no_wrap=True)
    if any(map(numbers.remark, cells)):
        table.add_column("")
    return table


def add(table: Table, head: list[str], cell: CellRecord) -> None:
    """Add one cell as a row; a cell in which something went wrong is marked."""
    values = [
        numbers.accuracy(cell.accuracy).replace("%", ""),
        numbers.steps(cell),
        numbers.milliseconds(cell.seconds_per_step),
        numbers.points(cell.gap),
        numbers.remark(cell),
    ]
    row = [Text(text) for text in [*head, *values]][: len(table.columns)]
    table.add_row(*row, style="red" if cell.failed or cell.diverged else "")


def summary(study: StudyRecord) -> str:
    """Return one line on what was compared."""
    data = study.data
    return (
        f"{data.name}: {data.train} train, {data.validation} validation, {data.test} test; {study.model}, "
        f"{study.parameters:,} parameters; {len(study.seeds)} seeds, {study.epochs} epochs; "
        f"95% intervals over seeds; {len(study.runs)} runs in {study.seconds:.0f} s"
    )
