"""Write what the docs show of the study in slabnorm/page/study.json: pictures, a table, and the page.

    python docs/evidence.py

It needs Playwright and a Chromium at /usr/bin/chromium for the pictures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from slabnorm.files import write_atomically
from slabnorm.page import PACKAGED, build, read_study
from slabnorm.report.claims import Picture, Series, figure_of

DOCS = Path(__file__).parent
PICTURES = {"saturate": 0, "shift": 0, "small": 0}  # of these claims, which of their pictures
BEGIN, END = "<!-- from study.json -->\n", "<!-- to here -->\n"


def picture_of(kept: dict[str, Any]) -> Picture:
    """Return a picture from its record in JSON."""
    series = tuple(Series(**one) for one in kept["series"])
    return Picture(**{**kept, "series": series, "marks": tuple(map(tuple, kept["marks"]))})


def draw(study: dict[str, Any]) -> None:
    """Draw some pictures as PNG, in light colours, twice as fine as a screen."""
    claims = {claim["id"]: claim for claim in study["claims"]}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--headless=new", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(
            viewport={"width": 760, "height": 400}, color_scheme="light", device_scale_factor=2
        )
        for name, number in PICTURES.items():
            picture = picture_of(claims[name]["pictures"][number])
            figure = figure_of(picture).update_layout(title={"text": picture.title, "y": 0.93})
            figure.update_layout(legend={"y": 0.86}, margin={"t": 105})
            page.set_content(figure.to_html(config={"displayModeBar": False}))
            page.wait_for_selector(".main-svg")
            page.screenshot(path=DOCS / f"claim_{name}.png")
        browser.close()


def table(study: dict[str, Any]) -> str:
    """Return the table of claims in Markdown."""
    rows = ["| claim | verdict | what was measured |", "|---|---|---|"]
    for claim in study["claims"]:
        said = claim["measured"].replace("|", "\\|")
        rows.append(f"| **{claim['id']}**: {claim['claim']} | {claim['verdict']} | {said} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write everything."""
    study = read_study(PACKAGED)
    assert study is not None, "there is no slabnorm/page/study.json"
    draw(study)
    path = DOCS / "claims.md"
    text = path.read_text("utf-8")
    path.write_text(
        re.sub(f"{BEGIN}.*{END}", lambda _: BEGIN + table(study) + END, text, flags=re.DOTALL), "utf-8"
    )
    write_atomically(DOCS / "lab.html", build(study))


if __name__ == "__main__":
    main()
