"""Micro-batches that train as one batch: the oracle is the whole batch through plain torch, in float64."""

from __future__ import annotations

import _thread
import copy
import gc
import threading
from collections.abc import Callable
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import slabnorm as sn
from benchmarks.networks import BasicBlock
from slabnorm.errors import ModelError, OptionError, StatisticsError
from slabnorm.kernels import using
from tests.surgery.nets import ResNet, build
from tests.surgery.peak import peak_of

CUTS = ([8, 8, 8, 8], [9, 1, 22])
N = 32


def _data(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, *shape, generator=generator, dtype=torch.float64)
    target = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), target.to(dtype)


def _loss(model: nn.Module, part: Any) -> Tensor:
    x, target = part
    return (model(x) - target).square().sum() / N


def _parts(data: tuple[Tensor, Tensor], sizes: list[int]) -> list[Any]:
    return list(zip(*(t.split(sizes) for t in data), strict=True))


def _whole(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    loss = _loss(model, data)
    loss.backward()
    return loss.detach()


def _state(model: nn.Module) -> dict[str, Tensor]:
    found = {f"d {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: value.clone() for name, value in model.state_dict().items()}


def _same(got: nn.Module, want: nn.Module, bound: float) -> None:
    """Assert that parameters, buffers and gradients are equal, relative to the largest of their kind."""
    mine, theirs = _state(got), _state(want)
    largest = max((float(v.abs().max()) for k, v in theirs.items() if k[:2] == "d "), default=0.0)
    for key, value in theirs.items():
        scale = max(1.0, float(value.abs().max())) if key[:2] != "d " else largest
        assert float((mine[key] - value).abs().max()) <= bound * scale, key


def small(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A perceptron with two batch norms, of which one has an activation after it."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.BatchNorm1d(8)
    return nn.Sequential(*layers, nn.Linear(8, 5)).to(dtype)


def ours(activation: str | None, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    norms = sn.BatchNorm(12, activation=activation), sn.SlabNorm("n c -> c", c=8, activation=activation)
    return nn.Sequential(nn.Linear(6, 12), norms[0], nn.Linear(12, 8), norms[1], nn.Linear(8, 5)).to(dtype)


def plain_twin(model: nn.Module, activation: Callable[[], nn.Module] | None) -> nn.Module:
    """Return a model of torch's own layers with the weights of `ours`."""
    torch.manual_seed(0)
    after = [] if activation is None else [activation()]
    twin = nn.Sequential(
        nn.Linear(6, 12), nn.Sequential(nn.BatchNorm1d(12), *after), nn.Linear(12, 8),
        nn.Sequential(nn.BatchNorm1d(8), *after), nn.Linear(8, 5),
    ).to(model[0].weight.dtype)  # type: ignore[union-attr, arg-type]  # fmt: skip
    for here, there in zip(model.parameters(), twin.parameters(), strict=True):
        there.data.copy_(here)
    return twin


KINDS = ("torch", "accelerated", "slabnorm", "slabnorm relu")
# Each kind with both optimizers, each cut with both, and each dtype.
TRAININGS = [
    (kind, optimizer, (torch.float32, torch.float64)[(i + j) % 2], CUTS[(i // 2 + j) % 2])
    for i, kind in enumerate(KINDS)
    for j, optimizer in enumerate(("SGD", "AdamW"))
]


@pytest.mark.parametrize(("kind", "optimizer", "dtype", "sizes"), TRAININGS)
def test_trains_to_the_same_weights(kind: str, optimizer: str, dtype: torch.dtype, sizes: list[int]) -> None:
    """50 steps in parts, and 50 of plain torch in one batch and in float64: weights and statistics agree."""
    data = _data(6, dtype=dtype)
    if kind.startswith("slabnorm"):
        model = ours("relu" if "relu" in kind else None, dtype)
        twin = plain_twin(model, nn.ReLU if "relu" in kind else None).double()
    else:
        model = small(dtype)
        twin = copy.deepcopy(model).double()
        if kind == "accelerated":
            assert len(sn.accelerate(model, always=True).replaced) == 2
    options = {"lr": 0.02, "momentum": 0.9} if optimizer == "SGD" else {"lr": 1e-3, "eps": 1e-3}
    mine, theirs = (getattr(torch.optim, optimizer)(m.parameters(), **options) for m in (model, twin))
    whole = tuple(t.double() for t in data)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    for _ in range(50):
        mine.zero_grad()
        theirs.zero_grad()
        total = sn.virtual_batch(model, _parts(data, sizes), _loss)
        want = _whole(twin, whole)
        assert not total.requires_grad
        assert abs(float(total) - float(want)) <= bound * float(want)
        mine.step()
        theirs.step()
    for a, b in zip(_tensors(model), _tensors(twin), strict=True):
        assert float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return parameters and what is stored of buffers, of models whose names differ, in float64."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    buffers = [value for key, value in model.state_dict().items() if key.endswith(names)]
    return [t.detach().double() for t in (*model.parameters(), *buffers)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("sizes", CUTS)
def test_residual_network(sizes: list[int], accelerated: bool, recompute: bool) -> None:
    """Outputs, gradients (the input's, too) and buffers of a ResNet, whose sums and ReLUs are in place."""
    torch.manual_seed(0)
    model = ResNet().double()
    twin = copy.deepcopy(model)
    if accelerated:
        assert len(sn.accelerate(model, always=True).fused) == 5
    x, target = _data(3, 6, 6)
    outputs: list[Tensor] = []
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()

    def loss(model: nn.Module, part: Any) -> Tensor:
        y = model(part[0])
        outputs.append(y.detach())
        return (y - part[1]).square().sum() / N

    total = sn.virtual_batch(model, _parts((leaf, target), sizes), loss, recompute=recompute)
    y = twin(other)
    whole = (y - target).square().sum() / N
    whole.backward()
    assert abs(float(total - whole.detach())) <= 1e-13 * float(whole.detach())
    assert float((torch.cat(outputs) - y.detach()).abs().max()) <= 1e-13
    assert leaf.grad is not None
    assert other.grad is not None
    assert float((leaf.grad - other.grad).abs().max()) <= 1e-13
    sn.restore(model)
    _same(model, twin, 1e-12)
    assert int(model.bn1.num_batches_tracked) == 1
    assert type(model.bn1) is nn.BatchNorm2d
    assert vars(model.bn1).keys() == vars(twin.bn1).keys()


class Parted(nn.Module):
    """One norm with a bias, and what is to be told apart around it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(x) if residual is None else self.norm(x, residual)


def _formula(x: Tensor, pooled: tuple[int, ...], center: bool, w: Tensor, b: Tensor) -> Tensor:
    mean = x.mean(pooled, keepdim=True) if center else torch.zeros((), dtype=x.dtype)
    second = (x - mean).square().mean(pooled, keepdim=True)
    return (x - mean) / (second + 1e-5).sqrt() * w + b


PATTERNS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], bool]] = {
    # layer's arguments; the input split; what is pooled in it; whether it is centred
    "n c h w -> c": ({"c": 6}, (N, 1, 6, 3, 2), (0, 1, 3, 4), True),
    "n (g c) h w -> g": ({"g": 2, "c": 3}, (N, 2, 3, 3, 2), (0, 2, 3, 4), True),
    "n c h w -> c h": ({"c": 6, "h": 3, "affine": "c"}, (N, 1, 6, 3, 2), (0, 1, 4), True),
    "n c h w ->": ({"c": 6}, (N, 1, 6, 3, 2), (0, 1, 2, 3, 4), True),
    "n c ... -> c": ({"c": 6, "center": False}, (N, 1, 6, 3, 2), (0, 1, 3, 4), False),
}


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, activation: str | None) -> None:
    """Any pattern that pools samples, with a residual and an activation, beside the formula written out."""
    options, split, pooled, center = PATTERNS[pattern]
    norm = sn.SlabNorm(pattern, activation=activation, **options).double()
    generator = torch.Generator().manual_seed(1)
    x, residual, target = (torch.randn(N, 6, 3, 2, generator=generator).double() for _ in range(3))
    with torch.no_grad():
        (
            norm.weight.copy_(torch.randn(6, generator=generator)),
            norm.bias.copy_(torch.randn(6, generator=generator)),
        )
    x, residual = x.requires_grad_(), residual.requires_grad_()

    def loss(model: nn.Module, part: Any) -> Tensor:
        return (model(part[0], part[1]) * part[2]).sum()

    sizes = [9, 1, 22]
    parts = list(zip(*(t.split(sizes) for t in (x, residual, target)), strict=True))
    total = sn.virtual_batch(Parted(norm), parts, loss)
    got = [t.grad.clone() for t in (x, residual, norm.weight, norm.bias) if t.grad is not None]
    leaves = [t.detach().requires_grad_() for t in (x, residual, norm.weight, norm.bias)]
    shape = [size if dim in (1, 2) else 1 for dim, size in enumerate(split)]
    w, b = (t.reshape(shape) for t in leaves[2:])
    p = _formula(leaves[0].reshape(split), pooled, center, w, b).reshape(x.shape) + leaves[1]
    y = {"relu": F.relu, "silu": F.silu, None: lambda p: p}[activation](p)
    whole = (y * target).sum()
    want = torch.autograd.grad(whole, leaves)
    assert abs(float(total - whole.detach())) <= 1e-11
    for mine, theirs in zip(got, want, strict=True):
        assert float((mine - theirs).abs().max()) <= 1e-12 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d, nn.SyncBatchNorm, lambda c, **options: sn.BatchNorm(c, **options)],
    ids=["torch", "sync", "slabnorm"],
)
def test_running_statistics(norm: Any, momentum: float | None) -> None:
    """Two batches: mean and unbiased variance of the whole enter once each."""
    torch.manual_seed(0)
    model, twin = norm(5, momentum=momentum), nn.BatchNorm1d(5, momentum=momentum)
    for seed in range(2):
        x = 3 + torch.randn(N, 5, generator=torch.Generator().manual_seed(seed))
        sn.virtual_batch(model, x.split([1, 20, 11]), lambda model, x: model(x).square().sum())
        twin(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(model, name), getattr(twin, name), rtol=1e-6, atol=1e-6)


def test_frozen_norms_do_not_meet() -> None:
    """A norm in eval mode uses its running statistics, and parts may differ in whether they run it."""
    model, twin = small(), small()
    for m in (model, twin):
        m[1].eval()
    data = _data(6)
    sn.virtual_batch(model, _parts(data, [9, 1, 22]), _loss)
    _whole(twin, data)
    _same(model, twin, 1e-12)
    assert int(model[1].num_batches_tracked) == 0
    assert int(model[4].num_batches_tracked) == 1


class Shared(nn.Module):
    """One norm, used twice, on values of other statistics; recomputed if asked for."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.last, self.reentrant = nn.Linear(6, 5), reentrant

    def body(self, x: Tensor) -> Tensor:
        return self.norm(3 * torch.relu(self.first(self.norm(x))) + 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.last(self.body(x))
        return self.last(checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reentrant", [None, False])
def test_shared_norm_and_checkpoint(reentrant: bool | None, recompute: bool) -> None:
    """A norm used twice meets twice; what checkpointing runs again uses the statistics of the first time."""
    torch.manual_seed(0)
    model = Shared(reentrant).double()
    twin = copy.deepcopy(model)
    twin.reentrant = None
    data = _data(6)
    sn.virtual_batch(model, _parts(data, [9, 1, 22]), _loss, recompute=recompute)
    _whole(twin, data)
    _same(model, twin, 1e-12)
    assert int(model.norm.num_batches_tracked) == 2


def test_reentrant_checkpoint_is_refused() -> None:
    model = Shared(True).double()
    before = _state(model)
    x, target = _data(6)
    with pytest.raises(ModelError, match="use_reentrant=False"):
        sn.virtual_batch(model, _parts((x.requires_grad_(), target), [16, 16]), _loss)
    assert x.grad is None
    _untouched(model, before)


def _untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = _state(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any("_virtual_batch" in vars(m) or "Meets" in str(type(m).__mro__) for m in model.modules())


class BoomError(Exception):
    pass


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_an_error_frees_all_parts(part: int, where: int) -> None:
    """Part k raises before norm j, between the two, or after both: nothing hangs and nothing is left."""
    model, data = small(), _data(6)
    _whole(model, data)
    before, threads = _state(model), threading.active_count()
    mine = _parts(data, [9, 1, 22])
    ended: list[int] = []

    def loss(model: nn.Module, given: Any) -> Tensor:
        number = next(i for i, other in enumerate(mine) if other is given)
        try:
            layers = list(model)
            x = given[0]
            for i, layer in enumerate(layers):
                if number == part and i == (0, 3, 5)[where]:
                    raise BoomError
                x = layer(x)
            return x.sum()
        finally:
            ended.append(number)

    with pytest.raises(BoomError) as caught:
        sn.virtual_batch(model, mine, loss)
    assert caught.value.__notes__ == [f"in part {part} of the virtual batch"]
    started = {0: part + 1, 1: 3, 2: 3}[where]
    assert sorted(ended) == list(range(started))
    assert threading.active_count() == threads
    _untouched(model, before)


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
def test_an_error_in_the_backward_leaves_no_trace(error: type[BaseException]) -> None:
    """Gradients that were there, also of a leaf outside the model, stay what they were."""
    model, data = small(), _data(6)
    outside = torch.ones((), dtype=torch.float64, requires_grad=True)
    _whole(model, data)
    outside.grad = torch.tensor(2.0, dtype=torch.float64)
    before = _state(model)

    def loss(model: nn.Module, part: Any) -> Tensor:
        x = model[0](part[0])

        def fail(gradient: Tensor) -> None:
            raise error

        x.register_hook(fail)
        return outside * model[1:](x).sum()

    with pytest.raises(error):
        sn.virtual_batch(model, _parts(data, [9, 1, 22]), loss)
    assert float(outside.grad) == 2.0
    _untouched(model, before)


def test_an_interrupt_frees_all_parts() -> None:
    """Ctrl-C while a part runs: it ends at its next norm, and the others where they wait."""
    model, data = small(), _data(6)
    before, threads = _state(model), threading.active_count()
    ended = []

    def loss(model: nn.Module, part: Any) -> Tensor:
        try:
            x = model[:3](part[0])
            if len(part[0]) == 1:
                _thread.interrupt_main()
            return model[3:](x).sum()
        finally:
            ended.append(len(part[0]))

    with pytest.raises(KeyboardInterrupt):
        sn.virtual_batch(model, _parts(data, [9, 1, 22]), loss)
    assert sorted(ended) == [1, 9, 22]
    assert threading.active_count() == threads
    _untouched(model, before)


def test_parts_run_as_the_caller_does() -> None:
    """Modes, the default device, hooks and context variables of the calling thread; one part at a time."""
    model, x = small(torch.float32), torch.randn(N, 6)
    variable: ContextVar[int] = ContextVar("variable", default=0)
    variable.set(7)
    seen: list[Any] = []
    packed: list[torch.Size] = []
    running: list[int] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t.shape)
        return t.detach()

    def enter(layer: nn.Module, given: Any) -> None:
        running.append(len(given[0]))

    model[1].register_forward_pre_hook(enter)
    model[4].register_forward_pre_hook(enter)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        made = torch.empty(2).device.type
        modes = torch.is_grad_enabled(), torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        seen.append((made, modes, variable.get()))
        with torch.device("cpu"):
            return model(x).float().sum()

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), hooks:
        sn.virtual_batch(model, x.split([9, 1, 22]), loss)
    assert seen == [("meta", (True, torch.bfloat16, True), 7)] * 3
    assert packed.count(torch.Size([9, 12])) >= 2
    assert running == [9, 1, 22, 9, 1, 22]
    assert not torch.is_autocast_enabled("cpu")


def test_an_empty_part_changes_nothing() -> None:
    model, twin, data = small(), small(), _data(6)
    sn.virtual_batch(model, _parts(data, [10, 0, 22]), _loss)
    _whole(twin, data)
    _same(model, twin, 1e-12)


def test_what_a_backward_needs_may_not_be_changed() -> None:
    """As in plain torch, also where hooks keep torch from seeing it."""

    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(300, 300), nn.BatchNorm1d(300)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = self.norm(x)
            with torch.no_grad():
                x.mul_(2)
            return y

    for recompute in (False, True):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sn.virtual_batch(
                Overwriting(), torch.randn(8, 300).split(4), lambda m, x: m(x).square().sum(),
                recompute=recompute,
            )  # fmt: skip


def test_gradients_are_added_and_hooks_see_them_once() -> None:
    model, twin = small(), small()
    data, seen = _data(6), []
    model[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    kept = None
    for _ in range(2):
        sn.virtual_batch(model, _parts(data, [9, 1, 22]), _loss)
        _whole(twin, data)
        kept = kept if kept is not None else model[0].weight.grad
    assert model[0].weight.grad is kept
    assert len(seen) == 2
    _same(model, twin, 1e-12)


def test_parts_that_meet_at_other_norms() -> None:
    """Control flow that depends on the data is told, and nothing hangs."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x if len(x) > 2 else self.b(x)

    model = Either()
    before = _state(model)
    with pytest.raises(ModelError, match=r"part 0 has ended, part 1 is at b \(BatchNorm1d\)"):
        sn.virtual_batch(model, [torch.randn(3, 3), torch.randn(2, 3)], lambda model, x: model(x).sum())
    _untouched(model, before)


def test_what_cannot_be() -> None:
    model = nn.BatchNorm1d(3)

    def run(parts: Any, loss: Any = lambda model, x: model(x).sum(), model: nn.Module = model) -> None:
        sn.virtual_batch(model, parts, loss)

    with pytest.raises(StatisticsError, match="has 1 element"):
        run([torch.randn(1, 3)])
    with pytest.raises(OptionError, match="no parts"):
        run([])
    with pytest.raises(OptionError, match="one element"):
        run([torch.randn(4, 3)], lambda model, x: model(x))
    with pytest.raises(ModelError, match="anything that has a gradient"), torch.no_grad():
        run([torch.randn(4, 3)])

    class Own(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    with pytest.raises(ModelError, match="its forward is its own"):
        run([torch.randn(4, 3)], model=Own(3))
    with pytest.raises(ModelError, match="averages over samples"):
        run([torch.randn(4, 3, 2)], model=nn.InstanceNorm1d(3, track_running_stats=True))
    with pytest.raises(ModelError, match="not initialised"):
        run([torch.randn(4, 3)], model=nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="2D or 3D"):
        run([torch.randn(4, 3, 2, 2)])
    assert type(model) is nn.BatchNorm1d
    assert int(model.num_batches_tracked) == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_and_scaler(recompute: bool) -> None:
    """Parts run under the caller's autocast; each loss is scaled, which the scaler undoes."""
    model, twin = small(torch.float32), small(torch.float32)
    data = _data(6, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = []

    def loss(model: nn.Module, part: Any) -> Tensor:
        y = model(part[0])
        seen.append(y.dtype)
        return (y.float() - part[1]).square().sum() / N

    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = sn.virtual_batch(model, _parts(data, [9, 1, 22]), loss, scaler=scaler, recompute=recompute)
        want = loss(twin, data)
    want.backward()
    scaler.step(optimizer)
    assert seen == [torch.bfloat16] * 4
    assert abs(float(total - want.detach())) <= 1e-2 * float(want.detach())
    largest = max(float(p.grad.abs().max()) for p in twin.parameters() if p.grad is not None)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        assert float((mine.grad - theirs.grad).abs().max()) <= 2e-2 * largest


def test_dropout_is_drawn_in_order() -> None:
    """Random numbers are drawn part after part at each stretch between norms; recomputed, the same."""

    def run(recompute: bool) -> tuple[nn.Module, list[Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(300), nn.Dropout(0.5), nn.ReLU(), nn.Linear(300, 5))
        drawn: list[Tensor] = []
        model[1].register_forward_hook(lambda layer, given, y: drawn.append(y.detach() != 0))
        torch.manual_seed(1)
        x = torch.randn(N, 300, generator=torch.Generator().manual_seed(2))
        sn.virtual_batch(model, x.split([9, 1, 22]), lambda m, x: m(x).square().sum(), recompute=recompute)
        return model, drawn

    first, drawn = run(False)
    second, again = run(True)
    torch.manual_seed(1)
    for mask, size in zip(drawn, (9, 1, 22), strict=True):
        assert torch.equal(mask, F.dropout(torch.ones(size, 300), 0.5) != 0)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    _same(first, second, 1e-6)


def test_changes_in_place_are_computed_again() -> None:
    """Memory that is changed after it was read: kept, computed, a view of it, and a buffer of the model."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(300), nn.Linear(300, 5)
            self.register_buffer("power", torch.ones(300))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            scaled = y * self.power.clone()
            with torch.no_grad():
                self.power.mul_(1.5)
            kept = torch.tanh(scaled)  # saves its result
            z = y + 1
            z[:, ::2] *= 2
            z.relu_()
            wide = torch.cat([z, kept], 1).view(-1, 2, 300).sum(1)
            return self.last(wide.mul_(kept).sigmoid())

    torch.manual_seed(0)
    model = Changing().double()
    twin = copy.deepcopy(model)
    x = torch.randn(N, 300, generator=torch.Generator().manual_seed(2)).double()
    for m, recompute in ((model, True), (twin, False)):
        sn.virtual_batch(m, x.split([9, 1, 22]), lambda m, x: m(x).square().sum(), recompute=recompute)
    _same(model, twin, 1e-13)
    assert float(model.power[0]) == 1.5**3


def test_norms_in_place_do_not_write_unseen() -> None:
    """A kernel that writes over its input is nothing that a tape could see: it may not, for the while."""
    model = nn.Sequential(nn.Linear(6, 300), nn.ReLU(), sn.BatchNorm(300, inplace=True).eval())
    model[2].running_mean.fill_(0.5)
    seen = []

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(model[2].inplace)
        return model(x).sum()

    sn.virtual_batch(model, _data(6, dtype=torch.float32)[0].split(16), loss, recompute=True)
    assert seen == [False, False]
    assert model[2].inplace


def narrow() -> nn.Module:
    """The benchmark's ResNet-18 with an eighth of its channels, so that weights are little of its memory."""
    torch.manual_seed(0)
    widths = [8, 8, 8, 16, 16, 32, 32, 64, 64]
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    blocks = (BasicBlock(a, b, 1 if a == b else 2) for a, b in pairwise(widths))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))


def test_memory() -> None:
    """With `recompute` the peak is at most half of the whole batch's, and nothing stays behind."""
    model = narrow()
    data = _data(3, 16, 16, dtype=torch.float32)

    def run(step: Callable[[], Any]) -> tuple[int, int]:
        model.zero_grad()
        gc.collect()
        gc.disable()  # what is left must not be left to the collector
        try:
            with using("cpu"):  # plain torch computes in float64
                return peak_of(step)
        finally:
            gc.enable()

    parts = _parts(data, [8, 8, 8, 8])
    whole, gradients = run(lambda: _whole(model, data))
    virtual, left = run(lambda: sn.virtual_batch(model, parts, _loss, recompute=True))
    assert virtual - gradients <= 0.5 * (whole - gradients)
    assert left <= gradients + 4096


def test_unlike_accumulated_gradients() -> None:
    """What virtual batches are for: accumulating the gradients of micro-batches gives other ones."""
    model, twin = small(), small()
    data = _data(6)
    for part in _parts(data, [8, 8, 8, 8]):
        _loss(model, part).backward()
    _whole(twin, data)
    with pytest.raises(AssertionError):
        _same(model, twin, 1e-3)


def test_kernels() -> None:
    """The compiled kernels, with a fused activation, agree with plain torch in float64."""
    model, x = build("vgg")
    twin = copy.deepcopy(model).double()
    sn.accelerate(model, always=True)
    x = torch.cat([x, 2 * x, x - 1, x.flip(0), x, x + 1, -x, x])
    target = _data(1, dtype=torch.float32)[1][:, :4]
    with using("cpu"):
        sn.virtual_batch(model, _parts((x, target), [9, 1, 22]), _loss)
    _whole(twin, (x.double(), target.double()))
    sn.restore(model)
    _same(model.double(), twin, 2e-5)


class Twice(nn.Module):
    """Operations in place that read what they write."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)) * 1.5
        y += y
        y.sub_(y, alpha=0.5)
        return self.last(torch.relu(y))


def test_what_reads_what_it_writes_is_kept() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 3, 10, 10)
    model(x).square().sum().backward()
    wanted = model.first.weight.grad.clone()
    model.zero_grad()
    sn.virtual_batch(model, x.split([3, 5]), lambda m, part: m(part).square().sum(), recompute=True)
    assert (model.first.weight.grad - wanted).norm() <= 1e-5 * wanted.norm()


def test_what_cannot_be_cut_into_parts() -> None:
    x = torch.randn(8, 3, 4, 4)

    def loss(model: nn.Module, part: Tensor) -> Tensor:
        return model(part).sum()

    for norm in (sn.BatchNorm(3, ghost=2), sn.BatchNorm(3, renorm=(3.0, 5.0))):
        with pytest.raises(ModelError, match="ghost batches or renormalisation") as raised:
            sn.virtual_batch(nn.Sequential(norm), x.split(4), loss)
        assert "ghost" in str(raised.value)
    norm = sn.BatchNorm(3)
    mask = torch.ones(4, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ModelError, match="called with a mask"):
        sn.virtual_batch(norm, x.split(4), lambda m, part: m(part, mask=mask).sum())
    for parts in (x, {"x": x}):
        with pytest.raises(OptionError, match="a list of micro-batches"):
            sn.virtual_batch(norm, parts, loss)
    model = nn.Sequential(nn.Conv1d(3, 3, 1), sn.SlabNorm("n c t -> t", affine="", track_running_stats=False))
    with pytest.raises(ModelError, match="differ along an axis"):
        sn.virtual_batch(model, [torch.randn(4, 3, 5), torch.randn(4, 3, 4)], loss)
