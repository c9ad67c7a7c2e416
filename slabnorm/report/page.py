"""The report: one HTML file with everything in it, that needs no network."""

from __future__ import annotations

import json
from typing import Any

from slabnorm.report import numbers
from slabnorm.report.figures import FIGURES
from slabnorm.report.names import norm_label, scheme_label
from slabnorm.report.records import StudyRecord


def render_page(study: StudyRecord) -> str:
    """Return the report of a study as HTML.

    Every text of the study is escaped, and the page's own policy forbids it to load anything.

    Args:
        study: the record.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("slabnorm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(n=numbers, norm_label=norm_label, scheme_label=scheme_label)
    drawn = [name for name in FIGURES if name != "inputs" or study.inputs]
    return environment.get_template("page.html.jinja").render(
        study=study,
        figures={name: plain(FIGURES[name](study)) for name in drawn},
        record=study.as_dict(),
        norm_of=lambda cell: norm_label(cell.norm),
        scheme_of=lambda cell: scheme_label(cell.scheme),
        # Plotly's own script is ours to trust; nothing of the user's is in it.
        plotly=Markup(get_plotlyjs()),
    )


def plain(figure: Any) -> dict[str, Any]:
    """Return a figure as JSON's own types, for the template to escape."""
    drawn: dict[str, Any] = json.loads(figure.to_json())
    return drawn
