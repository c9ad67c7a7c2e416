"""The page as a whole: how it is written, its shell, and what its rooms share."""

from __future__ import annotations

import gzip
import json
import re
import webbrowser
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from slabnorm import page as pages
from slabnorm.cli import app
from slabnorm.cli.lab import has_screen, opens
from slabnorm.errors import DataError
from tests.page.conftest import opened

HOSTILE = "</script><img src=x onerror=\"document.body.dataset.hit='yes'\">"
STUDY = {"data": {}, "claims": [], "sweep": [], "seeds": [0]}
ROOMS = ("slab", "input", "mates", "network", "recall")


# ---------------------------------------------------------------- the file


def test_it_is_one_small_file_that_loads_nothing(lab: Path) -> None:
    text = lab.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000  # the study may have as much again
    assert "default-src 'none'" in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r"""\b(?:src|href)=["'][^#]""", markup) == []


def test_three_is_not_read_before_the_page_is_seen() -> None:
    sources = pages.modules()
    seen, wanted = set(), [f"{pages.PREFIX}app"]
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            wanted += re.findall(rf"""from\s*["']({pages.PREFIX}[\w.]+)["']""", sources[name])
    assert not any("three" in name for name in seen)
    assert seen | {name for name in sources if "three" in name} == set(sources)


def test_every_name_that_a_module_imports_is_there() -> None:
    sources = pages.modules()
    for code in sources.values():
        named = re.findall(r"""(?:from|import)\s*\(?\s*["']([\w./-]+)["']""", code)
        assert set(named) <= set(sources)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read as the JSON of claims"),
        (b"{", "cannot be read as the JSON of claims"),
        (b"\xff\xfe", "cannot be read as the JSON of claims"),
        (b"[" * 100_000, "cannot be read as the JSON of claims"),
        (gzip.compress(json.dumps(STUDY).encode(), mtime=0)[:-5], "cannot be read as the JSON of claims"),
        (b'{"data": {}, "claims": [NaN], "sweep": [], "seeds": []}', "NaN is no number of JSON"),
        (b"[1, 2]", "not the record of claims"),
        (b'{"data": {}, "claims": []}', "it has no sweep, seeds"),
        (b'{"data": {}, "claims": 3, "sweep": [], "seeds": []}', "claims is no list"),
    ],
)
def test_a_study_that_is_none_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        pages.read_study(path)
    assert says in str(caught.value)
    assert "slabnorm claims --json" in str(caught.value)


def test_no_such_study(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file of claims"):
        pages.read_study(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        pages.read_study(tmp_path)


def test_a_study_is_read_plain_and_compressed(tmp_path: Path) -> None:
    plain, small = tmp_path / "claims.json", tmp_path / "claims.json.gz"
    plain.write_text(json.dumps(STUDY))
    small.write_bytes(gzip.compress(plain.read_bytes()))
    assert pages.read_study(plain) == pages.read_study(small) == STUDY


# ---------------------------------------------------------------- the command


@pytest.fixture
def lab_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run `slabnorm lab` in a folder of its own, where no network is trained for the page."""
    monkeypatch.setattr("slabnorm.page.samples.samples", lambda: {"photos": HOSTILE})
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["lab", *arguments], catch_exceptions=False)


def test_the_command_writes_the_page(lab_command: Any) -> None:
    result = lab_command("--no-open")
    assert (result.exit_code, result.stdout) == (0, "page: lab.html (open it in a browser)\n")
    text = Path("lab.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert HOSTILE not in text
    assert text.count("</script>") == 3


def test_the_command_opens_the_page_where_there_is_a_screen(
    lab_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(webbrowser, "open", lambda url: not asked.append(url))
    assert lab_command("--out", "my lab.html").stdout == "page: my lab.html\n"
    assert asked == [Path("my lab.html").resolve().as_uri()]
    monkeypatch.delenv("DISPLAY")
    assert "open it in a browser" in lab_command("--out", "b.html").stdout
    assert len(asked) == 1


def test_a_browser_that_does_not_return_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Event()
    monkeypatch.setattr(webbrowser, "open", lambda url: closed.wait(60))
    assert opens(Path("lab.html"), patience=0.01)
    closed.set()
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert not opens(Path("lab.html"), patience=60)


def test_a_terminal_without_a_screen_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert not has_screen()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert has_screen()


def test_mistakes_at_the_command_line_exit_with_2(lab_command: Any) -> None:
    Path("bad.json").write_text("{}")
    for arguments in (
        ("--study", "bad.json"),
        ("--study", "none.json"),
        ("--out", "no/such/folder.html"),
        ("--out", ""),
        ("--study", "bad.json", "--out", "bad.json"),
    ):
        result = lab_command("--no-open", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert "fix:" in result.stderr
    assert Path("bad.json").read_text() == "{}"
    assert not Path("lab.html").exists()


# ---------------------------------------------------------------- the shell


def test_every_room_opens_from_its_link_and_its_address(browser: Browser, lab: Path) -> None:
    with opened(browser, lab) as page:
        links = page.get_by_role("navigation").get_by_role("link")
        assert [link.get_attribute("href") for link in links.all()] == [f"#{room}" for room in ROOMS]
        for at, room in enumerate(ROOMS):
            links.nth(at).click()
            expect(page.locator(f".room-{room} h1")).to_be_visible()
            expect(links.nth(at)).to_have_attribute("aria-current", "page")
            assert page.evaluate("document.activeElement.id") == "room"  # where a screen reader goes on
            assert links.nth(at).inner_text().endswith(page.title().removesuffix(" · slabnorm lab"))
        page.goto(f"{lab.as_uri()}#mates")
        expect(page.locator(".room-mates h1")).to_be_visible()
        page.goto(f"{lab.as_uri()}#nowhere")
        expect(page.locator(".room-slab h1")).to_be_visible()


def test_the_first_keys_skip_the_head_and_open_rooms(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".room-input h1")).to_be_visible()


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.get_by_role("radio", name="Dark").check()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    page.get_by_role("radio", name="System").check()
    assert page.evaluate(ground) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == dark
    page.get_by_role("radio", name="Light").check()
    assert page.evaluate(ground) == light


def test_without_storage_the_theme_is_still_chosen(browser: Browser, lab: Path) -> None:
    with opened(browser, lab) as page:
        page.add_init_script(
            "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
        )
        page.reload()
        page.get_by_role("radio", name="Dark").check()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


# ---------------------------------------------------------------- what rooms share

NUMBERS = [
    (0, "0"),
    (1, "1"),
    (-1.5, "−1.5"),  # noqa: RUF001
    (3.14159, "3.142"),
    (1234.56, "1235"),
    (12345.6, "12,350"),
    (999999, "1,000,000"),
    (1234567, "1.235 × 10⁶"),  # noqa: RUF001
    (-0.00001234, "−1.234 × 10⁻⁵"),  # noqa: RUF001
    (1e-300, "1 × 10⁻³⁰⁰"),  # noqa: RUF001
    (None, "–"),  # noqa: RUF001
]


def test_numbers_have_four_digits(shared: Page) -> None:
    written = "async (all) => { const { number } = await import('slabnorm/kit'); return all.map(number); }"
    assert shared.evaluate(written, [value for value, _ in NUMBERS]) == [text for _, text in NUMBERS]


DRAW = """async (records) => {
  const { picture, histogram, h } = await import("slabnorm/kit");
  const root = document.getElementById("room");
  root.replaceChildren();
  for (const record of records) picture(root, record);
  const shade = [[1, 2, "are shaded"]];
  histogram(root, { title: "How often", values: [0, 1, 1, 2, 9], range: [0, 4], bins: 4, shade });
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [...root.querySelectorAll("figure")].slice(0, records.length).map((figure) => {
    const texts = (which) => [...figure.querySelectorAll(which)].map((one) => one.textContent);
    const drawn = figure.querySelectorAll("canvas, .bar").length;
    return [...texts("figcaption"), texts(".keys li"), texts(".hidden td"), drawn];
  });
}"""


def record(kind: str, x: list[Any], **more: Any) -> dict[str, Any]:
    one = {
        "name": HOSTILE,
        "x": x,
        "y": [1.0, None, 100.0],
        "low": [0.5, None, 90.0],
        "high": [2.0, None, 110.0],
    }
    other = {"name": "other", "x": x[:2], "y": [0.0, 10.0], "low": [], "high": []}
    return {
        "title": f"{kind} {HOSTILE}",
        "x": "x",
        "y": "y",
        "series": [one, other],
        "kind": kind,
        "log": "",
        "marks": [],
    } | more


def test_pictures_are_drawn_with_their_numbers_and_names_stay_text(browser: Browser, lab: Path) -> None:
    records = [
        record("lines", [1, 10, 100], log="xy", marks=[["a mark", 5.0]]),
        record("points", [3, 1, 2]),
        record("bars", [HOSTILE, "b", "c"], log="y", marks=[["a mark", 5.0]]),
        record("lines", ["1", "2", "all"]),
    ]
    with opened(browser, lab) as page:
        found = page.evaluate(DRAW, records)
        for given, (title, keys, numbers, drawn) in zip(records, found, strict=True):
            assert title == given["title"]
            assert keys == [HOSTILE, "other"]
            assert sorted(numbers) == sorted(["1 (0.5 to 2)", "–", "100 (90 to 110)", "0", "10", "–"])  # noqa: RUF001
            assert drawn >= 1
        text = page.locator(".histogram").inner_text()
        assert "60% are shaded" in text
        assert "1 of 5 lie beyond" in text
        assert page.evaluate("document.body.dataset.hit") is None
        assert page.locator("main img").count() == 0
