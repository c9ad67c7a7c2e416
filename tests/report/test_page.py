"""The page: complete, escaped, and able to live without a network."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from slabnorm.report.study import (
    AccuracyAxis,
    DifferenceRecord,
    Interval,
    accuracy_figure,
    curves_figure,
    draw,
    inputs_figure,
    looks,
    print_study,
    range_text,
    rate_text,
    rates_figure,
    render_study,
)
from slabnorm.report.terminal import Terminal
from tests.report.studies import EVIL, cell, searched, study


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text of each script and of the rest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], "", None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def plain():
    return Reader(render_study(study()))


@pytest.fixture(scope="module")
def evil():
    return Reader(
        render_study(study(name=EVIL, model=EVIL, classes=(EVIL, "b"), norms=("none", f"n c -> n {EVIL}")))
    )


def test_it_opens_with_the_verdict(plain):
    assert plain.text.index("The verdict on digits.") < plain.text.index("Accuracy by batch size")
    headings = [
        "Accuracy by batch size",
        "Which learning rate?",
        "Learning curves",
        "Norms in numbers",
        "Inputs side by side",
        "How it was measured",
    ]
    places = [plain.text.index(heading) for heading in headings]
    assert places == sorted(places)


def test_the_numbers_are_in_the_table_and_in_the_record(plain):
    assert "97.0% [95.0, 98.0]" in plain.text
    assert "\N{MINUS SIGN}1.2 ± 1.8" in plain.text
    assert "1.23" in plain.text
    record = json.loads(plain.scripts[0])
    assert record == json.loads(json.dumps(study().as_dict()))


def test_names_from_outside_stay_text(evil, plain):
    # The same tags as an innocent page's: nothing that was given became one.
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert f"The verdict on {EVIL}." in evil.text
    assert json.loads(evil.scripts[0])["data"]["classes"][0] == EVIL
    assert len(evil.scripts) == len(plain.scripts) == 4


def test_what_a_terminal_or_page_would_act_on_is_escaped(hostile):
    record = study(hostile, hostile, (hostile, ""), ("none", hostile), inputs_verdict=hostile)
    console = Terminal(file=io.StringIO(), width=200, highlight=False, markup=False)
    print_study(record, console)
    for text in (render_study(record).replace(get_plotlyjs(), ""), console.file.getvalue()):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
        assert "\\u202e" in text
        text.encode()


def test_every_comparison_is_in_the_page():
    clear = DifferenceRecord(
        "batch norm, batch size 2", "no norm, batch size 2", Interval(0.1, 0.05, 0.15, 3), True
    )
    text = Reader(render_study(study(differences=(clear,)))).text
    assert "1 comparison, 1 of them clear" in text
    assert "+10.0 ± 5.0" in text


def test_on_a_phone_every_number_has_the_head_of_its_column(plain):
    cells = [attributes for tag, attributes in plain.tags if tag == "td"]
    assert cells
    assert all(attributes.get("data-head") for attributes in cells)


def test_names_from_outside_stay_text_in_pictures(evil):
    figures = json.loads(evil.scripts[1])
    names = {trace["name"] for figure in figures.values() for trace in figure["data"]}
    assert any("&lt;script&gt;" in name for name in names)
    assert not any("<" in name for name in names)


def test_no_line_of_the_page_can_end_a_script_early():
    page = render_study(study(name="</script><script>alert(1)</script>"))
    ours = page.replace(get_plotlyjs(), "")
    assert "alert(1)</script>" not in ours
    assert ours.count("</script>") == 4


def test_it_loads_nothing_from_anywhere(plain):
    for tag, attributes in plain.tags:
        assert not {"src", "href", "srcset", "action", "data", "poster"} & set(attributes), tag
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
    ours = render_study(study()).replace(get_plotlyjs(), "")
    assert not re.findall(r"https?:|url\(|@import|//cdn", ours)
    policy = next(a["content"] for tag, a in plain.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_failed_and_diverged_cells_are_marked():
    failed = cell(
        "batch", 2, accuracy=None, gap=None, steps_to_target=None, seconds_per_step=None, reached=0, failed=3
    )
    diverged = cell("none", 2, diverged=1, reached=1, steps_to_target=None)
    text = Reader(render_study(study(cells=(diverged, cell("none", 16), failed, cell("batch", 16))))).text
    assert "3 of 3 failed" in text
    assert "1 of 3 diverged" in text
    assert "never (1 of 3)" in text


def test_without_inputs_there_is_no_such_section():
    text = Reader(render_study(study(inputs=(), inputs_curves=(), inputs_verdict="", schemes=()))).text
    assert "Inputs side by side" not in text


def test_a_study_in_which_everything_failed_still_renders():
    nothing = cell(
        "batch", 2, accuracy=None, gap=None, steps_to_target=None, seconds_per_step=None, reached=0, failed=3
    )
    page = render_study(
        study(norms=("batch",), cells=(nothing,), curves=(), searches=(), inputs=(nothing,), inputs_curves=())
    )
    assert "3 of 3 failed" in page


def test_a_norm_has_one_colour_in_every_picture():
    figures = draw(study())
    assert list(figures) == [
        *("accuracy", "rates-2", "rates-16", "curves-2", "curves-16", "inputs-curves", "inputs")
    ]
    colours = {}
    for trace in (trace for figure in figures.values() for trace in figure.data if trace.line.color):
        colours.setdefault(trace.name, set()).add(trace.line.color)
    assert all(len(found) == 1 for found in colours.values())
    assert colours["batch norm"] == {looks(["none", "batch"])["batch"][0]}


def test_every_picture_has_its_place(plain):
    places = {attributes.get("id") for tag, attributes in plain.tags if tag == "div"} - {None}
    assert places == set(json.loads(plain.scripts[1])) == set(draw(study()))


def test_colours_do_not_depend_on_what_else_is_compared():
    assert looks(["group"])["group"] == looks(["none", "batch", "group", "n c -> n"])["group"]
    every = looks(["none", "batch", "layer", "instance", "group", "n c -> n", "n c -> c"])
    assert len({colour for colour, _ in every.values()}) == 7


def test_intervals_are_drawn_where_they_are():
    figure = accuracy_figure(study())
    axis = AccuracyAxis(20)
    trace = next(t for t in figure.data if t.name == "batch norm")
    assert trace.y == pytest.approx([axis.height(0.97)] * 2)
    assert trace.y[0] - trace.error_y.arrayminus[0] == pytest.approx(axis.height(0.95))
    assert trace.y[0] + trace.error_y.array[0] == pytest.approx(axis.height(0.98))
    low, high = figure.layout.yaxis.range
    assert low < trace.y[0] < high


def test_legends_name_each_thing_once():
    for figure in (curves_figure(study(), 2), inputs_figure(study()), rates_figure(study(), 2)):
        shown = [trace.name for trace in figure.data if trace.showlegend is not False]
        assert len(shown) == len(set(shown)) == 2


def test_the_chosen_learning_rate_is_marked_where_it_lies():
    figure = rates_figure(study(), 2)
    trace = next(t for t in figure.data if t.name == "batch norm")
    axis = AccuracyAxis(20)
    assert trace.x == (0.0015625, 0.00625, 0.025, 0.1)
    assert trace.y == pytest.approx([axis.height(v) for v in (0.8, 0.97, 0.96, 0.0)])
    assert [symbol.endswith("-open") for symbol in trace.marker.symbol] == [True, False, True, True]
    assert figure.layout.xaxis.type == "log"


def test_a_good_range_is_a_factor_and_open_where_nothing_else_was_tried():
    assert range_text(searched()) == "4"
    assert range_text(searched(good=(0.0015625, 0.1), open_above=True)) == "> 64"
    assert range_text(searched(validation=(0.0, 0.0, 0.0, 0.0))) == range_text(None) == "\N{EN DASH}"
    assert [rate_text(rate) for rate in (0.00625, 0.1, 1.6, 16.0, 0.000012)] == [
        *("0.0063", "0.10", "1.6", "16", "0.000012")
    ]


def test_axis_is_even_in_the_logarithm_of_the_error():
    axis = AccuracyAxis(1000)
    assert axis.height(0.9) == pytest.approx(1)
    assert axis.height(0.99) == pytest.approx(2)
    assert axis.height(1.0) == axis.height(0.9995) < axis.height(1.0) + 1
    layout = axis.layout(axis.height(0.5), axis.height(0.99))
    assert dict(zip(layout["ticktext"], layout["tickvals"], strict=True))["99%"] == pytest.approx(2)


def test_axis_holds_every_mean_and_near_intervals():
    axis = AccuracyAxis(1000)
    low, high = axis.room([(0.0, 0.9, 0.92), (0.97, 0.98, 0.985)])
    assert axis.height(0.5) < low < axis.height(0.9)
    assert high == pytest.approx(axis.height(0.985))
    assert axis.room([]) == (0.0, 1.0)
