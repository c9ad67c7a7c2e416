"""The command line: parse, call, print."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from slabnorm import interrupt
from slabnorm._version import __version__
from slabnorm.cli.apply import apply
from slabnorm.cli.audit import audit
from slabnorm.cli.check import check
from slabnorm.cli.claims import claims
from slabnorm.cli.compare import compare
from slabnorm.cli.contract import check_contract, convert_contract, show_contract
from slabnorm.cli.export import export
from slabnorm.cli.fit import fit, show
from slabnorm.cli.lab import lab
from slabnorm.cli.shell import as_command

app = typer.Typer(
    name="slabnorm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and exit if that is what was asked for."""
    if wanted:
        print(f"slabnorm {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Fit, check, apply and export the input statistics of a data set, and compare norm layers.

    Begin with `slabnorm fit train.npy --split train`, with `slabnorm compare`, or with `slabnorm claims`.
    """


for command in (fit, show, audit, apply, export, check, compare, claims, lab):
    app.command()(as_command(command))

contract = typer.Typer(
    no_args_is_help=True, help="The statistics of many keys: show, check and convert them."
)
contract.command("show")(as_command(show_contract))
contract.command("check")(as_command(check_contract))
contract.command("convert")(as_command(convert_contract))
app.add_typer(contract, name="contract")


def main() -> None:
    """Run the command `slabnorm`."""
    if sys.stdout is None:  # it was closed by the shell, as with >&-
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for pictures on a terminal that has only ASCII
    interrupt.catch()
    with interrupt.unwinding():
        app()
