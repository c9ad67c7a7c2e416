"""RunningInputNorm.sync: two processes, merged, beside one process that had the batches of both."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import slabnorm as sn
from slabnorm.errors import ShapeError, SlabError, StatisticsError
from tests.inputs.oracle import mean_var, relative

pytestmark = pytest.mark.usefixtures("in_plain_torch")
DATA = torch.from_numpy(
    np.random.default_rng(0).normal(100, 3, (2, 8, 3, 2))
)  # [rank, update, sample, feature]

Work = Callable[[int], dict]


def _run(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.save(work(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_two_processes(work: Work, folder: Path) -> list[dict]:
    """What a function returns in each of two processes that know each other."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_run, args=(rank, work, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def counts(norm: sn.RunningInputNorm, seen: torch.Tensor) -> None:
    for feature, values in enumerate(seen.reshape(-1, 2).numpy().T):
        mean, var = mean_var(values)
        assert norm.moments.count[feature] == len(values)
        assert relative(norm.moments.mean[feature].item(), mean) <= 1e-15
        assert relative(norm.moments.var()[feature].item(), var) <= 1e-14


def _everything(rank: int) -> dict:
    mine, states = DATA[rank], []
    norm = sn.RunningInputNorm("n c -> c")
    if rank == 0:  # the other has seen nothing yet, and does not know its sizes
        norm.update(mine[0], once=["a", "b", "c"])
    norm.sync()
    norm.sync()  # again, with nothing new
    states.append(norm.state_dict())
    assert norm.update(mine[1], once=["c", f"{rank}", f"{rank}"]) == 1  # "c" came in the first process
    norm.update(mine[2])
    norm.sync()
    states.append(norm.state_dict())
    with_more = sn.RunningInputNorm("n c -> c")
    with_more.load_state_dict(states[-1])  # a checkpoint in both processes
    for one in (norm, with_more):
        if rank == 1:
            one.update(mine[3])
        one.sync()
    states += [norm.state_dict(), with_more.state_dict()]
    return {f"{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}


def test_nothing_counts_twice(tmp_path):
    first, second = in_two_processes(_everything, tmp_path)
    assert all(torch.equal(first[key], second[key]) for key in first)  # the same bits everywhere
    once = DATA[0, 0]
    then = torch.cat([once, DATA[0, 1, 1:2], DATA[1, 1, 1:2], DATA[0, 2], DATA[1, 2]])
    for number, seen in enumerate((once, then, torch.cat([then, DATA[1, 3]]), torch.cat([then, DATA[1, 3]]))):
        norm = sn.RunningInputNorm("n c -> c")
        norm.load_state_dict({key.partition(".")[2]: value for key, value in first.items()
                              if key.startswith(f"{number}.")})  # fmt: skip
        counts(norm, seen)
        assert norm.samples == len(seen)
    assert {key: first[f"2.{key}"].tolist() for key in ("seen", "samples")} == {
        key: first[f"3.{key}"].tolist() for key in ("seen", "samples")
    }


def _forgetting(rank: int) -> dict:
    found = {}
    for kind, options in {"window": {"window": 3}, "half_life": {"half_life": 2.0}}.items():
        norm = sn.RunningInputNorm("n c -> c", **options)
        for number, batch in enumerate(DATA[rank]):
            norm.update(batch)
            if number in (1, 2, 6):
                norm.sync()
        norm.sync()
        found |= {f"{kind}.{key}": value for key, value in norm.state_dict().items()}
    return found


def test_forgetting_is_that_of_one_process(tmp_path):
    """Which had the batches of both, one after another."""
    first, second = in_two_processes(_forgetting, tmp_path)
    assert all(torch.equal(first[key], second[key]) for key in first)
    both = DATA.transpose(0, 1).reshape(8, 6, 2)
    for kind, options in {"window": {"window": 3}, "half_life": {"half_life": 2.0}}.items():
        alone, synced = (sn.RunningInputNorm("n c -> c", **options) for _ in range(2))
        for batch in both:
            alone.update(batch)
        synced.load_state_dict({key.partition(".")[2]: value for key, value in first.items()
                                if key.startswith(kind)})  # fmt: skip
        if kind == "window":
            counts(synced, both[-3:])
        for name in ("count", "mean", "min", "max"):
            found, want = (getattr(norm.moments, name) for norm in (synced, alone))
            torch.testing.assert_close(found, want, rtol=1e-15, atol=0)
        torch.testing.assert_close(synced.moments.var(), alone.moments.var(), rtol=1e-13, atol=0)


def _refused(rank: int) -> dict:
    def error(norm: sn.RunningInputNorm) -> str:
        before = norm.state_dict()
        with pytest.raises(SlabError) as raised:
            norm.sync()
        assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
        assert isinstance(raised.value, ShapeError | StatisticsError)
        return raised.value.problem

    found = {}
    norm = sn.RunningInputNorm("n c -> c")
    norm.update(DATA[rank, 0])
    norm.train(rank == 0)
    found["eval"] = error(norm)
    norm.train()
    other = sn.RunningInputNorm("n c -> c")
    other.load_state_dict(norm.state_dict())  # each its own, before a sync
    found["common"] = error(other)
    window = sn.RunningInputNorm("n c -> c", window=2)
    for batch in DATA[rank, : 1 + rank]:
        window.update(batch)
    found["updates"] = error(window)
    found["features"] = error(sn.RunningInputNorm("n c -> c", c=2 + rank))
    found["options"] = error(sn.RunningInputNorm("n c -> c", c=2, window=3 + rank))
    return found


def test_what_cannot_be_merged_is_an_error_in_every_process(tmp_path):
    first, second = in_two_processes(_refused, tmp_path)
    assert first == second
    assert "eval mode" in first["eval"]
    assert "did not have the same statistics" in first["common"]
    assert "the same number of updates" in first["updates"]
    assert "streams of different processes differ" in first["features"]
    assert "streams of different processes differ" in first["options"]


def _in_data_parallel(rank: int) -> dict:
    model = nn.Sequential(sn.RunningInputNorm("n c -> c", c=2, automatic=True), nn.Linear(2, 1).double())
    wrapped = nn.parallel.DistributedDataParallel(model)
    for batch in DATA[rank]:
        wrapped(batch).sum().backward()
    model[0].sync()
    return model[0].state_dict()


def test_data_parallel_does_not_overwrite_what_a_process_has_seen(tmp_path):
    """It sends the first process's buffers to all others before each forward."""
    for state in in_two_processes(_in_data_parallel, tmp_path):
        norm = sn.RunningInputNorm("n c -> c")
        norm.load_state_dict(state)
        counts(norm, DATA)


def _update_beside_data_parallel(rank: int) -> dict:
    norm = sn.RunningInputNorm("n c -> c", c=2)
    wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(norm, nn.Linear(2, 1).double()))
    for batch in DATA[rank]:
        norm.update(batch + 50 * rank)
        wrapped(batch)
    return {"y": norm(DATA[0, 0]), "frozen": norm.freeze()(DATA[0, 0])}


def test_data_parallel_does_not_overwrite_what_a_process_normalises_with(tmp_path):
    for rank, found in enumerate(in_two_processes(_update_beside_data_parallel, tmp_path)):
        seen = DATA[rank].reshape(-1, 2) + 50 * rank
        want = (DATA[0, 0] - seen.mean(0)) / (seen.var(0, correction=0) + 1e-8).sqrt()
        torch.testing.assert_close(found["y"], want, rtol=1e-11, atol=1e-11)
        assert torch.equal(found["y"], found["frozen"])


def test_alone_there_is_nothing_to_do():
    norm = sn.RunningInputNorm("n c -> c")
    norm.update(DATA[0, 0])
    norm.sync()
    counts(norm, DATA[0, 0])
