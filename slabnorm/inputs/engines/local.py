"""The workers of one machine: threads, or processes for a data set whose reading is Python code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from multiprocessing import get_context

from slabnorm.errors import DataError, OptionError
from slabnorm.inputs.accumulator import Counting, count_shard
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sketch import Bounds
from slabnorm.inputs.sources.base import Shard


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    shards: Sequence[Shard],
    counting: Counting,
    bounds: Bounds,
    workers: int,
    memory: int | None,
    processes: bool = False,
) -> Iterator[tuple[Shard, Tally]]:
    """Yield the tally of every shard, in the order in which they are done.

    Args:
        shards: what to count.
        counting: how.
        bounds: what the tallies so far have pushed out; it may grow tighter meanwhile.
        workers: how many at once.
        memory: bytes that the shards being read may take together; None for no bound.
        processes: whether the workers are processes rather than threads.

    Raises:
        DataError: what counting a shard raises; of several, that of the first shard.
    """
    if processes:
        _check_pickle(shards)
    elif workers == 1:
        for shard in shards:
            yield shard, _count(shard, counting, bounds)
        return
    with _pool(workers, processes) as pool:
        waiting: dict[Future[Tally], Shard] = {}
        try:
            yield from _submitted(pool, shards, counting, bounds, workers, memory, waiting)
        except BrokenExecutor as error:
            raise DataError(
                "A worker process died",
                str(error),
                "it may have run out of memory, or the data set's own code ends it; try workers=1",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _submitted(
    pool: Executor,
    shards: Sequence[Shard],
    counting: Counting,
    bounds: Bounds,
    workers: int,
    memory: int | None,
    waiting: dict[Future[Tally], Shard],
) -> Iterator[tuple[Shard, Tally]]:
    pending = list(reversed(shards))
    held = 0
    while pending or waiting:
        # One more than there are workers, so that none waits for this thread.
        while pending and len(waiting) <= workers:
            if waiting and memory is not None and held + pending[-1].memory > memory:
                break
            shard = pending.pop()
            held += shard.memory
            waiting[pool.submit(_count, shard, counting, bounds)] = shard
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        failed = [future for future in done if future.exception() is not None]
        if failed:
            _raise_first(failed, waiting)
        for future in sorted(done, key=lambda future: waiting[future].number):
            shard = waiting.pop(future)
            held -= shard.memory
            yield shard, future.result()


def _raise_first(failed: list[Future[Tally]], waiting: dict[Future[Tally], Shard]) -> None:
    """Raise the error of the first shard that fails, whichever worker was faster."""
    least = min(waiting[future].number for future in failed)
    earlier = [future for future, shard in waiting.items() if shard.number <= least]
    wait(earlier)
    for future in sorted(earlier, key=lambda future: waiting[future].number):
        future.result()


def _check_pickle(shards: Sequence[Shard]) -> None:
    try:
        pickle.dumps(shards[:1])
    except Exception as error:  # pickling runs the code of what is pickled
        raise OptionError(
            f"{shards[0].name} cannot be pickled, as data that worker processes read must be",
            str(error),
            "define its class in a module, or read it with workers=1",
        ) from error


def _pool(workers: int, processes: bool) -> Executor:
    if processes:
        # Spawned, not forked: a fork of a process with threads may hang.
        return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    return ThreadPoolExecutor(workers, thread_name_prefix="slabnorm")


def _count(shard: Shard, counting: Counting, bounds: Bounds) -> Tally:
    with plain_tensors():
        return count_shard(shard, counting, bounds)
