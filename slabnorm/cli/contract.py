"""`slabnorm contract`: the statistics of many keys shown, checked against data, and converted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

FOUND = 1  # exit code

Source = Annotated[
    str, typer.Argument(help="A contract, or statistics of another program, such as meta/stats.json.")
]
Form = Annotated[
    str,
    typer.Option("--from", metavar="FORMAT", help="The format of the statistics, if it is not recognised."),
]


def show_contract(
    source: Source,
    format: Form = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what is known of each key: unit, scheme, where it comes from, and its numbers."""
    from slabnorm.contracts import contract
    from slabnorm.contracts.describe import describe
    from slabnorm.report.contract import print_contract
    from slabnorm.report.terminal import terminal

    record = describe(contract(source, format=format))
    if as_json:
        print(json.dumps(record.as_dict(), indent=1, allow_nan=False), flush=True)
    else:
        print_contract(record, terminal())
        sys.stdout.flush()


def check_contract(
    source: Source,
    data: Annotated[str, typer.Argument(help="Raw data: a table, .npz or Zarr group with the keys' names.")],
    format: Form = "",
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Also write what was found as JSON; - is stdout."),
    ] = None,
) -> None:
    """Check whether data are what the statistics are for.

    It finds keys that are missing, values out of range, another mean or
    spread, data that are normalised already or scaled twice, another unit,
    and features in another order.

    Exit codes: 0 nothing found, 1 something found, 2 bad input or usage.
    """
    from slabnorm.contracts import contract
    from slabnorm.files import output_path, write_atomically
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.contract import ContractCheck, print_check
    from slabnorm.report.terminal import terminal

    path = output_path(json_path) if json_path and json_path != "-" else None
    check_outputs([path] if path else [], [source, data])
    record = ContractCheck(data, contract(source, format=format).check(data))
    text = json.dumps(record.as_dict(), indent=1, allow_nan=False)
    if path is not None:
        write_atomically(path, text + "\n")
    if json_path == "-":
        print(text, flush=True)
    print_check(record, terminal(stderr=json_path == "-"))
    sys.stdout.flush()
    if record.findings:
        raise typer.Exit(FOUND)


def convert_contract(
    source: Source,
    out: Annotated[Path, typer.Option(metavar="PATH", help="The file to write.")],
    format: Form = "",
    to: Annotated[
        str, typer.Option(help="The format to write: slabnorm's own, or another program's.")
    ] = "slabnorm",
) -> None:
    """Write statistics in another format, by default as a contract.

    What a format cannot hold is an error, not left out.
    """
    from slabnorm.cli.shell import error_console, shown
    from slabnorm.contracts import contract
    from slabnorm.contracts.read import write
    from slabnorm.inputs.outputs import check_outputs

    check_outputs([out], [source])
    write(contract(source, format=format), out, to)
    error_console().print(f"statistics: {shown(out)}", style="dim", markup=False, soft_wrap=True)
