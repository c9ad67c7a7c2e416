"""NaN and infinity: raised with their place, or left out and counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slabnorm.errors import DataError
from slabnorm.inputs import fit
from tests.inputs.chunking import small
from tests.inputs.oracle import mean_var, relative

CHUNK = 30  # values: 10 rows of 3 features, 2 of 12


def holes(rows: int = 57) -> np.ndarray:
    data = np.random.default_rng(3).standard_normal((rows, 3)) + np.array([0, 1e12, 5])
    data[[0, 23, 41], [1, 1, 2]] = np.nan
    return data


@pytest.mark.parametrize("batch", [1, 7, 57])
def test_nan_is_raised_with_its_row_and_feature(batch):
    data = holes()
    data[0, 1] = 1.0
    with pytest.raises(DataError, match=r"nan at row 23, c=1; 1 in rows 20\.\.29") as caught:
        fit(small((data[i : i + batch] for i in range(0, 57, batch)), CHUNK), split="train")
    assert 'nan="omit"' in caught.value.fix


def test_the_place_within_an_image():
    data = np.zeros((40, 1, 2, 6))
    data[33, 0, 1, 4] = np.nan
    with pytest.raises(DataError, match="row 33, c=0, h=1, w=4"):
        fit(small(data, CHUNK), split="train")
    with pytest.raises(DataError, match=r"row 33, axis 1=0, axis 2=1, \(a b\)=4"):
        fit(small(data, CHUNK), "zscore", "n ... (a b) -> a", split="train", a=2)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("nan", ["raise", "omit"])
def test_infinity_is_always_raised(value, nan):
    data = holes()[24:40].copy()
    data[12, 2] = value
    with pytest.raises(DataError, match=f"in array\n  got: {value} at row 12, c=2; 1 in rows"):
        fit(small(data, CHUNK), split="train", nan=nan)


def test_infinity_in_the_first_row_of_float16():
    with pytest.raises(DataError, match="inf at row 0, c=1"):
        fit(np.array([[1, 1e6], [2, 3]]).astype("float32").astype(np.float64) * [1, np.inf], split="train")


@pytest.mark.parametrize("chunk", [3, 30, 1 << 20])
def test_omit_leaves_out_feature_by_feature(chunk):
    data = holes()
    norm = fit(small(data, chunk), split="train", nan="omit")
    assert norm.nan_count.tolist() == [0, 2, 1]
    assert norm.moments.count.tolist() == [57, 55, 56]
    for feature in range(3):
        left = data[:, feature][~np.isnan(data[:, feature])]
        mean, var = mean_var(left)
        assert relative(norm.moments.var()[feature].item(), var) <= 1e-13
        assert relative(norm.moments.mean[feature].item(), mean) <= 1e-13
        assert norm.moments.min[feature].item() == left.min()
        assert norm.moments.max[feature].item() == left.max()
    assert "missing=3" in repr(norm)
    assert norm.samples == 57


def test_omit_gives_the_same_as_raise_where_nothing_is_missing():
    data = np.random.default_rng(0).standard_normal((50, 3))
    raised, omitted = (fit(small(data, CHUNK), split="train", nan=nan) for nan in ("raise", "omit"))
    assert torch.equal(raised.scale, omitted.scale)
    assert omitted.nan_count.tolist() == [0, 0, 0]


def test_omit_keeps_missing_values_missing():
    data = torch.from_numpy(holes())
    assert torch.equal(
        torch.isnan(fit(small(data, CHUNK), split="train", nan="omit")(data)), torch.isnan(data)
    )


def test_a_feature_may_be_missing_in_a_whole_chunk_but_not_everywhere():
    data = holes()
    data[10:30, 0] = np.nan
    norm = fit(small(data, CHUNK), split="train", nan="omit")
    kept = np.r_[data[:10, 0], data[30:, 0]]
    assert relative(norm.moments.var()[0].item(), mean_var(kept)[1]) <= 1e-13
    data[:, 0] = np.nan
    with pytest.raises(DataError, match="only NaN in feature 0"):
        fit(small(data, CHUNK), split="train", nan="omit")


def test_omit_over_images():
    data = np.random.default_rng(0).standard_normal((5, 2, 6, 6)).astype(np.float32)
    data[1, 0, 2, 3] = np.nan
    norm = fit(torch.from_numpy(data), split="train", nan="omit")
    assert norm.nan_count.tolist() == [1, 0]
    np.testing.assert_allclose(norm.moments.mean, np.nanmean(data.astype(float), (0, 2, 3)), rtol=1e-12)


def test_omit_with_split_axes():
    data = np.random.default_rng(0).standard_normal((9, 6))
    data[4, 3] = np.nan
    norm = fit(data, "zscore", "n (g c) -> g", split="train", nan="omit", g=2)
    assert norm.nan_count.tolist() == [0, 1]
    assert norm.count.tolist() == [27, 26]
