"""Every code of the doctor has a page, whose example has the finding and whose repaired twin has not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import slabnorm as sn
from slabnorm.doctor import thresholds
from slabnorm.doctor.bugs import bugs
from slabnorm.doctor.rules import CAUSES
from slabnorm.report.check import TITLES
from tests.test_docs import blocks

RULES = Path(sn.__file__).parent.parent / "docs" / "rules"
CODES = sorted(CAUSES)
# An audit prints its findings by kind, and calls 409 a leak.
FINDING = re.compile(r"^ *(\d{3}|leak) (error|warning|note)\b", re.MULTILINE)
ROW = re.compile(r"^\| \[(\w+)\]\((.*?)\) \| (.*?) \| .*? \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def page(code: int) -> str:
    return (RULES / f"{code}.md").read_text(encoding="utf-8")


def found(printed: str) -> list[tuple[int, str]]:
    return [(409 if code == "leak" else int(code), severity) for code, severity in FINDING.findall(printed)]


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("code", CODES)
def test_the_example_has_the_finding_and_its_twin_has_not(code, capsys):
    shown = blocks(RULES / f"{code}.md")
    assert [block.language for block in shown] == ["python", "", "python", ""]
    for block, expected in ((shown[0], shown[1]), (shown[2], shown[3])):
        source = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's lines
        exec(compile(source, str(RULES / f"{code}.md"), "exec"), {})
        assert capsys.readouterr().out == expected.text
    (first, severity), *_ = found(shown[1].text)
    assert first == code
    assert re.search(rf"^Severity: .*\b{severity}\b.*Found by", page(code), re.MULTILINE)
    assert all(other != code and severity == "note" for other, severity in found(shown[3].text))


def test_every_code_has_a_title_and_a_page_and_no_page_is_left_over():
    assert sorted(TITLES) == CODES
    assert sorted(path.name for path in RULES.iterdir()) == [f"{code}.md" for code in CODES] + ["README.md"]
    for code, title in TITLES.items():
        assert page(code).startswith(f"# {code}: {title}\n")


def test_the_index_has_each_code_in_its_family():
    index = (RULES / "README.md").read_text(encoding="utf-8")
    families = re.findall(r"^## (\d)xx .*\n\n((?:- .*\n)+)", index, re.MULTILINE)
    assert [family for family, _ in families] == list("12345")
    for family, entries in families:
        codes = [code for code in CODES if str(code)[0] == family]
        assert entries == "".join(f"- [{code}]({code}.md) {TITLES[code]}.\n" for code in codes)


@pytest.mark.parametrize("code", CODES)
def test_a_page_names_the_scripts_with_this_bug_and_numbers_that_they_could_have(code):
    rows = {name: rest for name, *rest in ROW.findall(page(code))}
    own = {bug.name: bug for bug in bugs() if bug.rule == code}
    assert rows.keys() == own.keys()
    for name, (path, title, broken, repaired, thread) in rows.items():
        assert (RULES / path).resolve() == Path(own[name].module.__file__).resolve()
        assert title == own[name].title
        assert own[name].shows(number(broken))
        assert own[name].healthy(number(repaired))
        assert own[name].thread in thread


def number(text: str) -> float:
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def test_thresholds_on_pages_are_those_of_the_rules():
    text = "\n".join(page(code) for code in CODES)
    quoted = re.findall(r"`([A-Z_]+)\s=\s([^`]+)`", text)
    assert all(getattr(thresholds, name) == float(value) for name, value in quoted)
    assert {name for name, _ in quoted} == {name for name in vars(thresholds) if name.isupper()}


@pytest.mark.parametrize("path", sorted(RULES.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (RULES / target).exists(), target
