"""What all commands share: options as text, progress, and mistakes as messages.

Exit codes: 0 done, 1 the answer is bad news, 2 bad input or usage, 130 interrupted, 143 and 129 ended by
SIGTERM and SIGHUP.
A user's mistake is a message on stderr, never a traceback.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slabnorm import interrupt

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
_TAKEN = (  # by `fit` itself
    "source", "scheme", "pattern", "split", "nan", "leak", "key", "columns", "convert", "skip_bad", "workers",
    "memory", "engine", "address", "ledger", "resume", "progress", "weights", "missing_chunks", "delimiter",
)  # fmt: skip


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
    from slabnorm.text import printable

    for part in parts:
        if not part.removeprefix("-").isdecimal() or len(part) > 9:
            raise OptionError(
                "a batch size is an integer, 1 or more", printable(part), "--batch-size 2,16,128"
            )
    return [int(part) for part in parts]


def whole_sizes(given: list[str]) -> dict[str, int]:
    """Return sizes from `g=32`.

    Raises:
        OptionError: something else.
    """
    from slabnorm.errors import OptionError
    from slabnorm.text import printable

    sizes = {}
    for text in given:
        name, _, number = text.partition("=")
        if not name.isidentifier() or name in _TAKEN or not number.isdecimal() or len(number) > 9:
            raise OptionError("a size is a name and an integer", printable(text), "--size g=32")
        sizes[name] = int(number)
    return sizes


def whole_bytes(text: str | None) -> int | None:
    """Return bytes from `500MB` or `2GB`, powers of 1000 as disks are sold, or a number.

    Raises:
        OptionError: something else.
    """
    from slabnorm.errors import OptionError
    from slabnorm.text import printable

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise OptionError("memory is a number of bytes", printable(text), "--memory 2GB")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def tab(delimiter: str) -> str:
    r"""Return a delimiter, a tab for `\t`, which shells pass on as two characters."""
    return "\t" if delimiter == r"\t" else delimiter


def outputs(out: str, json_path: str | None, reads: Iterable[Any] = ()) -> tuple[Path, Path | None, bool]:
    """Return the report's path, the JSON's, and whether JSON goes to stdout; both can be written now.

    Args:
        out, json_path: as given.
        reads: the data and files that the command reads.

    Raises:
        OptionError: a path that cannot be written, one path for both, or a file that is read.
        ExtraError: what the report is made with is not installed.
    """
    from slabnorm.errors import OptionError
    from slabnorm.files import output_path
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.page import check_packages

    check_packages()
    if json_path is not None and not json_path:
        raise OptionError("--json names a file, or - for stdout", "nothing", "--json records.json")
    report, path = output_path(out), output_path(json_path) if json_path not in (None, "-") else None
    check_outputs(filter(None, (report, path)), filter(None, reads))
    return report, path, json_path == "-"


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr if it is a terminal; in a pipe nothing.

    Yields:
        A function of how much is done since its last call and how much there is in all, 0 for unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("preparing", total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total or None, description=doing)


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
        interrupt.say()
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader has seen enough. Python would complain once more when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        complain(error)
        raise typer.Exit(2) from None


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Print what would be a Python warning as one line on stderr."""
    from slabnorm.errors import SlabWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", SlabWarning)
        warnings.showwarning = lambda message, *_: error_console().print(
            f"warning: {shown(message)}", style="yellow", soft_wrap=True
        )
        yield


def complain(error: Exception) -> None:
    """Print an error: the rule, what was given instead, and the fix."""
    from rich.text import Text

    text = Text("error: ", style="bold red")
    text.append(shown(error), style="not bold default")
    error_console().print(text, soft_wrap=True)


def shown(message: object) -> str:
    """Return a message without what a terminal would act on; names of files are in it."""
    from slabnorm.text import printable

    return "\n".join(printable(line, 2000) for line in str(message).split("\n"))


def error_console() -> Console:
    """Return a console on stderr that takes text as it is."""
    from slabnorm.report.terminal import terminal

    return terminal(stderr=True)
