"""Tables for terminals of any width, pipes, and terminals with ASCII only. No number is ever cut."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, SegmentLines
from rich.table import Table
from rich.text import Text

NARROWEST, WIDEST = 20, 10_000  # the smallest and largest width that is believed
FOLDED, NARROW = 20, 8  # the width to which names may be folded, with pictures and without
SENTENCE = 8  # how much wider than a name a sentence stays
# What is printed on a terminal with ASCII only.
ASCII = dict(zip("─├┤▒█•·“”", '-||=#*|""', strict=True))
ASCII |= {"…": "...", "±": "+-", "→": "->", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"}


class Terminal(Console):
    """A console that raises an error for a closed pipe, where Rich would exit with code 1.

    Args:
        edge: whether lines wider than the console do not fit: they do in a pipe.
    """

    def __init__(self, *, edge: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.edge = edge

    def on_broken_pipe(self) -> None:
        """Raise the error that Rich has caught."""
        raise


def terminal(stderr: bool = False) -> Terminal:
    """Return a console on stdout or stderr that reads no markup in text.

    Its width is COLUMNS if that is a number above 0, else that of the terminal, else 80.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="slabnorm.ascii")
    width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))
    edge = stream.isatty() or "COLUMNS" in os.environ
    return Terminal(edge=edge, stderr=stderr, highlight=False, markup=False, width=width)


def ascii_for(error: UnicodeError) -> tuple[str, int]:
    """Return a replacement for characters that an encoding lacks: from ASCII, or else their escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    shown = "".join(ASCII.get(c) or c.encode("unicode_escape").decode("ascii") for c in lost)
    return shown, error.end


codecs.register_error("slabnorm.ascii", ascii_for)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        head: the text above it.
        kind: a "number" is never folded; a "name" or a "sentence" may be; a "picture" may be left out.
    """

    head: str
    kind: str = "number"


@dataclass(frozen=True)
class Row:
    """A cell for each column; a row without cells is an empty line."""

    cells: Sequence[str | Text] = ()
    style: str = ""


def print_text(console: Console, text: str | Text, style: str = "") -> None:
    """Print a text, wrapped at the width of the console, without blanks at the end of lines."""
    for line in Text.assemble(text, style=style).wrap(console, console.width):
        line.rstrip()
        console.print(line, no_wrap=True, crop=False)


def print_rows(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> bool:
    """Print a table, and return whether its pictures are in it.

    If there is not enough room, heads are folded, then names; then pictures are left out; and at last every
    cell gets a line of its own. Lines do not end in blanks.
    """
    wide = not getattr(console, "edge", True) and all(column.kind != "sentence" for column in columns)
    room = WIDEST if wide else console.width
    layouts = [
        (True, WIDEST, 2),
        (True, WIDEST, 1),
        (True, FOLDED, 1),
        (False, WIDEST, 1),
        (False, NARROW, 1),
    ]
    for pictures, most, gap in layouts:
        chosen = [i for i, column in enumerate(columns) if pictures or column.kind != "picture"]
        some = [columns[i] for i in chosen]
        cells = [[row.cells[i] for i in chosen] if row.cells else [] for row in rows]
        widths = _widths(some, cells, room - gap * (len(some) - 1), most, folded=gap == 1)
        if widths is not None:
            shown = [Row(row_cells, row.style) for row_cells, row in zip(cells, rows, strict=True)]
            options = console.options.update(width=room)
            lines = console.render_lines(_table(some, shown, widths, gap), options, pad=False)
            console.print(
                SegmentLines([_without_blanks(line) for line in lines], new_lines=True), end="", crop=False
            )
            return pictures
    for row in rows:
        _stack(console, columns, row)
    return False


def _without_blanks(line: list[Segment]) -> list[Segment]:
    """Return a line without the blanks at its end."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    return [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []


def _widths(
    columns: list[Column], cells: list[list[str | Text]], room: int, most: int, folded: bool
) -> list[int] | None:
    """Return the width of each column, or None if they need more room than there is.

    Args:
        columns: the columns.
        cells: the cells of each row; none for an empty line.
        room: the width of all columns together, in characters.
        most: the width to which names may be folded if there is too little room.
        folded: whether heads are folded between words.
    """
    least, full = [], []
    for i, column in enumerate(columns):
        inside = max((cell_len(line) for row in cells if row for line in str(row[i]).split("\n")), default=0)
        head = max(map(cell_len, column.head.split(None if folded else "\n")), default=0)
        bound = {"name": most, "sentence": most + SENTENCE}.get(column.kind, WIDEST)
        full.append(max(inside, head))
        least.append(max(min(inside, bound), head))
    spare = room - sum(least)
    if spare < 0:
        return None
    wanted = sum(full) - sum(least)
    if wanted <= spare:
        return full
    return [low + (high - low) * spare // wanted for low, high in zip(least, full, strict=True)]


def _table(columns: list[Column], rows: list[Row], widths: list[int], gap: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for column, width in zip(columns, widths, strict=True):
        right = column.kind == "number"
        table.add_column(
            Text(column.head), justify="right" if right else "left", width=width, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row.cells), style=row.style)
    return table


def _stack(console: Console, columns: Sequence[Column], row: Row) -> None:
    """Print a row as a name, and below it a line for each of its numbers."""
    title = True
    for column, cell in zip(columns, row.cells, strict=bool(row.cells)):
        text = cell if isinstance(cell, Text) else Text(cell)
        if not text or column.kind == "picture":
            continue
        if title and column.kind == "name":
            title = False
            console.print(text, style=f"bold {row.style}", overflow="fold")
            continue
        says = f"{' '.join(column.head.split())}: " if column.head else ""
        head = Text(f"{'' if title else '  '}{says}", style="dim")
        if column.kind == "sentence" or cell_len(str(head)) + cell_len(str(text)) <= console.width:
            console.print(head + text, style=row.style, overflow="fold")
        else:
            console.print(head, style=row.style, overflow="fold")
            indent = " " * max(0, min(4, console.width - cell_len(str(text))))
            console.print(Text(indent) + text, style=row.style, soft_wrap=True)
    if not row.cells:
        console.print()
