"""The command line: parse, call, print."""

from __future__ import annotations

import typer

from slabnorm.cli.compare import compare
from slabnorm.cli.statistics import fit, show

app = typer.Typer(
    name="slabnorm",
    help="Every normalisation is the same formula over a different slab.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, fit, show):
    app.command()(command)


def main() -> None:
    """Run the command `slabnorm`."""
    app()
