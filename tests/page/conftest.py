"""One browser and one page for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from slabnorm.page import build

CHROMIUM = "/usr/bin/chromium"
# No screen, no GPU, no sandbox (which root has not), and nothing asked of the network.
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Closed after these tests: Playwright keeps an event loop, in which no other test could run its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page without a study, as a file."""
    path = tmp_path_factory.mktemp("lab") / "lab.html"
    path.write_text(build(None), encoding="utf-8")
    return path


@pytest.fixture(scope="package")
def shared(browser: Browser, lab: Path) -> Iterator[Page]:
    """The page opened once, for tests that only ask its modules to compute."""
    page = browser.new_page()
    page.goto(lab.as_uri())
    yield page
    page.close()


@contextmanager
def opened(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    """A page opened anew, which must not put an error in the console or ask the network for anything."""
    page, wrong = browser.new_page(**options), []

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "GPU stall" not in message.text:
            wrong.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    yield page
    page.close()
    assert wrong == []


@pytest.fixture
def page(browser: Browser, lab: Path) -> Iterator[Page]:
    """The page without a study, opened anew."""
    with opened(browser, lab, viewport={"width": 1200, "height": 900}) as page:
        yield page
