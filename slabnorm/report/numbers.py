"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from slabnorm.report.records import CellRecord, Interval

MINUS = "\N{MINUS SIGN}"
NONE = "-"


def percent(share: float) -> str:
    """Return a share from 0 to 1 as `97.4%`."""
    return f"{100 * share:.1f}%"


def level(share: float) -> str:
    """Return a share that somebody chose with the digits it has: `90%`, `92.5%`."""
    return f"{100 * share:g}%"


def accuracy(interval: Interval | None) -> str:
    """Return an accuracy as `97.4% [96.1, 98.7]`; the ends are percent, too."""
    if interval is None:
        return "failed"
    if interval.low is None or interval.high is None:
        return percent(interval.mean)
    return f"{percent(interval.mean)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval | None) -> str:
    """Return a difference of accuracies in percentage points with the half of its interval, `+1.2 ± 1.5`."""
    if interval is None:
        return NONE
    mean = signed(interval.mean)
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} ± {50 * (interval.high - interval.low):.1f}"


def signed(share: float) -> str:
    """Return a share as percentage points with its sign; zero has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", MINUS)


def steps(cell: CellRecord) -> str:
    """Return the steps to the stated accuracy, and by how many runs it was reached if not by all."""
    if cell.failed == cell.runs:
        return NONE
    share = "" if cell.reached == cell.runs else f" ({cell.reached} of {cell.runs})"
    return f"{cell.steps_to_target:,.0f}{share}" if cell.steps_to_target is not None else f"never{share}"


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds with three digits."""
    return NONE if seconds is None else f"{1000 * seconds:.3g}"


def remark(cell: CellRecord) -> str:
    """Return what went wrong in a cell, in words; empty where nothing did."""
    parts = []
    if cell.failed:
        parts.append(f"{cell.failed} of {cell.runs} failed")
    if cell.diverged:
        parts.append(f"{cell.diverged} of {cell.runs} diverged")
    return ", ".join(parts)
