"""The page of a training that was watched: findings beside what shows them, and layers over time."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from slabnorm.report.findings import (
    MARK,
    PICTURED,
    PLAIN,
    Gallery,
    along,
    grouped,
    hang_shared,
    known,
    label,
    level_line,
    positive,
    reaching,
    scale,
    shown_name,
    upright,
    written,
)
from slabnorm.report.page import DASHED, HUES, MARKERS, check_packages, faint, finished, render, sketch
from slabnorm.text import printable

MOST_LINES = 12  # layers with a line of their own in one picture
MOMENTS = 5  # looks at which gradients are drawn by depth
POINTS = 200  # of a line or a row: a picture is a few hundred pixels wide
DOTTED = 30  # points up to which each has a dot; a line of one point would not be seen
TALLEST = 700  # pixels of the rows of a picture with a row for each layer
OVERLAP = 2.4  # rows that a curve of a ridge is high
FEWEST, FULL = 24, 60  # bins of a ridge that has few values, and values for a bin
SEEN = 0.01  # of a curve's peak: where no curve is as high, a ridge is cut off
# The colours of the first, the middle and the last curve of a ridge.
TIMES = ((63, 167, 214), (138, 99, 210), (213, 94, 0))
KINDS = {
    "flat": "share of flat values",
    "dead": "share of dead channels",
    "stale": "distance, running sd",
    "gradient": "norm of the gradient",
}
EVIDENCE = {403: "flat", 404: "dead", 407: "stale"}  # what a finding is about, over time
# What else a finding is about: a number of each layer.
COUNTED = {
    101: ("without_gradients", "forwards, no gradients"),
    102: ("in_eval", "forwards in eval mode"),
    103: ("updates", "updates in one step"),
    205: ("updates", "updates in one step"),
}


def render_watch(record: dict[str, Any]) -> str:
    """Return the report of `WatchRecord.as_dict()` as HTML.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    check_packages()
    gallery = Gallery()
    tracks = [track for track in record["tracks"] if any(known(v) is not None for v in track["mean"])]
    groups = grouped(record["findings"])
    layers = [_layer(record, track, number, gallery) for number, track in enumerate(tracks)]
    _show_findings(record, groups, tracks, gallery)
    named = [item["place"] for group in groups for item in group["items"] if item["place"]]
    opened = next(iter([*named, *(layer["id"] for layer in layers if layer["ridge"])]), "layer-0")
    whole = _whole(record, tracks, gallery) if layers else {}
    return render(
        "watch.html.jinja", gallery.figures, record,
        watched=record, groups=groups, layers=layers, opened=opened, whole=whole, shown_name=shown_name,
    )  # fmt: skip


# Findings, and what shows them.


def _show_findings(
    record: dict[str, Any], groups: list[dict[str, Any]], tracks: list[dict[str, Any]], gallery: Gallery
) -> None:
    """Hang the pictures of all findings, and note where the layers of the findings are shown."""
    places = {track["name"]: number for number, track in enumerate(tracks)}
    shown = 0
    for group in groups:
        hang_shared(group, _counts(record, group, gallery))
        for item in group["items"]:
            number = places.get(item["layer"])
            if number is None:
                continue
            item["place"] = f"layer-{number}"
            if shown < PICTURED:
                item["pictures"] += _shown(record, tracks[number], group["code"], gallery)
                shown += 1


def _counts(record: dict[str, Any], group: dict[str, Any], gallery: Gallery) -> list[dict[str, str]]:
    """Return the picture that all findings of a code share: how often something happened to each layer."""
    code, marked = group["code"], [item["layer"] for item in group["items"]]
    if code == 307 and record["passes"]:
        passes = sorted(record["passes"].items(), key=lambda pair: int(pair[0]))
        bars: dict[str, Any] = {"type": "bar", "x": [p for p, _ in passes], "y": [n for _, n in passes]}
        bars["marker"] = {"color": [MARK if int(p) > 1 else PLAIN for p, _ in passes]}
        bars["hovertemplate"] = "%{y} steps<extra></extra>"
        x = {"title": "forwards in one step", "type": "category"}
        says = "; ".join(f"{n:,} steps of {p} forward{'' if p == '1' else 's'}" for p, n in passes)
        return [gallery.hang(sketch([bars], 230, x, {"title": "steps"}, bargap=0.5), f"{says}.")]
    if code not in COUNTED:
        return []
    key, title = COUNTED[code]
    norms = [track["name"] for track in record["tracks"] if track["role"] == "norm"]
    counts: dict[str, int] = record[key]
    some = sum(1 for name in norms if counts.get(name, 0))
    most = max(counts.values(), default=0)
    threshold = {205: 1.0}.get(code)
    figure = along(norms, [counts.get(n, 0) for n in norms], title, marked=marked, threshold=threshold)
    says = f"{title[0].upper()}{title[1:]}: {some} of {len(norms)} norms have any, and at most {most:,}."
    return [gallery.hang(figure, says)]


def _shown(
    record: dict[str, Any], track: dict[str, Any], code: int, gallery: Gallery
) -> list[dict[str, str]]:
    """Return the pictures of one layer that show a finding."""
    pictures = []
    key = EVIDENCE.get(code)
    if key is not None:
        figure, says = _over_steps(record, track, key)
        pictures.append(gallery.hang(figure, says))
        if track["ridge"]:
            pictures.append(gallery.hang(*_ridge(track)))
    elif code == 201:
        figure, says = _signal(record, track, record["first_bad"].get(track["name"]))
        pictures.append(gallery.hang(figure, says))
    elif code not in COUNTED and code != 307:
        pictures.append(gallery.hang(*_signal(record, track)))
    return pictures


# One layer over time.


def _layer(record: dict[str, Any], track: dict[str, Any], number: int, gallery: Gallery) -> dict[str, Any]:
    """Return what the page shows of one layer."""
    pictures = []
    if track["ridge"]:
        what = "Values that enter it" if track["role"] == "norm" else "Pre-activations"
        pictures.append(gallery.hang(*_ridge(track), title=what))
    pictures.append(gallery.hang(*_signal(record, track), title="Mean and spread of its input"))
    titles = {
        "stale": "Batch against running mean",
        "flat": "Saturation",
        "dead": "Dead channels",
        "gradient": "Gradient of its weight",
    }
    for key, title in titles.items():
        if any(known(v) is not None for v in track[key]):
            pictures.append(gallery.hang(*_over_steps(record, track, key), title=title))
    return {"id": f"layer-{number}", "track": track, "ridge": bool(track["ridge"]), "pictures": pictures}


def _over_steps(record: dict[str, Any], track: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return a number of a layer over the steps, with the threshold of its finding, and what it says."""
    looks, values = record["looks"], [known(v) for v in track[key]]
    threshold = record["thresholds"].get(key)
    share, log = key in ("flat", "dead"), key == "gradient"
    at = _thinned(looks, values)
    drawn = [positive(values[i]) if log else values[i] for i in at]
    line = _line([looks[i] for i in at], drawn, PLAIN, ".1%" if share else ".3g")
    y = {"title": KINDS[key], **scale(log)}
    if share:
        y["tickformat"] = ".0%"
    shapes, says = [], _course(looks, values, share)
    if threshold is not None:
        shapes.append(level_line(threshold))
        passed = next(
            (s for s, v in zip(looks, values, strict=True) if v is not None and v > threshold), None
        )
        says += f" The dashed line is the threshold, {written(threshold, share)}, "
        says += "which it does not pass." if passed is None else f"first passed at step {passed:,} (dotted)."
        if passed is not None:
            shapes.append(upright(passed, MARK))
    x = {"title": "step", "range": _steps(looks)}
    return sketch([line], 210, x, reaching(y, drawn, threshold, log), shapes=shapes), says


def _course(looks: Sequence[int], values: Sequence[float | None], share: bool) -> str:
    """Return how a number went, in a sentence."""
    pairs = [(step, value) for step, value in zip(looks, values, strict=True) if value is not None]
    if not pairs:
        return "No finite number was seen."
    (begin, first), (end, last) = pairs[0], pairs[-1]
    top, most = max(pairs, key=lambda pair: pair[1])
    gaps = len(values) - len(pairs)
    missing = f" {gaps:,} of {len(values):,} looks have no finite number." if gaps else ""
    if len(pairs) == 1:
        return f"{written(first, share)} at step {begin:,}.{missing}"
    peak = f"; {written(most, share)} at most, at step {top:,}" if most > max(first, last) else ""
    ends = f"From {written(first, share)} at step {begin:,} to {written(last, share)} at step {end:,}"
    return f"{ends}{peak}.{missing}"


def _signal(
    record: dict[str, Any], track: dict[str, Any], bad: int | None = None
) -> tuple[dict[str, Any], str]:
    """Return a layer's mean over the steps in a band of its spread; of a norm also of the running statistics.

    Args:
        record: the training.
        track: the layer.
        bad: the step since which its running statistics are not finite.
    """
    looks = record["looks"]
    at = _thinned(looks, track["spread"])
    steps = [looks[i] for i in at]
    traces = []
    sets = [("batch", "mean", "spread", PLAIN)]
    if any(known(v) is not None for v in track["running_mean"]):
        sets.append(("running", "running_mean", "running_spread", MARK))
    for name, mean, spread, colour in sets:
        middle = [known(track[mean][i]) for i in at]
        wide = [known(track[spread][i]) for i in at]
        traces += _band(steps, middle, wide, colour, name)
    mean, spread = (_course(looks, track[key], False) for key in ("mean", "spread"))
    says = f"The mean: {mean[0].lower()}{mean[1:]} The spread: {spread[0].lower()}{spread[1:]}"
    if len(sets) > 1:
        says += " Blue is the batch, orange are the running statistics before the step."
    shapes = []
    if bad is not None:
        shapes.append(upright(bad, MARK))
        says += f" Dotted: its running statistics are not finite since step {bad:,}."
    x = {"title": "step", "range": _steps(looks)}
    return sketch(traces, 210, x, {"title": "mean ± spread"}, shapes=shapes), says


def _band(
    steps: list[int], middle: list[float | None], wide: list[float | None], colour: str, name: str
) -> list[dict[str, Any]]:
    """Return a line in the middle of a band, as traces. Where numbers are missing, both have a gap."""
    line = _line(steps, middle, colour, ".3g", name)
    line["line"]["dash"] = "solid" if name == "batch" else "dot"
    both = [(s, m, w) for s, m, w in zip(steps, middle, wide, strict=True) if m is not None and w is not None]
    edge = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    x = [s for s, _, _ in both]
    low = {**edge, "x": x, "y": [m - w for _, m, w in both]}
    high = {
        **edge,
        "x": x,
        "y": [m + w for _, m, w in both],
        "fill": "tonexty",
        "fillcolor": faint(colour, 0.2),
    }
    return [low, high, line]


def _line(
    steps: list[int], values: list[float | None], colour: str, form: str, name: str = ""
) -> dict[str, Any]:
    said = f"{name}, " if name else ""
    return {
        "type": "scatter", "mode": "lines+markers" if len(steps) <= DOTTED else "lines",
        "x": steps, "y": values,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 4 if len(steps) > 4 else 9},
        "hovertemplate": f"{said}step %{{x}}: %{{y:{form}}}<extra></extra>",
    }  # fmt: skip


def _ridge(track: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return how a layer's values were distributed, a curve for each look that was kept, and what it says.

    Each curve is as high as its own peak: with one scale for all, a distribution that has collapsed to a
    spike would make the others lines.
    """
    ridge, counts = track["ridge"], _coarse(track["ridge"]["counts"])
    steps, bins = ridge["steps"], len(counts[0])
    width = (ridge["high"] - ridge["low"]) / bins
    filled = [i for i in range(bins) if any(row[i] > SEEN * max(row) for row in counts)] or [0]
    first, last = max(0, filled[0] - 1), min(bins - 1, filled[-1] + 1)
    begin, end = ridge["low"] + (first - 0.5) * width, ridge["low"] + (last + 1.5) * width
    traces = []
    for number, row in enumerate(counts):
        peak = max(max(row), 1)
        y = [round(number - OVERLAP * count / peak, 2) for count in row[first : last + 1]]
        red, green, blue = _between(number / max(1, len(counts) - 1))
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x0": begin, "dx": width, "y": [number, *y, number],
                "fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.55)",
                "line": {"color": f"rgb({red},{green},{blue})", "width": 1.3}, "hoverinfo": "text",
                "text": f"step {steps[number]:,}",
            }
        )  # fmt: skip
    near = [v for v in track["limits"] if v is not None and abs(v) < 4 * max(abs(begin), abs(end))]
    ends = [min(begin, *near), max(end, *near)] if near else [begin, end]
    room = 0.04 * (ends[1] - ends[0])
    every = max(1, math.ceil(len(steps) / 8))
    rows = list(range(0, len(steps), every))
    axis = {"title": "step", "tickvals": rows, "ticktext": [f"{steps[i]:,}" for i in rows]}
    axis["range"] = [len(steps) - 0.5, -OVERLAP - 0.2]
    across = {"title": "value", "range": [ends[0] - room, ends[1] + room]}
    shapes = _flat_sides(track["limits"], near, across["range"])
    height = 150 + 16 * len(steps)
    return sketch(traces, height, across, axis, shapes=shapes), _says_ridge(track, ridge)


def _coarse(counts: list[list[int]]) -> list[list[int]]:
    """Return histograms with fewer bins if they have few values; else the noise of a small batch is drawn."""
    values = max(map(sum, counts))
    while len(counts[0]) % 2 == 0 and len(counts[0]) > FEWEST and values < FULL * len(counts[0]):
        counts = [[a + b for a, b in zip(row[::2], row[1::2], strict=True)] for row in counts]
    return counts


def _flat_sides(
    limits: Sequence[float | None], near: Sequence[float], ends: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the sides on which an activation is flat, as shapes behind the curves."""
    shapes = []
    for limit, end in zip(limits, ends, strict=True):
        if limit in near and limit is not None:
            place = {"yref": "paper", "y0": 0, "y1": 1, "x0": limit, "x1": end}
            shade = {"type": "rect", "fillcolor": "rgba(128,136,150,0.16)", "line": {"width": 0}}
            shapes += [{**shade, "layer": "below", **place}, upright(limit)]
    return shapes


def _says_ridge(track: dict[str, Any], ridge: dict[str, Any]) -> str:
    """Return where most of the values lay at the first and at the last look, and how many are flat."""
    begin, end = ridge["steps"][0], ridge["steps"][-1]
    parts = []
    for step, row in ((begin, ridge["counts"][0]), (end, ridge["counts"][-1])):
        low, high = _middle(ridge, row)
        parts.append(f"at step {step:,} from {written(low)} to {written(high)}")
    says = "Eight of ten values lie " + ", ".join(parts if end != begin else parts[:1]) + "."
    below, above = track["limits"]
    sides = [f"below {written(below)}"] if below is not None else []
    sides += [f"above {written(above)}"] if above is not None else []
    if sides:
        says += f" Grey is where {printable(track['kind'], 40)} is flat: {' and '.join(sides)}."
    return says


def _middle(ridge: dict[str, Any], row: Sequence[int]) -> tuple[float, float]:
    """Return the first and the last tenth of a histogram, to a fraction of a bin."""
    width, total = (ridge["high"] - ridge["low"]) / len(row), sum(row)
    found = []
    for share in (0.1, 0.9):
        seen = 0.0
        for number, count in enumerate(row):
            if count and seen + count >= share * total:
                found.append(ridge["low"] + width * (number + (share * total - seen) / count))
                break
            seen += count
        else:
            found.append(math.nan)
    return found[0], found[1]


def _between(share: float) -> tuple[int, int, int]:
    """Return the colour of a curve, by its place between the first and the last."""
    begin, end = (TIMES[0], TIMES[1]) if share < 0.5 else (TIMES[1], TIMES[2])
    part = 2 * share - (share >= 0.5)
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(begin, end, strict=True))
    return red, green, blue


def _thinned(looks: Sequence[int], values: Sequence[float | None]) -> list[int]:
    """Return the looks that are drawn: all, or as many as a picture can show, with the highest of them."""
    if len(looks) <= POINTS:
        return list(range(len(looks)))
    even = {round(i * (len(looks) - 1) / (POINTS - 1)) for i in range(POINTS)}
    top = max(range(len(looks)), key=lambda i: v if (v := known(values[i])) is not None else -math.inf)
    return sorted(even | {top})


def _steps(looks: Sequence[int]) -> list[float]:
    """Return the ends of an axis of steps."""
    room = 0.02 * (looks[-1] - looks[0]) or 0.5
    return [looks[0] - room, looks[-1] + room]


# The whole model.


def _whole(
    record: dict[str, Any], tracks: list[dict[str, Any]], gallery: Gallery
) -> dict[str, dict[str, str]]:
    """Return the pictures in which every layer is."""
    looks = record["looks"]
    shown = {"spread": gallery.hang(*_heat(looks, tracks), name="spread")}
    if any(positive(v) for track in tracks if track["role"] == "linear" for v in track["gradient"]):
        shown["gradient"] = gallery.hang(*_by_depth(looks, tracks), name="gradient")
    for key in ("stale", "flat", "dead"):
        some = [track for track in tracks if any(known(v) is not None for v in track[key])]
        if some:
            threshold = record["thresholds"][key]
            shown[key] = gallery.hang(*_lines(looks, some, key, threshold), name=key)
    return shown


def _heat(looks: list[int], tracks: list[dict[str, Any]]) -> tuple[Any, str]:
    """Return the spread with a row for each layer, the first on top, and a column for each look."""
    import plotly.graph_objects as go

    at = _thinned(looks, [None] * len(looks))
    z = [
        [math.log10(v) if (v := positive(track["spread"][i])) else None for i in at] for track in tracks
    ]  # fmt: skip
    seen = [v for row in z for v in row if v is not None]
    widest = max([1.0, *(abs(v) for v in seen)])
    heat = go.Heatmap(
        z=z,
        x=[looks[i] for i in at],
        y=list(range(len(tracks))),
        zmin=-widest,
        zmax=widest,
        colorscale="RdBu",
        reversescale=True,
        customdata=[[label(track["name"], 80)] * len(at) for track in tracks],
        hovertemplate="%{customdata}, step %{x}: 10^%{z:.2f}<extra></extra>",
        colorbar={
            "title": {"text": "spread, powers of ten", "side": "top"}, "orientation": "h", "thickness": 12,
            "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "len": 0.8, "ypad": 8,
        },
    )  # fmt: skip
    figure = go.Figure(heat)
    height = min(22 * max(5, len(tracks)), TALLEST)
    every = math.ceil(len(tracks) * 16 / height)
    rows = range(0, len(tracks), every)
    figure.update_yaxes(
        tickvals=list(rows), ticktext=[label(tracks[i]["name"], 18) for i in rows], autorange="reversed",
        automargin=True,
    )  # fmt: skip
    figure.update_xaxes(title="step")
    figure = finished(figure, 170 + height).update_layout(margin={"l": 20, "t": 84})
    ends = (
        [(written(10**value), f(seen)) for f, value in ((min, min(seen)), (max, max(seen)))] if seen else []
    )
    says = f"Spreads lie between {ends[0][0]} and {ends[1][0]}." if ends else "No spread is above 0."
    return figure, says


def _by_depth(looks: list[int], tracks: list[dict[str, Any]]) -> tuple[Any, str]:
    """Return the norm of each layer's gradient, first layer to last, at some looks."""
    import plotly.graph_objects as go

    # The weight of a norm is another kind of number: its gradients would draw a zigzag.
    linear = [track for track in tracks if track["role"] == "linear"]
    some = [track for track in linear if any(positive(v) for v in track["gradient"])]
    chosen = sorted({round(i * (len(looks) - 1) / max(1, MOMENTS - 1)) for i in range(MOMENTS)})
    figure = go.Figure()
    for number, look in enumerate(chosen):
        y = [positive(track["gradient"][look]) for track in some]
        figure.add_trace(
            go.Scatter(
                x=list(range(len(some))), y=y, mode="lines+markers", name=f"step {looks[look]:,}",
                line={"color": HUES[number % len(HUES)]}, marker={"symbol": MARKERS[number % len(MARKERS)]},
                customdata=[label(track["name"], 80) for track in some],
                hovertemplate="%{customdata}: %{y:.3g}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_xaxes(title="layer, from the input to the output", dtick=max(1, len(some) // 12))
    figure.update_yaxes(title="norm of the weight's gradient", automargin=True, **scale(log=True))
    last = [v for track in some if (v := positive(track["gradient"][chosen[-1]]))]
    says = f"At step {looks[chosen[-1]]:,}, "
    says += f"from {written(min(last))} to {written(max(last))}." if last else "there were none."
    return finished(figure, 420), says


def _lines(looks: list[int], tracks: list[dict[str, Any]], key: str, threshold: float) -> tuple[Any, str]:
    """Return a line over steps for the layers that end highest."""
    import plotly.graph_objects as go

    share = key != "stale"
    last = sorted(tracks, key=lambda track: -_last(track[key]))[:MOST_LINES]
    figure = go.Figure()
    for number, track in enumerate(last):
        at = _thinned(looks, track[key])
        line = _line([looks[i] for i in at], [known(track[key][i]) for i in at], HUES[number % len(HUES)],
                     ".1%" if share else ".3g")  # fmt: skip
        figure.add_trace(go.Scatter(line, name=label(track["name"], 18), showlegend=True))
    figure.add_hline(y=threshold, line=DASHED, layer="below")
    figure.update_xaxes(title="step", range=_steps(looks))
    seen = [known(v) for track in last for v in track[key]]
    figure.update_yaxes(reaching({"title": KINDS[key]}, seen, threshold, False))
    figure.update_yaxes(tickformat=".0%" if share else None)
    names = html.unescape(label(last[0]["name"], 60))
    says = f"The layer that ends highest is {names}, with {written(_last(last[0][key]), share)}; "
    says += f"the dashed line is the threshold of a finding, {written(threshold, share)}."
    if len(tracks) > len(last):
        says += f" These are the {len(last)} highest of {len(tracks)} layers."
    return finished(figure, 380 + 12 * len(last)), says


def _last(values: list[float | None]) -> float:
    return next((v for v in reversed(values) if v is not None and math.isfinite(v)), 0.0)
