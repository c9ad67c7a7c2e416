"""`slabnorm fit` and `slabnorm show`: input statistics of a data set, and what a file of them holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slabnorm.cli.shell import error_console, exits, shown, shown_warnings, whole_sizes

if TYPE_CHECKING:
    from slabnorm.inputs import InputNorm


def fit(
    data: Annotated[
        str, typer.Argument(help="A .npy or .npz file, or a table: a file, folder, glob or URL.")
    ],
    split: Annotated[
        str | None, typer.Option(help="The name of the split the samples come from, such as train.")
    ] = None,
    scheme: Annotated[str, typer.Option(help="zscore, minmax or fixed.")] = "zscore",
    pattern: Annotated[
        str | None,
        typer.Option(help="Which axes keep statistics of their own.", show_default="'n c -> c' for a table"),
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="The size of a split axis, as g=32.")] = None,
    key: Annotated[str | None, typer.Option(help="The array of a .npz file.", show_default="x")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="A column of a table.", show_default="all of numbers")
    ] = None,
    nan: Annotated[str, typer.Option(help="raise, or omit: leave NaN out and count them.")] = "raise",
    leak: Annotated[bool, typer.Option("--leak", help="Take held-out data all the same.")] = False,
    out: Annotated[Path, typer.Option(help="Where the statistics go.")] = Path("inputs.safetensors"),
) -> None:
    """Fit input statistics on the training split, and keep them in a file that `slabnorm.load` reads."""
    with exits(), shown_warnings():
        from slabnorm.inputs import fit as fit_statistics
        from slabnorm.inputs import save
        from slabnorm.report.write import check_writable

        sizes: dict[str, Any] = dict(whole_sizes(size or []))
        check_writable(out)
        norm = fit_statistics(
            data, scheme, pattern, split=split, nan=nan, leak=leak, key=key, columns=column, **sizes
        )
        save(norm, out)
        print_norm(norm)
        error_console().print(f"statistics: {shown(out)}", style="dim", markup=False, soft_wrap=True)


def show(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    every: Annotated[bool, typer.Option("--all", help="Every feature, not the first 40.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show fitted input statistics: a row and a picture per feature."""
    with exits():
        from slabnorm.inputs import load

        norm = load(artifact)
        if as_json:
            from slabnorm.inputs.describe import describe

            print(json.dumps(describe(norm).as_dict(), indent=1, allow_nan=False), flush=True)
        else:
            print_norm(norm, every)


def print_norm(norm: InputNorm, every: bool = False) -> None:
    """Print fitted statistics to stdout."""
    from slabnorm.inputs.describe import describe
    from slabnorm.report.statistics import print_statistics
    from slabnorm.report.table import terminal

    print_statistics(describe(norm), terminal(), every)
    sys.stdout.flush()
