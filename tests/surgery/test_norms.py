"""One norm at a time: the root itself, every kind and option, and the input that stays torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import slabnorm as sn
from tests.cases import draw
from tests.surgery.nets import assert_close, step, twins

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch 2-D": (lambda: nn.BatchNorm1d(4), (8, 4)),
    "batch 3-D": (lambda: nn.BatchNorm1d(4), (6, 4, 5)),
    "batch 4-D": (lambda: nn.BatchNorm2d(4), (3, 4, 5, 6)),
    "batch 5-D": (lambda: nn.BatchNorm3d(4), (3, 4, 2, 5, 2)),
    "batch plain": (lambda: nn.BatchNorm2d(4, 1e-3, 0.3, affine=False), (3, 4, 5, 6)),
    "batch untracked": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 5, 6)),
    "batch average": (lambda: nn.BatchNorm2d(4, momentum=None), (3, 4, 5, 6)),
    "batch no bias": (lambda: nn.BatchNorm2d(4, bias=False), (3, 4, 5, 6)),
    "instance": (lambda: nn.InstanceNorm2d(4), (3, 4, 5, 6)),
    "instance affine": (lambda: nn.InstanceNorm1d(4, affine=True), (3, 4, 9)),
    "instance tracked": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (3, 4, 5, 6)),
    "instance average": (
        lambda: nn.InstanceNorm2d(4, momentum=None, track_running_stats=True),
        (3, 4, 5, 6),
    ),
    "instance 5-D": (lambda: nn.InstanceNorm3d(4), (3, 4, 2, 5, 2)),
    "instance unbatched": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 9)),
    "instance, other channels": (lambda: nn.InstanceNorm1d(4), (3, 6, 9)),
    "group": (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
    "group plain": (lambda: nn.GroupNorm(2, 4, affine=False), (3, 4, 5, 2)),
    "layer": (lambda: nn.LayerNorm(6), (3, 4, 6)),
    "layer 2 axes": (lambda: nn.LayerNorm((4, 6)), (3, 4, 6)),
    "layer plain": (lambda: nn.LayerNorm(6, elementwise_affine=False), (3, 6)),
    "layer no bias": (lambda: nn.LayerNorm(6, bias=False), (6,)),
    "rms": (lambda: nn.RMSNorm(6), (3, 4, 6)),
    "rms plain": (lambda: nn.RMSNorm(6, 1e-3, elementwise_affine=False), (3, 6)),
}


@pytest.mark.filterwarnings("ignore:input's size at dim")
@pytest.mark.filterwarnings("ignore:.*before any training step")  # with momentum=None torch's never learns
@pytest.mark.parametrize("name", KINDS)
def test_root_norm(name: str) -> None:
    make, shape = KINDS[name]
    torch.manual_seed(0)
    norm = make()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    fast, plain = twins(norm)
    report = sn.accelerate(fast, always=True)
    assert [n.names for n in report.replaced] == [("",)]
    for size in (0, 0, 2):  # batches of another size last
        x = 1 + 2 * torch.randn((shape[0] + size, *shape[1:]) if len(shape) > 2 else shape)
        assert_close({**step(fast, x), "d ": x}, {**step(plain, x), "d ": x})
    fast.eval(), plain.eval()
    assert_close({**step(fast, x), "d ": x}, {**step(plain, x), "d ": x})
    assert list(fast.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    sn.restore(fast)
    assert type(fast) is type(plain)
    assert_close({**step(fast, x), "d ": x}, {**step(plain, x), "d ": x})


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(4), (3, 4, 5)),
        (nn.BatchNorm1d(4), (3, 4, 5, 6)),
        (nn.BatchNorm2d(4), (3, 5, 4, 4)),
        (nn.InstanceNorm2d(4, affine=True), (3, 5, 4, 4)),
        (nn.GroupNorm(2, 4), (3, 6, 5)),
        (nn.LayerNorm(4), (3, 5)),
    ],
    ids=repr,
)
def test_torch_refuses_what_it_refused(norm: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with pytest.raises((ValueError, RuntimeError)) as plain:
        norm(x)
    sn.accelerate(norm, always=True)
    with pytest.raises(plain.type) as fast:
        norm(x)
    assert str(fast.value) == str(plain.value)


class Own(nn.BatchNorm2d):
    """Somebody's own batch norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp(-2, 2)


def _pruned() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return prune.l1_unstructured(norm, "weight", 2)


def _patched() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda x: x  # type: ignore[method-assign]
    return norm


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Own(4), "its outputs differ from every norm"),
        (lambda: nn.SyncBatchNorm(4), "processes"),
        (lambda: nn.LazyBatchNorm2d(), "not initialised"),
        (lambda: nn.LocalResponseNorm(2), "its outputs differ from every norm"),
        (_pruned, "pruning"),
        (_patched, "forward was replaced"),
        (lambda: nn.BatchNorm2d(4, momentum=1.5), "momentum"),
        (lambda: nn.LayerNorm(4, dtype=torch.complex64), "is not what its arguments say"),
    ],
)
def test_left_with_the_reason(make: Callable[[], nn.Module], why: str) -> None:
    norm = make()
    kind = type(norm)
    report = sn.accelerate(nn.Sequential(norm, nn.ReLU()), always=True)
    assert not report.replaced
    assert report.left[0].names == ("0",)
    assert why in report.left[0].reason
    assert type(norm) is kind


def test_slabnorm_layers_are_fine_as_they_are() -> None:
    report = sn.accelerate(nn.Sequential(sn.BatchNorm(4), sn.SlabNorm("n c ... -> n", c=4)), always=True)
    assert (report.replaced, report.left) == ((), ())


def test_not_a_module() -> None:
    with pytest.raises(sn.SlabError, match="Module"):
        sn.accelerate(torch.ones(3), always=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_casts(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(4, 3, 5, 5)
    fast, plain = twins(model)
    sn.accelerate(fast, always=True)
    fast(x), plain(x)
    fast.to(dtype), plain.to(dtype)
    bound = 1e-6 if dtype == torch.float64 else 3e-2
    got, want = fast(x.to(dtype)), plain(x.to(dtype))
    assert got.dtype == want.dtype == dtype
    assert (got - want).abs().max() <= bound * want.abs().max()
    sn.restore(fast)  # torch wants running statistics in the weight's dtype
    assert [t.dtype for t in fast.state_dict().values()] == [t.dtype for t in plain.state_dict().values()]
    assert (fast(x.to(dtype)) - plain(x.to(dtype))).abs().max() <= bound * want.abs().max()


def test_accelerated_in_half_precision() -> None:
    fast, plain = twins(nn.Sequential(nn.BatchNorm1d(4), nn.SiLU()).bfloat16())
    sn.accelerate(fast, always=True)
    x = torch.randn(16, 4).bfloat16()
    for _ in range(2):
        assert (fast(x) - plain(x)).abs().max() <= 3e-2
    assert fast[0].running_mean.dtype == torch.float32
    assert fast.eval()(x).dtype == torch.bfloat16
    assert (fast.eval()(x) - plain.eval()(x)).abs().max() <= 3e-2


def test_switched_tracking() -> None:
    """Training on adversarial batches turns tracking off for a while."""
    fast, plain = twins(nn.BatchNorm1d(4))
    for norm in (fast, plain):
        norm.track_running_stats = False
    sn.accelerate(fast, always=True)
    x = 3 + torch.randn(8, 4)
    assert_close({**step(fast, x), "d ": x}, {**step(plain, x), "d ": x})
    assert torch.equal(fast.running_mean, torch.zeros(4))


class Viewed(nn.Module):
    """Takes it from its norms that their results are contiguous, as torch's are."""

    def __init__(self) -> None:
        super().__init__()
        self.ln, self.norm, self.bn = nn.LayerNorm(6), nn.InstanceNorm2d(6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c = x.shape[:2]
        tokens = self.ln(x.flatten(2).transpose(1, 2)).view(-1, c)
        images = F.relu(self.norm(x.contiguous(memory_format=torch.channels_last))).view(n, -1)
        rows = F.relu(self.bn(x.flatten(2).permute(2, 1, 0).flatten(1)[:, :c].t().contiguous().t())).view(-1)
        return tokens.sum() + images.sum() + rows.sum()


def test_views_of_norms_run_after_accelerate_as_before() -> None:
    plain = Viewed()
    fast, x = copy.deepcopy(plain), draw((3, 6, 4, 5))
    sn.accelerate(fast, always=True)
    torch.testing.assert_close(fast(x), plain(x))


class Sums(nn.Module):
    """Sums on either side of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor, r: torch.Tensor, left: bool) -> torch.Tensor:
        if left:
            return F.relu(self.bn(x) + r)
        return F.relu(r + self.bn(x))


def test_sums_lie_in_memory_as_torch_lays_them() -> None:
    """The order of a sum of two orders is that of its left operand: such sums are torch's."""
    plain = Sums()
    fast = copy.deepcopy(plain)
    assert sn.accelerate(fast, always=True).replaced[0].residual
    x = draw((3, 6, 4, 5))
    orders = [
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    for a in orders:
        for b in orders:
            for left in (True, False):
                got, want = fast(a, b, left), plain(a, b, left)
                assert got.stride() == want.stride()
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
