"""What all reports share: one HTML file with everything in it, and the style of its figures."""

from __future__ import annotations

import json
from typing import Any

from slabnorm.extras import extra
from slabnorm.text import printable

# Okabe and Ito's hues, which colour-blind readers can tell apart, made darker or lighter so that they stand
# out on white and on black. Each also has a marker of its own.
HUES = ("#7a7f87", "#0a7fc2", "#d55e00", "#009e73", "#c2679e", "#c99a00", "#3fa7d6", "#8a63d2")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
GRID = "rgba(128,136,150,0.25)"
X_AXIS = {"gridcolor": GRID, "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": GRID}
Y_AXIS = {"gridcolor": GRID, "zeroline": False}
DASHED = {"width": 1, "dash": "dash", "color": "#8a8f98"}  # a line to compare with


def check_packages() -> None:
    """Raise ExtraError unless the packages that make a page are installed. Called before the work."""
    for package in ("jinja2", "plotly"):
        extra(package, "a report", "'slabnorm[study]'")


def render(template: str, figures: dict[str, Any], record: dict[str, Any], **words: Any) -> str:
    """Return a page as HTML.

    Every text is escaped, and the page's own policy forbids it to load anything.

    Args:
        template: the file of the page, which extends base.html.jinja.
        figures: Plotly figures, or such as plain data, by the id of their place on the page.
        record: everything that was found, to be kept in the page as JSON.
        words: what else the template uses.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("slabnorm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **words,
        figures={name: plain(figure) for name, figure in figures.items()},
        record=record,
        # The script of Plotly is not escaped: nothing in it comes from the user.
        plotly=Markup(plotly()) if figures else "",
    )


def plotly() -> str:
    """Return the script of Plotly."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def readable(value: Any) -> Any:
    """Return text without characters that a browser would act on; other values as they are."""
    from markupsafe import Markup

    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value, limit=len(value))


def plain(figure: Any) -> dict[str, Any]:
    """Return a figure in JSON's own types, for the template to escape."""
    if isinstance(figure, dict):
        return figure
    drawn: dict[str, Any] = json.loads(figure.to_json())
    return drawn


def faint(colour: str, opacity: float = 0.13) -> str:
    """Return a colour `#rrggbb` as a transparent one."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def shaded(x: list[Any], low: list[Any], high: list[Any], colour: str, name: str) -> Any:
    """Return the band between two curves as a trace; it goes with the line of that name in the legend."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=x + x[::-1],
        y=high + low[::-1],
        mode="lines",
        fill="toself",
        fillcolor=faint(colour),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        name=name,
    )


def finished(figure: Any, height: int) -> Any:
    """Return a figure in the style of the page. The page itself sets the colour of its text."""
    figure.update_layout(template="none", **_layout(height, 14))
    figure.update_layout(margin={"l": 75, "r": 20, "t": 75, "b": 65})
    figure.update_xaxes(**X_AXIS)
    figure.update_yaxes(**Y_AXIS)
    return figure


def sketch(
    traces: list[dict[str, Any]], height: int, x: dict[str, Any], y: dict[str, Any], **layout: Any
) -> dict[str, Any]:
    """Return a small figure in the style of the page, in JSON's own types.

    Plotly's objects check each value that they are given, which takes seconds for the hundreds of pictures
    that a page has for a deep model.
    """
    axes = {"xaxis": {**X_AXIS, **_titled(x)}, "yaxis": {**Y_AXIS, "automargin": True, **_titled(y)}}
    margin = {"l": 58, "r": 14, "t": 14, "b": 44}
    return {
        "data": traces,
        "layout": {**_layout(height, 12), "margin": margin, "showlegend": False, **axes, **layout},
    }


def _titled(axis: dict[str, Any]) -> dict[str, Any]:
    title = axis.get("title")
    return axis if title is None else {**axis, "title": {"text": title, "standoff": 8}}


def _layout(height: int, size: int) -> dict[str, Any]:
    return {
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": size, "color": "#1c2430"},
        "legend": {"orientation": "h", "x": 0, "y": 0.995, "yref": "container", "yanchor": "top"},
        "hoverlabel": {"font": {"family": FONT}},
    }
