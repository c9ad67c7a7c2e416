"""The command line: parse, call, print.

Exit codes: 0 done, 1 the answer is bad news, 2 bad input or usage, 130 interrupted.
A user's mistake is a message on stderr, never a traceback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from slabnorm.report.records import StudyRecord

INTERRUPTED = 130

app = typer.Typer(
    name="slabnorm",
    help="Every normalisation is the same formula over a different slab.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def slabnorm() -> None:
    """Every normalisation is the same formula over a different slab."""


@app.command()
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
    out: Annotated[Path, typer.Option(help="The report, one HTML file.")] = Path("report.html"),
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
        targets = outputs(out, json_path)
        # Your own package.module:build lies where you are.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        from slabnorm.study import comparison, options
        from slabnorm.study.scaling import SCHEMES

        with progress_bar() as progress:
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
    from slabnorm.report.page import render_page
    from slabnorm.report.table import print_study, terminal
    from slabnorm.report.write import write_atomically

    write_atomically(out, render_page(study))
    text = json.dumps(study.as_dict(), indent=1, ensure_ascii=True, allow_nan=False)
    if json_path is not None:
        write_atomically(json_path, text + "\n")
    if json_to_stdout:
        print(text, flush=True)
    console = terminal(stderr=json_to_stdout)
    print_study(study, console)
    console.print(f"\nreport: {out}", style="dim", markup=False, soft_wrap=True)
    sys.stdout.flush()


def split_commas(values: list[str] | None) -> list[str]:
    """Return the parts of options given several times, or once with commas."""
    parts = [part.strip() for value in values or [] for part in value.split(",")]
    return [part for part in parts if part]


def whole_numbers(parts: list[str]) -> list[int]:
    """Return numbers from text.

    Raises:
        OptionError: something else.
    """
    from slabnorm.errors import OptionError
    from slabnorm.report.names import printable

    for part in parts:
        if not part.removeprefix("-").isdecimal() or len(part) > 9:
            raise OptionError(
                "a batch size is an integer, 1 or more", printable(part), "--batch-size 2,16,128"
            )
    return [int(part) for part in parts]


def outputs(out: Path, json_path: str | None) -> tuple[Path, Path | None, bool]:
    """Return the report's path, the JSON's, and whether JSON goes to stdout; both can be written now.

    Raises:
        OptionError: a path that cannot be written, or one path for both.
    """
    from slabnorm.errors import OptionError
    from slabnorm.report.names import printable
    from slabnorm.report.write import check_writable

    if json_path is not None and not json_path:
        raise OptionError("--json names a file, or - for stdout", "nothing", "--json records.json")
    path = Path(json_path) if json_path not in (None, "-") else None
    if path is not None and path.resolve() == out.resolve():
        raise OptionError("report and JSON are two files", f"{printable(out)} for both", "name another one")
    for target in (out, path):
        if target is not None:
            check_writable(target)
    return out, path, json_path == "-"


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr if it is a terminal; in a pipe nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("preparing", total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total, description="training")


@contextmanager
def exits() -> Iterator[None]:
    """Turn what can go wrong into a message on stderr and an exit code."""
    from slabnorm.errors import SlabError

    try:
        yield
    except SlabError as error:
        complain(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        error_console().print("interrupted", style="dim")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def complain(error: Exception) -> None:
    """Print an error: the rule, what was given instead, and the fix."""
    from rich.text import Text

    text = Text("error: ", style="bold red")
    text.append(str(error), style="not bold default")
    error_console().print(text, soft_wrap=True)


def error_console() -> Console:
    """Return a console on stderr that takes text as it is."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def main() -> None:
    """Run the command `slabnorm`."""
    app()


if __name__ == "__main__":
    main()
