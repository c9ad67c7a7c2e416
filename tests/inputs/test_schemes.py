"""Schemes: what they make of Moments, by name and as objects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from slabnorm.errors import DataWarning, OptionError, StatisticsError
from slabnorm.inputs import FixedScale, MinMax, ZScore, fit
from slabnorm.inputs.schemes import SCHEMES, first_features, from_plain, resolve, to_plain

DATA = np.random.default_rng(1).standard_normal((200, 5)) * [1, 10, 0.1, 3, 2] + [0, 5, -3, 100, 1e3]


def test_zscore_and_minmax_agree_with_scikit_learn():
    for scheme, peer in [
        (ZScore(), StandardScaler()),
        (MinMax(), MinMaxScaler()),
        (MinMax((-1, 3)), MinMaxScaler((-1, 3))),
    ]:
        ours = fit(DATA, scheme, split="train")(torch.from_numpy(DATA)).numpy()
        np.testing.assert_allclose(ours, peer.fit_transform(DATA), rtol=1e-9, atol=1e-12)


def test_ddof_and_eps():
    norm = fit(DATA, ZScore(ddof=1, eps=0.5), split="train")
    np.testing.assert_allclose(norm.scale.numpy(), np.sqrt(DATA.var(0, ddof=1) + 0.5), rtol=1e-12)
    with pytest.raises(StatisticsError, match="ddof=1 needs more than 1"):
        fit(DATA[:1], ZScore(ddof=1), split="train")


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20, unique=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    out=st.sampled_from([(0, 1), (-1, 1), (0, 255), (-3, 5)]),
)
def test_minmax_hits_the_ends_of_its_range_and_never_leaves_it(values, dtype, out):
    # A binary cross-entropy on targets refuses 1 + 1e-7.
    x = torch.tensor(values, dtype=dtype)
    y = fit(x, MinMax(out), split="train")(x)
    assert (y.min().item(), y.max().item()) == out


def test_fixed_scale_has_the_bits_of_a_division_by_255():
    pixels = torch.arange(256, dtype=torch.uint8)
    y = fit(pixels, "fixed", split="train")(pixels)
    assert torch.equal(y, pixels.to(torch.float32).div(255))  # torchvision's ToTensor


@pytest.mark.filterwarnings("ignore:.*data of bool:slabnorm.errors.DataWarning")
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("bool", 0, 1), ("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535), ("int16", -32768, 32767)],
)
def test_fixed_by_name_takes_the_range_of_the_dtype(dtype, low, high):
    assert fit(np.zeros(3, dtype), "fixed", split="train").scheme == FixedScale(low, high)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64", "float16", "float32", "float64"])
def test_fixed_by_name_refuses_a_dtype_without_a_range(dtype):
    with pytest.raises(OptionError, match=f"dtype {dtype}(.|\n)*FixedScale"):
        fit(np.zeros(3, dtype), "fixed", split="train")


def test_fixed_scale_on_float_digits():
    digits = np.array([[0.0, 4.0], [8.0, 16.0]])
    norm = fit(digits, FixedScale(0, 16), split="train")
    assert norm(torch.from_numpy(digits)).tolist() == [[0.0, 0.25], [0.5, 1.0]]
    centred = fit(digits, FixedScale(0, 16, out=(-1, 1)), split="train")
    assert centred(torch.from_numpy(digits)).tolist() == [[-1.0, -0.5], [0.0, 1.0]]


def test_fixed_scale_warns_of_values_outside():
    with pytest.warns(
        DataWarning, match=r"values from 0 to 16, outside the range of FixedScale\(low=0.0, high=1.0"
    ):
        fit(np.array([0.0, 16.0]), FixedScale(0, 1), split="train")


@pytest.mark.parametrize("scheme", ["zscore", "minmax"])
@pytest.mark.parametrize("value", [0.1, 14.62, 3e38, 1e300, -0.0])
def test_a_constant_feature_gets_scale_1_and_a_warning(scheme, value):
    data = np.stack([np.full(1000, value), np.arange(1000.0)], 1)
    with pytest.warns(DataWarning, match="1 of 2 features are constant and get scale 1: feature 0"):
        norm = fit(data, scheme, split="train")
    assert norm.scale[0].item() == 1.0
    y = norm(torch.from_numpy(data))
    assert y[:, 0].abs().max().item() == 0.0
    assert torch.isfinite(y).all()


def test_the_warning_names_the_first_few():
    with pytest.warns(DataWarning, match=r"10 of 10 .*: features 0, 1, 2, 3, 4 and 5 more"):
        fit(np.ones((4, 10)), split="train")
    assert first_features(torch.tensor([[False, True], [True, False]])) == "features (0, 1), (1, 0)"
    assert first_features(torch.tensor(True)) == "the only feature"


def test_a_spread_of_one_ulp_is_a_spread():
    x = torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64)
    assert fit(x, split="train")(x).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("data", [[1e-200, 2e-200], [1e200, -1e200]])
def test_a_variance_that_leaves_float64(data):
    with pytest.raises(StatisticsError, match="out of the range of float64"):
        fit(np.array(data), split="train")
    assert fit(np.array(data), "minmax", split="train")(torch.tensor(data, dtype=torch.float64)).max() == 1


def test_a_range_that_leaves_float64():
    with pytest.raises(StatisticsError, match="float64"):
        fit(np.array([1.7e308, -1.7e308]), "minmax", split="train")


def test_a_sum_that_leaves_float64():
    with pytest.raises(StatisticsError, match="sum of values in array overflows"):
        fit(np.full(1000, 1.0e308) * np.tile([1, -1], 500), "minmax", split="train")


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedScale(1, 1),
        lambda: FixedScale(2, 1),
        lambda: FixedScale(0, float("inf")),
        lambda: FixedScale("0", 1),
        lambda: FixedScale(-1.7e308, 1.7e308),
        lambda: MinMax((1, 0)),
        lambda: MinMax(1),
        lambda: MinMax((0, float("nan"))),
        lambda: ZScore(ddof=-1),
        lambda: ZScore(ddof=True),
        lambda: ZScore(ddof=0.5),
        lambda: ZScore(eps=-1e-5),
        lambda: ZScore(eps=float("nan")),
    ],
)
def test_arguments_out_of_range(make):
    with pytest.raises(OptionError):
        make()


def test_schemes_are_frozen_values():
    assert ZScore() == ZScore(ddof=0)
    assert hash(MinMax([0, 1])) == hash(MinMax((0.0, 1.0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        ZScore().ddof = 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Z-Score", "did you mean 'zscore'"),
        ("min_max", "did you mean 'minmax'"),
        ("fixd", "did you mean 'fixed'"),
        ("median", "use one of 'fixed', 'minmax', 'zscore'"),
        (None, "use one of"),
        (3, "use one of"),
    ],
)
def test_names_that_are_none(name, words):
    with pytest.raises(OptionError, match=words):
        resolve(name, "float32")


@pytest.mark.parametrize("scheme", [ZScore(1, 0.5), MinMax((-1, 1)), FixedScale(1, 2, (3, 4))])
def test_written_down_and_read_back(scheme):
    assert scheme.name in SCHEMES
    assert from_plain(to_plain(scheme)) == scheme


@pytest.mark.parametrize(
    "plain", [{}, {"name": "median"}, {"name": "zscore", "other": 1}, {"name": "zscore", "ddof": -1}]
)
def test_what_is_no_scheme_is_not_read(plain):
    with pytest.raises(OptionError):
        from_plain(plain)
