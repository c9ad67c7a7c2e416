"""watch(): what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import math
import multiprocessing
import sys
from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from slabnorm.doctor.watch import MOST_LOOKS, NUMBERS
from slabnorm.errors import ModelError, OptionError


def network(*first: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*first, nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def x(samples: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))


def steps(model: nn.Module, count: int = 3, forwards: int = 1, rate: float = 0.01) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for step in range(count):
        optimizer.zero_grad()
        for part in range(forwards):
            model(x(seed=7 * step + part)).square().mean().backward()
        optimizer.step()


def hooks_of(model: nn.Module) -> int:
    counts = (len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return sum(counts) + len(_global_optimizer_post_hooks)


def test_numbers_are_those_of_the_input():
    model = network()
    with sn.watch(model, every=1) as record:
        steps(model, 1, rate=0.0)
    track = record.tracks["1"]
    given = network()[0](x().double().float()).detach().double()  # the same weights
    assert track.mean[0] == pytest.approx(float(given.mean()), abs=1e-6)
    assert track.spread[0] == pytest.approx(float(given.var(0, correction=0).mean().sqrt()), rel=1e-5)
    # Running statistics start at mean 0 and variance 1; the noise of the batch's mean is taken off.
    apart = (given.mean(0).square() / (1 + 1e-5)).mean()
    noise = (given.var(0, correction=0) / (1 + 1e-5)).mean() / 32
    assert track.stale[0] == pytest.approx(math.sqrt(max(0.0, float(apart - noise))), abs=1e-6)
    assert track.gradient[0] == pytest.approx(float(model[1].weight.grad.norm()), rel=1e-5)
    assert math.isnan(track.flat[0])
    assert math.isnan(track.dead[0])


def test_dead_and_flat_shares_are_counted():
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-9.0, -9.0, 9, 9, 9, 9, 9, 9]))
        model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([9.0, 9, 9, -9, -9, -9, 0, 0]))
    with sn.watch(model, every=1) as record:
        steps(model, 1, rate=0.0)
    assert record.tracks["2"].dead[0] == pytest.approx(0.25)
    # Below a hundredth of its largest derivative from 4 s (1 - s) < 0.01 on: |x| > 5.98.
    assert record.tracks["4"].flat[0] == pytest.approx(0.75)


def test_every_kth_step_is_looked_at():
    model = network()
    with sn.watch(model, every=4) as record:
        steps(model, 10)
    assert record.steps == 10
    assert record.looks == [0, 4, 8]
    assert all(len(track.mean) == 3 for track in record.tracks.values())
    assert record.passes == {1: 10}
    assert record.updates == {"1": 1}
    assert record.healthy
    assert str(record).startswith("10 steps, 3 of them looked at")


def test_steps_of_other_models_do_not_count():
    model, other = network(), network()
    with sn.watch(model, every=1) as record:
        steps(other, 2)
        steps(model, 3)
    assert record.steps == 3


def test_a_forgotten_eval_is_counted():
    model = network()
    with sn.watch(model) as record:
        steps(model)
        with torch.no_grad():
            model(x())
            model(x())
    assert record.without_gradients == {"1": 2}
    assert [finding.code for finding in record.findings] == [101]


def test_an_evaluation_in_eval_mode_is_healthy_with_gradients_too():
    model = network()
    with sn.watch(model) as record:
        steps(model)
        model.eval()
        model(x())  # nobody turned gradients off
        model.train()
        steps(model)
    assert record.in_eval == {}
    assert record.healthy


def test_training_in_eval_mode_is_counted_unless_it_is_frozen():
    model = network().eval()
    with sn.watch(model) as record:
        steps(model)
    assert record.in_eval == {"1": 3}
    assert [finding.code for finding in record.findings] == [102]

    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    frozen = network()
    frozen[1] = Frozen(8)
    with sn.watch(frozen.train()) as record:
        steps(frozen)
    assert record.in_eval == {}
    assert record.healthy


def test_a_parent_may_freeze_its_norms():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def train(self, mode: bool = True) -> Net:
            super().train(mode)
            self.body[1].eval()
            return self

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    model = Net().train()
    modes = [module.training for module in model.modules()]
    with sn.watch(model) as record:
        steps(model)
    assert record.in_eval == {}
    assert record.healthy
    assert [module.training for module in model.modules()] == modes


def test_an_encoder_that_follows_another_one_does_without_gradients_on_purpose():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = network(), network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                key = self.key(x)
            return self.query(x) - key

    model = Pair()
    with sn.watch(model) as record:
        steps(model)
    assert record.without_gradients == {}
    assert record.healthy
    with sn.watch(model) as record, torch.no_grad():
        model(x())
    assert record.without_gradients == {"query.1": 1, "key.1": 1}


def test_accumulated_forwards_are_counted():
    model = network()
    with sn.watch(model) as record:
        steps(model, 4, forwards=3)
    assert record.samples == 32
    assert record.passes == {3: 4}
    assert record.updates == {"1": 3}
    assert [finding.code for finding in record.findings] == [307]  # and not 205: each forward is one update


def test_the_parts_of_a_virtual_batch_are_one_forward(in_plain_torch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sn.watch(model) as record:
        for _ in range(4):
            optimizer.zero_grad()
            sn.virtual_batch(model, x().split(4), lambda model, part: model(part).square().sum() / 32)
            optimizer.step()
    assert record.passes == {1: 4}
    assert record.updates == {"1": 1}
    assert record.healthy


class Checkpointed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), norm, nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(self.norm, self.first(x), use_reentrant=False))


def test_a_recomputed_forward_counts_twice_in_torch_and_once_here(in_plain_torch):
    theirs, ours = Checkpointed(nn.BatchNorm1d(8)), Checkpointed(sn.BatchNorm(8))
    with sn.watch(theirs) as record:
        steps(theirs)
    assert record.updates == {"norm": 2}
    assert [finding.code for finding in record.findings] == [205]
    with sn.watch(ours) as record:
        steps(ours)
    assert record.updates == {"norm": 1}
    assert record.healthy


def test_the_step_of_the_damage_is_told():
    model = network()
    with sn.watch(model, every=1) as record:
        steps(model, 2)
        model(x() * math.inf)
        steps(model, 1)
    assert record.first_bad == {"1": 2}
    assert record.findings[0].code == 201
    assert dict(record.findings[0].numbers) == {"step": 2}


def test_hooks_are_removed_after_an_exception():
    model = network()
    before = hooks_of(model)

    def interrupted() -> None:
        with sn.watch(model):
            steps(model, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert hooks_of(model) == before
    with pytest.raises(RuntimeError), sn.watch(model) as record:
        model(torch.randn(2, 5))
    assert hooks_of(model) == before
    assert record.steps == 0


def test_nested_watches_count_each_for_itself():
    model = network()
    before = hooks_of(model)
    with sn.watch(model, every=1) as outer:
        steps(model, 2)
        with sn.watch(model, every=1) as inner:
            steps(model, 3)
        steps(model, 1)
    assert (outer.steps, inner.steps) == (6, 3)
    assert hooks_of(model) == before


def test_training_is_the_same_as_without():
    alone, seen = network(nn.Dropout(0.1)), network(nn.Dropout(0.1))
    torch.manual_seed(1)
    steps(alone, 4)
    torch.manual_seed(1)
    with sn.watch(seen, every=2):
        steps(seen, 4)
    for (name, a), b in zip(alone.state_dict().items(), seen.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models_are_refused(in_place):
    model = network()
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with pytest.raises(ModelError, match="hides its layers"), sn.watch(model):
        pass


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_compiled_parts_are_named():
    model = network()
    model[1] = torch.compile(model[1], backend="eager")
    model[2].compile(backend="eager")
    model[1].requires_grad_(False)
    with sn.watch(model, every=1) as record:
        steps(model)
    assert record.compiled == ["1", "2"]
    assert "hidden from hooks: '1' and '2'" in record.notes[0]
    assert len(record.notes) == 1
    assert record.notes[0] in str(record)
    assert record.as_dict()["notes"] == record.notes
    seen = {name for name, track in record.tracks.items() if math.isfinite(track.mean[0])}
    assert seen == {"0", "3"}
    assert [(found.code, found.layer) for found in record.findings] == [(103, "1._orig_mod")]


def test_what_is_compiled_elsewhere_runs_as_ever_and_is_noted():
    from torch._dynamo.utils import counters

    model, alone = network(), network()
    torch._dynamo.reset()
    with sn.watch(model, every=1) as record:
        compiled = torch.compile(model, backend="eager")
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        counters.clear()
        for step in range(3):
            optimizer.zero_grad()
            compiled(x(seed=7 * step)).square().mean().backward()
            optimizer.step()
    assert counters["stats"]["unique_graphs"] == 1  # no hook breaks it, and no step compiles it again
    assert not counters["graph_break"]
    steps(alone)
    assert torch.equal(model[0].weight, alone[0].weight)
    assert record.updates == {"1": 1}
    assert any("no forward of its layers was seen" in note for note in record.notes)
    assert record.findings == ()


def test_a_training_may_call_the_parts_of_a_model():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"body": network(), "head": nn.Linear(2, 1)})

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with sn.watch(model) as record:
        for step in range(4):
            for part in range(3):
                model.parts["head"](model.parts["body"](x(seed=3 * step + part))).square().mean().backward()
            optimizer.step()
    assert record.passes == {3: 4}
    assert [found.code for found in record.findings] == [307]


def test_a_long_record_stays_small():
    model = nn.Linear(1, 1, bias=False)
    model(torch.ones(3, 1)).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with sn.watch(model, every=1) as record:
        for _ in range(4100):
            optimizer.step()
    # At look 2001 every second one is dropped, and from then on every second step is looked at; and so on.
    assert record.every == 4
    assert record.looks == list(range(0, 4100, 4))
    track = record.tracks[""]
    assert track.gradient.tolist() == [3.0] * len(record.looks)
    assert {len(getattr(track, key)) for key in NUMBERS} == {len(record.looks)}
    layer = sum(sys.getsizeof(getattr(track, key)) for key in NUMBERS)
    assert 100 * layer + sys.getsizeof(record.looks) + sum(map(sys.getsizeof, record.looks)) < 10e6
    assert 100 * len(NUMBERS) * MOST_LOOKS * track.mean.itemsize < 7e6  # just before looks are dropped


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "10"])
def test_every_is_a_positive_integer(every):
    with pytest.raises(OptionError, match="positive integer"), sn.watch(network(), every=every):
        pass


def test_only_modules_are_watched():
    with pytest.raises(ModelError, match=r"needs a torch\.nn\.Module"), sn.watch(lambda x: x):
        pass


def test_a_model_without_norms_is_watched():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    with sn.watch(model, every=1) as record:
        steps(model)
    assert record.healthy
    assert record.summary.norms == 0
    assert len(record.tracks["1"].flat) == 3


def test_a_model_in_ddp_is_watched():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        with sn.watch(model, every=1) as record, model.no_sync():  # nobody is there to reduce with
            steps(model)
    finally:
        distributed.destroy_process_group()
    assert record.steps == 3
    assert record.updates == {"module.1": 1}
    assert not math.isnan(record.tracks["module.1"].mean[0])
    assert record.healthy


def test_layers_that_are_called_by_keyword_are_watched():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.last = nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, *, words: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(input=self.words(words)))

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sn.watch(model, every=1) as record:
        F.mse_loss(model(words=torch.arange(9)), torch.zeros(9, 2)).backward()
        optimizer.step()
    assert record.steps == 1
    expected = model.words.weight.detach().mean()  # the step came after the look
    assert record.tracks["norm"].mean[0] == pytest.approx(float(expected), abs=0.05)


# Several processes.


def _halves() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x(8, seed=2 * step), x(8, seed=2 * step + 1)) for step in range(3)]


def _train_in_two_processes(rank: int, folder: str) -> None:
    """Train as one of two processes, watched; both have to find the same."""
    options = {"init_method": f"file://{folder}/rendezvous", "timeout": timedelta(seconds=60)}
    distributed.init_process_group("gloo", rank=rank, world_size=2, **options)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        before = hooks_of(model)
        gradients = _expected_gradients()
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with sn.watch(model, every=1) as record:
            for halves in _halves():
                optimizer.zero_grad()
                model(halves[rank]).square().mean().backward()
                optimizer.step()
        assert hooks_of(model) == before
        assert record.passes == {1: 3}
        assert record.ranks == 2
        assert record.tracks["module.0"].gradient.tolist() == pytest.approx(gradients, rel=1e-4)
        (found,) = record.findings
        assert (found.code, found.layer) == (207, "module.1")
        assert dict(found.numbers) == {"ranks": 2, "samples": 8}
        _watch_shards(rank)
    finally:
        distributed.destroy_process_group()


def _expected_gradients() -> list[float]:
    """Return the norms of the mean of both processes' gradients, each by the statistics of its own half."""
    model, found = network(), []
    for halves in _halves():
        both = [torch.autograd.grad(model(half).square().mean(), model[0].weight)[0] for half in halves]
        found.append(float((both[0].double() + both[1].double()).norm() / 2))
    return found


def _watch_shards(rank: int) -> None:
    """Watch a model of whose weights and gradients each process holds a part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)
    alone = nn.Sequential(*layers)
    data = _halves()[0]
    both = [torch.autograd.grad(alone(half).square().mean(), alone[1].weight)[0] for half in data]
    expected = float((both[0].double() + both[1].double()).norm() / 2)
    model = fully_shard(alone, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sn.watch(model, every=1) as record:
        model(data[rank]).square().mean().backward()
        optimizer.step()
    assert record.tracks["1"].gradient[0] == pytest.approx(expected, rel=1e-4)
    assert record.findings == ()


@pytest.mark.filterwarnings("default")
def test_two_processes_with_small_batches_are_found(tmp_path):
    other = multiprocessing.get_context("spawn").Process(
        target=_train_in_two_processes, args=(1, str(tmp_path))
    )
    other.start()
    try:
        _train_in_two_processes(0, str(tmp_path))
    finally:
        other.join(60)
        other.kill()
    assert other.exitcode == 0
