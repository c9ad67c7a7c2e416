"""The doctor's pages in a browser: at every width and in both colour schemes, and with a keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect
from torch import nn

import slabnorm as sn
from tests.page.conftest import opened

HOSTILE = "<img src=x onerror=\"document['body']['dataset']['hit']='yes'\">" + "x" * 200
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# Text of a picture that reaches out of it.
CLIPPED = """[...document.querySelectorAll('svg text')].filter(text => {
  const inner = text.getBoundingClientRect(), outer = text.closest('.figure').getBoundingClientRect();
  return inner.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
    inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1);
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A training with findings of several kinds, and the model afterwards; one layer has a hostile name."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module(HOSTILE, nn.Linear(4, 16))
    model.add_module("norm", nn.BatchNorm1d(16, momentum=0.95))
    model.add_module("act", nn.Sigmoid())
    model.add_module("last", nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.fill_(30.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with sn.watch(model, every=1) as record:
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                model(torch.randn(32, 4))
    folder = tmp_path_factory.mktemp("doctor")
    found = {"watch": folder / "watch.html", "check": folder / "check.html"}
    record.report(found["watch"])
    sn.check(model, 40 * torch.randn(32, 4)).report(found["check"])
    return found


@pytest.mark.parametrize("name", ["watch", "check"])
@pytest.mark.parametrize(("width", "scheme"), [(420, "dark"), (1200, "light")])
def test_it_can_be_read(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    size = {"width": width, "height": 2500}
    with opened(browser, pages[name], viewport=size, color_scheme=scheme) as page:
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(CLIPPED) == []
        found = Axe().run(page, options={"runOnly": WCAG})
        assert found.violations_count == 0, found.generate_report()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.body.dataset.hit") is None
        assert page.locator(".finding").count() >= 2
        for caption in page.locator("figcaption").all():
            assert (caption.text_content() or "").strip().endswith(".")


def test_a_layer_is_chosen_with_the_keyboard_and_drawn_then(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["watch"], viewport={"width": 1200, "height": 900}) as page:
        chosen = page.get_by_label("Layer", exact=True)
        shown = page.locator(".layer:visible")
        expect(shown).to_have_count(1)
        expect(shown).to_have_attribute("aria-label", "norm")
        next_one = page.get_by_role("button", name="Next")
        next_one.focus()
        page.keyboard.press("Enter")
        expect(shown).to_have_attribute("aria-label", "act")
        expect(shown.locator(".js-plotly-plot").first).to_be_visible()
        # A curve for each look.
        assert shown.locator(".figure").first.locator(".scatter").count() == 8
        chosen.focus()
        page.keyboard.press("ArrowDown")
        expect(shown).to_have_attribute("aria-label", "last")
        page.get_by_role("link", name="Show all of this layer").first.press("Enter")
        expect(shown).to_have_attribute("aria-label", "norm")
        assert page.evaluate("document.activeElement.tagName") == "H3"
