"""What all commands share: options read from text, progress bars, and errors as messages with an exit code.

Exit codes: 0 the command is done, 1 it found something wrong with the data, 2 bad input or usage,
130 interrupted by Ctrl-C, 143 and 129 ended by SIGTERM and SIGHUP.
A user's mistake is a message on stderr, never a traceback.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from slabnorm import interrupt

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130


def split_commas(values: list[str] | None) -> list[str]:
    """Return the values of an option that is given several times, or once with commas."""
    parts = [part.strip() for value in values or [] for part in value.split(",")]
    return [part for part in parts if part]


def whole_numbers(parts: list[str]) -> list[int]:
    """Return batch sizes from text.

    Raises:
        OptionError: a part is not an integer.
    """
    from slabnorm.errors import OptionError
    from slabnorm.text import printable

    for part in parts:
        if not part.removeprefix("-").isdecimal() or len(part) > 9:
            raise OptionError(
                "batch_sizes must be integers, 1 or more", printable(part), "as in --batch-size 2,16,128"
            )
    return [int(part) for part in parts]


def whole_sizes(given: list[str]) -> dict[str, int]:
    """Return the sizes of split axes from text such as `g=32`.

    Raises:
        OptionError: a text is not a name and an integer, or the name is that of an argument of `fit`.
    """
    from slabnorm.errors import OptionError
    from slabnorm.inputs import fit
    from slabnorm.text import printable

    sizes, taken = {}, inspect.signature(fit).parameters
    for text in given:
        name, _, number = text.partition("=")
        if not name.isidentifier() or name in taken or not number.isdecimal() or len(number) > 9:
            raise OptionError(
                "--size must be the name of an axis and an integer", printable(text), "as in --size g=32"
            )
        sizes[name] = int(number)
    return sizes


def whole_bytes(text: str | None) -> int | None:
    """Return a number of bytes from text such as `500MB`, `2GB` (powers of 1000) or `2000000000`.

    Raises:
        OptionError: the text is not a number of bytes above 0.
    """
    from slabnorm.errors import OptionError
    from slabnorm.text import printable

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise OptionError("memory must be a number of bytes above 0", printable(text), 'memory="2GB"')
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def tab(delimiter: str) -> str:
    r"""Return a delimiter; `\t`, which a shell passes on as two characters, is a tab."""
    return "\t" if delimiter == r"\t" else delimiter


def outputs(out: str, json_path: str | None, reads: Iterable[Any] = ()) -> tuple[Path, Path | None, bool]:
    """Return the path of the report, the path of the JSON file, and whether JSON goes to stdout.

    Both paths have been found to be writable.

    Args:
        out, json_path: the paths as the user has typed them.
        reads: the data and files that the command reads.

    Raises:
        OptionError: a path cannot be written, is that of a file that is read, or is given twice.
        ExtraError: a package that makes the report is not installed.
    """
    from slabnorm.errors import OptionError
    from slabnorm.files import output_path
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.report.page import check_packages

    check_packages()
    if json_path is not None and not json_path:
        raise OptionError("--json must name a file, or be - for stdout", "", "as in --json numbers.json")
    report, path = output_path(out), output_path(json_path) if json_path not in (None, "-") else None
    check_outputs(filter(None, (report, path)), filter(None, reads))
    return report, path, json_path == "-"


def deliver(
    record: Any,
    page: Callable[[Any], str],
    table: Callable[[Any, Console], None],
    out: Path,
    json_path: Path | None,
    json_to_stdout: bool,
) -> None:
    """Write the report and the JSON file, then print the table: a closed pipe then costs neither file.

    Args:
        record: what was found.
        page: makes the report of it.
        table: prints it to a console.
        out, json_path, json_to_stdout: where to, from `outputs`.
    """
    from slabnorm.files import write_atomically
    from slabnorm.report.terminal import terminal

    write_atomically(out, page(record))
    text = json.dumps(record.as_dict(), indent=1, ensure_ascii=True, allow_nan=False)
    if json_path is not None:
        write_atomically(json_path, text + "\n")
    if json_to_stdout:
        print(text, flush=True)
    console = terminal(stderr=json_to_stdout)
    table(record, console)
    console.print(f"\nreport: {shown(out)}", style="dim", soft_wrap=True)
    sys.stdout.flush()


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr where that is a terminal, and nothing elsewhere.

    Args:
        doing: what the command is doing, in one word.

    Yields:
        A function to call with how much was done since its last call, and how much there is in all; 0 if
        that is unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("preparing", total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total or None, description=doing)


@contextmanager
def keeps(ledger: Path | None, what: str) -> Iterator[None]:
    """Say on an interrupt how to go on, if a ledger holds what has been done.

    Args:
        ledger: the file; None for none.
        what: what it holds, in words.
    """
    try:
        yield
    except KeyboardInterrupt:
        if ledger and ledger.exists():
            kept = f"{shown(ledger)} holds {what}; --resume continues from there"
            error_console().print(kept, markup=False, soft_wrap=True)
        raise


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that turns what can go wrong into a message on stderr and an exit code."""

    @wraps(function)
    def command(**arguments: Any) -> None:
        def speak(message: object) -> str:
            return shown(in_options(str(message), function, arguments.values()))

        with exits(speak), shown_warnings(speak):
            function(**arguments)

    return command


@contextmanager
def exits(speak: Callable[[object], str]) -> Iterator[None]:
    """Turn errors into a message on stderr and exit code 2, and an interrupt into exit code 130."""
    from slabnorm.errors import SlabError

    try:
        yield
    except SlabError as error:
        complain(speak(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        interrupt.say()
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        complain(speak(error))
        raise typer.Exit(2) from None


@contextmanager
def shown_warnings(speak: Callable[[object], str]) -> Iterator[None]:
    """Print what would be a Python warning as one line on stderr."""
    from slabnorm.errors import SlabWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", SlabWarning)
        warnings.showwarning = lambda message, *_: error_console().print(
            f"warning: {speak(message)}", style="yellow", soft_wrap=True
        )
        yield


def complain(message: str) -> None:
    """Print an error: what is wrong, what was found, and what to do."""
    from rich.text import Text

    text = Text("error: ", style="bold red")
    text.append(message, style="not bold default")
    error_console().print(text, soft_wrap=True)


def in_options(message: str, command: Callable[..., None], given: Iterable[object] = ()) -> str:
    """Return a message that names arguments of a Python function with the options of a command instead.

    `split="train"` becomes `--split train` and `leak=True` becomes `--leak`, where they stand as words of
    their own: not in a path such as `data/split=train/a.parquet`, and not in a call of a Python function.

    Args:
        message: written for Python.
        command: whose options are meant; an argument that it has no option for stays as it is.
        given: what the user has typed, which stays as it is, too.
    """
    options = _options(command)
    names = "|".join(options)
    texts = [text for value in given for text in (value if isinstance(value, list) else [value])]
    typed = [re.escape(str(text)) for text in texts if isinstance(text, str | Path) and "=" in str(text)]
    calls, paths = r"[\w.]+\((?:[^()\n]|\([^()\n]*\))*\)", r"\S*/\S*"
    value = (
        r"""(?P<value>"[^"\n]*"|'[^'\n]*'|[\[(][^\])\n]*[\])]|True|False|None|\.\.\.|-?\d(?:[\d_.]*\d)?|)"""
    )
    argument = rf"(?<![\w.=-])(?P<name>{names})={value}(?![\w/\\({{\[]|\.\w)"
    quoted = rf"`(?P<quoted>{names})`"
    subject = rf"^(?P<subject>{names})(?= must )"
    axis = r"\b(?P<axis>\w+=<size>)"

    def option(found: re.Match[str]) -> str:
        if found["name"] is not None:
            with suppress(ValueError, SyntaxError):  # of a value that is not written out
                return _written(options[found["name"]], found["value"])
        if found["axis"] is not None and "size" in options:
            return f"{options['size'].opts[0]} {found['axis']}"
        name = found["quoted"] or found["subject"]
        return found[0] if name is None else str(options[name].opts[0])

    every = "|".join([*typed, calls, argument, quoted, subject, axis, paths])
    return re.sub(every, option, message, flags=re.MULTILINE)


def _options(command: Callable[..., None]) -> dict[str, Any]:
    """Return the options of a command by the names of the Python arguments that they are."""
    alone = typer.Typer(add_completion=False)
    alone.command()(command)
    parameters: Any = typer.main.get_command(alone).params
    options = {option.name: option for option in parameters if option.param_type_name == "option"}
    # An option that may be repeated is in Python a sequence, named in the plural.
    options |= {f"{name}s": option for name, option in options.items() if option.multiple}
    options |= {"build_model": options["model"]} if "model" in options else {}
    return options


def _written(option: Any, value: str) -> str:
    """Return an option as it is typed, with the value that is written for Python."""
    name = str(option.opts[0])
    meant = ast.literal_eval(value) if value else ""
    if meant is None:
        return f"no {name}"
    if option.is_flag:
        no = option.secondary_opts[0] if option.secondary_opts else f"no {name}"
        return no if meant is False else name
    parts = meant if isinstance(meant, list | tuple) else [meant]
    words = ["..." if part is ... else str(part).replace("\t", r"\t") for part in parts]
    words = [word if re.fullmatch(r"[\w@%+=:,./-]+", word) else f'"{word}"' for word in words if word]
    return " ".join(f"{name} {word}" for word in words) or name


def shown(message: object) -> str:
    """Return a message without what a terminal would act on, such as an escape in the name of a file."""
    from slabnorm.text import printable

    return "\n".join(printable(line, 2000) for line in str(message).split("\n"))


def error_console() -> Console:
    """Return a console on stderr that takes text as it is."""
    from slabnorm.report.terminal import terminal

    return terminal(stderr=True)
