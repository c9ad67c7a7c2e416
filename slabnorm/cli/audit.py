"""`slabnorm audit`: held-out data beside the statistics of the training split."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slabnorm.cli.shell import exits, outputs, progress_bar, shown, shown_warnings, tab

if TYPE_CHECKING:
    from slabnorm.report.audit import AuditRecord

FOUND = 1  # exit code


def audit(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    against: Annotated[str, typer.Option(help="The data to look at, such as the test split.")],
    train: Annotated[
        str | None, typer.Option(help="The training split, to see whether the statistics are of it alone.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The array of .npz files.", show_default="x")] = None,
    missing_chunks: Annotated[
        str, typer.Option(help="raise, or fill: a chunk that a Zarr array lacks is its fill value.")
    ] = "raise",
    convert: Annotated[str | None, typer.Option(help="The mode all images are converted to.")] = None,
    delimiter: Annotated[str, typer.Option(help="What stands between the values of CSV.")] = ",",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read.")] = False,
    workers: Annotated[int | None, typer.Option(help="Parts of the data read at once.")] = None,
    out: Annotated[str, typer.Option(metavar="PATH", help="The report, one HTML file.")] = "audit.html",
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="The numbers as JSON; - for stdout.")
    ] = None,
) -> None:
    """Compare fitted statistics with validation or test data: overlap, leaks, drift, scale, channel order.

    Exit codes: 0 nothing found, 1 something found, 2 bad input or usage.
    """
    with exits(), shown_warnings():
        targets = outputs(out, json_path, (artifact, against, train))
        from slabnorm.inputs.audit import audit as look

        with progress_bar("reading") as progress:
            record = look(
                artifact, against, train=train, key=key, missing_chunks=missing_chunks, convert=convert,
                delimiter=tab(delimiter), skip_bad=skip_bad, workers=workers, progress=progress,
            )  # fmt: skip
        deliver(record, *targets)
        if not record.clean:
            raise typer.Exit(FOUND)


def deliver(record: AuditRecord, out: Path, json_path: Path | None, json_to_stdout: bool) -> None:
    """Write the files first, so that a closed pipe costs nothing, then print."""
    from slabnorm.files import write_atomically
    from slabnorm.report.audit_page import render_audit
    from slabnorm.report.audit_table import print_audit
    from slabnorm.report.terminal import terminal

    write_atomically(out, render_audit(record))
    text = json.dumps(record.as_dict(), indent=1, ensure_ascii=True, allow_nan=False)
    if json_path is not None:
        write_atomically(json_path, text + "\n")
    if json_to_stdout:
        print(text, flush=True)
    console = terminal(stderr=json_to_stdout)
    print_audit(record, console)
    console.print(f"\nreport: {shown(out)}", style="dim", soft_wrap=True)
    sys.stdout.flush()
