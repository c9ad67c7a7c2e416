"""What the doctor can change by itself, or has changed, as plain records and a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slabnorm.text import aligned, printable

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Fix:
    """What takes a finding away.

    Attributes:
        code: of the finding; None for running statistics that are taken anew along with others.
        layer: what is changed, by name; "" is the model itself.
        was, becomes: what it was and will be, such as `momentum=0.99` and `momentum=0.01`.
        note: what else one should know of it.
    """

    code: int | None
    layer: str
    was: str
    becomes: str
    note: str = ""


@dataclass(frozen=True)
class Unfixed:
    """A finding that is left.

    Attributes:
        code, layer: of the finding; the code is None for running statistics that could not be taken anew
            along with others.
        advice: what to do, as the finding says it.
        reason: why it is not done; "" where nobody but the user can do it.
    """

    code: int | None
    layer: str
    advice: str
    reason: str = ""


@dataclass(frozen=True)
class FixRecord:
    """What `fixes` would do to a model, or has done: print it.

    Attributes:
        model: the class of the model.
        fixed: what is changed.
        left: the findings that stay.
        done: whether it has been done.
        difference: ||after - before|| / ||before|| of the model's outputs for the batch in eval mode; inf
            where other ones are finite, or their shape is another. None until it is done.
        before, after: the metric; None where there is none, or it is not done.
    """

    model: str
    fixed: tuple[Fix, ...]
    left: tuple[Unfixed, ...]
    done: bool = False
    difference: float | None = None
    before: float | None = None
    after: float | None = None

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        count = len(self.fixed)
        changes = f"{count or 'no'} change{'' if count == 1 else 's'}{'' if self.done else ' to make'}"
        parts = [f"{printable(self.model)}: {changes}, {len(self.left)} left to you"]
        if self.difference is not None and math.isinf(self.difference):
            parts.append("which outputs are finite has changed")
        elif self.difference is not None:
            parts.append(f"the model's outputs differ by {self.difference:.1e} of their size")
        if self.before is not None and self.after is not None:
            parts.append(f"metric {self.before:.4g} before, {self.after:.4g} after")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return the record in JSON's own types; a number that is not finite is None."""
        numbers = {name: getattr(self, name) for name in ("difference", "before", "after")}
        finite = {name: v if v is not None and math.isfinite(v) else None for name, v in numbers.items()}
        rows = {name: [asdict(row) for row in getattr(self, name)] for name in ("fixed", "left")}
        return {"model": self.model, "done": self.done, **rows, **finite}

    def __str__(self) -> str:
        rows = [tuple(printable(cell, 300) for cell in row) for row in self._rows()]
        return "\n".join([self.summary, *aligned(rows)])

    __repr__ = __str__

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return code, layer, before, after and a note of every row."""
        return [
            (str(f.code or ""), f.layer or "(the model)", f.was, f"-> {f.becomes}", f.note)
            for f in self.fixed
        ] + [(str(u.code or ""), u.layer or "(the model)", "left", u.reason, u.advice) for u in self.left]


def print_fixes(record: FixRecord, console: Console) -> None:
    """Print what is changed, before and after, and what is left. No text of the record is read as markup."""
    from rich.text import Text

    from slabnorm.report.terminal import Column, Row, print_rows, print_text

    print_text(console, record.summary, "bold")
    console.print()
    columns = [
        Column("code", "name"), Column("layer", "name"), Column("before", "sentence"),
        Column("after", "sentence"),
    ]  # fmt: skip
    rows = []
    for fix in record.fixed:
        after = Text(printable(fix.becomes, 300), style="green")
        if fix.note:
            after.append(f"\n{printable(fix.note, 300)}", style="dim")
        layer, was = printable(fix.layer, 80) or "(the model)", printable(fix.was, 300)
        rows.append(Row([str(fix.code or ""), layer, was, after]))
    for one in record.left:
        what = Text(printable(one.advice, 300))
        if one.reason:
            what.append(f"\n{printable(one.reason, 300)}", style="dim")
        left = Text("left to you", style="yellow")
        rows.append(Row([str(one.code or ""), printable(one.layer, 80) or "(the model)", left, what]))
    if rows:
        print_rows(console, columns, rows)
