"""`slabnorm apply`: a whole data set through fitted statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slabnorm.cli.shell import error_console, exits, progress_bar, shown, shown_warnings, tab


def apply(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    data: Annotated[str, typer.Argument(help="A .npy, .npz, .parquet, .csv or Zarr file.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="Where it goes: .npy, .zarr, .parquet or .csv.")],
    inverse: Annotated[bool, typer.Option("--inverse", help="Undo the normalisation.")] = False,
    key: Annotated[str | None, typer.Option(help="The array of a .npz file or Zarr group.")] = None,
    missing_chunks: Annotated[
        str, typer.Option(help="raise, or fill: a chunk that a Zarr array lacks is its fill value.")
    ] = "raise",
    delimiter: Annotated[str, typer.Option(help="What stands between the values of CSV.")] = ",",
    batch_rows: Annotated[
        int | None, typer.Option(help="Samples normalised at once.", show_default="about 8 MiB")
    ] = None,
) -> None:
    """Write normalised data: every sample through fitted statistics, or back with --inverse.

    A table keeps its other columns. On any failure the old output stays.
    """
    with exits(), shown_warnings():
        from slabnorm.inputs import load
        from slabnorm.inputs.apply import apply as apply_statistics
        from slabnorm.inputs.outputs import check_apart

        check_apart([Path(out)], [artifact])
        norm = load(artifact)
        with progress_bar("writing") as progress:
            rows = apply_statistics(
                norm, data, out, inverse=inverse, key=key, missing_chunks=missing_chunks,
                delimiter=tab(delimiter), batch_rows=batch_rows, progress=progress,
            )  # fmt: skip
        error_console().print(f"{rows} samples: {shown(out)}", style="dim", soft_wrap=True)
