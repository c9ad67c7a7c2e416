"""Histograms over a training: what they count, and that they stay small."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.doctor.probes import flat_beyond, flat_share
from slabnorm.doctor.ridge import BINS, MOST, SAMPLE, Ridge


def normal(count: int, mean: float = 0.0, sd: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + sd * torch.randn(count, 1, generator=generator)


def counted(x: Tensor, ridge: Ridge) -> np.ndarray:
    """Count the values of a small tensor as NumPy does, whose last bin alone is closed on the right."""
    values = x.double().numpy().ravel()
    edges = np.linspace(ridge.low, ridge.high, BINS + 1)
    return np.histogram(values[values < ridge.high], edges)[0]


def test_every_value_of_a_small_tensor_is_counted():
    x = normal(2000, 3.0, 0.5)
    ridge = Ridge()
    ridge.add(0, 0, x)
    assert ridge.counts[0].tolist() == counted(x, ridge).tolist()
    inside = (x >= ridge.low) & (x < ridge.high)
    assert int(ridge.counts[0].sum()) == int(inside.sum())
    assert float(inside.double().mean()) > 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_bins_that_double_lose_no_count(sign):
    xs = [normal(2000, 0.0, 1.0, 0), normal(2000, sign * 30.0, 2.0, 1), normal(2000, sign * 30.0, 40.0, 2)]
    ridge = Ridge()
    ridge.add(0, 0, xs[0])
    first = ridge.low, ridge.high
    for look in (1, 2):
        ridge.add(look, 10 * look, xs[look])
    factor = (ridge.high - ridge.low) / (first[1] - first[0])
    assert factor == pytest.approx(2 ** round(math.log2(factor)))
    assert factor >= 16
    for x, row in zip(xs, ridge.counts, strict=True):
        # The first look counted only what lay in its own range.
        kept = x[(x >= first[0]) & (x < first[1])] if x is xs[0] else x
        assert row.tolist() == counted(kept, ridge).tolist()
    assert ridge.steps == [0, 10, 20]


@pytest.mark.parametrize("looks", [1, MOST, MOST + 1, 1000])
def test_memory_does_not_grow_with_the_training(looks):
    ridge = Ridge()
    for look in range(looks):
        ridge.add(look, 10 * look, normal(50, look))
    stride = 2 ** math.ceil(math.log2(max(1, looks / MOST)))
    assert ridge.steps == [10 * look for look in range(0, looks, stride)]
    assert len(ridge.counts) == len(ridge.steps) <= MOST
    # A hundred layers with two such ridges each have less than a megabyte.
    assert 200 * sum(row.nbytes for row in ridge.counts) < 1e6


@pytest.mark.parametrize("form", ["contiguous", "channels_last", "transposed"])
def test_the_sample_of_a_large_tensor_is_of_all_pixels_and_channels(form):
    """Every pixel and every channel has a value of its own; a sample that kept to some would miss many."""
    pixels = torch.arange(32 * 32).view(1, 1, 32, 32).float()
    x = (pixels + torch.zeros(16, 64, 1, 1)).contiguous()
    if form == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif form == "transposed":
        x = x.transpose(0, 1)
    ridge = Ridge()
    ridge.add(0, 0, x)
    counts = ridge.counts[0].astype(float)
    assert SAMPLE / 2 < counts.sum() <= SAMPLE
    centres = ridge.low + (np.arange(BINS) + 0.5) * (ridge.high - ridge.low) / BINS
    inside = counts[(centres > 20) & (centres < 1000)]
    assert inside.min() > 0.6 * inside.mean()  # flat, as the pixels are


def test_what_is_not_finite_is_left_out_and_a_constant_has_a_range():
    ridge = Ridge()
    ridge.add(0, 0, torch.full((4, 4), math.nan))
    assert ridge.as_dict() is None
    x = torch.full((8, 4), 2.5)
    x[0] = math.inf
    ridge.add(1, 1, x)
    assert ridge.low < 2.5 < ridge.high
    assert int(ridge.counts[0].sum()) == 28
    ridge.add(2, 2, torch.full((4, 4), 3e38))
    assert ridge.high > 3e38
    assert ridge.as_dict()["steps"] == [1, 2]


def test_watch_keeps_what_enters_norms_and_activations():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    x = torch.randn(32, 4)
    running = model[1].running_mean.fill_(3.0), model[1].running_var.fill_(4.0)
    with sn.watch(model, every=2) as record:
        for _ in range(5):
            model(x).sum().backward()
            optimizer.step()
    assert running[0] is model[1].running_mean
    assert record.tracks["0"].ridge.steps == record.tracks["3"].ridge.steps == []
    assert record.tracks["1"].ridge.steps == record.tracks["2"].ridge.steps == [0, 2, 4]
    given = model[0](x).detach()
    assert record.tracks["1"].ridge.counts[0].tolist() == counted(given, record.tracks["1"].ridge).tolist()
    assert record.tracks["1"].running_mean[0] == pytest.approx(3.0)
    assert record.tracks["1"].running_spread[0] == pytest.approx(2.0)
    assert math.isnan(record.tracks["2"].running_mean[0])


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Hardtanh()])
def test_an_activation_is_flat_beyond_its_limits(module):
    """The derivative by autograd is a hundredth of its largest there, or jumps to 0."""
    low, high = flat_beyond(module)
    near = torch.tensor([low - 1e-3, low + 1e-3, high - 1e-3, high + 1e-3], dtype=torch.float64)
    x = torch.cat([near, torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    module(x).sum().backward()
    slopes = (x.grad[:4] / x.grad[4]).tolist()
    assert [slope < 0.01 for slope in slopes] == [True, False, False, True]


def test_relu6_is_flat_above_six_alone():
    x = torch.tensor([[-9.0, -0.5, 0.5, 3.0, 5.0, 5.9, 6.1, 50.0]])
    assert flat_share(nn.ReLU6(), x) == pytest.approx(2 / 8)
    assert flat_beyond(nn.ReLU6()) == (0.0, 6.0)
    assert flat_beyond(nn.ReLU()) == (0.0, None)
    assert flat_beyond(nn.GELU()) == (None, None)
