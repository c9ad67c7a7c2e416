"""Scaling in the weights of the first layer: the same output from raw data."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import slabnorm as sn
from slabnorm.errors import OptionError

SCHEMES = [
    "zscore",
    "minmax",
    sn.MinMax(out=(-1, 1)),
    sn.FixedScale(0, 255),
    sn.FixedScale(0, 255, out=(-1, 1)),
    sn.QuantileRange(0.1, 0.9),
]


def images(channels: int = 4) -> torch.Tensor:
    drawn = np.random.default_rng(0).integers(0, 256, size=(5, channels, 9, 8), dtype=np.uint8)
    return torch.from_numpy(drawn)


def _hooked() -> nn.Module:
    layer = nn.Conv2d(4, 6, 3)
    layer.register_forward_pre_hook(lambda module, args: (args[0].clamp(-1, 1),))
    return layer


@pytest.mark.parametrize(("scale", "shift"), [(1e8, 0.0), (1e-6, 0.0), (1.0, 1e7)])
def test_what_the_dtype_does_not_hold_is_refused(scale: float, shift: float) -> None:
    x = scale * torch.randn(50, 4, dtype=torch.float64) + shift
    norm, layer = sn.fit(x, split="train"), nn.Linear(4, 3) if shift else nn.Linear(4, 3).half()
    with pytest.raises(OptionError, match="fold"):
        norm.fold_into(layer)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((got - want).abs().max() <= 1e-6 * want.abs().max().clamp(min=1))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2, bias=False),
        nn.Conv2d(4, 8, (1, 3), groups=2),
        nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
        nn.Conv2d(4, 6, 1, padding="same"),
    ],
    ids=str,
)
def test_convolutions(layer: nn.Module, scheme: str | sn.FixedScale) -> None:
    x, layer = images(), copy.deepcopy(layer).double()
    norm = sn.fit(x, scheme, "n c h w -> c", split="train")
    before = copy.deepcopy(layer.state_dict())
    folded = norm.fold_into(layer)
    assert close(folded(x.double()), layer(norm(x.double())))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("pattern", "shape"), [("n c -> c", (40, 7)), ("n t c -> c", (6, 5, 7)), ("n ... ->", (9, 7))]
)
def test_linear(pattern: str, shape: tuple[int, ...]) -> None:
    x = 1e3 + torch.randn(shape, dtype=torch.float64)
    norm, layer = sn.fit(x, "zscore", pattern, split="train"), nn.Linear(7, 3).double()
    got, want = norm.fold_into(layer)(x), layer(norm(x))
    assert (got - want).abs().max() <= 1e-11 * want.abs().max()


def test_one_and_three_axes() -> None:
    for rank, kind in ((1, nn.Conv1d), (3, nn.Conv3d)):
        x = torch.randn(4, 2, *(5,) * rank, dtype=torch.float64) + 3
        norm = sn.fit(x, "zscore", "n c ... -> c", split="train")
        layer = kind(2, 3, 2).double()
        assert close(norm.fold_into(layer)(x), layer(norm(x)))


def test_float32_weights_are_rounded_once() -> None:
    x = images()
    norm, layer = sn.fit(x, "zscore", "n c h w -> c", split="train"), nn.Conv2d(4, 6, 3)
    got, want = norm.fold_into(layer), norm.fold_into(copy.deepcopy(layer).double())
    assert torch.equal(got.weight, want.weight.float())
    assert torch.equal(got.bias, want.bias.float())
    assert close(got(x.float()), layer(norm(x)))


def test_zero_padding_where_zero_stays_zero() -> None:
    x, layer = images(), nn.Conv2d(4, 6, 3, padding=1)
    norm = sn.fit(x, sn.FixedScale(0, 255), "n c h w -> c", split="train")
    assert close(norm.fold_into(layer)(x.float()), layer(norm(x)))


@pytest.mark.parametrize(
    ("layer", "pattern"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), "n c h w -> c"),
        (nn.Conv2d(4, 6, 3, padding="same"), "n c h w -> c"),
        (nn.Conv2d(3, 6, 3), "n c h w -> c"),
        (nn.Conv2d(4, 6, 3), "n c h w -> c h w"),
        (nn.Conv2d(4, 6, 3), "n c h w -> h"),
        (nn.Linear(4, 6), "n c h w -> c"),
        (nn.ConvTranspose2d(4, 6, 3), "n c h w -> c"),
        (nn.ReLU(), "n c h w -> c"),
        (nn.Conv1d(4, 6, 3), "n c h w -> c"),
        (_hooked(), "n c h w -> c"),
        (prune.l1_unstructured(nn.Conv2d(4, 6, 3), "weight", 2), "n c h w -> c"),
    ],
    ids=str,
)
def test_what_would_not_be_exact_is_refused(layer: nn.Module, pattern: str) -> None:
    with pytest.raises(OptionError, match="fold"):
        sn.fit(images(), "zscore", pattern, split="train").fold_into(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_takes_what_it_can(dtype: torch.dtype) -> None:
    random = np.random.default_rng(1)
    layer = nn.Linear(8, 4).to(dtype)
    near = torch.from_numpy(random.normal(2, 1, (1000, 8))).to(dtype)
    norm = sn.fit(near, split="train")
    wanted = nn.functional.linear(norm(near.double()), layer.weight.double(), layer.bias.double())
    own, folded = layer(norm(near)).double(), norm.fold_into(layer)(near).double()
    assert (folded - wanted).abs().max() < 6 * max((own - wanted).abs().max(), 1e-7)
    far = sn.fit(random.normal(50, 1, (1000, 8)), split="train")
    if dtype == torch.float32:
        far.fold_into(layer)
    else:
        with pytest.raises(OptionError, match="up to 4 times"):
            far.fold_into(layer)


def test_a_layer_without_numbers() -> None:
    with pytest.raises(OptionError, match="meta"):
        sn.fit(torch.randn(9, 3), split="train").fold_into(nn.Linear(3, 3, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_folded_layer_takes_the_pixels_it_promises(dtype: torch.dtype) -> None:
    """As uint8, with type and keys of a layer of torch, copied, pickled and exported."""
    x, layer = images(), nn.Conv2d(4, 6, 3).to(dtype)
    norm = sn.fit(x, sn.FixedScale(0, 255), "n c h w -> c", split="train")
    folded = norm.fold_into(layer)
    want = folded(x.to(dtype))
    assert type(folded) is nn.Conv2d
    assert folded.state_dict().keys() == layer.state_dict().keys()
    assert folded(x).dtype == dtype
    copies = folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), nn.Sequential(folded)
    exported = [torch.export.export(folded, (x,), strict=strict).module() for strict in (True, False)]
    for taken in (*copies, *exported):
        assert torch.equal(taken(x), want)
    moved = copy.deepcopy(folded).double()
    assert torch.equal(moved(x), moved(x.double()))
