"""The report of a study, from records to a terminal table and an HTML page.

`slabnorm.study` writes the records, and `--json` prints them as they are. A number that does not exist (of a
cell that failed, or the interval of one seed) is None, never NaN.
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from slabnorm.report.page import DASHED, HUES, MARKERS, check_packages, finished, render, shaded
from slabnorm.report.wording import (
    NONE,
    NORM_LABELS,
    SCHEME_LABELS,
    level,
    minus,
    norm_label,
    percent,
    scheme_label,
)
from slabnorm.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from slabnorm.report.terminal import Column, Row


GOOD = 0.02  # a learning rate is good within 2 points of the best


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval by Student's t.

    Args:
        mean: in the units of what was measured; accuracies are shares from 0 to 1.
        low, high: the ends of the interval; None where one value gives none.
        count: the number of values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class CurvePoint:
    """One look at the validation split during training.

    Args:
        step: optimiser steps done.
        epoch: the same in passes over the training split.
        accuracy: validation accuracy in eval mode, 0 to 1.
        loss: mean training loss since the last look.
    """

    step: int
    epoch: float
    accuracy: float
    loss: float | None


@dataclass(frozen=True)
class RunRecord:
    """One network, trained once.

    Args:
        scheme, norm, batch_size, seed: which run it is.
        status: "done", "diverged" (a loss that is not finite ended the training) or "failed".
        reason: why, for a run that is not "done".
        test_accuracy: in eval mode, of the weights at the end, 0 to 1; None where the run failed.
        gap: train-mode minus eval-mode accuracy on the same test samples.
        steps: optimiser steps done.
        steps_to_target: steps to the first look at or above the stated validation accuracy; None: never.
        seconds_per_step: median of forward, backward and optimiser, warm-up excluded.
        curve: the looks at the validation split.
        weights: a fingerprint of the initial weights outside the norm layers; equal in paired runs.
        notes: slabnorm's warnings during the run, once each.
        rate: multiple of the study's learning rate.
    """

    scheme: str
    norm: str
    batch_size: int
    seed: int
    status: str
    reason: str = ""
    test_accuracy: float | None = None
    gap: float | None = None
    steps: int = 0
    steps_to_target: int | None = None
    seconds_per_step: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    weights: str = ""
    notes: tuple[str, ...] = ()
    rate: float = 1.0


@dataclass(frozen=True)
class CellRecord:
    """The runs of one scheme, norm and batch size, over all seeds.

    Args:
        accuracy, gap: over the seeds; None where any run failed.
        steps_to_target: median over the seeds, "never" counted as infinity; None where that is infinite.
        reached: how many of the runs reached the stated accuracy.
        seconds_per_step: median over the seeds.
        runs, diverged, failed: counts.
        reason: the first run's reason, where one diverged or failed.
        learning_rate: of the first step, chosen for this cell.
    """

    scheme: str
    norm: str
    batch_size: int
    accuracy: Interval | None
    gap: Interval | None
    steps_to_target: float | None
    reached: int
    seconds_per_step: float | None
    runs: int
    diverged: int = 0
    failed: int = 0
    reason: str = ""
    learning_rate: float | None = None


@dataclass(frozen=True)
class SearchRecord:
    """The learning rates that were tried for one scheme, norm and batch size, and the one that was chosen.

    Args:
        scheme, norm, batch_size: of which cell.
        rates: learning rates of the first step, in ascending order.
        validation: the mean validation accuracy at the end with each; a run that was not done counts as 0.
        low, high: the lowest and the highest seed's.
        chosen: the rate with the highest mean.
        good: the lowest and the highest rate around it whose means are within 2 points of the highest.
        open_below, open_above: whether that range ends only because no lower, or no higher, rate was tried.
        at_edge: whether the chosen rate is the lowest or highest that was tried.
        chance: the accuracy of always saying the most frequent class.
    """

    scheme: str
    norm: str
    batch_size: int
    rates: tuple[float, ...]
    validation: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    chosen: float
    good: tuple[float, float]
    open_below: bool
    open_above: bool
    at_edge: bool
    chance: float = 0.0

    @property
    def learns(self) -> bool:
        """Whether any rate does better than chance, by the 2 points that a good rate may be off."""
        return max(self.validation) > self.chance + GOOD

    @property
    def width(self) -> float:
        """The factor between the ends of the good range."""
        return self.good[1] / self.good[0]


@dataclass(frozen=True)
class CurveRecord:
    """The learning curve of a cell: mean over seeds, and the lowest and highest seed."""

    scheme: str
    norm: str
    batch_size: int
    epochs: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class DifferenceRecord:
    """A paired difference of test accuracy, `better - other`, seed by seed.

    Args:
        better, other: what is compared, in words.
        difference: its interval, in shares; 95% hold all intervals of a batch size together.
        clear: whether the interval leaves out zero.
    """

    better: str
    other: str
    difference: Interval
    clear: bool


@dataclass(frozen=True)
class SchemeRecord:
    """One input scheme: its name, and what it does to the raw values in words.

    Args:
        name, text: the scheme, and what it does.
        reason: why it was left out.
    """

    name: str
    text: str
    reason: str = ""


@dataclass(frozen=True)
class DataRecord:
    """The data set: its name, its size, its splits, and how its axes were read."""

    name: str
    samples: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: int
    validation: int
    test: int
    axes: str
    raw_range: tuple[float, float]


@dataclass(frozen=True)
class StudyRecord:
    """A whole comparison: the verdict, the numbers under it, and how they were measured."""

    verdict: str
    rates_verdict: str
    inputs_verdict: str
    data: DataRecord
    model: str
    parameters: int
    norms: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...]
    epochs: int
    target: float
    scheme: str
    schemes: tuple[SchemeRecord, ...]
    inputs_norm: str
    inputs_batch_size: int
    cells: tuple[CellRecord, ...]
    inputs: tuple[CellRecord, ...]
    searches: tuple[SearchRecord, ...]
    curves: tuple[CurveRecord, ...]
    inputs_curves: tuple[CurveRecord, ...]
    differences: tuple[DifferenceRecord, ...]
    method: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the whole record as dicts, lists, text and numbers, ready for `json.dumps`."""
        return asdict(self)


# The words for the numbers of a cell.


def accuracy_text(interval: Interval | None) -> str:
    """Return an accuracy as `97.4% [96.1, 98.7]`; the ends of the interval are in percent, too."""
    if interval is None:
        return "failed"
    if interval.low is None or interval.high is None:
        return percent(interval.mean)
    return f"{percent(interval.mean)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points_text(interval: Interval | None) -> str:
    """Return a difference of accuracies in percentage points and half its interval, as `+1.2 ± 1.5`."""
    if interval is None:
        return NONE
    mean = f"{100 * interval.mean:+.1f}"
    mean = "0.0" if float(mean) == 0 else minus(mean)
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} ± {50 * (interval.high - interval.low):.1f}"


def steps_text(cell: CellRecord) -> str:
    """Return the steps to the target accuracy, and how many runs reached it if not all did."""
    if cell.failed == cell.runs:
        return NONE
    share = "" if cell.reached == cell.runs else f" ({cell.reached} of {cell.runs})"
    return f"{cell.steps_to_target:,.0f}{share}" if cell.steps_to_target is not None else f"never{share}"


def milliseconds_text(seconds: float | None) -> str:
    """Return a duration in milliseconds, with three digits."""
    return NONE if seconds is None else f"{1000 * seconds:#.3g}".rstrip(".")


def rate_text(rate: float | None) -> str:
    """Return a learning rate with two digits, never as a power of ten."""
    if rate is None:
        return NONE
    return f"{rate:.{max(0, 1 - math.floor(math.log10(rate)))}f}".removesuffix(".0")


def range_text(found: SearchRecord | None) -> str:
    """Return the factor between the ends of the good range, as `16` or, where it may go on, `> 16`."""
    if found is None or not found.learns:
        return NONE
    return f"{'> ' if found.open_below or found.open_above else ''}{found.width:.0f}"


def remark(cell: CellRecord) -> str:
    """Return how many runs of a cell failed or diverged; empty if none did."""
    counts = [(cell.failed, "failed"), (cell.diverged, "diverged")]
    return ", ".join(f"{count} of {cell.runs} {what}" for count, what in counts if count)


# The study in a terminal.

MEASURES = ("test accuracy, %", "learning\nrate", "good\nrange", "steps to\n{target}", "ms/step")
RANGE = (
    "Each learning rate is the best of several on the validation split. Good range: the factor between the "
    "lowest and the highest rate that come within 2 points of it; > where it may go on."
)
MOST_NOTES = 8
MOST_CHARACTERS = 2000  # in a sentence


def print_study(study: StudyRecord, console: Console) -> None:
    """Print a study: the verdict, the norms, the input schemes, and what to know about them.

    No text of the study is read as markup. The width of the console decides how the tables are folded.
    """
    from slabnorm.report.terminal import print_text

    def paragraph(text: str, style: str = "") -> None:
        print_text(console, printable(text, MOST_CHARACTERS), style)

    console.print()
    paragraph(study.verdict, "bold")
    console.print()
    _print_norms(study, console)
    console.print()
    paragraph(study.rates_verdict)
    paragraph(RANGE, "dim")
    if study.inputs:
        console.print()
        paragraph(study.inputs_verdict, "bold")
        console.print()
        _print_inputs(study, console)
    if study.notes:
        console.print()
    for note in study.notes[:MOST_NOTES]:
        paragraph(f"• {note}", "yellow")
    if len(study.notes) > MOST_NOTES:
        paragraph(f"• The report has {len(study.notes) - MOST_NOTES} more notes.", "yellow")
    console.print()
    paragraph(summary(study), "dim")


def _print_norms(study: StudyRecord, console: Console) -> None:
    """Print the norms by batch size."""
    from slabnorm.report.terminal import Column, Row

    rows: list[Row] = []
    before = 0
    for cell in sorted(study.cells, key=lambda cell: cell.batch_size):
        if before and cell.batch_size != before:
            rows.append(Row())
        batch = "" if cell.batch_size == before else str(cell.batch_size)
        rows.append(_row_of(study, [batch, norm_label(cell.norm)], cell))
        before = cell.batch_size
    _print_cells(console, [Column("batch"), Column("norm", "name")], study.target, rows)


def _print_inputs(study: StudyRecord, console: Console) -> None:
    """Print the input schemes, side by side."""
    from slabnorm.report.terminal import Column

    rows = [_row_of(study, [scheme_label(cell.scheme)], cell) for cell in study.inputs]
    _print_cells(console, [Column("inputs", "name")], study.target, rows)


def _print_cells(console: Console, heads: list[Column], target: float, rows: list[Row]) -> None:
    """Print a table of cells, with a column for remarks if there are any."""
    from slabnorm.report.terminal import Column, Row, print_rows

    measures = [Column(measure.format(target=level(target))) for measure in MEASURES]
    columns = [*heads, *measures, Column("", "name")]
    if not any(row.cells and row.cells[-1] for row in rows):
        columns.pop()
        rows = [Row(row.cells[:-1], row.style) for row in rows]
    print_rows(console, columns, rows)


def _row_of(study: StudyRecord, head: list[str], cell: CellRecord) -> Row:
    """Return a cell as a row; it is red if a run failed or diverged."""
    from slabnorm.report.terminal import Row

    values = [
        accuracy_text(cell.accuracy).replace("%", ""),
        rate_text(cell.learning_rate),
        range_text(search_of(study, cell)),
        steps_text(cell),
        milliseconds_text(cell.seconds_per_step),
        remark(cell),
    ]
    return Row([*head, *values], "red" if cell.failed or cell.diverged else "")


def search_of(study: StudyRecord, cell: CellRecord) -> SearchRecord | None:
    """Return how the learning rate of a cell was chosen."""
    where = (cell.scheme, cell.norm, cell.batch_size)
    return next((s for s in study.searches if (s.scheme, s.norm, s.batch_size) == where), None)


def summary(study: StudyRecord) -> str:
    """Return in a line what was compared."""
    data = study.data
    seeds, epochs = counted(len(study.seeds), "seed"), counted(study.epochs, "epoch")
    return (
        f"{data.name}: {data.train} training, {data.validation} validation and {data.test} test samples; "
        f"{study.model} with {study.parameters:,} parameters; {seeds}, {epochs}; "
        f"95% intervals over seeds; {counted(len(study.runs), 'run')} in {study.seconds:.0f} s"
    )


def counted(number: int, word: str) -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# The study as a page.


def render_study(study: StudyRecord) -> str:
    """Return the report of a study as HTML.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    check_packages()
    return render(
        "study.html.jinja",
        draw(study),
        study.as_dict(),
        study=study,
        level=level,
        counted=counted,
        accuracy_text=accuracy_text,
        steps_text=steps_text,
        milliseconds_text=milliseconds_text,
        points_text=points_text,
        rate_text=rate_text,
        range_text=lambda cell: range_text(search_of(study, cell)),
        remark=remark,
        norm_label=norm_label,
        scheme_label=scheme_label,
        norm_of=lambda cell: norm_label(cell.norm),
        scheme_of=lambda cell: scheme_label(cell.scheme),
    )


TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
NEAR = 0.35  # a bit more than a factor of two in errors


class AccuracyAxis:
    """height(accuracy) = -log10(1 - accuracy), with no error drawn as half a sample's.

    Args:
        samples: what the accuracies were counted on.
    """

    def __init__(self, samples: int) -> None:
        self.least_error = 0.5 / samples

    def height(self, accuracy: float) -> float:
        """Return where on the axis an accuracy lies."""
        return -math.log10(max(1 - accuracy, self.least_error))

    def room(self, spans: list[tuple[float, float, float]]) -> tuple[float, float]:
        """Return the lowest and the highest height to show of intervals (low, mean, high).

        Every mean is seen, and intervals as far as they stay near the means: one over three seeds of
        a network that learns now and then reaches from 0 to 1.
        """
        if not spans:
            return 0.0, 1.0
        low = min(self.height(mean) for _, mean, _ in spans)
        high = max(self.height(mean) for _, mean, _ in spans)
        lowest = min(self.height(end) for end, _, _ in spans)
        highest = max(self.height(end) for _, _, end in spans)
        return max(lowest, low - NEAR), min(highest, high + NEAR)

    def layout(self, low: float, high: float, title: str | None = None) -> dict[str, Any]:
        """Return Plotly's settings of an axis that shows two heights with a margin.

        Args:
            low, high: heights.
            title: what is measured.
        """
        margin = max(0.08 * (high - low), 0.05)
        ticks = [tick for tick in TICKS if 1 - tick > self.least_error]
        return {
            "range": [low - margin, high + margin],
            "tickvals": [self.height(tick) for tick in ticks],
            "ticktext": [f"{100 * tick:g}%" for tick in ticks],
            "title": title,
        }


def looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each name: fixed for schemes and the usual norms, in order for others."""
    known = list(SCHEME_LABELS if set(names) <= set(SCHEME_LABELS) else NORM_LABELS)[:5]
    every = known + [name for name in names if name not in known]
    return {
        name: (HUES[i % len(HUES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(every)
        if name in names
    }


SPREAD = 0.55  # of the distance between two batch sizes, taken by their points


def accuracy_figure(study: StudyRecord) -> Any:
    """Return test accuracy by batch size, with 95% intervals, one line per norm."""
    import plotly.graph_objects as go

    figure = go.Figure()
    sizes = sorted(study.batch_sizes)
    axis = AccuracyAxis(study.data.test)
    style = looks(list(study.norms))
    for number, norm in enumerate(study.norms):
        offset = (number - (len(study.norms) - 1) / 2) * SPREAD / len(study.norms)
        cells = [cell for cell in study.cells if cell.norm == norm and cell.accuracy is not None]
        cells.sort(key=lambda cell: cell.batch_size)
        places = [sizes.index(cell.batch_size) + offset for cell in cells]
        figure.add_trace(dots(norm_label(norm), places, cells, axis, style[norm]))
    figure.update_xaxes(
        title="batch size",
        tickvals=list(range(len(sizes))),
        ticktext=[str(size) for size in sizes],
        range=[-0.5, len(sizes) - 0.5],
        showgrid=False,
    )
    figure.update_yaxes(axis.layout(*axis.room(spans(study.cells)), title="test accuracy"))
    return finished(figure, 460)


def spans(cells: tuple[CellRecord, ...]) -> list[tuple[float, float, float]]:
    """Return low end, mean and high end of every accuracy; one without an interval is its own."""
    known = [cell.accuracy for cell in cells if cell.accuracy is not None]
    return [
        (i.mean, i.mean, i.mean) if i.low is None or i.high is None else (i.low, i.mean, i.high)
        for i in known
    ]


def dots(
    label: str, places: list[Any], cells: list[CellRecord], axis: AccuracyAxis, style: tuple[str, str]
) -> Any:
    """Return cells as points with intervals, joined by a thin line."""
    import plotly.graph_objects as go

    colour, marker = style
    intervals = [cell.accuracy for cell in cells if cell.accuracy is not None]
    at = [axis.height(i.mean) for i in intervals]
    tops = [axis.height(i.mean if i.high is None else i.high) for i in intervals]
    bottoms = [axis.height(i.mean if i.low is None else i.low) for i in intervals]
    return go.Scatter(
        x=places,
        y=at,
        error_y={
            "type": "data",
            "array": [top - here for top, here in zip(tops, at, strict=True)],
            "arrayminus": [here - bottom for bottom, here in zip(bottoms, at, strict=True)],
            "thickness": 1.5,
            "width": 4,
        },
        mode="lines+markers",
        name=html.escape(label),
        line={"color": colour, "width": 1.2, "dash": "dot"},
        marker={"color": colour, "symbol": marker, "size": 10},
        customdata=[[accuracy_text(cell.accuracy), cell.batch_size] for cell in cells],
        hovertemplate="%{fullData.name}, batch size %{customdata[1]}<br>%{customdata[0]}<extra></extra>",
    )


def curves_figure(study: StudyRecord, size: int) -> Any:
    """Return validation accuracy during training at a batch size, one line per norm."""
    curves = [curve for curve in study.curves if curve.batch_size == size]
    style, axis = looks(list(study.norms)), AccuracyAxis(study.data.validation)
    lines = [(curve, norm_label(curve.norm), style[curve.norm][0]) for curve in curves]
    figure = bands(lines, axis, study.target)
    # One axis for all batch sizes, so that they can be compared.
    figure.update_yaxes(axis.layout(0.0, axis.height(highest(study.curves)), "validation accuracy"))
    figure.update_xaxes(title=f"epochs, at batch size {size}")
    return finished(figure, 400)


def rates_figure(study: StudyRecord, size: int) -> Any:
    """Return validation accuracy by learning rate at a batch size, one line per norm, the chosen marked."""
    import plotly.graph_objects as go

    figure, axis, style = go.Figure(), AccuracyAxis(study.data.validation), looks(list(study.norms))
    searches = [found for found in study.searches if found.scheme == study.scheme]
    for found in (found for found in searches if found.batch_size == size):
        colour, marker = style[found.norm]
        chosen = [rate == found.chosen for rate in found.rates]
        line = go.Scatter(
            x=found.rates,
            y=[axis.height(value) for value in found.validation],
            mode="lines+markers",
            name=html.escape(norm_label(found.norm)),
            line={"color": colour, "width": 2},
            marker={
                "color": colour,
                "symbol": [marker if best else f"{marker}-open" for best in chosen],
                "size": [14 if best else 7 for best in chosen],
                "opacity": 1,
            },
            customdata=[
                [rate_text(rate), percent(value), " (chosen)" if best else ""]
                for rate, value, best in zip(found.rates, found.validation, chosen, strict=True)
            ],
            hovertemplate="%{fullData.name}<br>learning rate %{customdata[0]}: %{customdata[1]}"
            "%{customdata[2]}<extra></extra>",
        )
        figure.add_trace(line)
    best = max((max(found.validation) for found in searches), default=0.9)
    figure.update_yaxes(axis.layout(0.0, axis.height(best), "validation accuracy"))
    figure.update_xaxes(title=f"learning rate, at batch size {size}", type="log", dtick=1, tickformat="~g")
    return finished(figure, 400)


def inputs_curves_figure(study: StudyRecord) -> Any:
    """Return validation accuracy during training, one line per input scheme."""
    style, axis = looks([cell.scheme for cell in study.inputs]), AccuracyAxis(study.data.validation)
    lines = [(c, scheme_label(c.scheme), style[c.scheme][0]) for c in study.inputs_curves]
    figure = bands(lines, axis, study.target)
    figure.update_yaxes(axis.layout(0.0, axis.height(highest(study.inputs_curves)), "validation accuracy"))
    figure.update_xaxes(title="epochs")
    return finished(figure, 400)


def inputs_figure(study: StudyRecord) -> Any:
    """Return test accuracy with intervals, one point per input scheme."""
    import plotly.graph_objects as go

    figure, axis = go.Figure(), AccuracyAxis(study.data.test)
    style = looks([cell.scheme for cell in study.inputs])
    for cell in (cell for cell in study.inputs if cell.accuracy is not None):
        label = scheme_label(cell.scheme)
        figure.add_trace(dots(label, [html.escape(label)], [cell], axis, style[cell.scheme]))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(axis.layout(*axis.room(spans(study.inputs)), "test accuracy"))
    return finished(figure, 400)


def highest(curves: tuple[CurveRecord, ...]) -> float:
    """Return the highest accuracy on any mean curve."""
    return max((max(curve.mean) for curve in curves), default=0.9)


def bands(curves: list[tuple[CurveRecord, str, str]], axis: AccuracyAxis, target: float) -> Any:
    """Return a figure of curves with their labels and colours, and the accuracy that steps are counted to."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for curve, label, colour in curves:
        for trace in band(curve, label, axis, colour):
            figure.add_trace(trace)
    figure.update_xaxes(rangemode="tozero")
    figure.add_hline(y=axis.height(target), line=DASHED)
    return figure


def band(curve: CurveRecord, label: str, axis: AccuracyAxis, colour: str) -> list[Any]:
    """Return a curve: a band from the lowest to the highest seed, and the mean over seeds on it."""
    import plotly.graph_objects as go

    epochs, name = list(curve.epochs), html.escape(label)
    low, high = ([axis.height(value) for value in values] for values in (curve.low, curve.high))
    line = go.Scatter(
        x=epochs,
        y=[axis.height(value) for value in curve.mean],
        mode="lines",
        line={"color": colour, "width": 2},
        name=name,
        legendgroup=name,
        customdata=[percent(value) for value in curve.mean],
        hovertemplate="%{fullData.name}<br>epoch %{x:.2f}: %{customdata}<extra></extra>",
    )
    return [shaded(epochs, low, high, colour, name), line]


def draw(study: StudyRecord) -> dict[str, Any]:
    """Return every picture by the id of its place on the page."""
    sizes = sorted(study.batch_sizes)
    figures = {"accuracy": accuracy_figure(study)}
    figures |= {f"rates-{size}": rates_figure(study, size) for size in sizes}
    figures |= {f"curves-{size}": curves_figure(study, size) for size in sizes}
    if study.inputs:
        figures |= {"inputs-curves": inputs_curves_figure(study), "inputs": inputs_figure(study)}
    return figures
