"""The report of a training that was watched: what entered each layer over time, and the findings."""

from __future__ import annotations

import html
import math
from typing import Any

from slabnorm.report.page import HUES, MARKERS, check_packages, finished, render
from slabnorm.text import printable

MOST_LINES = 12  # layers with a line of their own in one picture
MOMENTS = 5  # looks at which gradients are drawn by depth
NAMED = 28  # characters of a layer's name on an axis


def render_watch(record: dict[str, Any]) -> str:
    """Return the report of `WatchRecord.as_dict()` as HTML.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    check_packages()
    tracks = [track for track in record["tracks"] if any(_known(v) is not None for v in track["spread"])]
    figures = {}
    if tracks and record["looks"]:
        figures["spread"] = _heat(record["looks"], tracks, "spread", "spread, powers of ten", math.log10)
        if any(_known(v) for track in tracks if track["role"] == "linear" for v in track["gradient"]):
            figures["gradient"] = _by_depth(record["looks"], tracks)
        for key in ("stale", "flat", "dead"):
            some = [track for track in tracks if any(_known(v) is not None for v in track[key])]
            if some:
                figures[key] = _lines(record["looks"], some, key)
    return render("watch.html.jinja", figures, record, watched=record)


def _heat(looks: list[int], tracks: list[dict[str, Any]], key: str, title: str, scale: Any) -> Any:
    """Return a picture with a row for each layer, the first on top, and a column for each look."""
    import plotly.graph_objects as go

    z = [[scale(v) if (_known(v) or 0) > 0 else None for v in track[key]] for track in tracks]
    known = [v for row in z for v in row if v is not None]
    widest = max([1.0, *(abs(v) for v in known)])
    names = [html.escape(printable(track["name"], 80)) or "(the model)" for track in tracks]
    heat = go.Heatmap(
        z=z,
        x=looks,
        y=list(range(len(tracks))),
        zmin=-widest,
        zmax=widest,
        colorscale="RdBu",
        reversescale=True,
        customdata=[[name] * len(looks) for name in names],
        hovertemplate="%{customdata}, step %{x}: 10^%{z:.2f}<extra></extra>",
        colorbar={"title": title, "len": 0.9},
    )
    figure = go.Figure(heat)
    figure.update_yaxes(
        tickvals=list(range(len(tracks))), ticktext=[_label(track) for track in tracks], autorange="reversed",
        automargin=True,
    )  # fmt: skip
    figure.update_xaxes(title="step")
    return finished(figure, 170 + 22 * max(5, len(tracks)))


def _by_depth(looks: list[int], tracks: list[dict[str, Any]]) -> Any:
    """Return the norm of each layer's gradient, first layer to last, at some looks."""
    import plotly.graph_objects as go

    # The weight of a norm is another kind of number: its gradients would draw a zigzag.
    linear = [track for track in tracks if track["role"] == "linear"]
    some = [track for track in linear if any(_known(v) for v in track["gradient"])]
    chosen = sorted({round(i * (len(looks) - 1) / max(1, MOMENTS - 1)) for i in range(MOMENTS)})
    figure = go.Figure()
    for number, look in enumerate(chosen):
        y = [_positive(track["gradient"][look]) for track in some]
        figure.add_trace(
            go.Scatter(
                x=list(range(len(some))), y=y, mode="lines+markers", name=f"step {looks[look]}",
                line={"color": HUES[number % len(HUES)]}, marker={"symbol": MARKERS[number % len(MARKERS)]},
                customdata=[html.escape(printable(track["name"], 80)) for track in some],
                hovertemplate="%{customdata}: %{y:.3g}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title="layer, from the input to the output", dtick=max(1, len(some) // 12))
    figure.update_yaxes(title="norm of the weight's gradient", type="log")
    return finished(figure, 420)


TITLES = {
    "stale": "distance, running sd",
    "flat": "% of values",
    "dead": "% of channels",
}


def _lines(looks: list[int], tracks: list[dict[str, Any]], key: str) -> Any:
    """Return a line over steps for the layers that end highest."""
    import plotly.graph_objects as go

    times = 1 if key == "stale" else 100
    last = sorted(tracks, key=lambda track: -_last(track[key]))[:MOST_LINES]
    figure = go.Figure()
    for number, track in enumerate(last):
        y = [None if _known(v) is None else times * v for v in track[key]]
        figure.add_trace(
            go.Scatter(
                x=looks, y=y, mode="lines", name=_label(track), line={"color": HUES[number % len(HUES)]},
                hovertemplate="step %{x}: %{y:.3g}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=TITLES[key], rangemode="tozero")
    return finished(figure, 380 + 12 * len(last))


def _label(track: dict[str, Any]) -> str:
    return html.escape(printable(track["name"], NAMED) or "(the model)")


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _last(values: list[float | None]) -> float:
    return next((v for v in reversed(values) if v is not None and math.isfinite(v)), 0.0)
