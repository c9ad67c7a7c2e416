"""Runs in worker processes or in this one, with the same records."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slabnorm import interrupt
from slabnorm.errors import SlabError
from slabnorm.report.study import RunRecord
from slabnorm.study.train import Bench, Run, run_once

REPORT_EVERY = 0.2  # seconds between a worker's reports of its steps

Progress = Callable[[int], None]


def portable(bench: Bench) -> bytes | None:
    """Return a bench as bytes for workers; None if it cannot be pickled.

    A function of `__main__` is not sent, because a worker would have to run the user's script to find it.
    """
    build: Any = bench.build
    while isinstance(build, partial):
        build = build.func
    if getattr(build, "__module__", None) == "__main__" or type(build).__module__ == "__main__":
        return None
    try:
        return pickle.dumps(bench)
    # For what it cannot pickle, pickle raises PicklingError, AttributeError, TypeError and others.
    except Exception:
        return None


def run_here(bench: Bench, runs: list[Run], progress: Progress) -> dict[Run, RunRecord]:
    """Do the runs in this process, one after another."""
    return {run: run_once(bench, run, partial(progress, 1)) for run in runs}


def run_apart(payload: bytes, runs: list[Run], workers: int, progress: Progress) -> dict[Run, RunRecord]:
    """Do the runs in worker processes, and return their records in the order of the runs.

    Args:
        payload: a bench, from `portable`.
        runs: the runs, the longest first, so that no worker is left alone with a long one at the end.
        workers: the number of processes.
        progress: a function to call with the number of steps done since its last call.

    Raises:
        SlabError: a worker died.
    """
    # In a file: what a process is started with goes through a pipe, which holds 64 KiB until the process has
    # imported torch. Until then it was half started, and Ctrl-C had to wait for it, 7 s on a busy machine.
    handle, name = tempfile.mkstemp(prefix="slabnorm-", suffix=".bench")
    with interrupt.temporary(Path(name)) as path:
        os.close(handle)
        path.write_bytes(payload)
        return _run_from_file(path, runs, workers, progress)


def _run_from_file(bench: Path, runs: list[Run], workers: int, progress: Progress) -> dict[Run, RunRecord]:
    context = multiprocessing.get_context("spawn")
    steps = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, start_worker, (bench, steps))
    started: set[Any] = set()
    try:
        with interrupt.held(), starting():
            others = set(multiprocessing.active_children())
            try:
                futures = {pool.submit(run_in_worker, run): run for run in runs}
            finally:
                started = set(multiprocessing.active_children()) - others
        waiting: set[Future[RunRecord]] = set(futures)
        while waiting:
            done, waiting = wait(waiting, REPORT_EVERY, FIRST_COMPLETED)
            while not steps.empty():
                progress(steps.get())
            for future in done:
                future.result()
        return {run: future.result() for future, run in futures.items()}
    except BrokenProcessPool as error:
        raise SlabError(
            "A worker process died",
            "perhaps for lack of memory",
            "run everything in one process with workers=1",
        ) from error
    finally:
        with interrupt.held():
            # A worker that imports torch or compiles does not react for seconds. No worker has anything to
            # lose.
            for process in started:
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def starting() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, and that import nothing from the current folder.

    A process inherits the set of blocked signals, so that only this process ends it. A new interpreter
    searches the current folder first, unless PYTHONSAFEPATH is set.
    """
    safe = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    block = getattr(signal, "pthread_sigmask", None)  # not on Windows
    masked = block(signal.SIG_BLOCK, {signal.SIGINT}) if block else None
    try:
        yield
    finally:
        if block:
            block(signal.SIG_SETMASK, masked)
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe


_bench: Bench
_tick: Ticker


def start_worker(bench: Path, steps: Any) -> None:
    """Prepare a worker process: one thread, the bench, and a thread that ends it with its parent."""
    global _bench, _tick
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        _bench = pickle.loads(bench.read_bytes())
    except FileNotFoundError:  # the parent has ended, and this worker with it
        os._exit(1)
    _tick = Ticker(steps)


def end_with_parent() -> None:
    """End this process when its parent has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_in_worker(run: Run) -> RunRecord:
    """Do a run in a worker."""
    record = run_once(_bench, run, _tick)
    _tick.flush()
    return record


class Ticker:
    """Counts steps in a worker, and reports them every now and then."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps
        self.count, self.last = 0, time.monotonic()

    def __call__(self) -> None:
        self.count += 1
        if time.monotonic() - self.last > REPORT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Report the steps counted since the last report."""
        self.steps.put(self.count)
        self.count, self.last = 0, time.monotonic()
