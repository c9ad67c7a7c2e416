"""The report: one HTML file with everything in it, that needs no network."""

from __future__ import annotations

import json
from typing import Any

from slabnorm.extras import extra
from slabnorm.report import numbers
from slabnorm.report.figures import FIGURES
from slabnorm.report.labels import norm_label, scheme_label
from slabnorm.report.records import StudyRecord
from slabnorm.text import printable


def check_packages() -> None:
    """Ask for what pages are made with, before the work that a page is to show.

    Raises:
        ExtraError: it is not installed.
    """
    for package in ("jinja2", "plotly"):
        extra(package, "a report", "'slabnorm[study]'")


def render_page(study: StudyRecord) -> str:
    """Return the report of a study as HTML.

    Every text of the study is escaped, and the page's own policy forbids it to load anything.

    Args:
        study: the record.

    Raises:
        ExtraError: extra `slabnorm[study]` is not installed.
    """
    check_packages()
    drawn = [name for name in FIGURES if name != "inputs" or study.inputs]
    return render(
        "page.html.jinja",
        {name: FIGURES[name](study) for name in drawn},
        study.as_dict(),
        study=study,
        n=numbers,
        norm_label=norm_label,
        scheme_label=scheme_label,
        norm_of=lambda cell: norm_label(cell.norm),
        scheme_of=lambda cell: scheme_label(cell.scheme),
    )


def render(template: str, figures: dict[str, Any], record: dict[str, Any], **words: Any) -> str:
    """Return a page over the base template: its figures by the id of their place, and its record as JSON."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("slabnorm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **words,
        figures={name: plain(figure) for name, figure in figures.items()},
        record=record,
        # Plotly's own script is ours to trust; nothing of the user's is in it.
        plotly=Markup(plotly()) if figures else "",
    )


def plotly() -> str:
    """Return Plotly's script."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def readable(value: Any) -> Any:
    """Return text as a page may show it, whatever it is of: controls and bidi marks as their escapes."""
    from markupsafe import Markup

    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value, limit=len(value))


def plain(figure: Any) -> dict[str, Any]:
    """Return a figure as JSON's own types, for the template to escape."""
    drawn: dict[str, Any] = json.loads(figure.to_json())
    return drawn
