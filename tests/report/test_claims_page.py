"""The report of claims: verdicts from intervals, numbers in words, a table, and a card for each claim."""

import html
import io
import json
import re

import pytest

from slabnorm.report.claims import (
    FAILS,
    HOLDS,
    TIMES,
    UNDECIDED,
    ClaimRecord,
    ClaimsRecord,
    Number,
    Picture,
    Series,
    figure_of,
    number_text,
    print_claim,
    print_claims,
    render_claims,
    tally,
    value_text,
)
from slabnorm.report.claims import (
    Test as Inequality,
)
from slabnorm.report.study import DataRecord, Interval
from slabnorm.report.terminal import Terminal
from slabnorm.report.wording import MINUS

HOSTILE = '<img src=x onerror="alert(1)">\x1b[31m'


def picture(kind: str, log: str = "") -> Picture:
    series = Series("batch norm", (1.0, 10.0, 100.0), (0.5, None, 0.9), (0.4, None, 0.8), (0.6, None, 1.0))
    return Picture(f"{kind} of {HOSTILE}", "batch size", "accuracy", (series,), kind, log, (("chance", 0.1),))


def claim(name: str, verdict: str) -> ClaimRecord:
    return ClaimRecord(
        id=name,
        claim=f"Claim {name} {HOSTILE}.",
        question="What would you expect?",
        measured="Batch norm gains 3.2 points.",
        tests=(Inequality("gain", Interval(0.032, 0.02, 0.044, 3), 0.0, "%"),),
        verdict=verdict,
        numbers=(Number("steps", Interval(1200.0, None, None, 1), "steps"),),
        pictures=(picture("lines", "x"), picture("bars"), picture("points", "xy")),
        explanation="It is so.",
        source="A paper, 2015",
        example="import torch\nprint(torch.ones(2))",
        code='def measure(material):\n    return "</script>"\n',
        setting=(("Network", "three layers"),),
        seconds=1.0,
    )


def record() -> ClaimsRecord:
    data = DataRecord("digits", 100, (1, 8, 8), ("0", HOSTILE), 60, 20, 20, "axes", (0.0, 16.0))
    found = (claim("small", HOLDS), claim("shift", FAILS), claim("flow", UNDECIDED))
    return ClaimsRecord(data, found, (), (0, 1, 2), (("Data", "digits"),), ("a note",), 12.0)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (1.1, 2.0, HOLDS, FAILS),
        (0.1, 0.9, FAILS, HOLDS),
        (0.5, 1.5, UNDECIDED, UNDECIDED),
        (1.0, 1.0, FAILS, FAILS),  # equal to the bound is on neither side
        (None, None, UNDECIDED, UNDECIDED),
    ],
)
def test_an_interval_decides(low, high, above, below):
    value = Interval(1.0, low, high, 3)
    assert Inequality("", value, 1.0).verdict == above
    assert Inequality("", value, 1.0, below=True).verdict == below


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.974, "%", "97.4%"),
        (-0.012, "%", f"{MINUS}1.2%"),
        (3.2, "x", f"3.20{TIMES}"),
        (12.0, "x", f"12{TIMES}"),
        (0.0, "", "0"),
        (5.1e-16, "", f"5.1e{MINUS}16"),
        (1234.4, "steps", "1,234 steps"),
    ],
)
def test_numbers_are_written_as_people_do(value, unit, text):
    assert number_text(value, unit) == text


def test_an_interval_without_width_is_one_number():
    assert value_text(Interval(0.5, 0.5, 0.5, 1), "%") == "50.0%"
    assert value_text(Interval(0.5, None, None, 1), "%") == "50.0%"
    assert value_text(Interval(0.5, 0.4, 0.6, 3), "%") == "50.0% [40.0%, 60.0%]"


def test_the_tally_counts_verdicts():
    assert tally(record()) == "3 claims on digits: 1 holds, 1 does not hold here, 1 is undecided."


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_has_every_claim_and_no_control_character(width):
    out = io.StringIO()
    console = Terminal(file=out, width=width, highlight=False, markup=False)
    print_claims(record(), console)
    print_claim(record().claims[0], console)
    text = out.getvalue()
    assert "\x1b" not in text
    assert all(word in text for word in ("small", "shift", "flow", "does not", "undecided"))
    assert "3.2% [2.0%, 4.4%]" in " ".join(text.split())
    assert "def measure(material):" in text


def test_a_page_has_a_card_for_each_claim_and_no_foreign_markup():
    page = render_claims(record())
    assert [f'<article id="{name}">' in page for name in ("small", "shift", "flow")] == [True] * 3
    assert "<img" not in page.replace(html.escape("<img"), "")
    assert "\x1b" not in page
    kept = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(kept)["claims"][1]["verdict"] == FAILS
    assert "import torch\nprint(torch.ones(2))" in page


def test_figures_show_values_intervals_and_marks():
    figure = figure_of(picture("lines", "x"))
    band, line = figure.data
    assert list(line.y) == [0.5, None, 0.9]
    assert list(band.x) == [1.0, 100.0, 100.0, 1.0]
    assert list(band.y) == [0.6, 1.0, 0.8, 0.4]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.shapes[0].y0 == 0.1
    (bars,) = figure_of(picture("bars")).data
    assert [round(v, 9) if v is not None else None for v in bars.error_y.array] == [0.1, None, 0.1]
