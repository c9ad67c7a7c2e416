"""The command: `python -m benchmarks [--quick]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cases import DTYPES, GROUPS, Case, layouts, norms
from benchmarks.record import PARTS
from benchmarks.run import Options, run

RESULTS = Path(__file__).with_name("results")


def main(
    quick: Annotated[bool, typer.Option(help="A few cases of everything, in minutes.")] = False,
    only: Annotated[str, typer.Option(help="Norms, or how they begin, such as batch,group.")] = "",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    peers: Annotated[str, typer.Option(help="Of slabnorm, eager, compile.")] = "slabnorm,eager,compile",
    part: Annotated[str, typer.Option(help=f"Of {', '.join(PARTS)}; all by default.")] = "",
    budget: Annotated[float | None, typer.Option(help="Seconds of timing per case.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
    shape: Annotated[str, typer.Option(help="Measure this shape alone, such as 24,160,28,28.")] = "",
    norm: Annotated[str, typer.Option(help="The norm for --shape: batch, group, instance, ...")] = "batch",
    groups: Annotated[int, typer.Option(help="The groups for --shape with --norm group.")] = GROUPS,
    layout: Annotated[str, typer.Option(help="The memory format for --shape.")] = "contiguous",
    activation: Annotated[
        str, typer.Option(help="What follows the norm: relu, silu, relu+residual, ...")
    ] = "",
    resume: Annotated[bool, typer.Option(help="Keep what the JSON file has, and measure the rest.")] = False,
) -> None:
    """Time slabnorm beside PyTorch, in turns in one process, against the memory's limit."""
    path = json or RESULTS / ("shape.json" if shape else "quick.json" if quick else "full.json")
    names, parts, norms = (tuple(filter(None, text.split(","))) for text in (peers, part, only))
    case = own_case(shape, norm, groups, layout, activation, dtype or "float32") if shape else None
    parts = parts or (("layers", "reused") if case else PARTS)
    run(Options(quick, norms, dtype, names, parts, budget, path, resume, case))


def own_case(shape: str, norm: str, groups: int, layout: str, activation: str, dtype: str) -> Case:
    """Return the case that the user describes."""
    known = sorted({name.removesuffix("32") for name in norms()})
    try:
        sizes = tuple(int(size) for size in shape.split(","))
    except ValueError:
        raise typer.BadParameter(f"--shape takes sizes such as 24,160,28,28, not {shape}") from None
    if norm not in known:
        raise typer.BadParameter(f"--norm {norm} is none of {', '.join(known)}")
    if dtype not in DTYPES or layout not in layouts(norm, sizes):
        raise typer.BadParameter(f"{dtype} in {layout} is not measured for a shape of {len(sizes)} axes")
    return Case(norm, sizes, layout, activation, dtype, groups)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
