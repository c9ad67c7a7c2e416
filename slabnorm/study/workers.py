"""Jobs done in worker processes or in this one, with the same records, which a ledger may keep."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from slabnorm import interrupt
from slabnorm.errors import SlabError
from slabnorm.study.ledger import RunLedger, job_key

REPORT_EVERY = 0.2  # seconds between a worker's reports of its steps

Progress = Callable[[int], None]
Done = Callable[[Any, Any], None]


class Work(Protocol):
    """What all jobs of a study share, and how one is done. It travels to the workers by pickle."""

    def do(self, job: Any, tick: Callable[[], None]) -> Any:
        """Do a job and return its record, a dataclass; call `tick` after every step."""

    def steps(self, job: Any) -> int:
        """Return how many steps a job has."""

    def revive(self, kept: dict[str, Any]) -> Any:
        """Return a record from its fields in JSON's types."""


def do_all(
    work: Work,
    jobs: Sequence[Any],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    ledger: RunLedger | None = None,
    shared: str = "",
) -> tuple[dict[Any, Any], int]:
    """Do every job once, and return the records by job, and the number of processes.

    Args:
        work: what all jobs share.
        jobs: frozen dataclasses, whose repr names all that decides their result.
        workers: the number of processes; with 1, or where `work` cannot travel, it is this one.
        progress: a function to call with the number of steps since its last call, and of all steps.
        ledger: keeps the records of the jobs that are done, and gives those that it has.
        shared: a digest of all else that decides the results; with a ledger.
    """
    every = list(dict.fromkeys(jobs))
    records: dict[Any, Any] = {}
    if ledger is not None:
        for job in every:
            kept = ledger.get(job_key(shared, job))
            if kept is not None:
                records[job] = work.revive(kept)
    # The longest first, so that no worker is left alone with a long one at the end. Records are looked up by
    # job, so that the order in which they arrive does not matter.
    left = sorted((job for job in every if job not in records), key=work.steps, reverse=True)
    total = sum(map(work.steps, every))

    def report(steps: int) -> None:
        if progress is not None:
            progress(steps, total)

    def done(job: Any, record: Any) -> None:
        records[job] = record
        if ledger is not None:
            ledger.put(job_key(shared, job), asdict(record))

    report(sum(map(work.steps, records)))
    payload = portable(work) if workers > 1 and len(left) > 1 else None
    if payload is None:
        run_here(work, left, report, done)
        return {job: records[job] for job in every}, 1
    workers = min(workers, len(left))
    run_apart(payload, left, workers, report, done)
    return {job: records[job] for job in every}, workers


def portable(work: Any) -> bytes | None:
    """Return work as bytes for workers; None if it cannot be pickled.

    A function of `__main__` is not sent, because a worker would have to run the user's script to find it.
    """
    build: Any = getattr(work, "build", None)
    while isinstance(build, partial):
        build = build.func
    if getattr(build, "__module__", None) == "__main__" or type(build).__module__ == "__main__":
        return None
    try:
        return pickle.dumps(work)
    # For what it cannot pickle, pickle raises PicklingError, AttributeError, TypeError and others.
    except Exception:
        return None


def run_here(work: Work, jobs: Sequence[Any], progress: Progress, done: Done) -> None:
    """Do the jobs in this process, one after another."""
    for job in jobs:
        done(job, work.do(job, partial(progress, 1)))


def run_apart(payload: bytes, jobs: Sequence[Any], workers: int, progress: Progress, done: Done) -> None:
    """Do the jobs in worker processes.

    Args:
        payload: work, from `portable`.
        jobs: the jobs, the longest first.
        workers: the number of processes.
        progress: a function to call with the number of steps done since its last call.
        done: a function to call with each job and its record.

    Raises:
        SlabError: a worker died.
    """
    # In a file: what a process is started with goes through a pipe, which holds 64 KiB until the process has
    # imported torch. Until then it was half started, and Ctrl-C had to wait for it, 7 s on a busy machine.
    handle, name = tempfile.mkstemp(prefix="slabnorm-", suffix=".work")
    with interrupt.temporary(Path(name)) as path:
        os.close(handle)
        path.write_bytes(payload)
        _run_from_file(path, jobs, workers, progress, done)


def _run_from_file(work: Path, jobs: Sequence[Any], workers: int, progress: Progress, done: Done) -> None:
    context = multiprocessing.get_context("spawn")
    steps = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, start_worker, (work, steps))
    started: set[Any] = set()
    try:
        with interrupt.held(), starting():
            others = set(multiprocessing.active_children())
            try:
                futures = {pool.submit(run_in_worker, job): job for job in jobs}
            finally:
                started = set(multiprocessing.active_children()) - others
        waiting: set[Future[Any]] = set(futures)
        while waiting:
            ended, waiting = wait(waiting, REPORT_EVERY, FIRST_COMPLETED)
            while not steps.empty():
                progress(steps.get())
            for future in ended:
                done(futures[future], future.result())
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


_work: Work
_tick: Ticker


def start_worker(work: Path, steps: Any) -> None:
    """Prepare a worker process: one thread, the work, and a thread that ends it with its parent."""
    global _work, _tick
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        _work = pickle.loads(work.read_bytes())
    except FileNotFoundError:  # the parent has ended, and this worker with it
        os._exit(1)
    _tick = Ticker(steps)


def end_with_parent() -> None:
    """End this process when its parent has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_in_worker(job: Any) -> Any:
    """Do a job in a worker."""
    record = _work.do(job, _tick)
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
