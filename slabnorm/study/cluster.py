"""The jobs of a study on a Ray cluster: extra `slabnorm[ray]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slabnorm.errors import SlabError
from slabnorm.inputs.engines.cluster import RETRIES, connected


@contextmanager
def cluster(work: Any, workers: int | None, address: str | None) -> Iterator[Cluster]:
    """Keep what the jobs share on a cluster for a block.

    Args:
        work: what all jobs share; functions of modules must be there on every node.
        workers: jobs at once; None for one for every processor of the cluster.
        address: of a cluster; None takes the one that this process is part of, or starts one here.

    Raises:
        ExtraError: Ray is not installed.
        SlabError: `work` cannot travel.
    """
    with connected(address) as ray:
        try:
            shared = ray.put(work)
        # For what it cannot pickle, Ray raises TypeError, PicklingError and others.
        except Exception as error:
            raise SlabError(
                'engine="ray" cannot send the model or the data to its workers',
                f"{type(error).__name__}: {error}",
                "make the model in a function of a module",
            ) from error
        yield Cluster(ray, work, shared, workers or max(1, int(ray.cluster_resources().get("CPU", 1))))


class Cluster:
    """Does jobs on a cluster, a number at a time."""

    def __init__(self, ray: Any, work: Any, shared: Any, at_once: int) -> None:
        self.ray, self.work, self.shared, self.at_once = ray, work, shared, at_once
        self.processes = 1

    def run(
        self, jobs: Sequence[Any], progress: Callable[[int], None], done: Callable[[Any, Any], None]
    ) -> None:
        """Do jobs; the steps of each are reported at its end.

        Raises:
            SlabError: a job ended with one, or its worker died time and again.
        """
        self.processes = max(self.processes, min(self.at_once, len(jobs)))
        remote = self.ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
        pending, waiting = list(reversed(jobs)), dict[Any, Any]()
        try:
            while pending or waiting:
                while pending and len(waiting) < self.at_once:
                    job = pending.pop()
                    waiting[remote.remote(self.shared, job)] = job
                ready, _ = self.ray.wait(list(waiting), num_returns=1)
                job = waiting.pop(ready[0])
                done(job, self._result(ready[0]))
                progress(self.work.steps(job))
        finally:
            for task in waiting:
                self.ray.cancel(task, force=True)

    def _result(self, task: Any) -> Any:
        try:
            found = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            raise SlabError(
                "A Ray worker died, or could not load the model",
                f"{type(error).__name__}: {str(error).splitlines()[-1]}",
                "look at the cluster's logs; every node needs the module of the model, and memory",
            ) from error
        if isinstance(found, SlabError):
            raise found
        return found


def _do(work: Any, job: Any) -> Any:
    # Errors of ours are returned: Ray would wrap what is raised, and retry it.
    try:
        return work.do(job, lambda: None)
    except SlabError as error:
        return error
