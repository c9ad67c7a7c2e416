"""SlabScaler's statistics: exact in any chunking, and with weights."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from slabnorm import SlabScaler, ZScore
from slabnorm.errors import DataError, ShapeError, StatisticsError
from tests.inputs.chunking import in_chunks
from tests.inputs.oracle import mean_var, relative

RNG = np.random.default_rng(11)


def test_integers_upon_1e15_have_variance_exactly_4():
    x = np.tile(1e15 + np.arange(7), 300)[:, None]
    edges = range(64, len(x), 64)
    assert in_chunks(SlabScaler(), x, edges).var_.tolist() == [4.0]
    assert in_chunks(StandardScaler(), x, edges).var_.item() > 4.1  # 11 for 100000 rows


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 400), max_size=12),
    offset=st.floats(-1e12, 1e12),
    seed=st.integers(0, 2**32 - 1),
    fortran=st.booleans(),
)
def test_any_chunking_is_the_exact_variance(cuts, offset, seed, fortran):
    x = offset + np.random.default_rng(seed).standard_normal((400, 1)) * [1.0, 8.0]
    chunked = in_chunks(SlabScaler(), np.asfortranarray(x) if fortran else x, cuts)
    whole = SlabScaler().fit(x)
    for column in range(2):
        mean, var = mean_var(x[:, column])
        for scaler in (whole, chunked):
            assert relative(scaler.var_[column], var) <= 1e-13
            sd = float(var) ** 0.5
            assert abs(Fraction(scaler.mean_[column]) - mean) <= 1.2e-16 * abs(mean) + 1e-14 * sd
            assert scaler.scale_[column] == pytest.approx(sd, rel=1e-13)
    assert chunked.n_samples_seen_ == 400
    np.testing.assert_array_equal(chunked.data_min_, x.min(0))
    np.testing.assert_array_equal(chunked.data_max_, x.max(0))


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 5), min_size=40, max_size=40).filter(any), offset=st.floats(-1e12, 1e12)
)
def test_whole_weights_are_repetitions(weights, offset):
    rng = np.random.default_rng(0)
    x = offset + rng.standard_normal((40, 2))
    x[3, 0] = x[17, 1] = np.nan
    repeated = np.repeat(x, weights, axis=0)
    a = in_chunks(SlabScaler(), x, [20], weights) if any(weights[:20]) and any(weights[20:]) else None
    b = SlabScaler().fit(x, sample_weight=weights)
    c = SlabScaler().fit(repeated)
    for scaler in filter(None, (a, b)):
        assert torch.equal(scaler.moments_.count, c.moments_.count)
        assert scaler.moments_.count.dtype == torch.int64
        np.testing.assert_array_equal(scaler.nan_count_, c.nan_count_)
        np.testing.assert_array_equal(scaler.data_min_, c.data_min_)
        np.testing.assert_array_equal(scaler.data_max_, c.data_max_)
        np.testing.assert_allclose(scaler.mean_, c.mean_, rtol=3e-16, atol=1e-14)
        np.testing.assert_allclose(scaler.var_, c.var_, rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e9])
def test_real_weights_against_exact_rationals(scale):
    x, weights = 1e12 + RNG.standard_normal((9000, 1)), scale * RNG.random(9000)
    scaler = in_chunks(SlabScaler(), x, [1, 64, 5000], weights)
    w, v = [Fraction(float(i)) for i in weights], [Fraction(float(i)) for i in x[:, 0]]
    mean = sum(a * b for a, b in zip(w, v, strict=True)) / sum(w)
    var = sum(a * (b - mean) ** 2 for a, b in zip(w, v, strict=True)) / sum(w)
    assert relative(scaler.var_[0], var) <= 1e-13
    assert relative(scaler.mean_[0], mean) <= 2e-16
    assert scaler.n_samples_seen_ == pytest.approx(weights.sum(), rel=1e-14)


def test_real_weights_as_scikit_learn_has_them():
    x = RNG.standard_normal((200, 3))
    x[::7, 1] = np.nan
    weights = RNG.random(200)
    ours, theirs = SlabScaler().fit(x, None, weights), StandardScaler().fit(x, None, weights)
    np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-12)
    np.testing.assert_allclose(ours.n_samples_seen_, theirs.n_samples_seen_, rtol=1e-12)
    # Weights and no weights go on from each other.
    for scaler in (ours, theirs):
        scaler.partial_fit(x[:50]).partial_fit(x[50:90], sample_weight=np.full(40, 3))
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-11)
    np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-12)


def test_weights_of_features_without_values_and_of_rows_that_do_not_count():
    x, weights = RNG.standard_normal((9000, 3)), RNG.random(9000)
    x[:, 1] = np.nan
    weights[:5000] = 0
    scaler = SlabScaler().fit(x, sample_weight=weights)
    assert scaler.moments_.count[1] == 0
    assert np.isnan(scaler.transform(x[:2])[:, 1]).all()
    assert scaler.nan_count_.tolist() == [0, pytest.approx(weights.sum(), rel=1e-13), 0]
    expected = SlabScaler().fit(x[5000:], sample_weight=weights[5000:])
    np.testing.assert_allclose(scaler.var_[::2], expected.var_[::2], rtol=1e-13)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ([1, -1, 1], DataError),
        ([0, 0, 0], DataError),
        ([1, 1], ShapeError),
        ([[1], [1], [1]], ShapeError),
        ([1, np.nan, 1], ValueError),
        ([1, np.inf, 1], ValueError),
    ],
)
def test_weights_that_cannot_be(weights, error):
    with pytest.raises(error, match=r"weight|rows"):
        SlabScaler().fit(np.arange(3.0)[:, None], sample_weight=weights)


def test_ddof_waits_for_more_rows():
    scaler = SlabScaler(ZScore(ddof=1)).partial_fit([[1.0]])
    assert np.isnan(scaler.transform([[1.0]])).all()
    assert scaler.partial_fit([[3.0]]).scale_.tolist() == [pytest.approx(2**0.5)]
    with pytest.raises(StatisticsError, match="ddof=1"):
        SlabScaler(ZScore(ddof=1)).fit([[1.0]])


def test_huge_values_where_the_scheme_needs_no_variance():
    scaler = SlabScaler("minmax").fit([[1e200], [-1e200]])
    assert scaler.transform([[0.0], [1e200]]).tolist() == [[0.5], [1.0]]
    assert in_chunks(SlabScaler("minmax"), np.array([[1e200], [-1e200]]), [1]).var_.tolist() == [np.inf]
