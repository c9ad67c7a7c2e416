"""The five names against their namesakes: same results, same checkpoints, same words."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

import slabnorm as sn
from tests.cases import LAYOUTS, draw

SPACE = {2: (), 3: (12,), 4: (6, 7), 5: (3, 4, 5)}
TORCH_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
TORCH_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
C = 6

Pair = Callable[[int, torch.dtype], tuple[nn.Module, nn.Module]]
PAIRS: dict[str, Pair] = {
    "batch": lambda r, d: (sn.BatchNorm(C, dtype=d), TORCH_BATCH[r](C, dtype=d)),
    "batch-plain": lambda r, d: (
        sn.BatchNorm(C, 1e-3, 0.3, False, dtype=d), TORCH_BATCH[r](C, 1e-3, 0.3, False, dtype=d)
    ),
    "batch-untracked": lambda r, d: (
        sn.BatchNorm(C, track_running_stats=False, dtype=d),
        TORCH_BATCH[r](C, track_running_stats=False, dtype=d),
    ),
    "batch-average": lambda r, d: (
        sn.BatchNorm(C, momentum=None, dtype=d), TORCH_BATCH[r](C, momentum=None, dtype=d)
    ),
    "instance": lambda r, d: (sn.InstanceNorm(C, dtype=d), TORCH_INSTANCE[r](C, dtype=d)),
    "instance-affine": lambda r, d: (
        sn.InstanceNorm(C, affine=True, dtype=d), TORCH_INSTANCE[r](C, affine=True, dtype=d)
    ),
    "instance-tracked": lambda r, d: (
        sn.InstanceNorm(C, affine=True, track_running_stats=True, dtype=d),
        TORCH_INSTANCE[r](C, affine=True, track_running_stats=True, dtype=d),
    ),
    "group": lambda r, d: (sn.GroupNorm(3, C, dtype=d), nn.GroupNorm(3, C, dtype=d)),
    "group-nobias": lambda r, d: (
        sn.GroupNorm(2, C, 1e-2, bias=False, dtype=d), nn.GroupNorm(2, C, 1e-2, bias=False, dtype=d)
    ),
    "layer": lambda r, d: (_layer(sn.LayerNorm, r, d), _layer(nn.LayerNorm, r, d)),
    "layer-last": lambda r, d: (
        sn.LayerNorm(_shape(r)[-1], bias=False, dtype=d), nn.LayerNorm(_shape(r)[-1], bias=False, dtype=d)
    ),
    "rms": lambda r, d: (sn.RMSNorm(_shape(r)[-1], dtype=d), nn.RMSNorm(_shape(r)[-1], dtype=d)),
}  # fmt: skip


def _shape(rank: int) -> tuple[int, ...]:
    return (4, C, *SPACE[rank])


def _layer(kind: type[nn.Module], rank: int, dtype: torch.dtype) -> nn.Module:
    return kind(_shape(rank)[1:], dtype=dtype)


def _randomise(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def _step(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    return [y.detach(), *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "rank"),  # torch's instance norm refuses one element per slab
    [(name, rank) for name in PAIRS for rank in SPACE if rank > 2 or not name.startswith("instance")],
)
def test_train_eval_and_checkpoints(name: str, rank: int, dtype: torch.dtype) -> None:
    ours, theirs = PAIRS[name](rank, dtype)
    for layer in (ours, theirs):
        _randomise(layer)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    x, dy = (draw(_shape(rank), dtype=dtype, seed=s) for s in (0, 1))
    for seed in range(3):  # the running statistics of several batches
        x = 1 + 2 * draw(_shape(rank), dtype=dtype, seed=seed)
        for got, want in zip(_step(ours, x, dy), _step(theirs, x, dy), strict=True):
            assert (got - want).abs().max() <= bound * max(1, want.abs().max())
    _same_state(ours, theirs, bound)
    ours.eval(), theirs.eval()
    for got, want in zip(_step(ours, x, dy), _step(theirs, x, dy), strict=True):
        assert (got - want).abs().max() <= bound * max(1, want.abs().max())
    # Checkpoints, both ways, into fresh layers, strictly.
    fresh_ours, fresh_theirs = PAIRS[name](rank, dtype)
    fresh_ours.load_state_dict(theirs.state_dict())
    fresh_theirs.load_state_dict(ours.state_dict())
    for fresh, of in ((fresh_ours, theirs), (fresh_theirs, ours)):
        _same_state(fresh, of, 0)


def _same_state(a: nn.Module, b: nn.Module, bound: float) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value.dtype == theirs[key].dtype
        assert value.shape == theirs[key].shape
        if key == "num_batches_tracked" and value != theirs[key]:
            continue  # torch's instance norm never counts its batches
        assert (value - theirs[key]).abs().max() <= bound


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_of_small_half_precision(dtype: torch.dtype) -> None:
    """eps=None is the epsilon of float32: at 1e-2 that of half precision would drown the data."""
    x = (1e-2 * draw((64, 8))).to(dtype)
    ours, theirs = sn.RMSNorm(8, dtype=dtype)(x), nn.RMSNorm(8, dtype=dtype)(x)
    assert (ours.float() - theirs.float()).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_results_lie_in_memory_as_torchs(name: str, rank: int, layout: str) -> None:
    ours, theirs = PAIRS[name](rank, torch.float32)
    x = LAYOUTS[layout](draw(_shape(rank)))
    y, want = ours(x), theirs(x)
    assert (y - want).abs().max() <= 1e-5
    assert y.stride() == want.stride()


def _views() -> dict[str, torch.Tensor]:
    image = draw((4, C, 5, 7))
    last = image.contiguous(memory_format=torch.channels_last)
    return {
        "channels last with gaps": draw((4, 2 * C, 5, 7)).contiguous(memory_format=torch.channels_last)[
            :, :C
        ],
        "one channels_last image": last[:1],
        "one channel": last[:, :1].contiguous(memory_format=torch.channels_last),
        "permuted": draw((7, 4, C, 5)).permute(1, 2, 3, 0),
        "samples expanded": last[:1].expand(4, -1, -1, -1),
        "every second sample": draw((8, C, 5, 7))[::2],
        "tokens transposed": draw((4, 9, C)).transpose(1, 2),
        "a sequence of batches": draw((9, 4, C)).transpose(0, 1),
        "a transposed table": draw((C, 4)).T,
        "volumes": draw((4, 3, 4, 5, C)).permute(0, 4, 1, 2, 3),
        "a volume cut": draw((4, C, 3, 4, 10))[..., ::2],
    }


def _order(t: torch.Tensor) -> list[bool]:
    last = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(t.dim(), [])  # it may be both
    return [t.is_contiguous(memory_format=f) for f in (torch.contiguous_format, *last)]


@pytest.mark.usefixtures("in_plain_torch")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("view", _views())
def test_views_come_back_in_the_order_that_torch_gives_them(view: str, training: bool) -> None:
    x = _views()[view]
    pairs = [
        (sn.BatchNorm(x.shape[1]), TORCH_BATCH[x.dim()](x.shape[1])),
        (sn.GroupNorm(1, x.shape[1]), nn.GroupNorm(1, x.shape[1])),
        (sn.LayerNorm(x.shape[1:]), nn.LayerNorm(x.shape[1:])),
        (sn.RMSNorm(x.shape[-1]), nn.RMSNorm(x.shape[-1])),
    ]
    if x.dim() > 2:
        pairs.append((sn.InstanceNorm(x.shape[1]), TORCH_INSTANCE[x.dim()](x.shape[1])))
    for pair in pairs:
        results = []
        for layer in pair:
            _randomise(layer)
            for buffer in layer.buffers():
                buffer.fill_(2)
            t = x.detach().requires_grad_()
            y = layer.train(training)(t)
            dy = torch.empty_like(y).copy_(draw(tuple(x.shape), seed=1))  # torch's RMS norm asks what dy is
            results.append((y.detach(), *torch.autograd.grad(y, t, dy)))
        for got, want in zip(*results, strict=True):
            # torch 2.13 reads an instance norm's channels_last gradient of one sample in the wrong order
            assert _order(got) == _order(want)
            if not (len(x) == 1 and isinstance(pair[0], sn.InstanceNorm)):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("in_plain_torch")
def test_slab_norm_and_normalize_keep_the_order_of_the_input() -> None:
    for x in (draw((4, 7, 6)).transpose(1, 2), draw((7, 4, 6, 5)).permute(1, 2, 3, 0)):
        for y in (sn.normalize(x, "n c ... -> n c"), sn.SlabNorm("n c ... -> n c", c=6)(x)):
            assert y.stride() == x.stride()


@pytest.mark.parametrize("name", PAIRS)
def test_repr_and_attributes(name: str) -> None:
    ours, theirs = PAIRS[name](4, torch.float32)
    assert repr(ours) == repr(theirs).replace("2d(", "(")
    for attribute in theirs.__constants__:
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    for attribute in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        if hasattr(theirs, attribute):
            mine, its = getattr(ours, attribute), getattr(theirs, attribute)
            assert (mine is None) == (its is None)


@pytest.mark.parametrize(
    "layer",
    [
        sn.SlabNorm("n c h w -> n", affine="h w", h=5, w=6),
        sn.SlabNorm("n (g c) h w -> n g", affine="w (g c)", g=2, c=3, w=4, bias=False),
        sn.SlabNorm("n t d -> n t", affine=""),
        sn.SlabNorm("n c -> c", c=3, affine="", momentum=None, center=False, inplace=True),
        sn.SlabNorm("n c -> c", c=3, track_running_stats=False, eps=None, activation="gelu"),
        sn.SlabNorm("n c t -> n c", c=3, track_running_stats=True),
    ],
    ids=repr,
)
def test_repr_of_slab_norm_says_all_that_makes_it_again(layer: sn.SlabNorm) -> None:
    again = eval(repr(layer), {"SlabNorm": sn.SlabNorm})
    assert repr(again) == repr(layer)
    assert again.affine_axes == layer.affine_axes
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in layer.state_dict().items()
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sn.BatchNorm, nn.BatchNorm2d),
        (sn.InstanceNorm, nn.InstanceNorm2d),
        (sn.GroupNorm, nn.GroupNorm),
        (sn.LayerNorm, nn.LayerNorm),
        (sn.RMSNorm, nn.RMSNorm),
    ],
)
def test_arguments_are_torchs(ours: type, theirs: type) -> None:
    mine, its = (inspect.signature(kind).parameters for kind in (ours, theirs))
    for name, parameter in its.items():
        assert mine[name].default == parameter.default
        assert mine[name].kind == parameter.kind
    positional = [name for name, p in its.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(mine)[: len(positional)] == positional
    own = {"activation", "inplace"} | ({"ghost", "renorm"} if ours is sn.BatchNorm else set())
    assert set(mine) - set(its) == own


def test_a_whole_network_swaps() -> None:
    """A checkpoint of a torch network loads into the same network of slabnorm layers, and back."""

    def network(batch: Callable[[int], nn.Module], group: Callable[[int, int], nn.Module]) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), batch(8), nn.ReLU(), nn.Conv2d(8, 8, 3), group(4, 8), nn.ReLU(), nn.Flatten(),
            nn.LazyLinear(5),
        )  # fmt: skip

    x = draw((4, 3, 8, 8))
    theirs = network(nn.BatchNorm2d, nn.GroupNorm)
    theirs(x)
    ours = network(sn.BatchNorm, sn.GroupNorm)
    ours.load_state_dict(theirs.state_dict())
    assert (ours.eval()(x) - theirs.eval()(x)).abs().max() < 1e-5
    theirs.load_state_dict(ours.state_dict())
