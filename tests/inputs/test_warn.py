"""Features that hardly vary are warned of, in any unit; healthy ones are not."""

import warnings

import numpy as np
import pytest
import torch

from slabnorm.errors import DataWarning
from slabnorm.inputs import MinMax, Robust, ZScore, fit

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=4000)
RARE = np.where(np.arange(4000) % 20 == 0, 1.0, 3.3e-4 * NORMAL)


def fitted(scheme, *columns, dtype="float64"):
    return fit(np.stack(columns, 1).astype(dtype), scheme, split="train")


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e9])
def test_a_near_constant_feature_under_a_robust_scheme_is_named_with_what_an_outlier_becomes(unit):
    with pytest.warns(DataWarning, match=r"1 of 2 features is nearly constant.*feature 1") as caught:
        norm = fitted("robust", NORMAL * unit, RARE * unit)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert f"scale of feature 1 is {float(norm.scale[1]):.3g}" in text
    largest = float(((1 * unit - norm.shift[1]) / norm.scale[1]).abs())
    assert largest > 1000
    assert f"becomes {largest:,.0f} in size" in text
    assert "slabnorm.Robust(clip=(-10, 10))" in text


def test_one_value_in_millions_is_near_constant_to_a_zscore():
    x = np.zeros((1_200_000, 1), np.float32)
    x[7] = 5
    with pytest.warns(DataWarning, match="1 of 1 features is nearly constant"):
        fit(x, split="train")


@pytest.mark.parametrize("scheme", ["zscore", "minmax", "robust"])
@pytest.mark.parametrize(("dtype", "base"), [("float32", 1000.0), ("float64", 0.3)])
def test_what_varies_by_rounding_alone_is_named(scheme, dtype, base):
    steps = np.arange(4000) % 2 * np.spacing(np.asarray(base, dtype))
    with pytest.warns(
        DataWarning, match=r"constant except for rounding: feature 0\..*within the rounding of " + dtype
    ):
        fitted(scheme, base + steps, NORMAL, dtype=dtype)


@pytest.mark.parametrize("scheme", [ZScore(), MinMax(), Robust(), Robust(unit=True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_healthy_features_are_left_in_peace(scheme, dtype):
    columns = [NORMAL * unit for unit in (1e-30, 1e-4, 1e9)] + [NORMAL + 500, np.arange(4000) % 256]
    columns += [
        np.exp(NORMAL),
        np.exp(2 * NORMAL) * 1e-6,
        RNG.exponential(size=4000),
        RNG.standard_t(3, 4000),
    ]
    if not isinstance(scheme, Robust):  # to which it has no range
        columns += [NORMAL > 2.5, NORMAL + 1e4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(scheme, *columns, dtype=dtype)


def test_clipping_is_the_fix():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(Robust(clip=(-10, 10)), RARE)


def test_data_of_bool_are_warned_of_unless_they_are_cast(tmp_path):
    flags = RNG.random((100, 2)) < 0.3
    np.save(tmp_path / "a.npy", flags)
    halves = np.split(flags, 2)
    for data in (flags, torch.from_numpy(flags), tmp_path / "a.npy", halves, {"x": flags}):
        with pytest.warns(
            DataWarning, match="data of bool, which are counted as 0 and 1; cast them to uint8"
        ) as caught:
            norm = fit(data, split="train")
        assert [warning.filename for warning in caught] == [__file__]
        assert norm.moments.mean.tolist() == flags.mean(0).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(flags.astype("uint8"), split="train").samples == 100
