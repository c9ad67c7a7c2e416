"""recalibrate(): statistics of all samples, however the batches were cut; nothing half done."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import slabnorm as sn
from slabnorm.errors import DataError, ModelError, StatisticsError
from tests.surgery.nets import build
from tests.surgery.states import assert_unchanged, state_of

F64 = {"dtype": torch.float64}


def cut(x: Tensor, *sizes: int) -> list[Tensor]:
    return list(x.split(list(sizes)))


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, all data at once."""
    rows = x.double().movedim(1, -1).reshape(-1, x.shape[1])
    mean = rows.sum(0) / len(rows)
    return mean, (rows - mean).square().sum(0) / (len(rows) - 1)


def assert_is(norm: Any, x: Tensor, rtol: float = 1e-12) -> None:
    for got, want in zip((norm.running_mean, norm.running_var), whole(x), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=rtol)


def deep() -> Any:
    """Two batch norms with a layer and a kink between them."""
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(3, momentum=0.3, **F64), nn.BatchNorm1d(4, eps=1e-3, **F64)
    model = nn.Sequential(
        first, nn.Linear(3, 4, **F64), nn.ReLU(), nn.Dropout(0.5), second, nn.Linear(4, 2, **F64)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def samples(*shape: int) -> Tensor:
    """Samples that drift: no batch is like another."""
    torch.manual_seed(1)
    x = torch.randn(*shape, **F64)
    return x * (1 + torch.arange(len(x), **F64).reshape(-1, *(1,) * (x.dim() - 1)) / len(x)) + 5


def test_batches_of_256_and_2_where_update_bn_says_something_else() -> None:
    x = samples(258, 3)
    batches = cut(x, 256, 2)
    model, theirs = deep(), deep()
    report = sn.recalibrate(model, batches)
    assert_is(model[0], x)
    assert [change.names for change in report.changed] == [("0",), ("4",)]
    assert "statistics of 258 values in 2 batches" in str(report)
    update_bn(batches, theirs)
    mean, var = whole(x)
    average = torch.stack([whole(batch)[1] for batch in batches]).mean(0)
    torch.testing.assert_close(theirs[0].running_var, average)
    assert ((average - var).abs() > 0.1 * var).any()
    assert ((theirs[0].running_mean - mean).abs() > 0.1 * var.sqrt()).any()


def test_the_order_and_the_cut_do_not_matter() -> None:
    x = samples(20, 3, 4)
    found = []
    for sizes in ((20,), (1, 19), (7, 7, 6), (2,) * 10):
        for batches in (cut(x, *sizes), cut(x, *sizes)[::-1]):
            norm: Any = nn.BatchNorm1d(3, **F64)
            sn.recalibrate(norm, batches)
            assert_is(norm, x)
            assert norm.num_batches_tracked == len(sizes)
            found.append(norm.running_var)
    for one, other in itertools.pairwise(found):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_a_deeper_layer_gets_what_it_is_given_in_training() -> None:
    x = samples(30, 3)
    batches, model = cut(x, 17, 11, 2), deep()
    sn.recalibrate(model, batches)
    given = [
        F.relu(model[1](F.batch_norm(batch, None, None, model[0].weight, model[0].bias, True)))
        for batch in batches
    ]
    assert_is(model[4], torch.cat(given).detach())


@pytest.mark.parametrize("sizes", [(30,), (17, 12, 1), (1,) * 30], ids=str)
def test_in_turn_every_layer_is_that_of_the_model_in_eval_mode(sizes: tuple[int, ...]) -> None:
    x, model = samples(30, 3), deep()
    sn.recalibrate(model, cut(x, *sizes), sequential=True)
    mean, var = whole(x)
    assert_is(model[0], x)
    y = (x - mean) / (var + model[0].eps).sqrt() * model[0].weight + model[0].bias
    assert_is(model[4], F.relu(model[1](y)).detach())
    model.eval()
    assert_is(model[4], model[:4](x).detach())  # a fixed point


def test_in_turn_through_a_network() -> None:
    model, _ = build("resnet")
    model = model.double()
    x = samples(11, 3, 8, 8)
    sn.recalibrate(model, cut(x, 6, 4, 1), sequential=True)
    given: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[0]}))
    model.eval()(x)
    assert len(given) == 6
    for name, value in given.items():
        assert_is(model.get_submodule(name), value.detach(), 1e-10)


class Act(nn.BatchNorm2d):
    """A batch norm with an activation in its forward, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def accelerated() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    sn.accelerate(norm, always=True)
    return norm


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2-D": (lambda: nn.BatchNorm1d(3), (9, 3)),
    "3-D": (lambda: nn.BatchNorm1d(3), (9, 3, 5)),
    "5-D": (lambda: nn.BatchNorm3d(3), (9, 3, 2, 3, 2)),
    "half": (lambda: nn.BatchNorm2d(3).bfloat16(), (9, 3, 4, 5)),
    "synchronised": (lambda: nn.SyncBatchNorm(3), (9, 3, 4, 5)),
    "subclass": (lambda: Act(3), (9, 3, 4, 5)),
    "accelerated": (accelerated, (9, 3, 4, 5)),
    "slabnorm's": (lambda: sn.BatchNorm(3, activation="relu"), (9, 3, 4, 5)),
    "average": (lambda: sn.BatchNorm(3, momentum=None), (9, 3, 4, 5)),
    "pattern": (lambda: sn.SlabNorm("n c h w -> c", c=3), (9, 3, 4, 5)),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    make, shape = KINDS[name]
    norm: Any = make()
    x = samples(*shape).to(norm.weight.dtype)
    norm(x)
    momentum, before = norm.momentum, copy.deepcopy(norm.state_dict())
    sn.recalibrate(norm, cut(x, 5, 4))
    assert_is(norm, x, 1e-2 if name == "half" else 1e-6)
    assert (norm.momentum, norm.training, int(norm.num_batches_tracked)) == (momentum, True, 2)
    assert torch.equal(norm.weight, before["weight"])
    if isinstance(norm, sn.SlabNorm):
        assert int(norm.num_elements_tracked) == x.numel() // 3
    assert norm._forward_pre_hooks == {}


def test_statistics_with_two_axes_and_without_centring() -> None:
    x = samples(9, 3, 5)
    norm: Any = sn.SlabNorm("n t c -> t c", t=3, c=5, **F64)
    sn.recalibrate(norm, cut(x, 5, 4))
    torch.testing.assert_close(norm.running_var, x.var(0), rtol=1e-12, atol=0)
    norm = sn.SlabNorm("n c t -> c", c=3, center=False, **F64)
    sn.recalibrate(norm, cut(x, 5, 4))
    torch.testing.assert_close(norm.running_var, x.square().mean((0, 2)), rtol=1e-12, atol=0)
    assert not norm.running_mean.any()


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, sn.InstanceNorm])
def test_instance_norms_average_their_samples(kind: Any) -> None:
    x, norm = samples(9, 3, 5), kind(3, track_running_stats=True, **F64)
    sn.recalibrate(norm, cut(x, 5, 3, 1))
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_var, x.var(2).mean(0), rtol=1e-12, atol=0)
    if kind is nn.InstanceNorm1d:
        other = kind(3, track_running_stats=True, **F64)
        sn.recalibrate(other, list(x))  # each sample by itself, without a batch axis
        torch.testing.assert_close(other.running_var, norm.running_var, rtol=1e-12, atol=0)


def test_equal_batches_without_drift_are_update_bns_but_for_the_spread_of_their_means() -> None:
    x = samples(8, 3)
    batches = [x, x.flip(0)]
    mine, theirs = deep(), deep()
    mine[3].p = theirs[3].p = 0.0  # update_bn leaves dropout on
    sn.recalibrate(mine, batches), update_bn(batches, theirs)
    factor = (2 * 8 - 2) / (2 * 8 - 1)  # 2 batches of 8 are one of 16
    for place in (0, 4):
        torch.testing.assert_close(mine[place].running_mean, theirs[place].running_mean)
        torch.testing.assert_close(mine[place].running_var, theirs[place].running_var * factor)


def test_frozen_layers_and_those_that_where_leaves_out_stay() -> None:
    x = samples(10, 3)
    model = deep()
    sn.freeze(model, where=lambda name, _: name == "0")
    model[0].eval()
    before = copy.deepcopy(model[0].state_dict())
    report = sn.recalibrate(model, cut(x, 6, 4))
    assert [left.reason for left in report.left] == ["frozen: it stays in eval mode"]
    assert all(torch.equal(value, before[key]) for key, value in model[0].state_dict().items())
    given = (x - before["running_mean"]) / (before["running_var"] + 1e-5).sqrt() * model[0].weight + model[
        0
    ].bias
    assert_is(model[4], F.relu(model[1](given)).detach())

    model = deep()
    report = sn.recalibrate(model, [x], where=lambda name, norm: name == "4" and norm.num_features == 4)
    assert [left.names for left in report.left] == [("0",)]
    assert model[0].running_var.eq(1).all()
    assert model[4].running_var.ne(1).all()


def test_a_model_that_keeps_a_norm_in_eval_mode() -> None:
    class Keeps(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self[0].training = False
            return self

    model = Keeps(*deep()).train()
    report = sn.recalibrate(model, [samples(10, 3)])
    assert [left.names for left in report.left] == [("0",)]
    assert (model.training, model[0].training, model[4].training) == (True, False, True)


def test_a_frozen_norm_has_its_mode_when_it_is_unfrozen() -> None:
    for mode in (True, False):
        model = deep().train()
        sn.freeze(model, where=lambda name, _: name == "0")
        model[0].train(mode)
        sn.recalibrate(model, [samples(10, 3)])
        sn.unfreeze(model)
        assert (model[0].training, model[4].training) == (mode, True)


@pytest.mark.parametrize("fails", [False, True])
def test_renormalisation_is_off_meanwhile(fails: bool) -> None:
    x, first = samples(12, 3), sn.BatchNorm(3, renorm=(1.2, 0.3), **F64)
    model: Any = nn.Sequential(first, nn.BatchNorm1d(3, **F64))
    if fails:
        before = state_of(model)
        with pytest.raises(OSError, match="broken"):
            sn.recalibrate(model, broken_loader(cut(x, 7, 5), 1))
        assert_unchanged(model, before)
        return
    sn.recalibrate(model, cut(x, 7, 5))
    assert first.renorm == (1.2, 0.3)
    assert_is(model[1], torch.cat([F.batch_norm(b, None, None, training=True) for b in cut(x, 7, 5)]))


def test_where_is_asked_for_all_names_of_a_shared_layer() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3, **F64), nn.Identity())
    model.other = model[0]
    report = sn.recalibrate(model, [samples(10, 3)], where=lambda name, _: name == "other")
    assert [change.names for change in report.changed] == [("0", "other")]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.out = nn.BatchNorm1d(3, **F64), nn.BatchNorm1d(3, **F64)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(self.bn(x) * self.bn(y))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_shared_layer_gets_all_its_uses(sequential: bool) -> None:
    x, y = samples(12, 3), 3 * samples(12, 3) - 1
    model = Shared()
    batches = [{"x": a, "y": b} for a, b in zip(cut(x, 7, 5), cut(y, 7, 5), strict=True)]
    report = sn.recalibrate(model, batches, sequential=sequential)
    assert_is(model.bn, torch.cat([x, y]))
    assert "all its 4 uses" in str(report)
    assert model.bn.num_batches_tracked == 4
    if sequential:
        model.eval()
        assert_is(model.out, model.bn(x) * model.bn(y))


def test_batches_of_any_structure() -> None:
    x = samples(12, 3)
    loaders: list[tuple[Any, Any]] = [
        (DataLoader(TensorDataset(x, torch.arange(12)), batch_size=5), None),
        ([(part, "label") for part in cut(x, 5, 5, 2)], None),
        ([{"input": part} for part in cut(x, 5, 5, 2)], None),
        ((part for part in cut(x, 5, 5, 2)), None),
        ([{"pixels": part} for part in cut(x, 5, 5, 2)], lambda model, batch: model(batch["pixels"])),
    ]
    for loader, call in loaders:
        model = deep()
        sn.recalibrate(model, loader, call=call)
        assert_is(model[0], x)
        assert model[0].num_batches_tracked == 3


class Padded(nn.Module):
    """A norm of sequences, whose padding is NaN."""

    def __init__(self, norm: nn.Module, how: str) -> None:
        super().__init__()
        self.norm, self.how = norm, how

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[2])
        cut = lengths if self.how == "lengths" else (steps < lengths[:, None])[:, None]
        return self.norm(**{self.how: cut, "x": x})


@pytest.mark.parametrize("how", ["lengths", "mask"])
@pytest.mark.parametrize("kind", [sn.BatchNorm, sn.InstanceNorm])
def test_padding_does_not_count(kind: Any, how: str) -> None:
    x, lengths = samples(6, 3, 5), torch.tensor([5, 2, 4, 3, 0, 5])
    alone = [sample[:, :length] for sample, length in zip(x, lengths.tolist(), strict=True)]
    x = x.where(torch.arange(5) < lengths[:, None, None], torch.nan)
    model = Padded(kind(3, track_running_stats=True, **F64), how)
    report = sn.recalibrate(
        model, list(zip(cut(x, 4, 2), cut(lengths, 4, 2), strict=True)), call=lambda m, batch: m(*batch)
    )
    assert "statistics of 19 values in 2 batches" in str(report)
    assert model.norm.num_elements_tracked == 19
    if kind is sn.BatchNorm:
        assert_is(model.norm, torch.cat(alone, 1)[None])
        return
    counted = [sample for sample in alone if sample.shape[1] > 0]
    means, variances = (torch.stack([f(s) for s in counted]).mean(0) for f in (_mean, _var))
    torch.testing.assert_close(model.norm.running_mean, means, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.norm.running_var, variances, rtol=1e-12, atol=0)


def _mean(sample: Tensor) -> Tensor:
    return sample.mean(1)


def _var(sample: Tensor) -> Tensor:
    return sample.var(1)


def test_what_counts_nowhere_has_no_statistics() -> None:
    for kind in (sn.BatchNorm, sn.InstanceNorm):
        model = Padded(kind(3, track_running_stats=True, **F64), "lengths")
        batch = samples(2, 3, 5), torch.tensor([0, 0])
        with pytest.raises(StatisticsError, match="says nothing"):
            sn.recalibrate(model, [batch], call=lambda m, batch: m(*batch))


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return iter(samples(12, 3))


def test_a_loader_without_a_length_is_read_again() -> None:
    model, seen = deep(), []
    loader = DataLoader(Stream(), batch_size=5)
    sn.recalibrate(model, loader, sequential=True, progress=lambda *done: seen.append(done))
    assert_is(model[0], samples(12, 3))
    assert seen == [(number, 0) for number in range(1, 7)]


def test_averaged_models() -> None:
    x, model = samples(12, 3), deep()
    average = AveragedModel(model)
    average.update_parameters(model)
    report = sn.recalibrate(average, cut(x, 7, 5), sequential=True)
    assert [change.names for change in report.changed] == [("module.0",), ("module.4",)]
    assert_is(average.module[0], x)
    assert average.n_averaged == 1


def test_modes_warnings_and_random_numbers_come_out_as_they_were() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), sn.BatchNorm(3), nn.ReLU(), sn.BatchNorm(3))
    model.eval()
    model[1].train()
    modes, x = [module.training for module in model.modules()], samples(12, 3).float()
    seed = torch.get_rng_state()
    for sequential in (False, True):
        sn.recalibrate(model, cut(x, 8, 4), sequential=sequential)  # a warning would be an error
        assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), seed)
    assert_is(model[2], model[0](x).detach(), 1e-5)
    model.train()
    with torch.no_grad(), pytest.warns(sn.SlabWarning, match="train mode while gradients are off"):
        model(x)


def test_layers_that_do_not_run_or_have_no_statistics() -> None:
    model = deep()
    model.spare = nn.BatchNorm1d(3)  # registered last; a Sequential runs it
    model.append(nn.BatchNorm1d(2, track_running_stats=False, **F64))
    model.forward = lambda x: nn.Sequential(*list(model)[:6])(x)
    report = sn.recalibrate(model, [samples(10, 3)])
    assert [left.reason.partition(" (")[0] for left in report.left] == [
        "it has no running statistics",
        "it did not run",
    ]
    assert sn.recalibrate(nn.Linear(3, 2), [torch.randn(2, 3)]).changed == ()


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    x = samples(12, 3)
    sn.recalibrate(deep(), cut(x, 7, 5), progress=lambda *done: seen.append(done))
    sn.recalibrate(deep(), cut(x, 7, 5), sequential=True, progress=lambda *done: seen.append(done))
    sn.recalibrate(deep(), iter(cut(x, 7, 5)), progress=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4), (1, 0), (2, 0)]


class Fails(nn.Module):
    """Raises when it runs for the k-th time."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        if next(self.count) == self.at:
            raise RuntimeError("broken")
        return x

    count: Iterator[int] = itertools.count()


def broken_loader(batches: list[Tensor], at: int) -> Any:
    class Loader:
        read = 0

        def __iter__(self) -> Iterator[Tensor]:
            for batch in batches:
                if Loader.read == at:
                    raise OSError("broken")
                Loader.read += 1
                yield batch

    return Loader()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("what", ["loader", "forward", "interrupt", "nan"])
def test_whatever_fails_changes_nothing(what: str, at: int, sequential: bool) -> None:
    """At each of four batches; with sequential=True these are two batches read twice, or more."""
    model, x = deep(), samples(40, 3)
    model(x)  # statistics that are to stay
    model.insert(5, sn.BatchNorm(4, **F64))
    batches: Any = cut(x, 17, 11, 9, 3)
    options: dict[str, Any] = {"sequential": sequential}
    wanted: type[BaseException] = RuntimeError
    if what == "loader":
        batches, wanted = broken_loader(cut(x, 20, 20) if sequential else batches, at), OSError
    elif what == "forward":
        model.append(Fails(at))
        Fails.count = itertools.count()
    elif what == "interrupt":
        wanted = KeyboardInterrupt

        def progress(done: int, total: int) -> None:
            if done == at + 1:
                raise KeyboardInterrupt

        options["progress"] = progress
    else:
        batches[at][1, 2], wanted = float("nan"), StatisticsError
    model[0].eval()
    before = state_of(model)
    with pytest.raises(wanted) as raised:
        sn.recalibrate(model, batches, **options)
    assert_unchanged(model, before)
    if what == "nan":
        assert f"What 0 (BatchNorm1d) is given in batch {at} is not finite" in str(raised.value)
        assert "1 of its 3 means or variances" in str(raised.value)


def test_mistakes() -> None:
    model, x = deep(), samples(4, 3)
    before = state_of(model)
    for loader, sequential, kind, why in (
        ([], False, DataError, "gives no batch"),
        (iter([x]), True, DataError, "only once"),
        ([()], False, DataError, "empty"),
        ([x[:1]], True, StatisticsError, r"0 \(BatchNorm1d\) was given one value per statistic"),
    ):
        with pytest.raises(kind, match=why):
            sn.recalibrate(model, loader, sequential=sequential)
        assert_unchanged(model, before)
    with pytest.raises(ModelError, match=r"needs a torch\.nn\.Module"):
        sn.recalibrate("model", [x])  # type: ignore[arg-type]
