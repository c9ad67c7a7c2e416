"""How norms, schemes, dtypes and numbers are written, in the terminal and on a page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slabnorm.text import printable

NORM_LABELS = {
    "none": "no norm",
    "batch": "batch norm",
    "layer": "layer norm",
    "instance": "instance norm",
    "group": "group norm",
    "dyt": "dynamic tanh",
    "derf": "dynamic erf",
}
SCHEME_LABELS = {"raw": "raw", "fixed": "fixed", "minmax": "min-max", "zscore": "z-score"}
MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"  # for a number that does not exist


def norm_label(norm: str) -> str:
    """Return the name of a norm in words; a pattern is quoted."""
    return NORM_LABELS.get(norm) or f"“{printable(norm, 60)}”"


def scheme_label(scheme: str) -> str:
    """Return the name of an input scheme in words."""
    return SCHEME_LABELS.get(scheme, printable(scheme, 60))


def dtype_label(dtype: str) -> str:
    """Return a dtype as it is; the columns of a table may have several."""
    return "several dtypes" if dtype == "mixed" else dtype


def percent(share: float) -> str:
    """Return a share from 0 to 1 as `97.4%`."""
    return f"{100 * share:.1f}%"


def level(share: float) -> str:
    """Return a share that somebody has chosen, with the digits that it has: `90%`, `92.5%`."""
    return f"{100 * share:g}%"


def minus(text: str) -> str:
    """Return a number with a minus sign, which is wider than the hyphen that Python writes."""
    return text.replace("-", MINUS)


def column(values: Sequence[float], digits: int = 5) -> list[str]:
    """Return the numbers of one column of a table, all with the same number of digits.

    >>> column([1.5, -20.25, 0.125]), column([1.0, 255.0])
    (['1.5000', '-20.250', '0.12500'], ['1', '255'])
    """
    known = [value for value in values if math.isfinite(value)]
    whole = all(value == int(value) and abs(value) < 10**digits for value in known)
    texts = [f"{value:.0f}" if whole else f"{value:#.{digits}g}".rstrip(".") for value in values]
    return [NONE if math.isnan(value) else text for value, text in zip(values, texts, strict=True)]
