"""Tables on a terminal of any width, in a pipe, and where there is ASCII only: no number is cut."""

import io
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.report.audit import print_audit
from slabnorm.report.statistics import FeatureRecord, StatisticsRecord, print_statistics
from slabnorm.report.study import print_study
from slabnorm.report.terminal import Terminal
from tests.report.audits import audited, finding
from tests.report.studies import cell, study

LONG = "a_very_long_column_name_of_a_table_somewhere_deep"
NUMBER = r"[\d.,]*\d[\d.,e+\-]*"


def printed(show, record, width, edge=True):
    console = Terminal(file=io.StringIO(), width=width, highlight=False, markup=False, edge=edge)
    show(record, console)
    return console.file.getvalue()


def statistics():
    def feature(name, factor):
        mean, spread = 1012.125 * factor, 310.062 * factor
        return FeatureRecord(
            name, 1234567890, 4321, 7, mean, spread, mean - 3 * spread, mean + 3 * spread, 0, 1
        )

    features = (feature("a", 1.0), feature(LONG, -1e-9), feature("漢字 in a name", 1e12))
    return StatisticsRecord("ZScore", "n c -> c", "train", 1234567, "float64", False, features)


def whole_study():
    failed = cell("batch", 2, accuracy=None, gap=None, steps_to_target=None, reached=0, failed=3)
    return study(cells=(cell("none", 2, reached=1), failed, cell("none", 16), cell("n c ... -> n", 16)))


RECORDS = {
    "show": (print_statistics, statistics()),
    "compare": (print_study, whole_study()),
    "audit": (print_audit, audited(findings=(finding(), finding(kind="range", name="1234567.25")))),
}


@pytest.mark.parametrize("width", [20, 27, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", RECORDS)
def test_no_number_is_cut_at_any_width(name, width):
    """Every number that a pipe shows, which has no edge, is whole in a terminal, too, and nothing is lost."""
    show, record = RECORDS[name]
    wanted, text = printed(show, record, 10_000), printed(show, record, width)
    # 90 is in a head, which stands in every row where rows are stacked.
    said = [sorted(n for n in re.findall(NUMBER, each) if n != "90") for each in (wanted, text)]
    assert said[0] == said[1]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [20, 40, 80])
def test_long_names_are_folded_and_whole(width):
    text = printed(print_statistics, statistics(), width)
    assert LONG in re.sub(r"[^a-z_]", "", text)


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be():
    rows = printed(print_statistics, statistics(), 80, edge=False).splitlines()
    row = next(line for line in rows if line.startswith(LONG))
    assert row.split() == [
        *(LONG, "1,234,567,890", "4,321", "7", "-1.0121e-06", "-3.1006e-07", "-8.1939e-08", "-1.9423e-06"),
        *row.split()[-1:],
    ]
    assert row.rstrip()[-1] in "┤█"


@pytest.fixture
def artifact(tmp_path, in_plain_torch):
    x = np.random.default_rng(0).normal(1012.1, 1.0, (64, 3))
    sn.save(sn.fit(x, "zscore", "n c -> c", split="train"), tmp_path / "a.safetensors")
    return str(tmp_path / "a.safetensors")


@pytest.mark.parametrize("columns", ["0", "1", "20", "-5", "wide", "", "9" * 30])
def test_any_value_of_columns_prints_every_number(artifact, columns):
    result = CliRunner().invoke(app, ["show", artifact], env={"COLUMNS": columns})
    assert result.exit_code == 0
    assert len(re.findall(r"\b10[01]\d(?:\.\d+)?\b", result.stdout)) >= 9


def test_a_terminal_with_ascii_only_gets_a_likeness_of_the_picture(artifact):
    result = CliRunner(charset="ascii").invoke(app, ["show", artifact], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    assert re.search(r"\|-*=+#=+-*\|", result.stdout)
    assert "?" not in result.stdout
    assert "漢\N{MINUS SIGN}1…".encode("ascii", "slabnorm.ascii") == b"\\u6f22-1..."
