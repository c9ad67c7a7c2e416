"""Text and tables for a terminal of any width, a pipe, or one that has ASCII only: no number is ever cut."""

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
from rich.table import Table
from rich.text import Text

NARROWEST, WIDEST = 20, 10_000  # what a width is taken as at least and at most
FOLDED, NARROW = 20, 8  # what names are folded to at most, beside a picture and without one
SENTENCE = 8  # what sentences get more than names
STAND_INS = {
    "─": "-", "├": "|", "┤": "|", "▒": "=", "█": "#", "…": "...", "±": "+-", "→": "->", "•": "*", "·": "|",
    "“": '"', "”": '"', "\N{MINUS SIGN}": "-",
}  # fmt: skip


class Terminal(Console):
    """A console that leaves a closed pipe to its caller, where Rich would exit with code 1.

    Args:
        edge: whether what is wider does not fit, as on a terminal; in a pipe it does.
    """

    def __init__(self, *, edge: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.edge = edge

    def on_broken_pipe(self) -> None:
        """Raise what Rich has caught."""
        raise


def terminal(stderr: bool = False) -> Terminal:
    """Return a console on stdout or stderr that takes text as it is.

    Its width is COLUMNS if that is a number above 0, else the terminal's, else 80.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="slabnorm.ascii")
    width = min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))
    edge = stream.isatty() or "COLUMNS" in os.environ
    return Terminal(edge=edge, stderr=stderr, highlight=False, markup=False, width=width)


def ascii_for(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks: a likeness of ours, the escape of others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    shown = "".join(STAND_INS.get(c) or c.encode("unicode_escape").decode("ascii") for c in lost)
    return shown, error.end


codecs.register_error("slabnorm.ascii", ascii_for)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        head: what stands above it.
        kind: a "number" is never folded, a "name" or a "sentence" may be; a "picture" may be left out.
    """

    head: str
    kind: str = "number"


@dataclass(frozen=True)
class Row:
    """A cell for each column; without any, an empty line."""

    cells: Sequence[str | Text] = ()
    style: str = ""


def print_rows(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> bool:
    """Print a table, and return whether its pictures are in it.

    Where there is too little room, heads are folded, then names, pictures are left out, and at last every
    cell gets a line of its own.
    """
    wide = not getattr(console, "edge", True) and all(column.kind != "sentence" for column in columns)
    room = WIDEST if wide else console.width
    for pictures, most, gap in ((True, WIDEST, 2), (True, WIDEST, 1), (True, FOLDED, 1), (False, WIDEST, 1),
                                (False, NARROW, 1)):  # fmt: skip
        chosen = [i for i, column in enumerate(columns) if pictures or column.kind != "picture"]
        some = [columns[i] for i in chosen]
        cells = [[row.cells[i] for i in chosen] if row.cells else [] for row in rows]
        widths = _widths(some, cells, room - gap * (len(some) - 1), most, folded=gap == 1)
        if widths is not None:
            before, console.width = console.width, room
            console.print(_table(some, [Row(c, row.style) for c, row in zip(cells, rows, strict=True)],
                                 widths, gap))  # fmt: skip
            console.width = before
            return pictures
    for row in rows:
        _stack(console, columns, row)
    return False


def _widths(
    columns: list[Column], cells: list[list[str | Text]], room: int, most: int, folded: bool
) -> list[int] | None:
    """Return how wide each column is, or None where they need more room than there is.

    Args:
        room: of all columns, in characters.
        most: what names are folded to where there is no room for more.
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
    """Print a row as a name and, below it, a line for each of its numbers."""
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
