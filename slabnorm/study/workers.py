"""Runs in worker processes, or in this one; the records are the same."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from os import _exit
from typing import Any

import torch

from slabnorm.errors import SlabError
from slabnorm.report.records import RunRecord
from slabnorm.study.train import Bench, Run, run_once

REPORT_EVERY = 0.2  # seconds between a worker's reports of its steps

Progress = Callable[[int], None]


class Stopped(BaseException):
    """The study was interrupted; no error of the run's own."""


def portable(bench: Bench) -> bytes | None:
    """Return a bench as bytes for workers, or None where it cannot travel.

    A function of `__main__` is not sent: a worker would have to run the user's script to find it.
    """
    build: Any = bench.build
    while isinstance(build, partial):
        build = build.func
    if getattr(build, "__module__", None) == "__main__" or type(build).__module__ == "__main__":
        return None
    try:
        return pickle.dumps(bench)
    # pickle raises PicklingError, AttributeError, TypeError, ... for what it cannot take.
    except Exception:
        return None


def run_here(bench: Bench, runs: list[Run], progress: Progress) -> dict[Run, RunRecord]:
    """Do the runs one after the other in this process."""
    return {run: run_once(bench, run, partial(progress, 1)) for run in runs}


def run_apart(payload: bytes, runs: list[Run], workers: int, progress: Progress) -> dict[Run, RunRecord]:
    """Do the runs in worker processes, in the order given, and return them as they were asked for.

    Args:
        payload: a bench, from `portable`.
        runs: the longest first, so that no worker is left alone with it at the end.
        workers: how many processes.
        progress: called here with numbers of steps done.

    Raises:
        SlabError: a worker died.
    """
    context = multiprocessing.get_context("spawn")
    stop, steps = context.Event(), context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, start_worker, (payload, stop, steps))
    try:
        with interrupts_ignored():
            futures = {pool.submit(run_in_worker, run): run for run in runs}
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
            "every worker lives to the end of its runs",
            "a worker process died, perhaps for lack of memory",
            "--workers 1 runs all in one process",
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Start processes that ignore Ctrl-C from their first moment: it is this process that stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_bench: Bench
_tick: Ticker


def start_worker(payload: bytes, stop: Any, steps: Any) -> None:
    """Prepare a worker process: one thread, the bench, and an end when the parent ends."""
    global _bench, _tick
    torch.set_num_threads(1)
    _bench = pickle.loads(payload)
    _tick = Ticker(stop, steps)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Leave when the parent is gone, even if it was killed; otherwise a worker would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _exit(1)


def run_in_worker(run: Run) -> RunRecord:
    """Do one run in a worker."""
    record = run_once(_bench, run, _tick)
    _tick.flush()
    return record


class Ticker:
    """Counts steps in a worker, reports them now and then, and ends the run when told to stop."""

    def __init__(self, stop: Any, steps: Any) -> None:
        self.stop, self.steps = stop, steps
        self.count, self.last = 0, time.monotonic()

    def __call__(self) -> None:
        self.count += 1
        if time.monotonic() - self.last > REPORT_EVERY:
            self.flush()
            if self.stop.is_set():
                raise Stopped

    def flush(self) -> None:
        """Report the steps counted since the last report."""
        self.steps.put(self.count)
        self.count, self.last = 0, time.monotonic()
