"""The report of an audit: one HTML file with everything in it, that needs no network."""

from __future__ import annotations

from typing import Any

from slabnorm.report.audit import AuditRecord, FeatureAudit
from slabnorm.report.audit_figures import (
    MOST_DRAWN,
    drifting,
    features_figure,
    overlap_figure,
    overview_figure,
)
from slabnorm.report.page import check_packages, render
from slabnorm.text import printable

MOST = 200  # features in the table
MOST_KEPT = 1000  # features, and leaked samples, in the page's record; `--json` has more
MOST_LEAKED = 200  # leaked samples in the list


def render_audit(record: AuditRecord) -> str:
    """Return the report of an audit as HTML.

    Every text of the record is escaped, and the page's own policy forbids it to load anything.

    Args:
        record: what the audit found.

    Raises:
        ExtraError: extra `slabnorm[study]` is not installed.
    """
    check_packages()
    found = drifting(record)
    drawn = [feature for feature in found if feature.new.count and feature.train.count][:MOST_DRAWN]
    names = {feature.name for feature in found}
    rest = [feature for feature in record.features if feature.name not in names]
    listed = (found + rest)[:MOST]
    return render(
        "audit.html.jinja",
        _figures(record, drawn),
        record.as_dict(MOST_KEPT),
        audit=record,
        drawn=drawn,
        found=found,
        listed=listed,
        leaked=[printable(sample, 1000) for sample in record.leaked.samples[:MOST_LEAKED]]
        if record.leaked
        else [],
        gaps=any(map(missing, listed)),
        number=number,
        moved=moved,
        missing=missing,
    )


def _figures(record: AuditRecord, drawn: list[FeatureAudit]) -> dict[str, Any]:
    """Return the pictures, by the id of their place; none where nothing was found.

    Plotly is 4.8 MB of a page. One with nothing to explore does without: its table holds all there is.
    """
    if record.clean:
        return {}
    figures = {"overview": overview_figure(record)}
    if record.overlap is not None:
        figures["overlap"] = overlap_figure(record)
    if drawn:
        figures["features"] = features_figure(drawn)
    return figures


def number(value: float) -> str:
    """Return a number with five digits; a hyphen for one that does not exist."""
    return "-" if value != value else f"{value:.5g}"


def moved(feature: FeatureAudit) -> str:
    """Return the shift of the mean with two standard errors."""
    if feature.shift != feature.shift:
        return "-"
    digits = 2 if 2 * feature.error < 1 else 1
    return f"{feature.shift:+.{digits}f} ± {2 * feature.error:.{digits}f}"


def missing(feature: FeatureAudit) -> str:
    """Return the shares of missing values, training first; empty where there are none."""
    parts = (feature.train, feature.new)
    if not any(part.missing for part in parts):
        return ""
    shares = [100 * part.missing / max(1, part.count + part.missing) for part in parts]
    return f"{shares[0]:.3g}% → {shares[1]:.3g}%"
