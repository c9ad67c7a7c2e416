"""What norms and schemes of inputs are called in tables, figures and pages."""

from __future__ import annotations

from slabnorm.text import printable

NORM_LABELS = {
    "none": "no norm",
    "batch": "batch norm",
    "layer": "layer norm",
    "instance": "instance norm",
    "group": "group norm",
}
SCHEME_LABELS = {"raw": "raw", "fixed": "fixed", "minmax": "min-max", "zscore": "z-score"}


def norm_label(norm: str) -> str:
    """Return a norm's name in words; a pattern is quoted as it was given."""
    return NORM_LABELS.get(norm) or f"“{printable(norm, 60)}”"


def scheme_label(scheme: str) -> str:
    """Return an input scheme's name in words."""
    return SCHEME_LABELS.get(scheme, printable(scheme, 60))
