"""`slabnorm claims`: what is said of normalisation, measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slabnorm.cli.shell import deliver, keeps, outputs, progress_bar

if TYPE_CHECKING:
    from rich.console import Console


def claims(
    name: Annotated[
        list[str] | None, typer.Argument(help="Which claims, such as saturate or small.", show_default="all")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print all about each claim: its numbers, and the code that ran.")
    ] = False,
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, photos, a folder of IDX files or with a folder per class, or a .npz "
            "file."
        ),
    ] = "digits",
    quick: Annotated[
        bool, typer.Option("--quick", help="A rough answer from fewer, shorter trainings.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also train the networks that `slabnorm lab` has on its sliders.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="How many times to train each network; 3 or more.")] = 3,
    seed: Annotated[int, typer.Option(help="The first of the seeds.")] = 0,
    out: Annotated[str, typer.Option(metavar="PATH", help="The HTML report to write.")] = "claims.html",
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Also write the numbers as JSON; - is stdout."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many processes to train in.", show_default="2, or 1 on one core")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a study that was interrupted.")] = False,
) -> None:
    """Measure what is said of normalisation on real data, and report what holds.

    Each claim gets a verdict from its 95% interval over seeds: holds, does not
    hold here, or undecided. All claims take some minutes on the digits; what
    is trained is kept in PATH.ledger, from which --resume goes on.
    """
    report, json_file, to_stdout = outputs(out, json_path, (data,))
    ledger = Path(f"{report}.ledger")
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.claims import ClaimsRecord, print_claim, print_claims, render_claims
    from slabnorm.study import claims as study

    check_outputs([ledger], [data])
    with progress_bar("measuring") as progress, keeps(ledger, "what has been trained"):
        found = study.claims(
            name or study.CLAIMS,
            data,
            quick=quick,
            sweep=sweep,
            seeds=seeds,
            seed=seed,
            workers=workers if workers is not None else min(2, os.cpu_count() or 1),
            progress=progress,
            ledger=ledger,
            resume=resume,
        )

    def table(record: ClaimsRecord, console: Console) -> None:
        for claim in record.claims if show else ():
            print_claim(claim, console)
        print_claims(record, console)

    deliver(found, render_claims, table, report, json_file, to_stdout)
    ledger.unlink(missing_ok=True)
