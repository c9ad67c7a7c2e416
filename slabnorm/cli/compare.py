"""`slabnorm compare`: the norms side by side on real data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slabnorm.cli.shell import exits, outputs, progress_bar, shown, split_commas, whole_numbers

if TYPE_CHECKING:
    from slabnorm.report.records import StudyRecord


def compare(
    data: Annotated[
        str,
        typer.Option(help="digits, a .npz file with arrays x and y, or a folder with a folder per class."),
    ] = "digits",
    model: Annotated[str, typer.Option(help="conv, mlp, or package.module:build of your own.")] = "conv",
    norm: Annotated[
        list[str] | None,
        typer.Option(
            help="none, batch, layer, instance, group, or a pattern such as 'n c ... -> n c'. Repeat, or "
            "separate by commas.",
            show_default="all five",
        ),
    ] = None,
    batch_size: Annotated[
        list[str] | None,
        typer.Option(help="Samples per step. Repeat, or separate by commas.", show_default="2,16,128"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many paired seeds.")] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 3,
    scheme: Annotated[
        str, typer.Option(help="Inputs while norms are compared: raw, fixed, minmax, zscore.")
    ] = "zscore",
    inputs: Annotated[bool, typer.Option(help="Put the four input schemes side by side, too.")] = True,
    target: Annotated[float, typer.Option(help="Validation accuracy to count steps to.")] = 0.9,
    learning_rate: Annotated[
        float, typer.Option(help="For batch size 128; scaled linearly with the batch size.")
    ] = 0.1,
    out: Annotated[str, typer.Option(metavar="PATH", help="The report, one HTML file.")] = "report.html",
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="The numbers as JSON; - for stdout.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes.", show_default="2, or 1 on one core")
    ] = None,
) -> None:
    """Train one network under each norm and batch size, and say which is best, with intervals."""
    with exits():
        norms, sizes = split_commas(norm), whole_numbers(split_commas(batch_size))
        module = model.partition(":")[0].replace(".", os.sep) + ".py"
        targets = outputs(out, json_path, (data, module))
        from slabnorm.study import comparison, options
        from slabnorm.study.scaling import SCHEMES

        # Your own package.module:build lies where you are; a file there must not stand for a library.
        if ":" in model and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())

        with progress_bar("training") as progress:
            study = comparison.compare(
                model,
                data,
                norms=norms or options.NORMS,
                batch_sizes=sizes or options.BATCH_SIZES,
                seeds=seeds,
                epochs=epochs,
                scheme=scheme,
                schemes=SCHEMES if inputs else (),
                target=target,
                learning_rate=learning_rate,
                workers=workers if workers is not None else min(2, os.cpu_count() or 1),
                progress=progress,
            )
        deliver(study, *targets)


def deliver(study: StudyRecord, out: Path, json_path: Path | None, json_to_stdout: bool) -> None:
    """Write the files first, so that a closed pipe costs nothing, then print."""
    from slabnorm.files import write_atomically
    from slabnorm.report.page import render_page
    from slabnorm.report.table import print_study
    from slabnorm.report.terminal import terminal

    write_atomically(out, render_page(study))
    text = json.dumps(study.as_dict(), indent=1, ensure_ascii=True, allow_nan=False)
    if json_path is not None:
        write_atomically(json_path, text + "\n")
    if json_to_stdout:
        print(text, flush=True)
    console = terminal(stderr=json_to_stdout)
    print_study(study, console)
    console.print(f"\nreport: {shown(out)}", style="dim", soft_wrap=True)
    sys.stdout.flush()
