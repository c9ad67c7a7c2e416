"""The pictures of a study, as Plotly figures."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import Any

from slabnorm.report.axes import AccuracyAxis
from slabnorm.report.colours import looks
from slabnorm.report.labels import norm_label, scheme_label
from slabnorm.report.numbers import accuracy, percent
from slabnorm.report.records import CellRecord, CurveRecord, StudyRecord

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
GRID = "rgba(128,136,150,0.25)"
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
        figure.add_trace(points(norm_label(norm), places, cells, axis, style[norm]))
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


def points(
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
        customdata=[[accuracy(cell.accuracy), cell.batch_size] for cell in cells],
        hovertemplate="%{fullData.name}, batch size %{customdata[1]}<br>%{customdata[0]}<extra></extra>",
    )


def curves_figure(study: StudyRecord) -> Any:
    """Return validation accuracy during training: one panel per batch size, one line per norm."""
    from plotly.subplots import make_subplots

    sizes = sorted(study.batch_sizes)
    columns = min(len(sizes), 3)
    rows = math.ceil(len(sizes) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[f"batch size {size}" for size in sizes],
        horizontal_spacing=0.03,
    )
    axis = AccuracyAxis(study.data.validation)
    style = looks(list(study.norms))
    for number, size in enumerate(sizes):
        place = {"row": number // columns + 1, "col": number % columns + 1}
        for curve in (c for c in study.curves if c.batch_size == size):
            for trace in band(curve, norm_label(curve.norm), axis, style[curve.norm][0]):
                figure.add_trace(trace, **place)
    figure.update_xaxes(title="epochs", rangemode="tozero")
    figure.update_yaxes(axis.layout(0.0, axis.height(highest(study.curves))))
    figure.update_yaxes(title="validation accuracy", col=1)
    add_target(figure, axis.height(study.target))
    only_first_in_legend(figure)
    return finished(figure, 90 + 340 * rows)


def inputs_figure(study: StudyRecord) -> Any:
    """Return the input schemes side by side: learning curves, and test accuracy with intervals."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.1,
        subplot_titles=["validation accuracy", "test accuracy"],
    )
    validation, test = AccuracyAxis(study.data.validation), AccuracyAxis(study.data.test)
    style = looks([cell.scheme for cell in study.inputs])
    for curve in study.inputs_curves:
        for trace in band(curve, scheme_label(curve.scheme), validation, style[curve.scheme][0]):
            figure.add_trace(trace, row=1, col=1)
    for cell in (cell for cell in study.inputs if cell.accuracy is not None):
        label = scheme_label(cell.scheme)
        dot = points(label, [html.escape(label)], [cell], test, style[cell.scheme])
        figure.add_trace(dot.update(showlegend=False), row=1, col=2)
    figure.update_xaxes(title="epochs", rangemode="tozero", col=1)
    figure.update_xaxes(showgrid=False, col=2)
    figure.update_yaxes(validation.layout(0.0, validation.height(highest(study.inputs_curves))), col=1)
    figure.update_yaxes(test.layout(*test.room(spans(study.inputs))), col=2)
    add_target(figure, validation.height(study.target), col=1)
    only_first_in_legend(figure)
    return finished(figure, 430)


def highest(curves: tuple[CurveRecord, ...]) -> float:
    """Return the highest accuracy on any mean curve."""
    return max((max(curve.mean) for curve in curves), default=0.9)


def band(curve: CurveRecord, label: str, axis: AccuracyAxis, colour: str) -> list[Any]:
    """Return a curve: a band from the lowest to the highest seed, and the mean over seeds on it."""
    import plotly.graph_objects as go

    epochs, name = list(curve.epochs), html.escape(label)
    edge = [axis.height(value) for value in curve.high + curve.low[::-1]]
    shade = go.Scatter(
        x=epochs + epochs[::-1],
        y=edge,
        mode="lines",
        fill="toself",
        fillcolor=faint(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        name=name,
    )
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
    return [shade, line]


def faint(colour: str) -> str:
    """Return a colour `#rrggbb` as a transparent one."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def add_target(figure: Any, height: float, **where: int) -> None:
    """Draw the accuracy that steps are counted to."""
    place = {"row": 1, **where} if where else {}
    figure.add_hline(y=height, line={"width": 1, "dash": "dash", "color": "#8a8f98"}, **place)


def only_first_in_legend(figure: Any) -> None:
    """Keep one legend entry for each name, whichever panels it is in."""
    seen = set()
    for trace in figure.data:
        if trace.showlegend is not False:
            trace.showlegend = trace.name not in seen
            seen.add(trace.name)


def finished(figure: Any, height: int) -> Any:
    """Return a figure in the style of the page, which sets the colour of its text by itself."""
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 14, "color": "#1c2430"},
        margin={"l": 75, "r": 20, "t": 75, "b": 65},
        legend={"orientation": "h", "x": 0, "y": 0.995, "yref": "container", "yanchor": "top"},
        hoverlabel={"font": {"family": FONT}},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, ticks="outside", ticklen=4, tickcolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure


FIGURES: dict[str, Callable[[StudyRecord], Any]] = {
    "accuracy": accuracy_figure,
    "curves": curves_figure,
    "inputs": inputs_figure,
}
