"""The bug set: each script goes wrong as its header says, its twin does not, and the doctor tells which."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from slabnorm.doctor import bugs as bug_set
from slabnorm.doctor.bugs import Bench, Bug, Outcome, bugs, run_one


@pytest.mark.parametrize("bug", bugs(), ids=lambda bug: bug.name)
def test_the_cause_is_named_first_and_the_twin_is_healthy(bug):
    outcome = run_one(bug)
    assert bug.shows(outcome.metric)
    assert bug.healthy(outcome.repaired)
    assert outcome.alarms == ()
    if bug.rule is None:
        assert not outcome.first
    else:
        assert outcome.codes[0] == bug.rule
    assert all(code in outcome.fix for code in re.findall(r"`([^`]*)`", bug.healed)[-1:])


def test_the_set_is_as_large_as_it_says():
    kinds = Counter(bug.kind for bug in bugs())
    assert kinds.keys() == {"inputs", "modes", "structure"}
    assert kinds["inputs"] >= 15
    assert kinds["modes"] >= 15
    assert kinds["structure"] >= 10
    assert sum(bug.rule is None for bug in bugs()) <= 0.05 * len(bugs())


@pytest.mark.parametrize("bug", bugs(), ids=lambda bug: bug.name)
def test_headers_say_what_is_wrong_in_one_difference(bug):
    text = Path(bug.module.__file__).read_text("utf-8")
    assert "repaired" in text.split("def run(repaired: bool)")[1]
    assert bug.module.BAD != bug.module.GOOD
    assert bug.title.endswith(".")
    assert bug.symptom
    assert bug.cause
    assert bug.healed
    assert bug.thread.startswith("https://github.com/") or bug.thread == "no public thread known"


def _outcome(rule: int | None, codes: tuple[int, ...], warned: bool, alarms: tuple[int, ...] = ()) -> Outcome:
    bug = Bug("name", "A title.", "symptom", "cause", "modes", rule, "by sn.fixes", "no public thread known")
    return Outcome(bug, 0.0, 1.0, codes, warned, alarms, 0.5)


def test_the_bench_counts():
    bench = Bench(
        (
            _outcome(203, (203, 105), True),  # named first
            _outcome(301, (301,), False),  # named first, by a note
            _outcome(203, (404, 203), True, alarms=(404,)),  # found, but not first; and an alarm in the twin
            _outcome(203, (), False),  # missed
            _outcome(None, (105,), False),  # nobody can know
        )
    )
    assert bench.recall == 3 / 5
    assert bench.first_rate == 2 / 5
    assert bench.false_alarms == 1
    assert bench.precision == 2 / (3 + 1)
    assert bench.seconds == 2.5
    plain = bench.as_dict()
    assert plain["recall"] == 3 / 5
    assert len(plain["outcomes"]) == 5
    assert plain["outcomes"][0]["bug"]["rule"] == 203
    assert plain["outcomes"][2]["first"] is False


def test_progress_is_told(monkeypatch):
    some = bugs()[:2]
    monkeypatch.setattr(bug_set, "bugs", lambda: some)
    monkeypatch.setattr(bug_set, "run_one", lambda bug: _outcome(203, (203,), True))
    told = []
    bench = bug_set.run_all(lambda *at: told.append(at))
    assert told == [(0, 2, some[0].name), (1, 2, some[1].name)]
    assert bench.first_rate == 1.0
