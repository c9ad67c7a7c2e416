"""The pages of the doctor: what their pictures show, in which order, and that no name does anything."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import plotly.graph_objects as go
import pytest

from slabnorm.report import page as report_page
from slabnorm.report.check import CheckRecord, Finding, print_check
from slabnorm.report.check_page import render_check
from slabnorm.report.findings import grouped, label
from slabnorm.report.terminal import Terminal
from slabnorm.report.watch import render_watch
from slabnorm.report.wording import MINUS
from tests.report.test_page import Reader

STEPS = [0, 10, 20, 30]
NOTHING: list[Any] = [None] * 4
THRESHOLDS = {
    "gap": 0.5, "flat": 0.5, "dead": 0.25, "mates": 1e-3, "momentum": 0.9, "shift": 0.5, "ratio": 3.0,
    "gamma_dead": 1e-4, "gamma_huge": 100.0, "updates": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly's script is 4.8 MB, always the same, and takes a while to read in each of these pages."""
    monkeypatch.setattr(report_page, "plotly", lambda: "/* Plotly */")


def track(name: str, role: str = "activation", **changes: Any) -> dict[str, Any]:
    numbers = {
        "mean": [0.0, 1.0, 2.0, 3.0], "spread": [1.0, 2.0, 3.0, 4.0], "running_mean": NOTHING,
        "running_spread": NOTHING, "flat": NOTHING, "dead": NOTHING, "gradient": NOTHING, "stale": NOTHING,
    }  # fmt: skip
    counts = [[0, 60, 0, 0], [0, 30, 30, 0], [10, 20, 20, 10]]
    ridge = {"low": -8.0, "high": 8.0, "steps": [0, 10, 20], "counts": counts}
    plain = {"name": name, "kind": "Sigmoid", "role": role, "limits": [-6.0, 6.0], "ridge": ridge}
    return {**plain, **numbers, **changes}


def finding(code: int = 403, layer: str = "act", **changes: Any) -> dict[str, Any]:
    said = {
        "severity": "warning",
        "text": "60% of its values are flat",
        "why": "they learn slowly",
        "fix": "a norm",
    }
    return {"code": code, "layer": layer, "numbers": {}, **said, **changes}


def watched(*tracks: dict[str, Any], **changes: Any) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "passes": {"1": 40}, "without_gradients": {}, "in_eval": {}, "updates": {}, "first_bad": {},
    }  # fmt: skip
    record = {
        "model": "Net", "every": 10, "steps": 40, "looks": STEPS, "tracks": list(tracks), "findings": [],
        "healthy": True, "verdict": "Net: as it is.", "notes": [],
        "thresholds": {"flat": 0.5, "dead": 0.25, "stale": 0.5},
    }  # fmt: skip
    return {**record, **counts, **changes}


def layer(name: str, **changes: Any) -> dict[str, Any]:
    numbers = {"mean": 0.0, "spread": 1.0, "rms": 1.0, "out": 2.0, "flat": None, "dead": None, "before": None}
    return {"name": name, "kind": "BatchNorm1d", "role": "norm", **numbers, **changes}


def checked(*layers: dict[str, Any], findings: tuple[Finding, ...] = (), **seen: Any) -> CheckRecord:
    evidence = {"layers": list(layers), "inputs": [], "mates": {}, "channels": {}, "thresholds": THRESHOLDS}
    return CheckRecord("Net", 1, len(layers), 32, findings, (), {**evidence, **seen})


def figures(page: str) -> dict[str, Any]:
    kept = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert kept is not None
    found: dict[str, Any] = json.loads(kept[1])
    for figure in list(found.values())[:12]:
        go.Figure(figure)  # Plotly's own objects refuse what they do not know
    return found


def beside(page: str, words: str) -> list[dict[str, Any]]:
    """Return the figures of the finding that says something."""
    item = next(part for part in page.split('<div class="item')[1:] if words in part)
    ids = re.findall(r'class="figure" id="([\w-]+)"', item.split("</article>")[0])
    found = figures(page)
    return [found[i] for i in ids]


def test_a_finding_stands_beside_its_number_with_threshold_and_step():
    flat = track("act", flat=[0.1, 0.4, 0.6, 0.7])
    page = render_watch(watched(flat, findings=[finding()]))
    over, ridge = beside(page, "60% of its values are flat")
    assert over["data"][0]["x"] == STEPS
    assert over["data"][0]["y"] == [0.1, 0.4, 0.6, 0.7]
    level, passed = over["layout"]["shapes"]
    assert (level["y0"], level["y1"]) == (0.5, 0.5)
    assert (passed["x0"], passed["x1"]) == (20, 20)
    low, high = over["layout"]["yaxis"]["range"]
    assert low <= 0.1 < 0.7 <= high
    assert len(ridge["data"]) == 3
    assert "From 10% at step 0 to 70% at step 30. The dashed line is the threshold, 50%" in page
    assert "first passed at step 20 (dotted)." in page


def test_a_ridge_has_a_curve_for_each_look_and_the_limits_of_its_activation():
    page = render_watch(watched(track("act")))
    ridge = figures(page)["picture-0"]
    assert [trace["text"] for trace in ridge["data"]] == ["step 0", "step 10", "step 20"]
    for row, trace in enumerate(ridge["data"]):
        assert trace["y"][0] == trace["y"][-1] == row  # a curve stands on its own line
        assert min(trace["y"]) == pytest.approx(row - 2.4)  # and is as high as its peak
    # The first curve has one bin, from -4 to 0; curves are drawn through the middles of bins of 4.
    trace = ridge["data"][0]
    peak = trace["y"].index(min(trace["y"]))
    assert trace["x0"] + peak * trace["dx"] == pytest.approx(-2.0)
    bottom, top = ridge["layout"]["yaxis"]["range"]
    assert bottom > top  # time goes down
    assert [s["x0"] for s in ridge["layout"]["shapes"] if s["type"] == "line"] == [-6.0, 6.0]
    assert len({trace["line"]["color"] for trace in ridge["data"]}) == 3
    # A tenth of the first curve's values lie a tenth into the bin from -4 to 0; of the last one's 60 values
    # the sixth is at 0.6 of the bin from -8 to -4.
    says = page.replace(MINUS, "-")
    assert "at step 0 from -3.6 to -0.4, at step 20 from -5.6 to 5.6" in says
    assert "Grey is where Sigmoid is flat: below -6 and above 6." in says


def test_of_a_norm_the_running_statistics_are_drawn_beside_the_batch():
    running = {"running_mean": [5.0] * 4, "running_spread": [1.0] * 4}
    norm = track("norm", "norm", limits=[None, None], **running)
    signal = figures(render_watch(watched(norm)))["picture-1"]["data"]
    lows, highs, means = signal[::3], signal[1::3], signal[2::3]
    assert [m["y"] for m in means] == [[0.0, 1.0, 2.0, 3.0], [5.0] * 4]
    assert [h["y"] for h in highs] == [[1.0, 3.0, 5.0, 7.0], [6.0] * 4]
    assert [low["y"] for low in lows] == [[-1.0, -1.0, -1.0, -1.0], [4.0] * 4]


def test_the_damage_is_marked_where_it_was_seen():
    norm = track("norm", "norm", mean=[0.0, 1.0, None, None])
    record = watched(norm, first_bad={"norm": 20}, findings=[finding(201, "norm", text="they are NaN")])
    (signal,) = beside(render_watch(record), "They are NaN")
    assert [shape["x0"] for shape in signal["layout"]["shapes"]] == [20]
    assert signal["data"][2]["y"] == [0.0, 1.0, None, None]


def test_forgotten_modes_are_counted_by_layer():
    norms = [track(name, "norm") for name in "abc"]
    counts = {"a": 3, "c": 5}
    record = watched(*norms, without_gradients=counts, findings=[finding(101, "a", text="in train mode")])
    (dots,) = beside(render_watch(record), "In train mode")
    assert dots["data"][0]["y"] == [3, 0, 5]
    assert dots["data"][0]["marker"]["symbol"] == ["diamond", "circle", "circle"]


def test_forwards_of_a_step_are_bars():
    record = watched(
        track("a"), passes={"4": 30, "1": 10}, findings=[finding(307, "a", text="four forwards")]
    )
    (bars,) = beside(render_watch(record), "Four forwards")
    assert (bars["data"][0]["x"], bars["data"][0]["y"]) == (["1", "4"], [10, 30])


def test_one_layer_is_open_and_each_can_be_chosen():
    tracks = [track(f"layer{n}") for n in range(300)]
    page = render_watch(watched(*tracks, findings=[finding(layer="layer7")]))
    options = re.findall(r'<option value="(layer-\d+)"( selected)?>', page)
    assert len(options) == 300
    assert [value for value, selected in options if selected] == ["layer-7"]
    assert re.findall(r'<section class="layer ridged" id="(layer-\d+)" aria-label="\w+">', page) == [
        "layer-7"
    ]
    heat = figures(page)["spread"]
    assert len(heat["data"][0]["z"]) == 300
    assert heat["layout"]["height"] < 1000


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"looks": [], "steps": 0}, "no optimiser of this model made a step"),
        ({}, "no layer had a finite number at any look"),
    ],
)
def test_a_page_without_numbers_says_why(changes: dict[str, Any], says: str):
    empty = [] if "looks" in changes else NOTHING
    keys = ("mean", "spread", "running_mean", "running_spread", "flat", "dead", "gradient", "stale")
    nothing = track("a", ridge=None, **dict.fromkeys(keys, empty))
    page = render_watch(watched(nothing, findings=[finding(201, "a", text="they are NaN")], **changes))
    assert says in page
    assert "They are NaN." in page
    assert 'id="figures"' not in page
    assert len(page) < 30_000


def test_long_lines_are_thinned_and_keep_their_peak():
    flat = [0.1] * 5000
    flat[1237] = 0.9
    many = {key: [1.0] * 5000 for key in ("mean", "spread")}
    none = {key: [None] * 5000 for key in ("running_mean", "running_spread", "dead", "gradient", "stale")}
    page = render_watch(watched(track("act", flat=flat, **many, **none), looks=list(range(5000))))
    line = figures(page)["flat"]["data"][0]
    assert len(line["x"]) <= 201
    assert (line["x"][0], line["x"][-1]) == (0, 4999)
    assert line["y"][line["x"].index(1237)] == 0.9


def test_running_and_batch_statistics_channel_by_channel():
    channels = {
        "number": [0, 1, 2], "eps": 0.0, "batch_mean": [0.0, 4.0, 1.0], "batch_var": [1.0, 4.0, 8.0],
        "running_mean": [0.0, 0.0, 1.0], "running_var": [1.0, 4.0, 2.0], "weight": [1.0] * 3,
    }  # fmt: skip
    stale = Finding(203, "warning", "n", "far away", "why", "fix")
    page = render_check(checked(layer("n"), findings=(stale,), channels={"n": channels}).as_dict())
    shift, ratio = beside(page, "Far away")
    assert shift["data"][0]["y"] == pytest.approx([0.0, 2.0, 0.0])
    assert ratio["data"][0]["y"] == pytest.approx([1.0, 1.0, 4.0])
    assert [s["y0"] for s in shift["layout"]["shapes"]] == [-0.5, 0.5]
    assert [s["y0"] for s in ratio["layout"]["shapes"]] == pytest.approx([1 / 3, 3])
    assert shift["data"][0]["marker"]["symbol"] == ["circle", "diamond", "circle"]
    assert "1 of 3 batch means are further than 0.5 running standard deviations away." in page


def test_weights_of_a_norm_are_a_histogram():
    channels = {
        "number": [0, 1, 2, 3], "eps": 0.0, "batch_mean": [0.0] * 4, "batch_var": [1.0] * 4,
        "running_mean": [], "running_var": [], "weight": [0.0, 1e-5, -1.05, 500.0],
    }  # fmt: skip
    gone = Finding(406, "warning", "n", "weights are gone", "why", "fix")
    page = render_check(checked(layer("n"), findings=(gone,), channels={"n": channels}).as_dict())
    (bars,) = beside(page, "Weights are gone")
    at = [(x, y) for x, y in zip(bars["data"][0]["x"], bars["data"][0]["y"], strict=True) if y]
    assert [y for _, y in at] == [1, 1, 1, 1]
    for (x, _), size in zip(at[1:], (1e-5, 1.05, 500.0), strict=True):
        assert abs(x - math.log10(size)) <= 1 / 6 + 1e-9
    assert [s["x0"] for s in bars["layout"]["shapes"]] == [-4, 2]
    assert "2 of 4 weights are smaller than 0.0001; the largest is 500." in page


@pytest.mark.parametrize(
    ("code", "key", "values", "level"),
    [
        (105, "gap", [0.1, 0.9, 0.2], 0.5),
        (204, "momentum", [0.1, 0.99, 0.1], 0.9),
        (205, "updates", [1, 2, 1], 1),
        (403, "flat", [0.0, 0.9, 0.1], 0.5),
        (404, "dead", [0.0, 0.5, 0.1], 0.25),
    ],
)
def test_a_finding_stands_beside_the_same_number_of_all_layers(code, key, values, level):
    layers = [layer(f"l{i}", **{key: value}) for i, value in enumerate(values)]
    found = Finding(code, "warning", "l1", "it is so", "why", "fix")
    (dots,) = beside(render_check(checked(*layers, findings=(found,)).as_dict()), "It is so")
    assert dots["data"][0]["y"] == values
    assert dots["data"][0]["marker"]["symbol"] == ["circle", "diamond", "circle"]
    assert [s["y0"] for s in dots["layout"]["shapes"]] == [level]


def test_the_scale_of_the_signal_begins_at_the_input():
    raw = Finding(401, "error", "", "raw pixels", "why", "fix")
    inputs = [{"mean": 100.0, "spread": 50.0, "rms": 111.0, "min": 0.0, "max": 255.0}]
    page = render_check(checked(layer("a"), layer("b"), findings=(raw,), inputs=inputs).as_dict())
    (scale,) = beside(page, "Raw pixels")
    into, out = scale["data"]
    assert into["y"] == [111.0, 1.0, 1.0]
    assert out["y"] == [None, 2.0, 2.0]
    assert into["marker"]["symbol"] == ["diamond", "circle", "circle"]


def test_layers_stand_in_their_order_and_a_finding_among_its_neighbours():
    layers = [layer(name) for name in ("first", "second", "third")]
    found = Finding(304, "warning", "second", "two in a row", "why", "fix")
    text = Reader(render_check(checked(*layers, findings=(found,)).as_dict())).text
    rows = text[text.index("The layers in their order") :]
    assert rows.index("first") < rows.index("second") < rows.index("third")
    chain = text[: text.index("The scale of the signal")]
    assert chain.index("first") < chain.rindex("second") < chain.index("third")


def test_a_model_without_evidence_has_a_page_of_text():
    page = render_check(CheckRecord("Net", 0, 0, 0, (), ("nothing was seen",)).as_dict())
    assert "nothing was seen" in page
    assert len(page) < 30_000


def test_findings_of_a_code_are_one_group_and_say_once_what_they_share():
    found = [finding(layer="a"), finding(301, "b", severity="note"), finding(layer="c", text="other")]
    first, second = grouped(found)
    assert [item["layer"] for item in first["items"]] == ["a", "c"]
    assert (first["why"], first["items"][0]["why"]) == ("they learn slowly", "")
    assert (second["why"], second["items"][0]["why"]) == ("", "they learn slowly")


def test_the_end_of_a_long_name_tells_layers_apart():
    names = [f"encoder.layers.{i}.attention.output.norm" for i in (1, 11)]
    assert label(names[0], 28) != label(names[1], 28)
    assert len(label(names[0], 28)) == 28
    assert label("<b>", 28) == "&lt;b&gt;"


def test_names_from_outside_do_nothing_anywhere(hostile):
    name = hostile + "y" * 10_000
    flat = track(name, kind=hostile, flat=[0.6] * 4, gradient=[1.0] * 4, stale=[0.1] * 4, dead=[0.0] * 4)
    norm = track(f"{name}2", "norm", kind=hostile)
    bad = [finding(layer=name, text=name, why=name, fix=name), finding(101, f"{name}2", text=name)]
    record = watched(flat, norm, model=name, findings=bad, verdict=hostile, without_gradients={f"{name}2": 2})
    plain = track("a", flat=[0.6] * 4, gradient=[1.0] * 4, stale=[0.1] * 4, dead=[0.0] * 4)
    same = [finding(layer="a"), finding(101, "b")]
    innocent = watched(plain, track("b", "norm"), findings=same, without_gradients={"b": 2})
    found = tuple(Finding(code, "warning", name, name, name, name) for code in (203, 204, 301))
    channels = {
        "number": [0], "eps": 0.0, "batch_mean": [0.0], "batch_var": [1.0], "running_mean": [1.0],
        "running_var": [1.0], "weight": [1.0],
    }  # fmt: skip
    seen = checked(
        layer(name, momentum=0.99, kind=name), layer("b"), findings=found, channels={name: channels}
    )
    model = CheckRecord(name, 1, 2, 32, found, (name,), seen.evidence)
    console = Terminal(file=io.StringIO(), width=200, highlight=False, markup=False)
    print_check(model, console)
    pages = [render_watch(record), render_check(model.as_dict())]
    assert [tag for tag, _ in Reader(pages[0]).tags] == [
        tag for tag, _ in Reader(render_watch(innocent)).tags
    ]
    for text in (*pages, console.file.getvalue(), str(model)):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
        assert "\\u202e" in text
        text.encode()
    for page in pages:
        assert "alert(1)</script>" not in page
        assert "<script>alert" not in json.dumps(figures(page))
    for plain_record in (model.as_dict(), model.as_sarif()):
        text = json.dumps(plain_record)
        assert text.isascii()
        assert json.loads(text) == json.loads(json.dumps(plain_record))
    assert model.as_sarif()["runs"][0]["results"][0]["message"]["text"].startswith(name)
    assert len(str(model)) < 10_000
