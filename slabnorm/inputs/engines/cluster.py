"""Workers on a Ray cluster: extra `slabnorm[ray]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slabnorm.errors import DataError, SlabError
from slabnorm.extras import extra
from slabnorm.inputs.accumulator import Counting, count_shard
from slabnorm.inputs.shard_statistics import Tally
from slabnorm.inputs.sketch import Bounds
from slabnorm.inputs.sources.base import Shard

RETRIES = 5  # times that a shard whose worker died is counted anew


def run(
    shards: Sequence[Shard],
    counting: Counting,
    bounds: Bounds,
    workers: int | None,
    address: str | None,
) -> Iterator[tuple[Shard, Tally]]:
    """Yield the tally of every shard, in the order in which they are done.

    Args:
        shards: what to count; every node must be able to read them.
        counting: how.
        bounds: what the tallies so far have pushed out.
        workers: shards at once; None for two for every processor of the cluster.
        address: of a cluster; None takes the one that this process is part of, or starts one here.

    Raises:
        ExtraError: Ray is not installed.
        DataError: what counting a shard raises, or a worker that died time and again.
    """
    with connected(address) as ray:
        at_once = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield from _run(ray, shards, counting, bounds, at_once)


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Yield Ray, connected to a cluster; what was started for it is stopped afterwards.

    Args:
        address: of a cluster; None takes the one that this process is part of, or starts one here.

    Raises:
        ExtraError: Ray is not installed.
    """
    ray = extra("ray", 'engine="ray"', "'slabnorm[ray]'")
    started = not ray.is_initialized()
    if started:
        quiet: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
        ray.init(address=address, **({"log_to_driver": False} if address else quiet))
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _run(
    ray: Any, shards: Sequence[Shard], counting: Counting, bounds: Bounds, at_once: int
) -> Iterator[tuple[Shard, Tally]]:
    count = ray.remote(num_cpus=1, max_retries=RETRIES)(_count)
    shared = ray.put(counting)
    pending = list(reversed(shards))
    waiting: dict[Any, Shard] = {}
    while pending or waiting:
        while pending and len(waiting) < at_once:
            shard = pending.pop()
            waiting[count.remote(shard, shared, bounds)] = shard
        done, _ = ray.wait(list(waiting), num_returns=1)
        shard = waiting.pop(done[0])
        try:
            found = ray.get(done[0])
        except ray.exceptions.RayError as error:
            raise DataError(
                f"{RETRIES + 1} Ray workers died while they read {shard.name}",
                type(error).__name__,
                "look at the cluster's logs: a worker may need more memory than its node has",
            ) from error
        if isinstance(found, SlabError):
            raise found
        yield shard, Tally.from_bytes(found)


def _count(shard: Shard, counting: Counting, bounds: Bounds) -> bytes | SlabError:
    # Errors of ours are returned: Ray would wrap what is raised, and retry it.
    try:
        return count_shard(shard, counting, bounds).to_bytes()
    except SlabError as error:
        return error
