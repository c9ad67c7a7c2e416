"""The command: `python -m benchmarks.gpu`, under 8 minutes on one GPU."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.cases import Case
from benchmarks.gpu import summary
from benchmarks.gpu.cases import cases
from benchmarks.gpu.measure import measure
from benchmarks.gpu.peers import PEERS
from benchmarks.gpu.training import training
from benchmarks.gpu.warm import warm, warm_all
from benchmarks.machine import versions

RESULTS = Path(__file__).parent.with_name("results") / "gpu.json"
FEW = [
    Case("batch", (8, 16, 12, 12), "channels_last", "relu", "bfloat16"),
    Case("group32", (2, 64, 8, 8), "contiguous", "silu"),
    Case("layer_rows", (64, 128), "contiguous", ""),
]


def main(
    minutes: Annotated[float, typer.Option(help="What does not fit is left out, and named.")] = 7.5,
    peers: Annotated[str, typer.Option(help="Of slabnorm, eager, compile, liger.")] = ",".join(PEERS),
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS,
    only: Annotated[str, typer.Option(help="Cases whose name has this in it.")] = "",
    steps: Annotated[bool, typer.Option(help="Training steps of whole networks, too.")] = True,
    rehearse: Annotated[
        bool, typer.Option(help="Three small cases on the CPU: does this command work?")
    ] = False,
    warm_part: Annotated[str, typer.Option("--warm", hidden=True)] = "",
) -> None:
    """Check the GPU kernels against float64, and time them beside their peers in turns, the L2 cold."""
    names = tuple(filter(None, peers.split(",")))
    device = torch.device("cpu" if rehearse else "cuda")
    if warm_part:
        number, processes = map(int, warm_part.split("/"))
        return warm(number, processes, names, device)
    begin = time.perf_counter()
    console = Console(width=110)
    chosen = FEW if rehearse else [case for case in cases() if only in case.name]
    content: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": "rehearsal on the CPU" if rehearse else torch.cuda.get_device_name(),
        "versions": versions(), "cases": {}, "left out": [], "taken": {},
    }  # fmt: skip
    l2 = 1 << 20 if rehearse else torch.cuda.get_device_properties(device).L2_cache_size
    if not rehearse:
        content["taken"]["compiling"] = warm_all(min(14, os.cpu_count() or 1), 20 * minutes, names)
    for case in chosen:
        if time.perf_counter() - begin > 60 * minutes * (0.75 if steps else 0.95):
            content["left out"].append(case.name)
            continue
        torch._dynamo.reset()
        content["cases"][case.name] = measure(case, names, device, l2)
        write(out, content)
    content["taken"]["cases"] = time.perf_counter() - begin
    if steps and not rehearse:
        content["training"] = training(device)
    content["taken"]["all"] = time.perf_counter() - begin
    content["summary"] = summary.summarise(content["cases"])
    write(out, content)
    console.print(summary.table(content["cases"]))
    summary.print_summary(console, content)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the numbers so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
