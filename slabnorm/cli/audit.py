"""`slabnorm audit`: validation or test data, compared with the statistics of the training split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slabnorm.cli.shell import deliver, outputs, progress_bar, tab

FOUND = 1  # exit code


def audit(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    against: Annotated[str, typer.Option(help="The data to check, such as the test split.")],
    train: Annotated[
        str | None,
        typer.Option(help="The training split, to check that the statistics come from it alone."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="The name of the array in a .npz file or a Zarr group, or of the IDX file in a folder.",
            show_default="x, and of IDX files train",
        ),
    ] = None,
    missing_chunks: Annotated[
        str,
        typer.Option(
            help="If a Zarr array lacks a chunk: raise an error, or fill it with the array's fill value."
        ),
    ] = "raise",
    convert: Annotated[
        str | None, typer.Option(help="Convert all images to this mode: RGB, L or RGBA.")
    ] = None,
    delimiter: Annotated[str, typer.Option(help="The character between the values of a CSV file.")] = ",",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="How many parts of the data to read at once.", show_default="one per core"),
    ] = None,
    out: Annotated[str, typer.Option(metavar="PATH", help="The HTML report to write.")] = "audit.html",
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Also write the numbers as JSON; - is stdout."),
    ] = None,
) -> None:
    """Check validation or test data against the statistics of the training split.

    It finds training samples in the data, statistics that were fitted on
    held-out data, drift, another scale, and channels in another order. It
    prints what it found and writes an HTML report.

    Exit codes: 0 nothing found, 1 something found, 2 bad input or usage.
    """
    targets = outputs(out, json_path, (artifact, against, train))
    from slabnorm.inputs.audit import audit as compare_with_statistics
    from slabnorm.report.audit import print_audit, render_audit

    with progress_bar("reading") as progress:
        record = compare_with_statistics(
            artifact,
            against,
            train=train,
            key=key,
            missing_chunks=missing_chunks,
            convert=convert,
            delimiter=tab(delimiter),
            skip_bad=skip_bad,
            workers=workers,
            progress=progress,
        )
    deliver(record, render_audit, print_audit, *targets)
    if not record.clean:
        raise typer.Exit(FOUND)
