"""Findings of the doctor on a page, each beside the pictures that show it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slabnorm.report.check import TITLES
from slabnorm.report.page import HUES, sketch
from slabnorm.report.wording import minus
from slabnorm.text import printable

PICTURED = 40  # findings with pictures of their own; the others are text
NAMED = 18  # characters of a layer's name on an axis
MARK = HUES[2]  # what a finding is about
PLAIN = HUES[1]  # the rest
THRESHOLD = {"width": 1.5, "dash": "dash", "color": MARK}


@dataclass
class Gallery:
    """The pictures of a page. Each gets a place of its own, and a sentence that says what is to be seen."""

    figures: dict[str, Any] = field(default_factory=dict)

    def hang(self, figure: Any, says: str, title: str = "", name: str = "") -> dict[str, str]:
        """Give a figure a place, and return what the template writes there."""
        place = name or f"picture-{len(self.figures)}"
        self.figures[place] = figure
        return {"id": place, "says": says, "title": title}


def grouped(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings, in their order, as groups of one severity and code, still without pictures.

    What several findings of a group have in common, why it matters and often what to do, stands in the group.
    """
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for finding in findings:
        code, severity = finding["code"], finding["severity"]
        title = TITLES.get(code, "")
        new = {"code": code, "title": title, "severity": severity, "pictures": [], "items": []}
        group = groups.setdefault((severity, code), new)
        group["items"].append({**finding, "pictures": [], "chain": [], "place": ""})
    for group in groups.values():
        items = group["items"]
        for key in ("why", "fix"):
            shared = len(items) > 1 and len({item[key] for item in items}) == 1
            group[key] = items[0][key] if shared else ""
            if shared:
                for item in items:
                    item[key] = ""
    return list(groups.values())


def hang_shared(group: dict[str, Any], pictures: list[dict[str, str]]) -> None:
    """Give pictures to all findings of a group, or to its only one, which they then stand beside."""
    alone = len(group["items"]) == 1
    (group["items"][0] if alone else group)["pictures"] += pictures


# Pictures that several pages have.


def along(
    names: Sequence[str],
    values: Sequence[float | None],
    title: str,
    *,
    marked: Sequence[str] = (),
    threshold: float | None = None,
    log: bool = False,
) -> dict[str, Any]:
    """Return a number of each layer as a dot, first layer to last; those of a finding stand out."""
    shown = [positive(v) if log else known(v) for v in values]
    colours = [MARK if name in marked else PLAIN for name in names]
    symbols = ["diamond" if name in marked else "circle" for name in names]
    dots = {
        "type": "scatter", "mode": "markers", "x": list(range(len(names))), "y": shown,
        "marker": {"color": colours, "symbol": symbols, "size": 9 if len(names) < 60 else 6},
        "customdata": [label(name, 80) for name in names],
        "hovertemplate": "%{customdata}: %{y:.3g}<extra></extra>",
    }  # fmt: skip
    y = reaching({"title": title, **scale(log)}, shown, threshold, log)
    shapes = [] if threshold is None else [level_line(threshold)]
    axis = along_axis(names)
    height = 215 + 6 * max(
        map(len, axis.get("ticktext", ["1234567"])), default=0
    )  # names stand below the axis
    return sketch([dots], height, axis, y, shapes=shapes)


def along_axis(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis with a step for each layer, with names if they have room."""
    axis: dict[str, Any] = {"range": [-0.6, len(names) - 0.4], "automargin": True}
    if len(names) <= 24:
        labels = [label(name, NAMED) for name in names]
        return {**axis, "tickvals": list(range(len(names))), "ticktext": labels, "tickangle": -60}
    return {**axis, "title": "layer, in the order of the forward"}


def scale(log: bool) -> dict[str, Any]:
    """Return the kind of an axis. Powers of ten are written as such, not as 100µ and 10k."""
    return {"type": "log", "exponentformat": "power", "showexponent": "all"} if log else {"type": "linear"}


def reaching(
    axis: dict[str, Any], values: Sequence[float | None], threshold: float | None, log: bool
) -> dict[str, Any]:
    """Return an axis on which a threshold is seen, too: what Plotly chooses leaves out lines across."""
    ends = [v for v in (threshold, *values) if v is not None]
    if not ends:
        return axis
    low, high = min(ends), max(ends)
    if log:
        low, high = math.log10(low), math.log10(high)
        room = 0.08 * (high - low) or 0.5
        return {**axis, "range": [low - room, high + room]}
    low, high = min(0.0, low), max(0.0, high)
    room = 0.08 * (high - low) or 1.0
    return {**axis, "range": [low - room / 2, high + room]}


def level_line(height: float) -> dict[str, Any]:
    """Return a dashed line across a figure: where a finding begins."""
    place = {"xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}
    return {"type": "line", "layer": "below", "line": THRESHOLD, **place}


def upright(at: float, colour: str = "#8a8f98") -> dict[str, Any]:
    """Return a dotted line from the bottom to the top of a figure."""
    place = {"yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at}
    return {"type": "line", "layer": "below", "line": {"width": 1.5, "dash": "dot", "color": colour}, **place}


# Names and numbers.


def shown_name(name: str, most: int = 80) -> str:
    """Return a layer's name without what a page would act on. The end of a long one tells it apart."""
    shown = printable(name, max(1, len(name))) or "(the model)"
    return shown if len(shown) <= most else "…" + shown[1 - most :]


def label(name: str, most: int) -> str:
    """Return a layer's name for a picture, where Plotly takes text for HTML."""
    return html.escape(shown_name(name, most))


def known(value: float | None) -> float | None:
    """Return a number if it is one; Plotly leaves a gap for None."""
    return value if value is not None and math.isfinite(value) else None


def positive(value: float | None) -> float | None:
    """Return a number if a logarithmic axis has it."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def written(value: float, share: bool = False) -> str:
    """Return a number for a sentence: a share as `12%`, others with three digits."""
    if share:
        return f"{100 * value:,.0f}%" if abs(value) >= 1 else f"{100 * value:.3g}%"
    return minus(f"{value:.3g}")
