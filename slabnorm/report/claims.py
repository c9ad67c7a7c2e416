"""What is found when claims are measured, as plain records, and their report: one card for each claim.

`slabnorm.study.claims` writes the records, `--json` prints them as they are, and the page of `slabnorm lab`
reads them. A
number that does not exist is None, never NaN.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import log10
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from slabnorm.report.page import DASHED, HUES, MARKERS, check_packages, finished, render, shaded
from slabnorm.report.study import DataRecord, Interval, counted
from slabnorm.report.wording import minus
from slabnorm.text import printable

if TYPE_CHECKING:
    from rich.console import Console

TIMES = "\N{MULTIPLICATION SIGN}"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"


@dataclass(frozen=True)
class Series:
    """One line, one set of bars or one cloud of points of a picture.

    Args:
        name: as the legend has it.
        x: where on the axis: numbers, or names for bars.
        y: the values; None where there is none.
        low, high: the ends of each value's interval or band; empty for none.
    """

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Picture:
    """What a picture shows; reports and the page draw it.

    Args:
        title: what is to be seen, in a few words.
        x, y: the labels of the axes, with units.
        series: what is drawn.
        kind: "lines", "bars" or "points".
        log: the axes with a logarithmic scale: "", "x", "y" or "xy".
        marks: horizontal lines to compare with, as (label, height).
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    kind: str = "lines"
    log: str = ""
    marks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Number:
    """One measured number.

    Args:
        what: what was measured, in words.
        value: the mean, with its 95% interval over seeds where there are several.
        unit: "%" for shares (from 0 to 1), "x" for factors, or a unit as it is written; empty for none.
    """

    what: str
    value: Interval
    unit: str = ""


@dataclass(frozen=True)
class Test:
    """One inequality that the claim stands or falls with: `value > bound`, or `value < bound`.

    Args:
        what: what was measured, in words.
        value: the value, with its interval over seeds.
        bound: what it must exceed, or stay below.
        unit: as in Number.
        below: whether it must stay below.
    """

    what: str
    value: Interval
    bound: float
    unit: str = ""
    below: bool = False

    @property
    def verdict(self) -> str:
        """HOLDS if the whole interval lies on the right side, FAILS if on the wrong one, or else UNDECIDED.

        One exact value has an interval without width, low = mean = high.
        """
        if self.value.low is None or self.value.high is None:
            return UNDECIDED
        if self.below:
            right, wrong = self.value.high < self.bound, self.value.low >= self.bound
        else:
            right, wrong = self.value.low > self.bound, self.value.high <= self.bound
        return HOLDS if right else FAILS if wrong else UNDECIDED

    @property
    def side(self) -> str:
        """What the value must be, as `> 2.0`."""
        return f"{'<' if self.below else '>'} {number_text(self.bound, self.unit)}"


@dataclass(frozen=True)
class ClaimRecord:
    """A claim, what was measured, and whether it held.

    Args:
        id, claim: its name, and what it says.
        question: what to think about first.
        measured: what was found, one sentence with its numbers.
        tests: the inequalities that decide the verdict.
        verdict: HOLDS if all tests hold, FAILS if one fails, and else UNDECIDED.
        numbers: what else was measured.
        pictures: what there is to see.
        explanation: a few plain sentences for a newcomer.
        source: the paper, or papers, where the claim comes from.
        example: some ten lines of Python that do it.
        code: the source of the module that measured it.
        setting: how it was measured, as pairs of a heading and a few words.
        seconds: how long that took.
    """

    id: str
    claim: str
    question: str
    measured: str
    tests: tuple[Test, ...]
    verdict: str
    numbers: tuple[Number, ...]
    pictures: tuple[Picture, ...]
    explanation: str
    source: str
    example: str
    code: str
    setting: tuple[tuple[str, str], ...]
    seconds: float


@dataclass(frozen=True)
class SweepRecord:
    """One network of the sweep that the page has on its sliders, trained once.

    Args:
        norm, batch_size, rate, depth, gain: which network; `rate` is the learning rate, `gain` a factor of
            the initial weights.
        status: "done" or "diverged".
        accuracy: on the test split in eval mode, 0 to 1.
        steps: the optimiser steps at which was looked.
        loss: the training loss there; None where it is not finite.
        validation: the validation accuracy there.
        drift: for each hidden layer, how far the mean of its input has moved since the start, in standard
            deviations of then, averaged over units; the end of training.
        gradient: for each hidden layer, the norm of the gradient of its weights, at the start.
    """

    norm: str
    batch_size: int
    rate: float
    depth: int
    gain: float
    status: str
    accuracy: float
    steps: tuple[int, ...]
    loss: tuple[float | None, ...]
    validation: tuple[float, ...]
    drift: tuple[float | None, ...]
    gradient: tuple[float | None, ...]


@dataclass(frozen=True)
class ClaimsRecord:
    """All claims that were measured, the data, the sweep if there was one, and the method."""

    data: DataRecord
    claims: tuple[ClaimRecord, ...]
    sweep: tuple[SweepRecord, ...]
    seeds: tuple[int, ...]
    method: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the whole record as dicts, lists, text and numbers, ready for `json.dumps`."""
        return asdict(self)


# Numbers in words.


def number_text(value: float, unit: str = "") -> str:
    """Return a number with three digits and its unit: `97.4%`, `3.21×`, `1.2e-09`, `120 steps`."""
    if unit == "%":
        return minus(f"{100 * value:.1f}%")
    text = f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:#.3g}".rstrip(".")
    if 1e-6 <= abs(value) < 1e-4 or "e" in text:
        text = f"{float(text):g}"
    if "e" not in text and "." in text and value == int(value):
        text = text.rstrip("0").rstrip(".")
    return minus(text + {"x": TIMES, "": ""}.get(unit, f" {unit}"))


def value_text(value: Interval, unit: str = "") -> str:
    """Return a number with its 95% interval where it has one of some width: `3.2× [2.9×, 3.5×]`."""
    mean = number_text(value.mean, unit)
    if value.low is None or value.high is None or value.low == value.high:
        return mean
    return f"{mean} [{number_text(value.low, unit)}, {number_text(value.high, unit)}]"


def tally(claims: ClaimsRecord) -> str:
    """Return how many claims hold, how many do not, and how many are undecided, as a sentence."""
    counts = Counter(claim.verdict for claim in claims.claims)
    parts = []
    for verdict, one, many in (
        (HOLDS, "holds", "hold"),
        (FAILS, "does not hold here", "do not hold here"),
        (UNDECIDED, "is undecided", "are undecided"),
    ):
        if counts[verdict]:
            parts.append(f"{counts[verdict]} {one if counts[verdict] == 1 else many}")
    return f"{counted(len(claims.claims), 'claim')} on {claims.data.name}: {', '.join(parts)}."


# In a terminal.

COLOURS = {HOLDS: "green", FAILS: "red", UNDECIDED: "yellow"}


def print_claims(claims: ClaimsRecord, console: Console) -> None:
    """Print each claim with its verdict and what was measured."""
    from rich.text import Text

    from slabnorm.report.terminal import Column, Row, print_rows, print_text

    rows = []
    for claim in claims.claims:
        said = Text(f"{printable(claim.claim, 2000)}\n")
        said.append(printable(claim.measured, 2000), style="dim")
        rows += [Row([claim.id, Text(claim.verdict, style=COLOURS[claim.verdict]), said]), Row()]
    print_rows(console, [Column("claim", "name"), Column("verdict", "name"), Column("", "sentence")], rows)
    print_text(console, tally(claims), "bold")
    for note in claims.notes:
        print_text(console, f"• {printable(note, 2000)}", "yellow")


def print_claim(claim: ClaimRecord, console: Console) -> None:
    """Print all about one claim: the question, what was measured, why, and the code that ran."""
    from rich.text import Text

    from slabnorm.report.terminal import Column, Row, print_rows, print_text

    print_text(console, printable(claim.claim, 2000), "bold")
    print_text(console, printable(claim.question, 2000))
    console.print()
    verdict = Text(f"{claim.verdict}: ", style=f"bold {COLOURS[claim.verdict]}")
    verdict.append(printable(claim.measured, 2000), style="not bold default")
    print_text(console, verdict)
    console.print()
    columns = [Column("measured", "sentence"), Column("value"), Column("must be"), Column("verdict", "name")]
    tests = [Row([t.what, value_text(t.value, t.unit), t.side, t.verdict]) for t in claim.tests]
    numbers = [Row([n.what, value_text(n.value, n.unit), "", ""]) for n in claim.numbers]
    print_rows(console, columns, [*tests, *numbers])
    console.print()
    print_text(console, printable(claim.explanation, 2000))
    print_text(console, f"Source: {claim.source}", "dim")
    console.print("\nThe code that ran:\n", style="dim")
    console.print(Text(claim.code.rstrip()), soft_wrap=True)
    console.print("\nTo try yourself:\n", style="dim")
    console.print(Text(claim.example.rstrip()), soft_wrap=True)
    console.print()


# As a page.


def render_claims(claims: ClaimsRecord) -> str:
    """Return the report of claims as HTML: a card for each.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    check_packages()
    figures = {
        f"{claim.id}-{number}": figure_of(picture)
        for claim in claims.claims
        for number, picture in enumerate(claim.pictures)
    }
    return render(
        "claims.html.jinja",
        figures,
        claims.as_dict(),
        claims=claims,
        tally=tally(claims),
        counted=counted,
        lines=str.splitlines,
        value_text=value_text,
        number_text=number_text,
        slugs={HOLDS: "holds", FAILS: "fails", UNDECIDED: "undecided"},
    )


FEW_TICKS = 9
LONGEST_LABEL = 34  # characters


def figure_of(picture: Picture) -> Any:
    """Return a picture as a figure of Plotly."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, series in enumerate(picture.series):
        draw = {"lines": add_line, "points": add_points, "bars": add_bars}[picture.kind]
        draw(figure, series, HUES[number % len(HUES)], MARKERS[number % len(MARKERS)])
    for label, height in picture.marks:
        add_mark(figure, label, height, log="y" in picture.log)
    set_axis(figure.update_xaxes, picture.x, every(picture, "x") if "x" in picture.log else None)
    set_axis(figure.update_yaxes, folded(picture.y), every(picture, "y") if "y" in picture.log else None)
    figure.update_layout(barmode="group", showlegend=len(picture.series) > 1)
    return finished(figure, 380)


def add_mark(figure: Any, label: str, height: float, log: bool) -> None:
    """Draw a line to compare with.

    On a logarithmic axis Plotly takes the height of a shape as it is, and that of a text as its power of ten.
    """
    figure.add_hline(y=height, line=DASHED)
    figure.add_annotation(
        text=html.escape(label),
        x=1,
        xref="paper",
        xanchor="right",
        y=log10(height) if log else height,
        yanchor="bottom",
        showarrow=False,
    )


def every(picture: Picture, axis: str) -> list[float]:
    """Return all positive numbers along an axis of a picture."""
    values = (value for series in picture.series for value in getattr(series, axis))
    return sorted(
        {value for value in values if not isinstance(value, str) and value is not None and value > 0}
    )


def set_axis(update: Callable[..., Any], title: str, logarithmic: list[float] | None) -> None:
    """Set title and scale of an axis.

    Args:
        update: changes the axis.
        title: its label.
        logarithmic: the values along it, for a logarithmic scale. A few are ticks by themselves, as batch
            sizes; more have one at each power of ten, if there are several.
    """
    update(title=html.escape(title).replace("\n", "<br>"), automargin=True)
    if logarithmic is None:
        return
    update(type="log", exponentformat="power")
    if not logarithmic:
        return
    if len(logarithmic) <= FEW_TICKS and update.__name__ == "update_xaxes":
        update(tickvals=logarithmic, ticktext=[number_text(value) for value in logarithmic])
    elif 10 < logarithmic[-1] / logarithmic[0] < 1e8:
        update(dtick=1)


def folded(label: str) -> str:
    """Return a label that goes up the side of a figure, in lines that are short enough."""
    return "\n".join(wrap(label, LONGEST_LABEL))


def add_line(figure: Any, series: Series, colour: str, marker: str) -> None:
    """Add a line, on a band from low to high if there is one."""
    import plotly.graph_objects as go

    name = html.escape(series.name)
    if series.low and series.high:
        known = [
            i
            for i, (low, high) in enumerate(zip(series.low, series.high, strict=True))
            if None not in (low, high)
        ]
        x, low, high = ([values[i] for i in known] for values in (series.x, series.low, series.high))
        figure.add_trace(shaded(x, low, high, colour, name))
    few = len(series.x) <= 25
    figure.add_trace(
        go.Scatter(
            x=list(series.x),
            y=list(series.y),
            mode="lines+markers" if few else "lines",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2},
            marker={"symbol": marker, "size": 8},
        )
    )


def add_points(figure: Any, series: Series, colour: str, marker: str) -> None:
    """Add points."""
    import plotly.graph_objects as go

    figure.add_trace(
        go.Scatter(
            x=list(series.x),
            y=list(series.y),
            mode="markers",
            name=html.escape(series.name),
            marker={"symbol": marker, "size": 8, "color": colour},
        )
    )


def add_bars(figure: Any, series: Series, colour: str, marker: str) -> None:
    """Add bars, with an error bar from low to high if there is one."""
    import plotly.graph_objects as go

    error = None
    if series.low and series.high:
        ends = list(zip(series.y, series.low, series.high, strict=True))
        error = {
            "type": "data",
            "array": [None if y is None or high is None else high - y for y, _, high in ends],
            "arrayminus": [None if y is None or low is None else y - low for y, low, _ in ends],
        }
    names = [html.escape(x) if isinstance(x, str) else x for x in series.x]
    figure.add_trace(
        go.Bar(x=names, y=list(series.y), name=html.escape(series.name), marker_color=colour, error_y=error)
    )
