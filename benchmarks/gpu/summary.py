"""What a run comes to: ratios to each peer, shares of the floor, and the cases that miss."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.cases import FILLING
from benchmarks.gpu.measure import exact_enough

Cases = dict[str, dict[str, Any]]


def ratio(case: dict[str, Any], names: tuple[str, ...], what: str = "both") -> float | None:
    """Return how many times as long as slabnorm the fastest of these peers takes; None if none ran."""
    peers = case["peers"]
    known = [peers[name][what] for name in names if name in peers]
    return min(known) / peers["slabnorm"][what] if known and "slabnorm" in peers else None


def share(case: dict[str, Any], what: str) -> float | None:
    """Return the share of the floor that slabnorm reaches."""
    own = case["peers"].get("slabnorm")
    if own is None:
        return None
    taken = own["forward"] if what == "forward" else own["both"] - own["forward"]
    return case["floor"][what] / taken


def summarise(cases: Cases) -> dict[str, Any]:
    """Return the numbers that the aims are stated in."""
    large = {name: case for name, case in cases.items() if case["elements"] >= FILLING}
    rows = {name: case for name, case in cases.items() if case["norm"].endswith("rows")}
    slabs = {name: case for name, case in cases.items() if name not in rows}
    best = ("compile", "liger")
    return {
        "eager, without rows": _mean(slabs, lambda case: ratio(case, ("eager",))),
        "best of compile and Liger, without rows": _mean(slabs, lambda case: ratio(case, best)),
        "rows, compile": _mean(rows, lambda case: ratio(case, ("compile",))),
        "rows, Liger": _mean(rows, lambda case: ratio(case, ("liger",))),
        "from Python, eager": _mean(cases, lambda case: ratio(case, ("eager",), "python")),
        "slower than a peer, 16M elements or more": {
            name: value
            for name, case in large.items()
            if (value := ratio(case, ("eager", *best))) is not None and value < 1
        },
        "floor": {
            what: statistics.median(values)
            for what in ("forward", "backward")
            if (values := [value for case in large.values() if (value := share(case, what)) is not None])
        },
        "copy, TB/s": _bandwidth(large),
        "not exact": {
            f"{name}: {peer}": [case["output_error"][peer], case["error"][peer]]
            for name, case in cases.items()
            for peer in case["error"]
            if peer == "slabnorm" and not exact_enough(case, peer)
        },
        "failed": {
            f"{name}: {peer}": why for name, case in cases.items() for peer, why in case["failed"].items()
        },
    }


def _mean(cases: Cases, of: Callable[[dict[str, Any]], float | None]) -> dict[str, Any] | None:
    found = {name: value for name, case in cases.items() if (value := of(case)) is not None}
    if not found:
        return None
    worst = min(found, key=found.__getitem__)
    mean = statistics.geometric_mean(found.values())
    return {"cases": len(found), "geometric mean": mean, "worst": worst, "its ratio": found[worst]}


def _bandwidth(cases: Cases) -> float | None:
    sizes = {"float32": 4, "bfloat16": 2}
    found = [2 * case["elements"] * sizes[case["dtype"]] / case["copy"] / 1e12 for case in cases.values()]
    return statistics.median(found) if found else None


def table(cases: Cases) -> Table:
    """Return a line for every case: slabnorm's microseconds, others' times over it, shares of the floor."""
    columns = "case|us|eager|compile|liger|python|passes|fwd|bwd"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns.split("|"):
        shown.add_column(name, justify="left" if name == "case" else "right", no_wrap=True)
    for name, case in cases.items():
        own = case["peers"].get("slabnorm")
        shown.add_row(
            name.replace("channels_last", "last").replace("contiguous", "first"),
            f"{1e6 * own['both']:.0f}" if own else "failed",
            *(_times(ratio(case, (peer,))) for peer in ("eager", "compile", "liger")),
            _times(ratio(case, ("eager",), "python")),
            "+".join(map(str, case["passes"])),
            *(_percent(share(case, what)) for what in ("forward", "backward")),
        )
    return shown


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def print_summary(console: Console, content: dict[str, Any]) -> None:
    """Print what the aims are stated in, last and short."""
    for name, found in content["summary"].items():
        console.print(f"[bold]{name}[/]: {found}")
    for name, found in content.get("training", {}).items():
        steps = ", ".join(f"{variant} {1000 * value:.2f} ms" for variant, value in found["step"].items())
        console.print(f"[bold]{name}[/] ({found['described']}): {steps}; first losses {found['losses']}")
    for what in ("device", "taken", "left out"):
        console.print(f"[bold]{what}[/]: {content[what]}")
