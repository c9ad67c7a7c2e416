"""The study in a terminal."""

import io

import pytest

from slabnorm.report.study import (
    Interval,
    accuracy_text,
    milliseconds_text,
    points_text,
    print_study,
    steps_text,
)
from slabnorm.report.terminal import Terminal
from slabnorm.report.wording import level, norm_label
from slabnorm.text import listing, printable
from tests.report.studies import EVIL, cell, study


def printed(record, width=80):
    out = io.StringIO()
    print_study(record, Terminal(file=out, width=width, markup=False))
    return out.getvalue()


def test_the_default_study_fits_80_columns_without_folding():
    text = printed(study(norms=("none", "batch", "layer", "instance", "group")))
    rows = [line for line in text.splitlines() if "97.0 [95.0, 98.0]" in line]
    assert len(rows) == 11
    assert all(row.split()[-4:] == ["0.0063", "4", "120", "1.23"] and len(row) <= 80 for row in rows[:10])
    assert text.index("The verdict") < text.index("test accuracy")


def test_markup_in_names_is_text():
    assert EVIL in printed(study(name=EVIL), width=400)


def test_failures_are_marked_in_a_column_of_their_own():
    failed = cell(
        "batch", 2, accuracy=None, gap=None, steps_to_target=None, seconds_per_step=None, reached=0, failed=3
    )
    text = printed(study(cells=(failed, cell("none", 2, reached=1))), width=120)
    assert "3 of 3 failed" in text
    assert "120 (1 of 3)" in text


def test_many_notes_are_cut_and_counted():
    text = printed(study(notes=tuple(f"note {i}" for i in range(30))))
    assert "22 more notes" in text
    assert "note 8" not in text


def test_numbers_read_well():
    assert accuracy_text(Interval(0.974, None, None, 1)) == "97.4%"
    assert points_text(Interval(0.012, 0.0, 0.024, 3)) == "+1.2 ± 1.2"
    assert points_text(Interval(-0.0001, None, None, 1)) == "0.0"
    assert milliseconds_text(0.0123456) == "12.3"
    assert level(0.925) == "92.5%"
    assert steps_text(cell(steps_to_target=None, reached=0)) == "never (0 of 3)"
    assert steps_text(cell(steps_to_target=1234.0)) == "1,234"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢", "plain ü 漢"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcff", "\\udcff"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_printable_leaves_nothing_to_act_on(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_names_in_words():
    assert norm_label("none") == "no norm"
    assert norm_label("n c -> n") == "“n c -> n”"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"], "or") == "a, b or c"
