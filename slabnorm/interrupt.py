"""What ends a command early: Ctrl-C, SIGTERM, SIGHUP. And what it must not leave behind: temporary files.

A signal is raised as KeyboardInterrupt in the main thread, which unwinds as from any error. Where that takes
longer than GRACE (a compiler or a C library is at work, workers are waited for, something has swallowed it),
a thread that waits for signals ends the process, on POSIX systems. Before a command runs there is nothing to
unwind: the process ends at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

GRACE = 1.2  # seconds to unwind
PATIENCE = 20.0  # seconds that signals are kept at most
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_unfinished: set[Path] = set()  # files and folders that are not in their places yet
_state = {"caught": 0, "raises": False, "said": False}  # the first signal; whether there is what to unwind
_held: list[bool] = []  # an element for each block that keeps signals


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Remove a file or folder when the block is left, unless it was moved; also when a signal ends it all."""
    _unfinished.add(path)
    try:
        yield path
    finally:
        _remove(path)
        _unfinished.discard(path)


def caught() -> int:
    """Return the signal that is ending the command; 0 if none is."""
    return _state["caught"]


def catch() -> None:
    """Take signals from now on: this process is the command. What the caller of it ignores stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    usual = (signal.SIG_DFL, signal.default_int_handler)  # nohup ignores SIGHUP, and a shell's & SIGINT
    mine = [number for number in _SIGNALS if signal.getsignal(number) in usual]
    for number in mine:
        signal.signal(number, _handle)
    if mine and os.name == "posix":
        _watch_from_now_on()


@contextmanager
def unwinding() -> Iterator[None]:
    """Run a command: a signal within is a KeyboardInterrupt, and whatever comes of it, the process then ends.

    Its exit code is 128 and the signal's number, as a shell has it: 130 after Ctrl-C.
    """
    try:
        _state["raises"] = True  # within, so that a signal just after it is unwound
        yield
    finally:
        _state["raises"] = False
        if caught():
            # Python notes that KeyboardInterrupt has left the text of an exec(), such as a NamedTuple's, and
            # ends `python -m` by SIGINT, whatever the exit code. The next exec() clears the note.
            exec("")
            if not _state["said"]:  # a library that was being imported has made another error of it
                say()
            # Not end(): Python's own end tidies up more, such as the semaphores of workers.
            raise SystemExit(128 + caught())


@contextmanager
def held() -> Iterator[None]:
    """Keep signals to the end of a block: no process is left half started, or half stopped.

    One that was ended while it starts would print a traceback into the terminal, of a pickle cut short.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # What is ignored stays so, also in processes that are started meanwhile; None is not Python's to change.
    free = (None, signal.SIG_IGN)
    before = {number: handler for number in _SIGNALS if (handler := signal.getsignal(number)) not in free}
    _held.append(True)
    try:
        for number in before:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        _held.pop()
        for number in reversed(before):  # SIGINT last: what it raises must find the others in their places
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])


def say() -> None:
    """Say on stderr, which may be gone, that the command was interrupted."""
    _state["said"] = True
    # RuntimeError: the signal came while stderr was written to, which is not begun again within.
    with suppress(OSError, ValueError, AttributeError, RuntimeError):
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()


def end(number: int) -> NoReturn:
    """End the process, and the processes it has started; leave no temporary file."""
    if not _state["said"]:
        say()
    children = sys.modules.get("multiprocessing.process")
    for child in children.active_children() if children else ():
        with suppress(Exception):
            child.terminate()
    for path in list(_unfinished):
        _remove(path)
    with suppress(Exception):  # semaphores of workers, of which their tracker would complain
        tidy = sys.modules["multiprocessing.util"]._run_finalizers
        thread = threading.Thread(target=tidy, args=(0,), daemon=True)
        thread.start()
        thread.join(0.2)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            if stream is sys.stderr and stream.isatty():
                stream.write("\x1b[?25h")  # the cursor, which a progress bar hides
            stream.flush()
    os._exit(128 + number)


def _handle(number: int, frame: FrameType | None) -> None:
    again = bool(caught())
    _state["caught"] = _state["caught"] or number
    if again or not _state["raises"]:
        end(number)
    # What is torn down now may complain, of which nobody wants to read.
    sys.unraisablehook = threading.excepthook = _say_nothing
    raise KeyboardInterrupt


def _say_nothing(complaint: object) -> None:
    pass


def _watch_from_now_on() -> None:
    """End the process where a signal has not done so after GRACE, whatever the main thread is doing."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handled = {number for number in _SIGNALS if signal.getsignal(number) is _handle}

    def watch() -> None:
        while data := os.read(reading, 1):
            if data[0] in handled:
                patient = time.monotonic() + PATIENCE
                while _held and time.monotonic() < patient:
                    time.sleep(0.05)
                time.sleep(GRACE)
                end(data[0])

    threading.Thread(target=watch, name="slabnorm signals", daemon=True).start()

    def forked() -> None:  # whose signals are its own
        signal.set_wakeup_fd(-1)
        for number in handled:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    os.register_at_fork(after_in_child=forked)


def _remove(path: Path) -> None:
    for _ in range(3):  # a thread may be adding to a folder
        with suppress(OSError):
            path.unlink()
        if not os.path.lexists(path):
            return
        shutil.rmtree(path, ignore_errors=True)


def started_as_command() -> bool:
    """Whether this process is the command `slabnorm`, and not a program that imports it, nor its child."""
    if "--multiprocessing-fork" in sys.orig_argv:  # a worker, whose sys.argv is its parent's
        return False
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    if name == "-m":  # the package is imported before its __main__ is
        given = sys.orig_argv
        return "slabnorm" in given[given.index("-m") + 1 :][:1] if "-m" in given else False
    return name.removesuffix(".exe").removesuffix("-script.py") == "slabnorm"
