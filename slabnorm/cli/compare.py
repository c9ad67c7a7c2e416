"""`slabnorm compare`: one network trained with each norm, on real data."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from slabnorm.cli.shell import deliver, keeps, outputs, progress_bar, split_commas, whole_numbers


def compare(
    data: Annotated[
        str,
        typer.Option(
            help="digits, photos, fashion-mnist, a .npz file with the arrays x and y, a folder with a folder "
            "of images per class, or a folder with the four IDX files of MNIST and its like."
        ),
    ] = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="conv, mlp, or your own, as package.module:name: a function build(norm), or a function or "
            "network whose norms are exchanged."
        ),
    ] = "conv",
    norm: Annotated[
        list[str] | None,
        typer.Option(
            help="none, batch, layer, instance, group, dyt, derf, or a pattern such as 'n c ... -> n c'. "
            "Repeat it, or separate several by commas.",
            show_default="the first five",
        ),
    ] = None,
    batch_size: Annotated[
        list[str] | None,
        typer.Option(
            help="Samples per training step, at most the training split. Repeat it, or separate several by "
            "commas.",
            show_default="16,64",
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
        float,
        typer.Option(
            help="The base rate at batch size 128, in proportion at other sizes; 1/4, 1, 4 and 16 times as "
            "much is tried."
        ),
    ] = 0.1,
    out: Annotated[str, typer.Option(metavar="PATH", help="The HTML report to write.")] = "report.html",
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Also write the numbers as JSON; - is stdout."),
    ] = None,
    log_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a log of every run there, for TensorBoard.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a study that was interrupted.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="How many processes to train in; with Ray, how many runs at a time.",
            show_default="2, or 1 on one core; with Ray, one per processor",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: processes; ray: a Ray cluster, which is started if there is none.")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="The address of the Ray cluster, such as auto.")] = None,
) -> None:
    """Train one network with each norm and batch size, and report which works best.

    Each norm has its own learning rate, chosen on validation data. It prints
    a table with 95% intervals over the seeds, and writes an HTML report.

    The runs that are done are kept in a file beside the report,
    PATH.ledger. After a crash or Ctrl-C, the same command with --resume
    goes on from there.
    """
    norms, sizes = split_commas(norm), whole_numbers(split_commas(batch_size))
    module = model.partition(":")[0].replace(".", os.sep) + ".py"
    report, json_file, to_stdout = outputs(out, json_path, (data, module))
    ledger = Path(f"{report}.ledger")
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.study import print_study, render_study
    from slabnorm.study import comparison, options
    from slabnorm.study.scaling import SCHEMES

    check_outputs([ledger], [data, module])

    # The user's own module lies in the current folder; a file there must not take the place of a library.
    if ":" in model and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())

    with progress_bar("training") as progress, keeps(ledger, "the runs that are done"):
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
            workers=min(2, os.cpu_count() or 1) if workers is None and engine == "local" else workers,
            engine=engine,
            address=address,
            ledger=ledger,
            resume=resume,
            log_dir=log_dir,
            progress=progress,
        )
    deliver(study, render_study, print_study, report, json_file, to_stdout)
    ledger.unlink(missing_ok=True)
