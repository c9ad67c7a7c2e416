"""`slabnorm apply`: a whole data set, normalised with fitted statistics and written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slabnorm.cli.shell import error_console, progress_bar, shown, tab


def apply(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    data: Annotated[str, typer.Argument(help="The data: a .npy, .npz, IDX, .parquet, .csv or Zarr file.")],
    out: Annotated[
        str, typer.Option(metavar="PATH", help="The file to write: .npy, .zarr, .parquet or .csv.")
    ],
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Turn normalised data back into raw data.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="The name of the array in a .npz file or a Zarr group.")
    ] = None,
    missing_chunks: Annotated[
        str,
        typer.Option(
            help="If a Zarr array lacks a chunk: raise an error, or fill it with the array's fill value."
        ),
    ] = "raise",
    delimiter: Annotated[str, typer.Option(help="The character between the values of a CSV file.")] = ",",
    batch_rows: Annotated[
        int | None, typer.Option(help="How many samples to normalise at once.", show_default="about 8 MiB")
    ] = None,
) -> None:
    """Normalise a whole data set with fitted statistics and write the result to a file.

    A table keeps its other columns. If anything goes wrong, an older output
    stays as it was.
    """
    from slabnorm.inputs import load
    from slabnorm.inputs.apply import apply as apply_statistics
    from slabnorm.inputs.outputs import check_apart

    check_apart([Path(out)], [artifact])
    norm = load(artifact)
    with progress_bar("writing") as progress:
        rows = apply_statistics(
            norm,
            data,
            out,
            inverse=inverse,
            key=key,
            missing_chunks=missing_chunks,
            delimiter=tab(delimiter),
            batch_rows=batch_rows,
            progress=progress,
        )
    error_console().print(f"{rows} samples: {shown(out)}", style="dim", soft_wrap=True)
