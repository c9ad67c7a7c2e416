"""The pictures of an audit, as Plotly figures."""

from __future__ import annotations

import html
import math
from typing import Any

from slabnorm.report.audit import AuditRecord, FeatureAudit, Part
from slabnorm.report.colours import HUES
from slabnorm.report.figures import faint, finished
from slabnorm.text import printable

TRAIN, NEW = HUES[1], HUES[2]
NAMED = 40  # features that have a line of their own in the overview; more are points along an axis
MOST_POINTS = 2000
MOST_DRAWN = 12  # features that get a picture
ERRORS = 2.0  # standard errors that bars show
LEAST_SHIFT, LEAST_SPREAD = 0.5, 2.0  # what the axes reach at least, so that noise looks like noise


def drifting(record: AuditRecord) -> list[FeatureAudit]:
    """Return the features that findings are about, or all where one cause explains all; the worst first."""
    about = {name for finding in record.findings for name in finding.features}
    whole = any(finding.kind in ("scale", "dtype") for finding in record.findings)
    chosen = [feature for feature in record.features if whole or feature.name in about]
    return sorted(chosen, key=lambda feature: -_size(feature.shift))


def overview_figure(record: AuditRecord) -> Any:
    """Return shift and ratio of spreads of every feature, with two standard errors of the shift."""
    from plotly.subplots import make_subplots

    features = sorted(range(len(record.features)), key=lambda i: -_size(record.features[i].shift))
    features = sorted(features[:MOST_POINTS])
    named = len(record.features) <= NAMED
    rows, columns = (1, 2) if named else (2, 1)
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=named, shared_xaxes=not named,
        horizontal_spacing=0.06, vertical_spacing=0.1,
        subplot_titles=["shift of the mean, training sd", "spread, times that of training"],
    )  # fmt: skip
    found = {feature.name for feature in drifting(record)}
    for panel, values in enumerate((_shifts, _spreads)):
        for wanted, colour, label in ((False, TRAIN, "not in a finding"), (True, NEW, "named in a finding")):
            chosen = [i for i in features if (record.features[i].name in found) == wanted]
            trace = _points(record, chosen, values, colour, label, named)
            trace.update(showlegend=panel == 0)
            place = {"row": 1, "col": panel + 1} if named else {"row": panel + 1, "col": 1}
            figure.add_trace(trace, **place)
    _axes(figure, record, named)
    return finished(figure, 130 + (24 * max(5, len(record.features)) if named else 480))


def overlap_figure(record: AuditRecord) -> Any:
    """Return the share of samples that were in training, with its interval, from 0 on."""
    import plotly.graph_objects as go

    overlap = record.overlap
    assert overlap is not None  # the page asks for it only then
    ends = [100 * (overlap.high - overlap.share)], [100 * (overlap.share - overlap.low)]
    figure = go.Figure(go.Scatter(
        x=[100 * overlap.share], y=["seen in training"], mode="markers",
        marker={"color": NEW if overlap.found else TRAIN, "size": 13},
        error_x={"type": "data", "array": ends[0], "arrayminus": ends[1], "thickness": 2, "width": 7},
        hovertemplate="%{x:.3g}%<extra></extra>",
    ))  # fmt: skip
    figure.update_xaxes(
        title="% of the distinct samples", range=[-0.5, max(5.0, min(102.0, 115 * overlap.high))]
    )
    figure = finished(figure, 150)
    return figure.update_layout(margin={"t": 15, "l": 130}, showlegend=False)


def features_figure(features: list[FeatureAudit]) -> Any:
    """Return a picture per feature, each on an axis of its own: range, one sd around the mean, mean."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(features), cols=1, vertical_spacing=0.45 / len(features) if len(features) > 1 else 0,
        subplot_titles=[_title(feature) for feature in features],
    )  # fmt: skip
    for row, feature in enumerate(features, 1):
        for part, label, colour in ((feature.new, "new data", NEW), (feature.train, "training", TRAIN)):
            for trace in _part(part, label, colour):
                figure.add_trace(trace.update(showlegend=trace.showlegend and row == 1), row=row, col=1)
        ends = [end for part in (feature.train, feature.new) for end in (part.min, part.max)]
        room = 0.03 * (max(ends) - min(ends)) or 0.5
        figure.update_xaxes(range=[min(ends) - room, max(ends) + room], row=row, col=1)
        figure.update_yaxes(range=[-0.6, 1.6], row=row, col=1)
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure.update_yaxes(showgrid=False)
    figure.update_layout(legend={"traceorder": "reversed"})
    return finished(figure, 105 + 128 * len(features))


def _part(part: Part, label: str, colour: str) -> list[Any]:
    """Return one data set's line: a thin one for the range, a thick one for one sd, a mark for the mean."""
    import plotly.graph_objects as go

    low, high = max(part.min, part.mean - part.std), min(part.max, part.mean + part.std)
    says = f"{label}: mean {part.mean:.6g}, sd {part.std:.6g}, from {part.min:.6g} to {part.max:.6g}"
    common = {
        "y": [label] * 2,
        "legendgroup": label,
        "hoverinfo": "skip",
        "showlegend": False,
        "mode": "lines",
    }
    return [
        go.Scatter(x=[part.min, part.max], line={"color": colour, "width": 2}, **common),
        go.Scatter(x=[low, high], line={"color": _half(colour), "width": 15}, **common),
        go.Scatter(
            x=[part.mean], y=[label], mode="markers", name=label, legendgroup=label, showlegend=True,
            marker={"size": 17, "symbol": "line-ns", "line": {"width": 3.5, "color": colour}},
            hovertemplate=f"{says}<extra></extra>",
        ),
    ]  # fmt: skip


def _points(record: AuditRecord, chosen: list[int], values: Any, colour: str, label: str, named: bool) -> Any:
    import plotly.graph_objects as go

    features = [record.features[i] for i in chosen]
    at, error = values(features)
    along: list[Any] = chosen
    bars = {"type": "data", "array": error, "thickness": 1.2, "width": 3} if error else None
    x, y = (at, along) if named else (along, at)
    return go.Scatter(
        x=x, y=y, mode="markers", name=label, legendgroup=label,
        marker={"color": colour, "size": 9 if named else 6},
        customdata=[_label(feature, 80) for feature in features],
        hovertemplate="%{customdata}: " + ("%{x:.4g}" if named else "%{y:.4g}") + "<extra></extra>",
        **({"error_x" if named else "error_y": bars} if bars else {}),
    )  # fmt: skip


def _axes(figure: Any, record: AuditRecord, named: bool) -> None:
    """Draw where nothing has changed, and name the features where there is room."""
    style = {"width": 1, "dash": "dash", "color": "#8a8f98"}
    shift, spread = _shift_axis(record), _spread_axis(record)
    if named:
        ticks = list(range(len(record.features)))
        labels = [_label(feature, 24) for feature in record.features]
        figure.update_yaxes(tickvals=ticks, ticktext=labels, range=[len(ticks) - 0.5, -0.5])
        figure.update_yaxes(automargin=True)
        figure.add_vline(x=0, line=style, layer="below", row=1, col=1)
        figure.add_vline(x=1, line=style, layer="below", row=1, col=2)
        figure.update_xaxes(shift, row=1, col=1)
        figure.update_xaxes(spread, row=1, col=2)
    else:
        figure.add_hline(y=0, line=style, layer="below", row=1, col=1)
        figure.add_hline(y=1, line=style, layer="below", row=2, col=1)
        figure.update_yaxes(shift, row=1, col=1)
        figure.update_yaxes(spread, row=2, col=1)
        figure.update_xaxes(title="feature, by its number", row=2, col=1)


def _shift_axis(record: AuditRecord) -> dict[str, Any]:
    ends = [f.shift + sign * ERRORS * f.error for f in record.features for sign in (-1, 1)]
    known = [end for end in ends if math.isfinite(end)]
    low, high = min([-LEAST_SHIFT, *known]), max([LEAST_SHIFT, *known])
    room = 0.04 * (high - low)
    return {"range": [low - room, high + room]}


def _spread_axis(record: AuditRecord) -> dict[str, Any]:
    logs = [math.log10(f.spread) for f in record.features if f.spread > 0 and math.isfinite(f.spread)]
    least = math.log10(LEAST_SPREAD)
    low, high = min([-least, *logs]), max([least, *logs])
    room = 0.06 * (high - low)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    if high - low < 1:
        ticks += [0.7, 1.5, 3.0, 0.3]
    return {"type": "log", "range": [low - room, high + room], "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks]}  # fmt: skip


def _shifts(features: list[FeatureAudit]) -> tuple[list[float | None], list[float | None]]:
    return [_known(f.shift) for f in features], [_known(ERRORS * f.error) for f in features]


def _spreads(features: list[FeatureAudit]) -> tuple[list[float | None], None]:
    return [_known(f.spread) if f.spread > 0 else None for f in features], None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _size(value: float) -> float:
    # What has no shift, as a feature that was constant, is shown first.
    return math.inf if math.isnan(value) else abs(value)


def _label(feature: FeatureAudit, most: int) -> str:
    return html.escape(printable(feature.name, most))


def _title(feature: FeatureAudit) -> str:
    label = _label(feature, 80)
    return label if label[:1].isalpha() else f"feature {label}"


def _half(colour: str) -> str:
    return faint(colour).replace("0.13", "0.4")
