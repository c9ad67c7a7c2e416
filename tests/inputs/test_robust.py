"""Quantiles from a sample, the robust scheme, and clipping."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import RobustScaler

import slabnorm as sn
from slabnorm.errors import ArtifactError, DataError, DataWarning, OptionError
from slabnorm.inputs.quantile_sample import QuantileSample, QuantileSampler
from slabnorm.inputs.sketch import Bounds
from tests.inputs.chunking import small

TABLE = load_breast_cancer().data


def test_small_data_have_their_own_quantiles():
    scaler = RobustScaler().fit(TABLE)
    norm = sn.fit(TABLE, "robust", split="train")
    np.testing.assert_allclose(norm.shift, scaler.center_, rtol=1e-13)
    np.testing.assert_allclose(norm.scale, scaler.scale_, rtol=1e-13)
    np.testing.assert_allclose(norm(torch.from_numpy(TABLE)), scaler.transform(TABLE), atol=1e-12)
    unit = sn.fit(TABLE, sn.Robust(0.1, 0.9, unit=True), split="train")
    other = RobustScaler(quantile_range=(10, 90), unit_variance=True).fit(TABLE)
    np.testing.assert_allclose(unit.scale, other.scale_, rtol=1e-12)


def test_large_data_have_them_within_the_error_that_is_said():
    data = np.random.default_rng(0).exponential(size=(200_000, 3)).astype(np.float32)
    norm = sn.fit(data, sn.Robust(0.1, 0.9), split="train")
    sampled = norm.quantiles.numpy()
    for row, rank in enumerate((0.1, 0.5, 0.9)):
        for feature in range(3):
            assert abs((data[:, feature] <= sampled[row, feature]).mean() - rank) <= norm.rank_error
    assert 0.012 < norm.rank_error < 0.013


@pytest.mark.parametrize("pattern", ["n c h w -> c", "n c h w -> c w", "n c h w -> h c", "n c h w ->"])
def test_any_pattern(pattern):
    images = np.random.default_rng(1).standard_normal((20, 2, 5, 6))
    norm = sn.fit(images, "robust", pattern, split="train")
    kept = pattern.split("->")[1].split()
    axes = tuple(i for i, name in enumerate("nchw") if name not in kept)
    medians = np.median(images, axes)
    medians = medians.T if kept == ["h", "c"] else medians
    np.testing.assert_allclose(norm.shift, medians, atol=1e-15)


def test_the_sample_does_not_depend_on_workers_or_batches():
    data = np.random.default_rng(2).standard_normal((60_000, 3))
    batches = (data[i : i + 777] for i in range(0, 60_000, 777))
    whole = sn.fit(small(data, 600), "robust", split="train", workers=1)
    for source in (data, batches):
        other = sn.fit(small(source, 600), "robust", split="train", workers=4 if source is data else None)
        assert torch.equal(whole.quantiles, other.quantiles)


def test_samples_are_uniform_and_merge_in_any_order():
    samplers = [QuantileSampler(shard, 1, 64, Bounds()) for shard in range(40)]
    for shard, sampler in enumerate(samplers):
        sampler.add(shard * 100.0 + np.arange(100.0)[:, None], (0,), (1,))
    samples = [sampler.sample() for sampler in samplers]
    forth, back = QuantileSample.empty(1, 64), QuantileSample.empty(1, 64)
    for a, b in zip(samples, reversed(samples), strict=True):
        forth, back = forth.merge(a), back.merge(b)
    assert (forth.keys == back.keys).all()
    assert (forth.values == back.values).all()
    assert 1200 < forth.values.mean() < 2800  # 2000, give or take 3.5 standard errors of 144 and more
    assert len(np.unique(forth.values)) == 64


def test_missing_values_are_left_out():
    data = np.array([[1.0], [np.nan], [3.0], [2.0], [np.nan]])
    assert sn.fit(data, "robust", split="train", nan="omit").shift.tolist() == [2.0]


def test_a_feature_without_spread():
    data = np.array([[1.0, 5], [1, 5], [1, 5], [1, 5], [9, 5]])
    with pytest.warns(sn.SlabWarning) as caught:
        norm = sn.fit(data, "robust", split="train")
    assert norm.scale.tolist() == [1.0, 1.0]
    constant, flat = (str(warning.message) for warning in caught)
    assert constant.endswith("constant and get scale 1: feature 1")
    assert flat.endswith("equal quantiles and get scale 1: feature 0")


def test_robust_statistics_travel(tmp_path):
    norm = sn.fit(TABLE, sn.Robust(0.05, 0.95, clip=(-3, 3)), split="train")
    sn.save(norm, tmp_path / "a")
    again = sn.load(tmp_path / "a")
    assert again.scheme == norm.scheme
    x = torch.from_numpy(TABLE)
    assert torch.equal(again(x), norm(x))
    state = sn.InputNorm.from_state_dict(norm.state_dict())
    assert torch.equal(state(x), norm(x))
    assert norm(x).abs().max() == 3.0


def test_quantiles_that_no_data_have(tmp_path):
    norm = sn.fit(TABLE, "robust", split="train")
    norm.quantiles[0, 0] = norm.quantiles[1, 0] + 1
    sn.save(norm, tmp_path / "a")
    with pytest.raises(ArtifactError, match="quantiles"):
        sn.load(tmp_path / "a")


@pytest.mark.parametrize("arguments", [(0.5, 0.75), (-0.1, 0.9), (0.25, 0.5), ("a", 1), (0.25, 1.5)])
def test_ranks(arguments):
    with pytest.raises(OptionError, match="ranks"):
        sn.Robust(*arguments)


@pytest.mark.parametrize(
    ("scheme", "ends"),
    [
        (sn.MinMax(clip=True), (0, 1)),
        (sn.MinMax((-1, 1), clip=True), (-1, 1)),
        (sn.FixedScale(0, 5000, clip=(0.25, 0.75)), (0.25, 0.75)),
        (sn.ZScore(clip=(-2, 2)), (-2, 2)),
    ],
)
def test_clipping(scheme, ends):
    norm = sn.fit(TABLE, scheme, split="train")
    beyond = torch.from_numpy(TABLE * 1e5 - 5e4)
    assert (norm(beyond).min(), norm(beyond).max()) == ends
    inside = sn.fit(TABLE, type(scheme)(**vars(scheme) | {"clip": None}), split="train")
    y = inside(torch.from_numpy(TABLE))
    assert torch.equal(norm(torch.from_numpy(TABLE)), y.clamp(*ends))
    assert norm(torch.full((1, 30), torch.nan)).isnan().all()
    assert "clip=" in repr(norm)


def test_clips_that_are_none():
    for clip in [(1, 0), 3, ("a", "b"), True]:
        with pytest.raises(OptionError, match="clip"):
            sn.ZScore(clip=clip)


def test_missing_values_widen_the_error_that_is_said():
    random = np.random.default_rng(3)
    x = random.standard_normal((200_000, 2))
    x[random.random(200_000) < 0.98, 1] = np.nan
    norm = sn.fit(x, "robust", split="train", nan="omit")
    there = np.sort(x[~np.isnan(x[:, 1]), 1])
    ranks = np.searchsorted(there, norm.quantiles[:, 1].numpy()) / len(there)
    assert 0.07 < norm.rank_error < 0.13  # of 16384 values 2% are there: sqrt(log(200) / 2 / 328) = 0.09
    assert np.abs(ranks - [0.25, 0.5, 0.75]).max() < norm.rank_error


def test_a_feature_that_the_sample_does_not_have():
    x = np.random.default_rng(4).standard_normal((300_000, 2))
    x[:-1, 1] = np.nan
    with pytest.raises(DataError, match=r"quantiles(.|\n)*feature 1(.|\n)*zscore"):
        sn.fit(x, "robust", split="train", nan="omit")
    with pytest.warns(DataWarning, match="constant"):
        assert sn.fit(x, split="train", nan="omit").count.tolist() == [300_000, 1]


@pytest.mark.parametrize("pattern", ["n c -> c", "n (g c) -> g", "n (g c) -> c", "n (g c) -> c g", "n c ->"])
def test_a_table_has_the_quantiles_of_the_same_array(pattern):
    x = np.random.default_rng(5).standard_normal((3000, 6)) * np.arange(1, 7)
    sizes = {"g": 2} if "g" in pattern else {}
    sources = pd.DataFrame(x, columns=list("abcdef")), x
    table, array = (sn.fit(source, "robust", pattern, split="train", **sizes) for source in sources)
    assert torch.equal(table.quantiles, array.quantiles)
