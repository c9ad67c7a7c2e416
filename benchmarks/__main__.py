"""The command: `python -m benchmarks [--quick]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.allocator import keep_freed_memory

RESULTS = Path(__file__).with_name("results")


def main(
    quick: Annotated[bool, typer.Option(help="A few cases of everything, in about a minute.")] = False,
    only: Annotated[str, typer.Option(help="Norms, or how they begin, such as batch,group.")] = "",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    peers: Annotated[str, typer.Option(help="Of slabnorm, eager, compile.")] = "slabnorm,eager,compile",
    part: Annotated[str, typer.Option(help="What to measure.")] = "layers,small,inference,first_use,training",
    budget: Annotated[float | None, typer.Option(help="Seconds of timing per case.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
    resume: Annotated[bool, typer.Option(help="Keep what the JSON file has, and measure the rest.")] = False,
) -> None:
    """Time slabnorm beside PyTorch, in turns in one process, against the memory's limit."""
    allocator = keep_freed_memory()  # before torch allocates anything

    from benchmarks.run import Options, run

    path = json or RESULTS / ("quick.json" if quick else "full.json")
    names, parts, norms = (tuple(filter(None, text.split(","))) for text in (peers, part, only))
    run(Options(quick, norms, dtype, names, parts, budget, path, resume, allocator))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
