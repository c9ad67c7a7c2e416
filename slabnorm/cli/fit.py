"""`slabnorm fit` and `slabnorm show`: the input statistics of a data set, and what a file of them holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slabnorm.cli.shell import error_console, keeps, progress_bar, shown, tab, whole_bytes, whole_sizes

if TYPE_CHECKING:
    from slabnorm.inputs import InputNorm

# The groups in which `slabnorm fit --help` lists its options; the docstring of slabnorm.fit has the same.
DATA, RESULT, WORK = "Which data", "What is computed", "How the work is done"


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="A file or a folder of training samples: .npy, .npz, IDX (MNIST's), Zarr, Parquet, Arrow, "
            "CSV, images, or tars of images. Also a glob in quotes, or a URL."
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(help="The split these samples are, such as train. Required.", rich_help_panel=DATA),
    ] = None,
    leak: Annotated[
        bool,
        typer.Option("--leak", help="Fit on validation or test data on purpose.", rich_help_panel=DATA),
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            help="The name of the array in a .npz file or a Zarr group, or of the IDX file in a folder.",
            show_default="x, and of IDX files train",
            rich_help_panel=DATA,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of the table to fit. Repeat it for several.",
            show_default="every column of numbers",
            rich_help_panel=DATA,
        ),
    ] = None,
    convert: Annotated[
        str | None,
        typer.Option(help="Convert all images to this mode: RGB, L or RGBA.", rich_help_panel=DATA),
    ] = None,
    delimiter: Annotated[
        str, typer.Option(help="The character between the values of a CSV file.", rich_help_panel=DATA)
    ] = ",",
    weights: Annotated[
        str | None,
        typer.Option(
            help="How often each sample counts: the name of a column, or a .npy file.", rich_help_panel=DATA
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help="Leave out files that cannot be read, and list them.", rich_help_panel=DATA
        ),
    ] = False,
    missing_chunks: Annotated[
        str,
        typer.Option(
            help="If a Zarr array lacks a chunk: raise an error, or fill it with the array's fill value.",
            rich_help_panel=DATA,
        ),
    ] = "raise",
    scheme: Annotated[
        str, typer.Option(help="zscore, minmax, robust, quantile or fixed.", rich_help_panel=RESULT)
    ] = "zscore",
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Which axes keep statistics of their own, such as 'n c h w -> c' for one mean and "
            "deviation per channel.",
            show_default="'n c -> c' for a table",
            rich_help_panel=RESULT,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="The size of an axis in brackets, such as g=32.", rich_help_panel=RESULT),
    ] = None,
    nan: Annotated[
        str,
        typer.Option(
            help="If a value is NaN or missing: raise an error, or omit it and count it.",
            rich_help_panel=RESULT,
        ),
    ] = "raise",
    out: Annotated[
        str,
        typer.Option(metavar="PATH", help="The file to write the statistics to.", rich_help_panel=RESULT),
    ] = "inputs.safetensors",
    workers: Annotated[
        int | None,
        typer.Option(
            help="How many parts of the data to read at once.",
            show_default="one per core",
            rich_help_panel=WORK,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="How much memory these parts may take together, such as 2GB.",
            show_default="no limit",
            rich_help_panel=WORK,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray to use a Ray cluster.", rich_help_panel=WORK)
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="The address of the Ray cluster, such as auto.", rich_help_panel=WORK),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue a fit that was interrupted.", rich_help_panel=WORK),
    ] = False,
) -> None:
    """Fit input statistics on the training split and write them to a file.

    Python reads the file with slabnorm.load, `slabnorm show` prints it, and
    `slabnorm audit` compares other data with it.

    While the fit runs, its progress is kept beside the output, in
    PATH.ledger. After a crash or Ctrl-C, the same command with --resume
    continues from there.
    """
    with progress_bar("counting") as progress:
        from slabnorm.files import output_path
        from slabnorm.inputs import fit as fit_statistics
        from slabnorm.inputs import save
        from slabnorm.inputs.ledger import Ledger
        from slabnorm.inputs.outputs import check_outputs
        from slabnorm.inputs.sources.open import is_read_once

        sizes: dict[str, Any] = dict(whole_sizes(size or []))
        target = output_path(out)
        ledger = None if is_read_once(data, key) else Path(f"{target}.ledger")
        written = [target, *(Ledger.files(ledger) if ledger else ())]
        check_outputs(written, [data, weights] if _is_file(weights) else [data])
        with keeps(ledger, "what has been counted"):
            norm = fit_statistics(
                data,
                scheme,
                pattern,
                split=split,
                leak=leak,
                key=key,
                columns=column,
                convert=convert,
                delimiter=tab(delimiter),
                weights=_weights(weights),
                skip_bad=skip_bad,
                missing_chunks=missing_chunks,
                nan=nan,
                workers=workers,
                memory=whole_bytes(memory),
                engine=engine,
                address=address,
                ledger=ledger,
                resume=resume,
                progress=progress,
                **sizes,
            )
        save(norm, target)
        if ledger:
            Ledger.delete(ledger)
    print_norm(norm)
    print_skipped(norm)
    error_console().print(f"statistics: {shown(target)}", style="dim", markup=False, soft_wrap=True)


def _is_file(weights: str | None) -> bool:
    return weights is not None and weights.lower().endswith(".npy")


def _weights(text: str | None) -> Any:
    """Return the name of a column as it is, or the numbers in a file."""
    if text is None or not _is_file(text):
        return text
    from slabnorm.inputs.sources.npy import read_npy

    return read_npy(Path(text))


def show(
    artifact: Annotated[Path, typer.Argument(help="A file that `slabnorm fit` wrote.")],
    every: Annotated[bool, typer.Option("--all", help="Show every feature, not only the first 40.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show fitted input statistics: one row and one picture for each feature."""
    from slabnorm.inputs import load

    norm = load(artifact)
    if as_json:
        from slabnorm.inputs.statistics_record import describe

        print(json.dumps(describe(norm).as_dict(), indent=1, allow_nan=False), flush=True)
    else:
        print_norm(norm, every)


def print_norm(norm: InputNorm, every: bool = False) -> None:
    """Print fitted statistics to stdout."""
    from slabnorm.inputs.statistics_record import describe
    from slabnorm.report.statistics import print_statistics
    from slabnorm.report.terminal import terminal

    print_statistics(describe(norm), terminal(), every)
    sys.stdout.flush()


def print_skipped(norm: InputNorm, most: int = 20) -> None:
    """List the files that were left out, on stderr."""
    if norm.skipped:
        console = error_console()
        console.print(f"left out because they could not be read: {len(norm.skipped):,}", style="yellow")
        for name, why in norm.skipped[:most]:
            console.print(f"  {shown(name)}: {shown(why)}", markup=False, soft_wrap=True)
        if len(norm.skipped) > most:
            console.print(f"  and {len(norm.skipped) - most:,} more")
