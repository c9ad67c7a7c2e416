"""Room 1, the slab: used with the keyboard and the mouse, narrow and wide, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

import slabnorm as sn
from slabnorm.errors import SlabError
from tests.page.conftest import opened

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
SHAPE = [3, 4, 5, 5]  # as the room opens
EPS = 1e-5

BLOCK = """async (shape) => {
  const study = JSON.parse(document.getElementById("study").textContent);
  return [...(await import("slabnorm/block")).values(shape, study.samples.photos)];
}"""


SLIDE = """(input, value) => {
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}"""


def pattern_field(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Pattern")


def wrong(page: Page) -> Locator:
    return page.get_by_label("What is wrong with the pattern")


def numbers(page: Page) -> list[str]:
    """Count, mean and variance, as they are shown."""
    return page.locator(".statistics dd").all_inner_texts()


def slide(page: Page, name: str, value: float) -> None:
    """Set a slider as a reader does, whose browser then says so."""
    page.get_by_role("slider", name=name).evaluate(SLIDE, value)


def block(page: Page, shape: list[int]) -> torch.Tensor:
    return torch.tensor(page.evaluate(BLOCK, shape), dtype=torch.float64).reshape(shape)


def four_digits(value: float) -> str:
    rounded = float(f"{value:.4g}")
    text = f"{rounded:,.0f}" if rounded.is_integer() and abs(rounded) >= 10_000 else f"{rounded:.10g}"
    return text.replace("-", "−")  # noqa: RUF001


SCHEMES = [
    ("Batch", "n c h w -> c", {}, 4),
    ("Layer", "n c h w -> n", {}, 3),
    ("Instance", "n c h w -> n c", {}, 12),
    ("Group", "n (g c) h w -> n g", {"g": 2}, 6),
    ("Position", "n c h w -> n h w", {}, 75),
    ("Pixel", "n c h w -> c h w", {}, 100),
]


@pytest.mark.usefixtures("in_plain_torch")
def test_every_scheme_shows_the_numbers_of_the_library(page: Page) -> None:
    x = block(page, SHAPE)
    for scheme, pattern, sizes, slabs in SCHEMES:
        page.get_by_role("radio", name=scheme).check()
        expect(pattern_field(page)).to_have_value(pattern)
        while not page.locator(".which").inner_text().startswith("slab 2 "):
            page.get_by_role("button", name="Next slab").click()
        expect(page.locator(".which")).to_contain_text(f"slab 2 of {slabs}:")
        moments = sn.moments(x, pattern, **sizes)
        mean, variance = moments.mean.flatten()[1].item(), moments.var(0).flatten()[1].item()
        assert numbers(page) == [str(x.numel() // slabs), four_digits(mean), four_digits(variance)]
        cell = re.findall(r"= (\d)", page.locator(".facts .card > .axis").first.inner_text())
        y = sn.normalize(x, pattern, eps=EPS, **sizes)[tuple(map(int, cell))]
        assert page.locator(".formula b").inner_text() == four_digits(y.item())
        expect(page.locator(".before-after")).to_contain_text("this slab: mean 0, variance 1 ")


def test_a_pattern_of_ones_own_and_its_typos(page: Page) -> None:
    field = pattern_field(page)
    field.fill("n c h w -> h w")
    expect(page.locator(".which")).to_contain_text("slab 1 of 25: h = 0, w = 0")
    expect(wrong(page)).to_be_hidden()
    assert page.get_by_role("group", name="Norm").locator(":checked").count() == 0
    for text in (
        "n c h w",
        "n c h w -> q",
        "nchw -> c",
        "n c h -> c",
        "n (g c) h w -> n (g",
        "n h w c d -> c",
    ):
        field.fill(text)
        with pytest.raises(SlabError) as caught:
            sn.moments(torch.zeros(SHAPE), text)
        assert wrong(page).text_content() == str(caught.value)
        expect(field).to_have_attribute("aria-invalid", "true")
        assert wrong(page).evaluate("(pre) => getComputedStyle(pre).fontFamily").startswith("ui-monospace")
        expect(page.locator(".statistics")).to_be_hidden()
    field.fill("n c h w -> c")
    expect(wrong(page)).to_be_hidden()
    expect(page.locator(".statistics")).to_be_visible()


def test_hostile_text_stays_text(page: Page) -> None:
    text = "<img src=x onerror=document.body.dataset.hit=1> -> c"
    pattern_field(page).fill(text)
    assert text in str(wrong(page).text_content())
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.body.dataset.hit") is None


@pytest.mark.usefixtures("in_plain_torch")
def test_sliders_change_the_block_and_its_errors(page: Page) -> None:
    for name, size in (("N samples", 2), ("C channels", 6), ("H rows", 8), ("W columns", 1)):
        slide(page, name, size)
    x = block(page, [2, 6, 8, 1])
    assert numbers(page)[:2] == ["16", four_digits(x[:, 0].mean().item())]
    groups = page.get_by_role("slider", name="g groups")
    expect(groups).to_be_disabled()
    page.get_by_role("radio", name="Group").check()
    expect(groups).to_be_enabled()
    slide(page, "g groups", 4)
    with pytest.raises(SlabError) as caught:
        sn.moments(x, "n (g c) h w -> n g", g=4)
    assert wrong(page).text_content() == str(caught.value)
    slide(page, "g groups", 3)
    expect(page.locator(".which")).to_contain_text("slab 1 of 6: n = 0, g = 0")
    page.get_by_role("radio", name="Batch").check()
    for name in ("N samples", "H rows"):
        slide(page, name, 1)
    with pytest.raises(SlabError, match="pools samples") as caught:
        sn.normalize(block(page, [1, 6, 1, 1]), "n c h w -> c")
    assert wrong(page).text_content() == str(caught.value)


def test_undo_gives_the_input_back(page: Page) -> None:
    before = page.locator(".histogram text").all_text_contents()
    assert before[:3] != before[3:]
    page.get_by_role("button", name="Undo the normalisation").click()
    told = page.locator(".undone")
    expect(told).to_contain_text("The output is the input again: over all 300 cells they differ by")
    expect(told).to_contain_text("training could find this γ and β")  # noqa: RUF001
    after = page.locator(".histogram text").all_text_contents()
    assert after[:3] == after[3:] == before[:3]
    mean, variance = numbers(page)[1:]
    assert page.locator(".facts output").all_inner_texts()[1] == mean
    assert (
        f"this slab: mean {mean}, variance {variance}" in page.locator(".histogram .axis").nth(1).inner_text()
    )
    page.get_by_role("button", name="Normalise again").click()
    assert page.locator(".histogram text").all_text_contents() == before
    page.get_by_role("radio", name="Layer").check()
    page.get_by_role("button", name="Undo the normalisation").click()
    expect(told).to_contain_text("these statistics vary by n, too")


def test_gamma_and_beta_scale_and_shift_the_slab_alone(page: Page) -> None:
    y = float(page.locator(".formula b").inner_text().replace("−", "-"))  # noqa: RUF001
    slide(page, "γ (gamma)", 2)  # noqa: RUF001
    slide(page, "β (beta)", -5)
    shown = [float(text.replace("−", "-")) for text in page.locator(".facts output").all_inner_texts()]  # noqa: RUF001
    assert shown == pytest.approx([2, -5], abs=0.01)
    found = float(page.locator(".formula b").inner_text().replace("−", "-"))  # noqa: RUF001
    assert found == pytest.approx(2 * y - 5, abs=0.02)
    text = page.locator(".histogram .axis").nth(1).inner_text()
    assert re.search(r"mean −(5|4\.99\d|5\.00\d), variance (4|3\.99\d|4\.00\d) ", text)  # noqa: RUF001
    page.get_by_role("button", name="Next slab").click()
    assert page.locator(".facts output").all_inner_texts() == ["1", "0"]


def test_a_click_lifts_the_slab_of_a_cell(page: Page) -> None:
    page.get_by_role("radio", name="Flat").check()
    expect(page.locator("canvas")).to_be_hidden()
    page.locator(".grids rect").nth(2 * 100 + 3 * 25 + 7).click()  # n = 2, c = 3, h = 1, w = 2
    expect(page.locator(".which")).to_contain_text("slab 4 of 4: c = 3")
    expect(page.locator(".facts")).to_contain_text("n = 2, c = 3 (blurred), h = 1, w = 2")
    assert page.locator(".grids .lifted").count() == 75
    page.get_by_role("radio", name="3-D").check()
    canvas = page.locator("canvas")
    expect(canvas).to_be_visible()
    expect(page.locator(".grids")).to_have_count(0)
    page.get_by_role("radio", name="Layer").check()
    page.wait_for_timeout(600)  # while the slab moves
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.84, box["y"] + box["height"] * 0.55)
    expect(page.locator(".which")).to_contain_text("slab 3 of 3: n = 2")
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.55)
    expect(page.locator(".which")).to_contain_text("slab 2 of 3: n = 1")


def test_the_block_is_turned_by_dragging_and_by_keys(page: Page) -> None:
    canvas, where = page.locator("canvas"), page.locator(".labels .axis-name").last
    expect(canvas).to_be_visible()
    box, style = canvas.bounding_box(), where.get_attribute("style")
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 250)
    page.mouse.down()
    page.mouse.move(box["x"] + 280, box["y"] + 250, steps=4)
    page.mouse.up()
    dragged = where.get_attribute("style")
    assert dragged != style
    expect(page.locator(".which")).to_contain_text("slab 1 of 4")  # the end of a drag is no click
    page.get_by_role("button", name="Turn left").press("Enter")
    assert where.get_attribute("style") != dragged


def test_without_webgl_it_is_flat(browser: Browser, lab: Path) -> None:
    with opened(browser, lab) as page:
        page.add_init_script(
            "const old = HTMLCanvasElement.prototype.getContext;"
            "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
            "  return kind.startsWith('webgl') ? null : old.call(this, kind, ...more); };"
            "console.error = () => {};"  # three tells of it
        )
        page.reload()
        expect(page.locator(".grids rect")).to_have_count(300)
        expect(page.get_by_role("radio", name="3-D")).to_be_disabled()
        page.get_by_role("radio", name="Group").check()
        assert page.locator(".grids .lifted").count() == 50
        fills = page.locator(".grids rect").evaluate_all(
            "(all) => all.map((rect) => rect.getAttribute('fill'))"
        )
        assert len(set(fills)) > 6


def test_it_is_legible_everywhere(page: Page) -> None:
    expect(page.locator("canvas")).to_be_visible()
    for text, width, scheme in (
        ("n c h w -> c", 1200, "light"),
        ("n c h w -> c", 420, "dark"),
        ("n c h w -> channels", 1200, "dark"),
        ("n c h w -> channels", 420, "light"),
    ):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        pattern_field(page).fill(text)
        found = Axe().run(page, options={"runOnly": {"type": "tag", "values": WCAG}})
        assert found.violations_count == 0, found.generate_report()
    for width in (1200, 980, 641, 420, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_who_wants_no_motion_sees_none(browser: Browser, lab: Path) -> None:
    with opened(browser, lab, reduced_motion="reduce") as page:
        expect(page.locator("canvas")).to_be_visible()
        frames = page.evaluate(
            """async () => {
              let asked = 0;
              const old = requestAnimationFrame;
              window.requestAnimationFrame = (draw) => { asked += 1; return old(draw); };
              document.querySelector('[aria-label="Next slab"]').click();
              await new Promise((done) => setTimeout(done, 100));
              return asked;
            }"""
        )
        assert frames == 0
