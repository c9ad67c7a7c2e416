"""The measurements of a run as tables for a terminal."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.summary import DISTURBED, ratio, share


def milliseconds(measured: dict[str, Any], peer: str, what: str) -> str:
    """Return a median in milliseconds."""
    if peer not in measured["peers"]:
        return "failed" if peer in measured["failed"] else "-"
    return f"{1000 * measured['peers'][peer][what]['median']:.3g}"


def times(value: float | None) -> str:
    """Return a ratio as `2.31x`, red where slabnorm is the slower one."""
    if value is None:
        return "-"
    return f"{value:.2f}x" if value >= 1 else f"[red]{value:.2f}x[/]"


def percent(value: float | None) -> str:
    """Return a share as `87%`."""
    return "-" if value is None else f"{100 * value:.0f}%"


def saved(measured: dict[str, Any]) -> str:
    """Return the tensors of the input's size that slabnorm and eager keep for backward."""
    kept = measured["saved_tensors"]
    return " / ".join(f"{kept[peer]:.1f}" if peer in kept else "-" for peer in ("slabnorm", "eager"))


def _table(title: str, columns: str, left: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns.split("|")):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def layers_table(where: str, layers: dict[str, Any]) -> Table:
    """Return the table of every training case; `where`: the memory that results are written to."""
    columns = "norm|shape|layout|activation|dtype|forward\nms|both\nms|eager|compile"
    columns += "|reads|floor\nforward|floor\nbackward|saved"
    table = _table(
        f"Training, {where}: slabnorm's time, others' time for both over slabnorm's, saved tensors of both",
        columns,
        5,
    )
    for case in layers.values():
        table.add_row(
            case["norm"],
            "x".join(map(str, case["shape"])),
            case["layout"],
            case["activation"],
            case["dtype"],
            milliseconds(case, "slabnorm", "forward"),
            milliseconds(case, "slabnorm", "both"),
            times(ratio(case, "eager")),
            times(ratio(case, "compile")),
            f"{case['floor']['reads']}x",
            percent(share(case, "forward")),
            percent(share(case, "backward")),
            saved(case),
        )
    return table


def small_table(small: dict[str, Any]) -> Table:
    """Return the table of the small cases: slabnorm's time over eager's."""
    columns = "norm|shape|elements|forward\nus|both\nus|slabnorm / eager\nforward|slabnorm / eager\nboth"
    table = _table("Small inputs, where the call costs more than the memory", columns, 2)
    for case in small.values():
        own = case["peers"].get("slabnorm")
        shown = [f"{1e6 * own[what]['median']:.0f}" if own else "failed" for what in ("forward", "both")]
        ratios = [ratio(case, "eager", what) for what in ("forward", "both")]
        over = [f"{1 / value:.2f}" if value else "-" for value in ratios]
        size = "x".join(map(str, case["shape"]))
        table.add_row(case["norm"], size, f"{case['elements']:,}", *shown, *over)
    return table


def inference_table(inference: dict[str, Any]) -> Table:
    """Return the table of eval mode."""
    peers = ("eager", "compile", "onnxruntime")
    columns = "norm|shape|layout|activation|forward\nms|" + "|".join(peers)
    table = _table("Eval mode, forward: slabnorm's time, others' over slabnorm's", columns + "|floor", 4)
    for case in inference.values():
        table.add_row(
            case["norm"],
            "x".join(map(str, case["shape"])),
            case["layout"],
            case["activation"],
            milliseconds(case, "slabnorm", "forward"),
            *(times(ratio(case, peer, "forward")) for peer in peers),
            percent(share(case, "forward")),
        )
    return table


def first_use_table(first_use: dict[str, Any]) -> Table:
    """Return the table of what the first call costs."""
    columns = "layer|compiled\nforward|compiled\nbackward|from disk\nforward|from disk\nbackward"
    table = _table("First use of a kernel in a process, seconds beyond a warm call", columns, 1)
    for name, found in first_use.items():
        if "failed" in found:
            table.add_row(name, "failed", "", "", "")
            continue
        both = [found[process] for process in ("compiled", "cached")]
        values = [process[what] for process in both for what in ("forward", "backward")]
        table.add_row(name, *(f"{value:.2f}" for value in values))
    return table


def training_table(training: dict[str, Any]) -> Table:
    """Return the table of whole training steps."""
    columns = "network|plain\nms|accelerated\nms|ratio|without norms\nms|norms' time\nthat disappears"
    columns += "|saved, plain\nMB|saved, accelerated\nMB|largest difference\nof losses"
    table = _table("Whole training steps, float32", columns, 1)
    for name, found in training.items():
        if "failed" in found:
            table.add_row(name, "failed", *[""] * 7)
            continue
        step = {which: found["step"][which]["median"] for which in ("plain", "accelerated", "without")}
        table.add_row(
            name,
            *(f"{1000 * step[which]:.0f}" for which in ("plain", "accelerated")),
            times(step["plain"] / step["accelerated"]),
            f"{1000 * step['without']:.0f}",
            percent(found["share_saved"]),
            *(f"{found['saved_bytes'][which] / 1e6:.1f}" for which in ("plain", "accelerated")),
            f"{found['loss_difference']:.1e}",
        )
    return table


def settings_table(settings: dict[str, Any]) -> Table:
    """Return the table of what users can set, from the summary."""
    columns = "setting|cases|eager / slabnorm\nwith the same|eager / slabnorm\nas installed|worst"
    table = _table("Settings: eager's time with each over slabnorm's, geometric means", columns, 1)
    for name, found in settings.items():
        ratios = (times(found[key]) for key in ("same", "as_installed", "worst"))
        table.add_row(name, str(found["cases"]), *ratios)
    return table


def print_tables(console: Console, content: dict[str, Any]) -> None:
    """Print every part that was measured."""
    parts = {
        "layers": partial(layers_table, "as installed"),
        "reused": partial(layers_table, "in reused memory"),
        "small": small_table,
        "inference": inference_table,
        "first_use": first_use_table,
        "training": training_table,
    }
    for part, table in parts.items():
        if content[part]:
            console.print(table(content[part]))
            console.print()
    if content["summary"].get("settings"):
        console.print(settings_table(content["summary"]["settings"]))
        console.print()


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print what the measurements come to."""
    console.print("[bold]Summary[/]")
    for where in ("as installed", "reused memory"):
        for dtype, peers in summary[where].items():
            for peer, found in peers.items():
                title = f"{where}, {dtype}, 1M elements and more, forward + backward, {peer}"
                _print_ratios(console, title, found)
    for peer, found in summary["inference"].items():
        _print_ratios(console, f"eval mode, forward, {peer}", found)
    for what, found in summary["floor"].items():
        if found:
            by_dtype = ", ".join(f"{k} {percent(v)}" for k, v in found["median_by_dtype"].items())
            line = f"share of the floor, 4M elements and more, {what}: median {percent(found['median'])} of"
            console.print(f"{line} {found['cases']} cases ({by_dtype})")
            _print_list(console, f"below {percent(found['wanted'])}", found["below"], percent)
    for what, worst in summary["small"].items():
        for name, value in (worst or {}).items():
            console.print(f"small inputs, {what}: at worst {value:.2f} times eager's time ({name})")
    if bandwidth := summary["copy_gb_per_second"]:
        low, middle, high = (f"{bandwidth[key]:.1f}" for key in ("lowest", "median", "highest"))
        console.print(
            f"copies beside the cases of 4M elements and more: {low} to {high}, median {middle} GB/s"
        )
    if others := summary["others"]:
        ((name, most),) = others["most"].items()
        console.print(
            f"cores taken by other processes while timing: median {percent(others['median'])}, at most "
            f"{percent(most)} ({name}), over {percent(DISTURBED)} in {others['disturbed']} measurements"
        )
    _print_list(console, "results far from float64's", summary["inexact"], "{:.1e}".format)
    _print_list(console, "[red]failed[/]", summary["failed"], str)


def _print_ratios(console: Console, title: str, found: dict[str, Any] | None) -> None:
    if found is None:
        return
    ((worst, value),) = found["worst"].items()
    mean = f"geometric mean {found['geometric_mean']:.2f}x of {found['cases']} cases"
    console.print(f"{title}: {mean}, worst {times(value)} ({worst})")
    _print_list(console, "slower", found["slower"], times)


def _print_list(console: Console, title: str, items: dict[str, Any], text: Any) -> None:
    if items:
        console.print(f"  {title}: {len(items)}")
        for name, value in items.items():
            console.print(f"    {text(value)}  {name}")
