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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from slabnorm import interrupt
from slabnorm.errors import SlabError
from slabnorm.study.ledger import RunLedger, job_key
from slabnorm.study.models import parts_of

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


class Engine(Protocol):
    """Does jobs, wherever that is."""

    @property
    def processes(self) -> int:
        """How many jobs it has done at a time."""

    def run(self, jobs: Sequence[Any], progress: Progress, done: Done) -> None:
        """Do jobs, the longest of which come first; report steps, and each job with its record."""


@contextmanager
def team(
    work: Work,
    workers: int | None,
    engine: str = "local",
    address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    ledger: RunLedger | None = None,
    shared: str = "",
    log: Callable[[Any, bool], None] | None = None,
) -> Iterator[Team]:
    """Gather what does the jobs of a study; it goes home at the end of the block.

    Args:
        work: what all jobs share.
        workers: the number of processes; with 1 or None, or where `work` cannot travel, it is this one. On a
            cluster, the number of jobs at a time; with None, one for every processor.
        engine: "local", or "ray" for a cluster.
        address: of the cluster.
        progress: a function to call with the number of steps since its last call, and of all steps.
        ledger: keeps the records of the jobs that are done, and gives those that it has.
        shared: a digest of all else that decides the results; with a ledger.
        log: a function to call with each record as it comes, and whether it comes from the ledger.
    """
    with ExitStack() as stack:
        hands: Engine
        count = workers or 1
        payload = portable(work) if count > 1 and engine == "local" else None
        if engine == "ray":
            from slabnorm.study.cluster import cluster

            hands = stack.enter_context(cluster(work, workers, address))
        elif payload is None:
            hands = Here(work)
        else:
            hands = stack.enter_context(processes(work, payload, count))
        yield Team(work, hands, progress, ledger, shared, log)


class Team:
    """Does jobs in one phase after another, each job once, and keeps the records."""

    def __init__(
        self,
        work: Work,
        hands: Engine,
        progress: Callable[[int, int], None] | None,
        ledger: RunLedger | None,
        shared: str,
        log: Callable[[Any, bool], None] | None,
    ) -> None:
        self.work, self.hands, self.progress, self.log = work, hands, progress, log
        self.ledger, self.shared = ledger, shared
        self.records: dict[Any, Any] = {}
        self.asked = self.expected = 0  # steps: of all jobs so far, and of those that are known to come

    @property
    def processes(self) -> int:
        """How many jobs were done at a time."""
        return self.hands.processes

    def expect(self, jobs: Sequence[Any]) -> None:
        """Count jobs of later phases among all steps."""
        self.expected = self.asked + sum(map(self.work.steps, dict.fromkeys(jobs)))

    def do(self, jobs: Sequence[Any]) -> dict[Any, Any]:
        """Return the records of jobs, in the order given.

        Args:
            jobs: frozen dataclasses, whose repr names all that decides their result.
        """
        every = list(dict.fromkeys(jobs))
        fresh = [job for job in every if job not in self.records]
        self.asked += sum(map(self.work.steps, fresh))
        self._report(sum(self.work.steps(job) for job in fresh if self._recall(job)))
        # The longest first, so that no worker is left alone with a long one at the end. Records are looked
        # up by job, so that the order in which they arrive does not matter.
        left = sorted((job for job in fresh if job not in self.records), key=self.work.steps, reverse=True)
        if left:
            self.hands.run(left, self._report, self._done)
        return {job: self.records[job] for job in every}

    def _recall(self, job: Any) -> bool:
        """Take the record of a job from the ledger; return whether it was there."""
        kept = None if self.ledger is None else self.ledger.get(job_key(self.shared, job))
        if kept is not None:
            self.records[job] = self.work.revive(kept)
            if self.log is not None:
                self.log(self.records[job], True)
        return kept is not None

    def _report(self, steps: int) -> None:
        if self.progress is not None:
            self.progress(steps, max(self.asked, self.expected))

    def _done(self, job: Any, record: Any) -> None:
        self.records[job] = record
        if self.log is not None:
            self.log(record, False)
        if self.ledger is not None and getattr(record, "status", "") != "failed":  # it may not fail again
            self.ledger.put(job_key(self.shared, job), asdict(record))


def portable(work: Any) -> bytes | None:
    """Return work as bytes for workers; None if it cannot be pickled.

    A function of `__main__` is not sent, because a worker would have to run the user's script to find it.
    """
    if any(
        getattr(part, "__module__", None) == "__main__" for part in parts_of(getattr(work, "build", None))
    ):
        return None
    try:
        return pickle.dumps(work)
    # For what it cannot pickle, pickle raises PicklingError, AttributeError, TypeError and others.
    except Exception:
        return None


class Here:
    """Does jobs in this process, one after another."""

    processes = 1

    def __init__(self, work: Work) -> None:
        self.work = work

    def run(self, jobs: Sequence[Any], progress: Progress, done: Done) -> None:
        """Do jobs."""
        for job in jobs:
            done(job, self.work.do(job, partial(progress, 1)))


@contextmanager
def processes(work: Work, payload: bytes, workers: int) -> Iterator[Processes]:
    """Keep worker processes for a block: they start with the first jobs.

    Args:
        work: what all jobs share.
        payload: the same as bytes, from `portable`.
        workers: the number of processes.
    """
    # In a file: what a process is started with goes through a pipe, which holds 64 KiB until the process has
    # imported torch. Until then it was half started, and Ctrl-C had to wait for it, 7 s on a busy machine.
    handle, name = tempfile.mkstemp(prefix="slabnorm-", suffix=".work")
    with interrupt.temporary(Path(name)) as path:
        os.close(handle)
        path.write_bytes(payload)
        pool = Processes(work, path, workers)
        try:
            yield pool
        finally:
            pool.stop()


class Processes:
    """Does jobs in worker processes, which stay for later jobs."""

    def __init__(self, work: Work, path: Path, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.work, self.workers, self.processes = work, workers, 1
        self.steps = context.SimpleQueue()
        self.pool = ProcessPoolExecutor(workers, context, start_worker, (path, self.steps))
        self.started: set[Any] = set()

    def run(self, jobs: Sequence[Any], progress: Progress, done: Done) -> None:
        """Do jobs; a single one is not worth starting a process.

        Raises:
            SlabError: a worker died.
        """
        if len(jobs) == 1 and not self.started:
            Here(self.work).run(jobs, progress, done)
            return
        self.processes = max(self.processes, min(self.workers, len(jobs)))
        try:
            waiting: set[Future[Any]] = set(futures := self._submit(jobs))
            while waiting:
                ended, waiting = wait(waiting, REPORT_EVERY, FIRST_COMPLETED)
                while not self.steps.empty():
                    progress(self.steps.get())
                for future in ended:
                    done(futures[future], future.result())
        except BrokenProcessPool as error:
            raise SlabError(
                "A worker process died",
                "perhaps for lack of memory",
                "run everything in one process with workers=1",
            ) from error

    def _submit(self, jobs: Sequence[Any]) -> dict[Future[Any], Any]:
        with interrupt.held(), starting():
            others = set(multiprocessing.active_children()) - self.started
            try:
                return {self.pool.submit(run_in_worker, job): job for job in jobs}
            finally:
                self.started = set(multiprocessing.active_children()) - others

    def stop(self) -> None:
        """End the workers, whatever they are doing."""
        with interrupt.held():
            # A worker that imports torch or compiles does not react for seconds. No worker has anything to
            # lose.
            for process in self.started:
                process.terminate()
            self.pool.shutdown(wait=True, cancel_futures=True)


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
