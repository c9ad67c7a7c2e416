"""`slabnorm fit` and `slabnorm show`: input statistics of a data set, and what a file of them holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slabnorm.cli.shell import (
    error_console,
    exits,
    progress_bar,
    shown,
    shown_warnings,
    tab,
    whole_bytes,
    whole_sizes,
)

if TYPE_CHECKING:
    from slabnorm.inputs import InputNorm


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="Samples along the first axis: .npy, .npz, Zarr; Parquet, Arrow or CSV; images. Or a URL."
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="The name of the split the samples come from, such as train.")
    ] = None,
    scheme: Annotated[str, typer.Option(help="zscore, minmax, robust or fixed.")] = "zscore",
    pattern: Annotated[
        str | None,
        typer.Option(help="Which axes keep statistics of their own.", show_default="'n c -> c' for a table"),
    ] = None,
    size: Annotated[list[str] | None, typer.Option(help="The size of a split axis, as g=32.")] = None,
    key: Annotated[
        str | None, typer.Option(help="The array of a .npz file or Zarr group.", show_default="x")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="A column of a table.", show_default="all of numbers")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="How often samples count: a column of a table, or a .npy file.")
    ] = None,
    nan: Annotated[str, typer.Option(help="raise, or omit: leave NaN out and count them.")] = "raise",
    missing_chunks: Annotated[
        str, typer.Option(help="raise, or fill: a chunk that a Zarr array lacks is its fill value.")
    ] = "raise",
    leak: Annotated[bool, typer.Option("--leak", help="Take held-out data all the same.")] = False,
    convert: Annotated[
        str | None, typer.Option(help="The mode all images are converted to: RGB, L or RGBA.")
    ] = None,
    delimiter: Annotated[str, typer.Option(help="What stands between the values of CSV.")] = ",",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and list files that cannot be read.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Shards counted at once.", show_default="one a core")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What shards being read may take, as 2GB.", show_default="no bound")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was interrupted.")] = False,
    out: Annotated[str, typer.Option(metavar="PATH", help="Where the statistics go.")] = "inputs.safetensors",
) -> None:
    """Fit input statistics on the training split, and keep them in a file that `slabnorm.load` reads.

    While it runs, what is counted is kept in OUT.ledger: after a crash, --resume goes on from there.
    """
    with exits(), shown_warnings(), progress_bar("counting") as progress:
        from slabnorm.files import output_path
        from slabnorm.inputs import fit as fit_statistics
        from slabnorm.inputs import save
        from slabnorm.inputs.ledger import Ledger
        from slabnorm.inputs.outputs import check_outputs

        sizes: dict[str, Any] = dict(whole_sizes(size or []))
        target = output_path(out)
        ledger = None if data.lower().endswith(".npz") else Path(f"{target}.ledger")
        written = [target, *(Ledger.files(ledger) if ledger else ())]
        check_outputs(written, [data, weights] if _is_file(weights) else [data])
        try:
            norm = fit_statistics(
                data, scheme, pattern, split=split, nan=nan, leak=leak, key=key, skip_bad=skip_bad,
                weights=_weights(weights), missing_chunks=missing_chunks, columns=column, convert=convert,
                delimiter=tab(delimiter), workers=workers, memory=whole_bytes(memory), engine=engine,
                address=address, ledger=ledger, resume=resume, progress=progress,
                **sizes,
            )  # fmt: skip
        except KeyboardInterrupt:
            if ledger and ledger.exists():
                console = error_console()
                console.print(
                    f"counted so far: {shown(ledger)}; --resume goes on", markup=False, soft_wrap=True
                )
            raise
        save(norm, target)
        if ledger:
            Ledger.delete(ledger)
    with exits():
        print_norm(norm)
        print_skipped(norm)
        error_console().print(f"statistics: {shown(target)}", style="dim", markup=False, soft_wrap=True)


def _is_file(weights: str | None) -> bool:
    return weights is not None and weights.lower().endswith(".npy")


def _weights(text: str | None) -> Any:
    """Return the name of a column, or the numbers in a file."""
    if text is None or not _is_file(text):
        return text
    from slabnorm.inputs.sources.npy import read_npy

    return read_npy(Path(text))


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
        console.print(f"left out, as they could not be read: {len(norm.skipped):,}", style="yellow")
        for name, why in norm.skipped[:most]:
            console.print(f"  {shown(name)}: {shown(why)}", markup=False, soft_wrap=True)
        if len(norm.skipped) > most:
            console.print(f"  and {len(norm.skipped) - most:,} more")
