"""A run in Markdown, for the documents: what it was measured on, ratios by norm and layout, the rest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.summary import LARGE, LARGEST, SHARES, ratio, share

NAMES = {
    "batch": "batch norm",
    "group32": "group norm",
    "instance": "instance norm",
    "layer_rows": "layer norm of tokens",
    "rms_rows": "RMS norm of tokens",
    "channel": "channel norm",
}
LAYOUTS = {False: "NCHW or rows", True: "NHWC"}


def markdown(content: dict[str, Any]) -> str:
    """Return the text."""
    on, summary = content["conditions"], content["summary"]
    machine, versions = on["machine"], on["versions"]
    parts = [
        "# Speed on the CPU\n\nWritten by `make bench`; every number is from one run. For another "
        "shape: `python -m benchmarks --shape 24,160,28,28 --norm group --groups 16`.",
        f"{machine['cpu']}, {machine['cores']} cores, {on['threads']} threads, L3 of "
        f"{machine['caches_per_core'].get('L3', 0) >> 20} MB; PyTorch {versions['torch']}, "
        f"Numba {versions['numba']}; {content['date'][:10]}. {_others(summary)}",
        "A ratio says how many times as long the peer takes as slabnorm, forward and backward, on tensors of "
        "a million elements and more: the geometric mean, and the range. *As installed*: with the system's "
        "allocator as it is; of two calls in a row the second counts, since a virtual machine's host may "
        "take free memory back between turns. *Reused memory*: freed memory is kept for all peers, so that "
        "the kernels are left.",
    ]
    for where, part in (("As installed", "layers"), ("Reused memory", "reused")):
        for dtype in ("float32", "bfloat16"):
            table = _ratios(content[part], dtype)
            if table:
                parts.append(f"## {where}, {dtype}\n\n{_overall(summary, where, dtype)}\n\n{table}")
    parts += [_floor(content["reused"], summary), _settings(summary), _inference(content), _small(content)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _others(summary: dict[str, Any]) -> str:
    others = summary["others"]
    return f"Other processes took a median of {100 * others['median']:.0f}% of the cores." if others else ""


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.geometric_mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _ratios(cases: dict[str, Any], dtype: str) -> str:
    large = [case for case in cases.values() if case["elements"] >= LARGE and case["dtype"] == dtype]
    peers = [peer for peer in ("eager", "compile") if any(ratio(case, peer) for case in large)]
    header = ["", *(f"{peer}, {name}" for peer in peers for name in LAYOUTS.values())]
    rows = []
    for norm, name in NAMES.items():
        found = [
            _spread([value for case in large if case["norm"] == norm and _last(case) == last
                     if (value := ratio(case, peer))])
            for peer in peers
            for last in LAYOUTS
        ]  # fmt: skip
        if any(found):
            rows.append([name, *found])
    return _table(header, rows) if rows else ""


def _last(case: dict[str, Any]) -> bool:
    return case["layout"].startswith("channels_last")


def _overall(summary: dict[str, Any], where: str, dtype: str) -> str:
    lines = []
    for peer, found in summary[where[0].lower() + where[1:]].get(dtype, {}).items():
        if found:
            ((worst, value),) = found["worst"].items()
            lines.append(
                f"- {peer}: {found['geometric_mean']:.2f} over {found['cases']} cases, "
                f"{len(found['slower'])} of them slower; the worst {value:.2f} ({worst})"
            )
    return "\n".join(lines)


def _floor(reused: dict[str, Any], summary: dict[str, Any]) -> str:
    """Return how much of the time the memory alone would take."""
    rows = []
    for what in SHARES:
        found = summary["floor"][what]
        if found:
            medians = (
                f"{100 * found['median_by_dtype'].get(dtype, 0):.0f}%" for dtype in ("float32", "bfloat16")
            )
            rows.append([what, *medians])
    if not rows:
        return ""
    low = {
        name: (share(case, "forward"), share(case, "backward"))
        for name, case in reused.items()
        if case["elements"] >= LARGEST and min(share(case, what) or 1 for what in SHARES) < 0.45
    }
    text = "## Share of the memory's floor\n\nMoving the bytes that must move, at the speed of a copy, would "
    text += "take this much of the time (medians, reused memory, from 4 million elements on).\n\n"
    text += _table(["", "float32", "bfloat16"], rows)
    if low:
        listed = "\n".join(f"- {name}: {100 * f:.0f}%, {100 * b:.0f}%" for name, (f, b) in low.items())
        text += f"\n\nBelow 45%, forward or backward:\n\n{listed}"
    return text


def _settings(summary: dict[str, Any]) -> str:
    rows = [
        [name, f"{found['same']:.2f}", f"{found['as_installed']:.2f}", f"{found['worst']:.2f}"]
        for name, found in summary["settings"].items()
    ]
    if not rows:
        return ""
    header = [
        "setting",
        "eager / slabnorm, both with it",
        "eager with it / slabnorm as installed",
        "the worst",
    ]
    return (
        "## With PyTorch's best settings\n\nWhat users can set to make PyTorch's results cost less, in a "
        "process of its own; geometric means over the cases of `make bench QUICK=1`.\n\n"
        f"{_table(header, rows)}"
    )


def _inference(content: dict[str, Any]) -> str:
    lines = []
    for peer, found in content["summary"]["inference"].items():
        if found:
            ((worst, value),) = found["worst"].items()
            mean = f"{found['geometric_mean']:.2f} over {found['cases']} cases"
            lines.append(f"- {peer}: {mean}, the worst {value:.2f} ({worst})")
    return "## Eval mode, batch norm\n\n" + "\n".join(lines) if lines else ""


def _small(content: dict[str, Any]) -> str:
    def times(case: dict[str, Any], what: str) -> str:
        value = ratio(case, "eager", what)
        return f"{1 / value:.2f}" if value else "-"

    rows = [
        [NAMES.get(case["norm"], case["norm"]), "x".join(map(str, case["shape"])), f"{case['elements']:,}",
         times(case, "forward"), times(case, "both")]
        for case in content["small"].values()
    ]  # fmt: skip
    if not rows:
        return ""
    header = ["", "shape", "elements", "forward", "forward and backward"]
    return (
        "## Small inputs\n\nslabnorm's time over eager's, where the call costs more than the memory: above 1 "
        f"it is slower.\n\n{_table(header, rows)}"
    )
