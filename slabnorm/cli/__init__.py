"""The command line: parse, call, print."""

from __future__ import annotations

import io
import sys

import typer

from slabnorm.cli.apply import apply
from slabnorm.cli.audit import audit
from slabnorm.cli.compare import compare
from slabnorm.cli.export import export
from slabnorm.cli.shell import INTERRUPTED, leave
from slabnorm.cli.statistics import fit, show

app = typer.Typer(
    name="slabnorm",
    help="Every normalisation is the same formula over a different slab.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (apply, audit, compare, export, fit, show):
    app.command()(command)


def main() -> None:
    """Run the command `slabnorm`."""
    if sys.stdout is None:  # it was closed, as by >&-
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # pictures, on a terminal that has ASCII only
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            leave(INTERRUPTED)
        raise
