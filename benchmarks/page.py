"""The training runs as one HTML file that needs no network: loss curves, and time and memory per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"plain": "#7a7f87", "accelerated": "#d55e00", "without": "#0a7fc2"}
LABELS = {"plain": "plain", "accelerated": "accelerated", "without": "without norms"}


def write_page(path: Path, training: dict[str, Any]) -> bool:
    """Write the page, if there is anything to show; return whether there is."""
    measured = {name: found for name, found in training.items() if "failed" not in found}
    if measured:
        path.write_text(figure(measured).to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")
    return bool(measured)


def figure(training: dict[str, Any]) -> Any:
    """Return the figure: a row for each network."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from slabnorm.report.page import finished

    names = list(training)
    titles = [title for name in names for title in _titles(name, training[name])]
    shown = make_subplots(
        rows=len(names), cols=3, column_widths=[0.5, 0.25, 0.25], subplot_titles=titles, vertical_spacing=0.12
    )
    for row, name in enumerate(names, start=1):
        found = training[name]
        for which in ("plain", "accelerated"):
            # The accelerated curve is dashed, so that the plain one is seen beneath it.
            line = {"color": COLOURS[which], "width": 5 if which == "plain" else 2}
            curve = go.Scatter(
                mode="lines",
                y=found["losses"][which],
                name=LABELS[which],
                line=line,
                legendgroup=which,
                showlegend=row == 1,
            )
            shown.add_trace(curve, row=row, col=1)
        shown.add_trace(
            _bars({k: 1000 * v["median"] for k, v in found["step"].items()}, ".0f"), row=row, col=2
        )
        shown.add_trace(_bars({k: v / 1e6 for k, v in found["saved_bytes"].items()}, ".1f"), row=row, col=3)
        shown.update_yaxes(title="loss", row=row, col=1)
        shown.update_xaxes(title="step", row=row, col=1)
    finished(shown, 60 + 340 * len(names))
    return shown.update_layout(paper_bgcolor="white", legend={"y": 1.0})


def _titles(name: str, found: dict[str, Any]) -> tuple[str, str, str]:
    saved = found["share_saved"]
    share = "norms take next to none" if saved is None else f"{100 * saved:.0f}% of the norms' time is gone"
    return f"<b>{name}</b>: {found['described']}", f"ms per step ({share})", "MB saved for backward"


def _bars(values: dict[str, float], digits: str) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=[LABELS[which] for which in values],
        y=list(values.values()),
        text=[format(value, digits) for value in values.values()],
        marker={"color": [COLOURS[which] for which in values]},
        showlegend=False,
    )
