"""Engines: whoever counts, and however often workers die, the bytes are the same."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from slabnorm.errors import DataError, ExtraError, OptionError, SlabError
from slabnorm.inputs import fit, save
from slabnorm.inputs.accumulator import count_shard, group_shards
from slabnorm.inputs.engines import cluster, local
from slabnorm.inputs.fitting import Opened
from slabnorm.inputs.shard_statistics import TallyTree
from slabnorm.inputs.sketch import Bounds
from slabnorm.inputs.sources import Source, open_source
from slabnorm.inputs.sources.memory import ArrayShard
from slabnorm.inputs.sources.npy import NpyShard, NpySource
from slabnorm.study import compare
from tests.inputs.chunking import small
from tests.study import small as studies

DATA = (np.random.default_rng(6).standard_normal((4000, 6)) + 1e4).astype(np.float32)


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "train.npy"
    np.save(path, DATA)
    return path


def shards_of(path: Path) -> Source:
    """Open the table as 7 shards of 640 rows, each of 16 chunks of 40."""
    return small(path, 240)


def artifact(norm, path: Path) -> bytes:
    save(norm, path)
    return path.read_bytes()


class Rows(Dataset):
    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(DATA[row])


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("memory", [None, 1, 40_000_000])
def test_threads(table, tmp_path, workers, memory):
    one = artifact(fit(shards_of(table), split="train", workers=1), tmp_path / "one")
    assert (
        artifact(fit(shards_of(table), split="train", workers=workers, memory=memory), tmp_path / "many")
        == one
    )


def test_processes_for_a_data_set(tmp_path):
    # Its rows are read one by one, by Python code of its own, which a thread more would not speed up.
    one = fit(Rows(), split="train", workers=1)
    two = fit(Rows(), split="train", workers=2)
    assert artifact(one, tmp_path / "one") == artifact(two, tmp_path / "two")
    assert torch.equal(one.moments.m2, fit(DATA, split="train").moments.m2)


def test_what_cannot_be_sent_to_processes():
    class Local(Rows):
        pass

    with pytest.raises(OptionError, match=r"pickled(.|\n)*workers=1"):
        fit(Local(), split="train", workers=2)


@dataclass(frozen=True)
class Broken(ArrayShard):
    """Breaks at once, or later than others."""

    def blocks(self):
        time.sleep(0.1 if self.number == 2 else 0)
        if self.number in (2, 3):
            raise DataError("a shard is whole", f"shard {self.number}")
        yield from super().blocks()


def test_the_first_error_is_the_one_that_is_told(monkeypatch, table):
    shards = [Broken(i, f"part {i}", first=10 * i, samples=10, array=DATA) for i in range(8)]
    monkeypatch.setattr(NpySource, "shards", lambda self: shards)
    for workers in (1, 2, 4):
        with pytest.raises(DataError, match="shard 2"):
            fit(shards_of(table), split="train", workers=workers)


def test_no_more_shards_at_once_than_memory_allows(monkeypatch, table):
    inside, most = [], []

    @dataclass(frozen=True)
    class Watched(NpyShard):
        def blocks(self):
            inside.append(self)
            most.append(len(inside))
            try:
                time.sleep(0.01)
                yield from super().blocks()
            finally:
                inside.remove(self)

    real = NpySource.shards
    watched = lambda self: [Watched(**vars(shard) | {"memory": 100}) for shard in real(self)]  # noqa: E731
    monkeypatch.setattr(NpySource, "shards", watched)
    fit(shards_of(table), split="train", workers=4, memory=250)
    assert max(most) == 2
    most.clear()
    fit(shards_of(table), split="train", workers=4)
    assert max(most) == 4


def test_options():
    for options, words in [
        ({"workers": 0}, "workers must be an integer"),
        ({"workers": True}, "workers must be an integer"),
        ({"memory": -1}, "memory must be an integer"),
        ({"engine": "spark"}, '"local" or "ray"'),
    ]:
        with pytest.raises(OptionError, match=words):
            fit(DATA, split="train", **options)


def test_ray_is_an_extra(monkeypatch, table):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ExtraError, match=r"slabnorm\[ray\]"):
        fit(shards_of(table), split="train", engine="ray")


unsendable = threading.Lock()


def deadly(shard, counting, bounds):
    """Count, once the marked shard's first worker has died."""
    mark = Path(shard.path).with_name("died")
    if shard.number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return count_shard(shard, counting, bounds).to_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is an extra")
@pytest.mark.filterwarnings("ignore:.*nearly constant between quantiles:slabnorm.errors.DataWarning")
def test_ray_and_a_worker_that_is_killed(table, tmp_path, monkeypatch):
    import ray

    one = artifact(fit(shards_of(table), "robust", split="train", workers=1), tmp_path / "one")
    # Pickled by value: the workers do not know this module.
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["deadly"]))
    started, stop = [], ray.shutdown  # Ray takes up to 20 s to start: once is enough
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_count", deadly)
        patch.setattr(ray, "shutdown", lambda: started.append(ray.is_initialized()))
        assert artifact(fit(shards_of(table), "robust", split="train", engine="ray"), tmp_path / "ray") == one
    try:
        assert (tmp_path / "died").exists()
        assert started == [True]  # it stops what it has started
        DATA[3999, 1] = np.nan
        np.save(table, DATA)
        with pytest.raises(DataError, match="nan at row 3999, c=1"):
            fit(shards_of(table), split="train", engine="ray")
        assert ray.is_initialized()  # it leaves running what it has found running
        # A study, too, here rather than in a file of its own: Ray need not start twice.
        ray.cloudpickle.register_pickle_by_value(studies)
        quick = {"norms": ["none", "batch"], "batch_sizes": [8], "seeds": 2, "epochs": 1, "schemes": ()}
        local, far = (compare(studies.tiny, studies.table(), **quick, engine=e) for e in ("local", "ray"))
        here, there = ([replace(run, seconds_per_step=None) for run in study.runs] for study in (local, far))
        assert here == there
        with pytest.raises(SlabError, match="cannot send the model"):
            compare(lambda norm: unsendable and studies.tiny(norm), studies.table(), **quick, engine="ray")
    finally:
        DATA[3999, 1] = 1e4
        stop()


def test_cores():
    assert 1 <= local.cores() <= os.cpu_count()


@dataclass(frozen=True)
class Torn(ArrayShard):
    """Breaks after its samples have been counted."""

    def blocks(self):
        yield from super().blocks()
        raise DataError("a shard is whole", "torn")


def test_a_shard_that_breaks_pushes_nothing_out(monkeypatch, table, tmp_path):
    source = open_source(DATA)
    counting = Opened(source).counting("n c -> c", {}, sketch_size=4, positions=4, skip_bad=True)
    whole, torn = (kind(0, "part", samples=len(DATA), array=DATA) for kind in (ArrayShard, Torn))
    wanted = count_shard(whole, counting).sketch.bound
    bounds = Bounds()
    tally = count_shard(torn, counting, bounds)
    assert (tally.samples, tally.skipped, bounds) == (0, (("part", "a shard is whole: torn"),), Bounds())
    assert count_shard(whole, counting, bounds).sketch.bound == wanted
    assert bounds == Bounds()
    bounds.live = True
    count_shard(whole, counting, bounds)
    assert wanted <= bounds.hash < 1 << 64
    seen = []
    for options in ({}, {"skip_bad": True}, {"ledger": tmp_path / "ledger"}):
        real = local.count_shard
        with monkeypatch.context() as patch:
            patch.setattr(local, "count_shard", lambda *a, real=real: seen.append(a[2].live) or real(*a))
            fit(shards_of(table), split="train", workers=1, **options)
    assert sorted({*seen[:7]}) == [True]
    assert not any(seen[7:])


@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 6, 7])
def test_groups_of_shards_give_the_same_bytes(table, tasks):
    opened = Opened(shards_of(table))
    counting = opened.counting("n c -> c", {}, positions=64)
    tallies = []
    for shards in (opened.shards, group_shards(opened.shards, tasks)):
        tree = TallyTree()
        for number, shard in enumerate(shards):
            assert shard.number == number
            tree.add(number, count_shard(shard, counting, tree.bounds))
        tallies.append(tree.whole().to_bytes())
    assert len(shards) <= tasks
    assert all(shard.fingerprint for shard in shards)
    assert tallies[0] == tallies[1]
