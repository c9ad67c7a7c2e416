"""`slabnorm lab`: the page that shows what a norm does, as one file for the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from threading import Thread
from typing import Annotated

import typer

from slabnorm.cli.shell import shown


def lab(
    out: Annotated[str, typer.Option(metavar="PATH", help="The HTML file to write.")] = "lab.html",
    study: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="What `slabnorm claims --json` has written, for the rooms that show measured claims.",
            show_default="the study that came with slabnorm, if one did",
        ),
    ] = None,
    open_it: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the file in a browser, where there is a screen.")
    ] = True,
) -> None:
    """Write a page on which one turns the slab in one's hands, and open it.

    It is one HTML file, which needs no network and no server.
    """
    from slabnorm.files import output_path, write_atomically
    from slabnorm.inputs.outputs import check_outputs
    from slabnorm.page import build, check_packages, read_study
    from slabnorm.report.terminal import terminal

    check_packages()
    path = output_path(out)
    check_outputs((path,), (study,) if study else ())
    write_atomically(path, build(read_study(None if study is None else Path(study))))
    opened = open_it and has_screen() and opens(path)
    text = f"page: {shown(path)}" if opened else f"page: {shown(path)} (open it in a browser)"
    terminal().print(text, soft_wrap=True)


def has_screen() -> bool:
    """Return whether there is a screen for a browser; one of text alone would take the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def opens(path: Path, patience: float = 5.0) -> bool:
    """Open a file in the user's browser; return whether that seems to have worked.

    Some browsers return only when they are closed: after `patience` seconds they are left alone.
    """
    answers: list[bool] = []
    url = path.resolve().as_uri()
    thread = Thread(target=lambda: answers.append(webbrowser.open(url)), daemon=True)
    thread.start()
    thread.join(patience)
    return thread.is_alive() or answers == [True]
