"""The report of an audit, as a page and in a terminal: complete, escaped, able to live without a network."""

import io
import json
import re

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from slabnorm.report.audit import (
    drifting,
    features_figure,
    overlap_figure,
    overview_figure,
    print_audit,
    render_audit,
)
from tests.report.audits import MOVED, NOTHING, audited, feature, finding
from tests.report.studies import EVIL
from tests.report.test_page import Reader

CLEAN = {"findings": (), "notes": (), "features": (feature("a"), feature("b"))}


@pytest.fixture(scope="module")
def plain():
    return Reader(render_audit(audited()))


@pytest.fixture(scope="module")
def evil():
    return Reader(render_audit(audited(EVIL, EVIL, pattern=EVIL, split=EVIL, dtype=EVIL, scheme=EVIL)))


def printed(record, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    print_audit(record, console)
    return console.file.getvalue()


def test_it_opens_with_the_verdict_and_holds_everything(plain):
    headings = [
        "1 error and 1 warning in test.npy. The mean of feature b moved.",
        "Findings",
        "Overlap with the training data",
        "Every feature",
        "The feature that differs",
        "In numbers",
    ]
    places = [plain.text.index(heading) for heading in headings]
    assert places == sorted(places)
    for words in (
        "a note on b",
        "look at b",
        "+2.00 ± 0.20",
        "0% → 3.85%",
        "They had 2 of these, 5%",
        "0.6 to 17%",
    ):
        assert words in plain.text
    ids = {attributes.get("id") for _, attributes in plain.tags}
    assert {"overview", "overlap", "features"} <= ids
    record = json.loads(plain.scripts[0])
    assert record == json.loads(json.dumps(audited().as_dict(), allow_nan=False))


def test_names_from_outside_stay_text(evil, plain):
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert len(evil.scripts) == 4
    assert json.loads(evil.scripts[0])["features"][1]["name"] == EVIL
    figures = evil.scripts[1]
    assert "&lt;script" in json.dumps(json.loads(figures))
    assert "<script" not in json.dumps(json.loads(figures))
    page = render_audit(audited("</script><script>alert(1)</script>")).replace(get_plotlyjs(), "")
    assert "alert(1)</script>" not in page
    assert page.count("</script>") == 4


def test_what_a_terminal_or_page_would_act_on_is_escaped(hostile):
    record = audited(hostile, hostile, pattern=hostile, split=hostile, dtype=hostile, scheme=hostile)
    for text in (render_audit(record).replace(get_plotlyjs(), ""), printed(record, 200)):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
        assert "\\u202e" in text
        text.encode()


def test_names_from_outside_stay_text_in_a_terminal():
    text = printed(audited("\x1b[31m[bold]x", "a\x07b"), 200)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[31m[bold]x" in text


def test_it_loads_nothing_from_anywhere(plain):
    for tag, attributes in plain.tags:
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(attributes), tag
    assert not re.findall(r"https?:|url\(|@import|//cdn", render_audit(audited()).replace(get_plotlyjs(), ""))
    policy = next(a["content"] for tag, a in plain.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_nothing_found():
    page = Reader(render_audit(audited(**CLEAN)))
    assert "Nothing found in test.npy" in page.text
    assert "Findings" not in page.text
    assert "Nothing found" in printed(audited(**CLEAN))


def test_a_clean_audit_is_a_small_file_of_numbers():
    """Without anything to explore there is no picture, and so none of Plotly's 4.8 MB."""
    html = render_audit(audited(**CLEAN))
    page = Reader(html)
    assert len(html.encode()) < 30_000
    assert len(page.scripts) == 1
    assert json.loads(page.scripts[0])["clean"]
    assert "In numbers" in page.text
    assert "JavaScript" not in page.text
    assert "figure" not in {attributes.get("class") for _, attributes in page.tags}


def test_without_a_sketch_there_is_no_overlap():
    page = Reader(render_audit(audited(overlap=None)))
    assert "keep no hashes" in page.text
    assert "overlap" not in json.loads(page.scripts[1])
    assert "was not estimated" in printed(audited(overlap=None))


def test_features_without_values_are_listed_and_not_drawn():
    gone = feature("b", NOTHING, float("nan"), error=float("nan"), spread=float("nan"))
    record = audited(features=(feature("a"), gone))
    page = Reader(render_audit(record))
    assert "features" not in json.loads(page.scripts[1])
    assert json.loads(page.scripts[0])["features"][1]["new"]["mean"] is None
    assert "0% → 100%" in page.text


@pytest.mark.parametrize("count", [1, 40, 41, 3000])
def test_any_number_of_features(count):
    record = audited("0", features=tuple(feature(str(i), MOVED, i / 100) for i in range(count)))
    figure = overview_figure(record)
    assert sum(len(trace.x) for trace in figure.data) == 2 * min(count, 2000)
    assert figure.layout.height < 1200
    assert len(render_audit(record).replace(get_plotlyjs(), "")) < 2e6


def test_pictures_are_of_the_numbers():
    figure = features_figure(drifting(audited()))
    new, train = [trace for trace in figure.data if trace.mode == "markers"]
    assert (new.x, train.x) == ((9.0,), (5.0,))
    ranges = [tuple(trace.x) for trace in figure.data if trace.mode == "lines"]
    assert ranges == [(-1.0, 16.0), (6.0, 12.0), (0.0, 10.0), (3.0, 7.0)]
    dot = overlap_figure(audited()).data[0]
    assert dot.x[0] + dot.error_x.array[0] == pytest.approx(16.9)
    assert dot.x[0] - dot.error_x.arrayminus[0] == pytest.approx(0.6)
    shifts = [trace for trace in overview_figure(audited()).data if trace.error_x.array]
    assert {x for trace in shifts for x in trace.x} == {0.01, 2.0}


def test_what_is_drawn_is_what_findings_name_the_worst_first():
    features = tuple(feature(str(i), MOVED, i - 1.5) for i in range(4))
    some = audited(features=features, findings=(finding(name="1"), finding(name="3")))
    assert [f.name for f in drifting(some)] == ["3", "1"]
    whole = audited(features=features, findings=(finding("scale", "error", "x"),))
    assert [f.name for f in drifting(whole)] == ["0", "3", "1", "2"]


def test_a_narrow_terminal():
    text = printed(audited(), 50)
    assert "overlap" in text
    assert max(map(len, text.splitlines())) <= 50
