"""`slabnorm compare`: one network trained with each norm, on real data."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from slabnorm.cli.shell import deliver, outputs, progress_bar, split_commas, whole_numbers


def compare(
    data: Annotated[
        str,
        typer.Option(
            help="digits, a .npz file with the arrays x and y, or a folder with a folder per class."
        ),
    ] = "digits",
    model: Annotated[
        str, typer.Option(help="conv, mlp, or a function of your own, as package.module:build.")
    ] = "conv",
    norm: Annotated[
        list[str] | None,
        typer.Option(
            help="none, batch, layer, instance, group, or a pattern such as 'n c ... -> n c'. Repeat it, or "
            "separate several by commas.",
            show_default="all five",
        ),
    ] = None,
    batch_size: Annotated[
        list[str] | None,
        typer.Option(
            help="Samples per training step, at most 60% of all samples. Repeat it, or separate several by "
            "commas.",
            show_default="8,64",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many times to train with each norm and batch size.")] = 5,
    epochs: Annotated[int, typer.Option(help="How many times to pass over the training split.")] = 3,
    scheme: Annotated[
        str,
        typer.Option(help="How inputs are scaled while norms are compared: raw, fixed, minmax or zscore."),
    ] = "zscore",
    inputs: Annotated[bool, typer.Option(help="Compare the four ways to scale inputs, too.")] = True,
    target: Annotated[
        float, typer.Option(help="Count the training steps up to this validation accuracy.")
    ] = 0.9,
    learning_rate: Annotated[
        float, typer.Option(help="The rate at batch size 128; at other sizes in proportion.")
    ] = 0.1,
    out: Annotated[str, typer.Option(metavar="PATH", help="The HTML report to write.")] = "report.html",
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Also write the numbers as JSON; - is stdout."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="How many processes to train in.", show_default="2, or 1 on one core"),
    ] = None,
) -> None:
    """Train one network with each norm and batch size, and report which works best.

    It prints a table with 95% intervals over the seeds, and writes an HTML
    report.
    """
    norms, sizes = split_commas(norm), whole_numbers(split_commas(batch_size))
    module = model.partition(":")[0].replace(".", os.sep) + ".py"
    targets = outputs(out, json_path, (data, module))
    from slabnorm.report.study import print_study, render_study
    from slabnorm.study import comparison, options
    from slabnorm.study.scaling import SCHEMES

    # The user's own module lies in the current folder; a file there must not take the place of a library.
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
    deliver(study, render_study, print_study, *targets)
