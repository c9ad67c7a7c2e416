"""From SlabScaler to InputNorm, its artifact, and back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import slabnorm as sn
from slabnorm import MinMax, SlabScaler
from slabnorm.errors import DataWarning, LeakageError, OptionError
from tests.inputs.chunking import in_chunks, same

RNG = np.random.default_rng(11)


def test_to_norm_and_back(tmp_path):
    x = pd.DataFrame(RNG.standard_normal((60, 3)) * 5 + 1e9, columns=["a", "b", "c"])
    x.iloc[4, 1] = np.nan
    scaler = in_chunks(SlabScaler("minmax", clip=True), x, [7, 30])
    norm = scaler.to_norm()
    assert (norm.split, norm.samples, norm.dtype, norm.record.names) == (
        "train",
        60,
        "float64",
        ("a", "b", "c"),
    )
    assert norm.scheme == MinMax(clip=(0, 1))
    sn.save(norm, tmp_path / "inputs.safetensors")
    back = SlabScaler.from_norm(sn.load(tmp_path / "inputs.safetensors"))
    assert same(back.moments_, scaler.moments_)
    np.testing.assert_array_equal(back.transform(x), scaler.transform(x))
    np.testing.assert_allclose(norm(torch.tensor(x.to_numpy())), scaler.transform(x), rtol=1e-15)
    assert back.feature_names_in_.tolist() == ["a", "b", "c"]
    assert back.nan_count_.tolist() == [0, 1, 0]
    for one in (scaler, back):
        one.partial_fit(x * 1.5)
    assert same(back.moments_, scaler.moments_)


def test_the_norm_is_that_of_fit():
    x = RNG.standard_normal((500, 4)) + np.array([0, 1e3, 1e6, 1e9])
    fitted, from_scaler = sn.fit(x, split="train", nan="omit"), SlabScaler().fit(x).to_norm()
    assert same(fitted.moments, from_scaler.moments)
    assert fitted.record.to_plain() == {**from_scaler.record.to_plain(), "content": fitted.record.content}


def test_whole_weights_travel_and_real_ones_do_not():
    x, weights = RNG.standard_normal((20, 2)), RNG.integers(0, 4, 20)
    assert SlabScaler().fit(x, sample_weight=weights).to_norm().samples == weights.sum()
    with pytest.raises(OptionError, match="how many samples"):
        SlabScaler().fit(x, sample_weight=weights + 0.5).to_norm()


def test_splits_are_guarded():
    x = RNG.standard_normal((20, 2))
    with pytest.raises(LeakageError):
        SlabScaler().fit(x).to_norm("test")
    with pytest.warns(DataWarning, match="held-out"):
        leaked = sn.fit(x, split="test", leak=True)
    with pytest.raises(LeakageError, match="split='test'"):
        SlabScaler.from_norm(leaked).to_norm("train")
    assert SlabScaler.from_norm(leaked).fit(x).to_norm().split == "train"


def test_norms_that_are_no_tables():
    images = sn.fit(RNG.standard_normal((5, 3, 4, 4)), "zscore", "n c h w -> c", split="train")
    pooled = sn.fit(RNG.standard_normal((5, 3)), "zscore", "n c ->", split="train")
    for norm in (images, pooled):
        with pytest.raises(OptionError, match="one statistic per column"):
            SlabScaler.from_norm(norm)
    with pytest.raises(OptionError, match="quantiles"):
        SlabScaler.from_norm(sn.fit(RNG.standard_normal((5, 3)), "robust", split="train"))
    transposed = sn.fit(RNG.standard_normal((9, 6)), "zscore", "n (g c) -> c g", split="train", g=2)
    x = torch.from_numpy(RNG.standard_normal((9, 6)))
    np.testing.assert_allclose(
        SlabScaler.from_norm(transposed).transform(x.numpy()), transposed(x), rtol=1e-15
    )


def test_a_constant_feature_has_scale_1_and_the_norm_warns():
    scaler = SlabScaler().fit([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])  # a warning would be an error here
    assert scaler.scale_[0] == 1
    assert scaler.transform([[0.1, 2.0]]).tolist() == [[0.0, 0.0]]
    with pytest.warns(DataWarning, match="1 of 2 features are constant and get scale 1: feature 0"):
        scaler.to_norm()


def test_the_modes_of_the_caller_do_not_stick():
    x = RNG.standard_normal((9, 3))
    expected = SlabScaler().fit(x, sample_weight=np.arange(1, 10))
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            scaler = SlabScaler().fit(x, sample_weight=np.arange(1, 10))
        norm = scaler.to_norm()
        back = SlabScaler.from_norm(norm)
    finally:
        torch.set_default_device(None)
    assert same(scaler.moments_, expected.moments_)
    assert same(back.moments_, expected.moments_)
    rows = torch.from_numpy(x).requires_grad_()
    norm(rows).sum().backward()
    assert rows.grad is not None
