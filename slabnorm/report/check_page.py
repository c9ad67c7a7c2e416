"""The page of a model that was looked at once: findings beside what shows them, and all layers in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    level_line,
    positive,
    reaching,
    scale,
    shown_name,
    upright,
    written,
)
from slabnorm.report.page import DASHED, check_packages, render, sketch
from slabnorm.report.wording import NONE

LISTED = 500  # layers in the table
DECADES = (-10, 5)  # of the absolute weights in a histogram
CHAIN = 3  # layers before and after a finding's that are named

# What a code is about, for each layer: the key of the number, its name, and of the threshold the key.
NUMBERS = {
    105: ("gap", "difference of the modes", "gap"),
    204: ("momentum", "momentum", "momentum"),
    205: ("updates", "updates in one step", "updates"),
    206: ("elements", "values of a statistic", None),
    403: ("flat", "share of flat values", "flat"),
    404: ("dead", "share of dead channels", "dead"),
}
SHARES = ("gap", "flat", "dead")
SCALES = (401, 402, 405, 408)  # codes of findings about the scale of the signal


def render_check(record: dict[str, Any]) -> str:
    """Return the report of `CheckRecord.as_dict()` as HTML.

    Raises:
        ExtraError: the extra `slabnorm[study]` is not installed.
    """
    check_packages()
    gallery, groups = Gallery(), grouped(record["findings"])
    seen = record["evidence"] or {"layers": [], "inputs": [], "mates": {}, "channels": {}, "thresholds": {}}
    layers = seen["layers"]
    shown = 0
    for group in groups:
        hang_shared(group, _of_group(seen, group, gallery))
        for item in group["items"]:
            item["chain"] = _chain(layers, item["layer"])
            if shown < PICTURED and item["layer"] in seen["channels"]:
                item["pictures"] += _of_channels(seen, item["layer"], group["code"], gallery)
                shown += 1
    signal = gallery.hang(*_scale(seen), name="scale") if len(layers) > 1 else None
    return render(
        "check.html.jinja", gallery.figures, record,
        checked=record, groups=groups, layers=layers, rows=[_row(layer) for layer in layers[:LISTED]],
        scale=signal, shown_name=shown_name,
    )  # fmt: skip


# Pictures of all layers.


def _of_group(seen: dict[str, Any], group: dict[str, Any], gallery: Gallery) -> list[dict[str, str]]:
    """Return the picture that all findings of a code share."""
    code, marked = group["code"], [item["layer"] for item in group["items"]]
    if code in NUMBERS:
        found = _numbers(seen, code, marked)
        return [] if found is None else [gallery.hang(*found)]
    if code in SCALES and (seen["layers"] or seen["inputs"]):
        return [gallery.hang(*_scale(seen, marked))]
    if code == 104 and seen["mates"]:
        names, values = list(seen["mates"]), list(seen["mates"].values())
        threshold = seen["thresholds"]["mates"]
        figure = along(names, values, "change by other samples", marked=marked, threshold=threshold, log=True)
        says = (
            f"The outputs of {sum(map(bool, values))} of {len(names)} modules change with the other samples"
        )
        return [
            gallery.hang(figure, f"{says}; the dashed line is the threshold, {written(threshold, True)}.")
        ]
    return []


def _numbers(seen: dict[str, Any], code: int, marked: Sequence[str]) -> tuple[dict[str, Any], str] | None:
    """Return a number of each layer that has it, with the threshold, and what it says."""
    key, title, limit = NUMBERS[code]
    some = [layer for layer in seen["layers"] if known(layer.get(key)) is not None]
    if not some:
        return None
    names, values = [layer["name"] for layer in some], [layer[key] for layer in some]
    threshold = None if limit is None else seen["thresholds"][limit]
    log, share = key == "elements", key in SHARES
    figure = along(names, values, title, marked=marked, threshold=threshold, log=log)
    if share:
        figure["layout"]["yaxis"]["tickformat"] = ".0%"
    says = f"Of {_layers(len(some))}, from {written(min(values), share)} to {written(max(values), share)}"
    if threshold is not None:
        says += f"; the dashed line is the threshold, {written(threshold, share)}"
    return figure, f"{says}. Diamonds are the layers of this finding."


def _scale(seen: dict[str, Any], marked: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Return the root mean square of what enters each layer and of what leaves it, and what it says."""
    names = [f"input {n}" for n in range(len(seen["inputs"]))] + [layer["name"] for layer in seen["layers"]]
    into = [positive(one["rms"]) for one in (*seen["inputs"], *seen["layers"])]
    out = [None] * len(seen["inputs"]) + [positive(layer["out"]) for layer in seen["layers"]]
    if "" in marked:  # the model itself, which is its input
        marked = [*marked, *names[: len(seen["inputs"])]]
    figure = along(names, into, "root mean square", marked=marked, log=True)
    dots = figure["data"][0]
    says = "%{customdata}, output: %{y:.3g}<extra></extra>"
    marker = {"color": PLAIN, "symbol": "circle-open", "size": dots["marker"]["size"]}
    figure["data"].append({**dots, "y": out, "marker": marker, "hovertemplate": says})
    figure["layout"]["yaxis"] = reaching(figure["layout"]["yaxis"], [*into, *out], 1.0, True)
    figure["layout"]["shapes"] = [{**level_line(1.0), "line": DASHED}]
    values = [v for v in (*into, *out) if v is not None]
    if not values:
        return figure, "No value is above 0."
    says = (
        f"From {written(min(values))} to {written(max(values))}. Filled marks are what enters a layer, open"
    )
    return figure, f"{says} ones what leaves it; the dashed line is 1, for which layers are initialised."


# Pictures of the channels of one layer.


def _of_channels(seen: dict[str, Any], name: str, code: int, gallery: Gallery) -> list[dict[str, str]]:
    """Return the pictures of one layer's channels that show a finding."""
    channels, limits = seen["channels"][name], seen["thresholds"]
    if code == 203:
        return [gallery.hang(*_shift(channels, limits)), gallery.hang(*_ratio(channels, limits))]
    if code == 406:
        return [gallery.hang(*_weights(channels, limits))]
    if code == 208:
        return [gallery.hang(*_variances(channels))]
    if code == 503:
        return [gallery.hang(*_offsets(channels))]
    if code == 201:
        return [gallery.hang(*_damage(channels))]
    return []


def _dots(
    channels: dict[str, Any], values: Sequence[float | None], title: str, wrong: Callable[[float], bool],
    levels: Sequence[float] = (), log: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return a dot for each channel; those that are wrong stand out, and levels are dashed lines."""
    shown = [positive(v) if log else known(v) for v in values]
    looks = [(MARK, "diamond") if v is not None and wrong(v) else (PLAIN, "circle") for v in shown]
    dots = {
        "type": "scatter", "mode": "markers", "x": channels["number"][: len(shown)], "y": shown,
        "marker": {
            "color": [colour for colour, _ in looks], "symbol": [symbol for _, symbol in looks],
            "size": 7 if len(shown) < 100 else 5,
        },
        "hovertemplate": "channel %{x}: %{y:.3g}<extra></extra>",
    }  # fmt: skip
    y = {"title": title, **scale(log)}
    y = reaching(y, [*shown, *levels], None, log)
    return sketch([dots], 210, {"title": "channel"}, y, shapes=[level_line(level) for level in levels])


def _shift(channels: dict[str, Any], limits: dict[str, float]) -> tuple[dict[str, Any], str]:
    """Return how far each channel's batch mean is from the running one, in running standard deviations."""
    eps = channels["eps"]
    shifts = [
        None if None in (b, m, v) else (b - m) / math.sqrt(max(v, eps))
        for b, m, v in zip(
            channels["batch_mean"], channels["running_mean"], channels["running_var"], strict=False
        )
    ]
    limit = limits["shift"]
    figure = _dots(channels, shifts, "shift of the mean, sd", lambda v: abs(v) > limit, (-limit, limit))
    far = sum(v is not None and abs(v) > limit for v in shifts)
    says = f"{far} of {len(shifts)} batch means are further than {limit:g} running standard deviations away."
    return figure, says


def _ratio(channels: dict[str, Any], limits: dict[str, float]) -> tuple[dict[str, Any], str]:
    """Return each channel's batch variance in units of the running one."""
    eps = channels["eps"]
    ratios = [
        None if None in (b, v) or v + eps <= 0 else (b + eps) / (v + eps)
        for b, v in zip(channels["batch_var"], channels["running_var"], strict=False)
    ]
    limit = limits["ratio"]
    wrong = lambda v: max(v, 1 / v) > limit  # noqa: E731
    figure = _dots(channels, ratios, "ratio of variances", wrong, (1 / limit, limit), log=True)
    far = sum(v is not None and v > 0 and wrong(v) for v in ratios)
    says = f"{far} of {len(ratios)} variances are more than {limit:g} times larger or smaller in the batch"
    return figure, f"{says} than the running ones."


def _variances(channels: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the variance of each channel, and eps."""
    eps, values = channels["eps"], channels["batch_var"]
    figure = _dots(channels, values, "variance in the batch", lambda v: v < eps, (eps,), log=True)
    none = sum(v == 0 for v in values)
    small = sum(v is not None and v < eps for v in values)
    zeros = f" {none} of them are exactly 0, which this axis does not have." if none else ""
    return figure, f"{small} of {len(values)} variances are below the dashed line, eps = {eps:g}.{zeros}"


def _offsets(channels: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return how many standard deviations the mean of each channel is from 0."""
    eps = channels["eps"]
    pairs = zip(channels["batch_mean"], channels["batch_var"], strict=True)
    values = [None if None in (m, v) else abs(m) / math.sqrt(max(v, eps)) for m, v in pairs]
    most = max((v for v in values if v is not None), default=0.0)
    figure = _dots(channels, values, "|mean| / standard deviation", lambda v: v > 0.5 * most, log=True)
    return figure, f"The largest mean is {written(most)} standard deviations away from 0."


def _damage(channels: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return which running variances are finite: a gap is one that is not."""
    values = channels["running_var"]
    bad = sum(None in pair for pair in zip(channels["running_mean"], values, strict=True))
    figure = _dots(channels, values, "running variance", lambda v: False, log=True)
    return figure, f"{bad} of {len(values)} running means or variances are not finite, which leaves gaps."


def _weights(channels: dict[str, Any], limits: dict[str, float]) -> tuple[dict[str, Any], str]:
    """Return a histogram of the absolute weights, in thirds of powers of ten; what is smaller counts as 0."""
    begin, end = DECADES
    count = 3 * (end - begin)
    bars = [0] * count
    sizes = [abs(v) for v in channels["weight"] if v is not None]
    for size in sizes:
        place = int(3 * (math.log10(size) - begin)) if size > 0 else 0
        bars[min(count - 1, max(0, place))] += 1
    x = [begin + (i + 0.5) / 3 for i in range(count)]
    low, high = math.log10(limits["gamma_dead"]), math.log10(limits["gamma_huge"])
    colours = [PLAIN if low < at < high else MARK for at in x]
    trace: dict[str, Any] = {
        "type": "bar", "x": x, "y": bars, "marker": {"color": colours},
        "hovertemplate": "%{y} weights<extra></extra>",
    }  # fmt: skip
    ticks = list(range(begin, end + 1, 2))
    texts = ["0", *(f"10<sup>{tick}</sup>" for tick in ticks[1:])]
    axis = {"title": "absolute weight", "tickvals": ticks, "ticktext": texts}
    shapes = [
        {**upright(at, MARK), "line": {"width": 1.5, "dash": "dash", "color": MARK}} for at in (low, high)
    ]
    figure = sketch([trace], 210, axis, {"title": "weights"}, bargap=0.1, shapes=shapes)
    gone = sum(size < limits["gamma_dead"] for size in sizes)
    says = f"{gone} of {len(channels['weight'])} weights are smaller than {limits['gamma_dead']:g}"
    largest = f"; the largest is {written(max(sizes))}" if sizes else ""
    bad = len(channels["weight"]) - len(sizes)
    return figure, f"{says}{largest}.{f' {bad} are not finite.' if bad else ''} Weights start at 1."


# Words and tables.


def _chain(layers: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the layers around one, in the order of the forward."""
    at = next((i for i, layer in enumerate(layers) if layer["name"] == name), None)
    if at is None:
        return []
    near = range(max(0, at - CHAIN), min(len(layers), at + CHAIN + 1))
    return [
        {
            "name": shown_name(layers[i]["name"], 40),
            "kind": shown_name(layers[i]["kind"], 40),
            "here": i == at,
        }
        for i in near
    ]


def _row(layer: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Return the row of a layer: its name, its class, and its numbers under their heads."""
    heads = {
        "mean": "mean", "spread": "spread", "rms out": "out", "flat": "flat", "dead": "dead", "gap": "gap",
    }  # fmt: skip
    values = {head: known(layer.get(key)) for head, key in heads.items()}
    texts = {h: NONE if v is None else written(v, heads[h] in SHARES) for h, v in values.items()}
    return shown_name(layer["name"]), shown_name(layer["kind"], 40), texts


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count:,} layers"
