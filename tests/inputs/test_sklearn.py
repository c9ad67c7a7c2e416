"""SlabScaler in scikit-learn: its own checks, its scalers beside, NaN, dtypes, pipelines, named columns."""

from __future__ import annotations

import pickle
import runpy
import sys
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from slabnorm import FixedScale, MinMax, SlabScaler, ZScore
from slabnorm.errors import (
    DataError,
    DtypeError,
    ExtraError,
    OptionError,
    ShapeError,
    StatisticsError,
)
from tests.inputs.chunking import in_chunks, same

RNG = np.random.default_rng(11)
SETS = {"digits": load_digits, "wine": load_wine, "breast cancer": load_breast_cancer}


@parametrize_with_checks(
    [
        SlabScaler(),
        SlabScaler("minmax", clip=True),
        SlabScaler(FixedScale(-5, 5)),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", SETS)
def test_standard_scaler_on_real_data(name):
    x = SETS[name]().data
    ours, theirs = SlabScaler().fit(x), StandardScaler().fit(x)
    for attribute in ("mean_", "var_", "scale_"):
        np.testing.assert_allclose(
            getattr(ours, attribute), getattr(theirs, attribute), rtol=1e-12, atol=1e-12
        )
    assert ours.n_samples_seen_ == theirs.n_samples_seen_ == len(x)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-12, atol=1e-12)
    y = theirs.transform(x)
    np.testing.assert_allclose(ours.inverse_transform(y), theirs.inverse_transform(y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("clip", [False, True])
def test_min_max_scaler_on_real_data(name, clip):
    x = SETS[name]().data
    ours = SlabScaler(MinMax(out=(-1, 2)), clip=clip).fit(x[::2])
    theirs = MinMaxScaler(feature_range=(-1, 2), clip=clip).fit(x[::2])
    np.testing.assert_array_equal(ours.data_min_, theirs.data_min_)
    np.testing.assert_array_equal(ours.data_max_, theirs.data_max_)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-12, atol=1e-12)


def test_nan_is_left_out_and_kept():
    x = RNG.standard_normal((90, 3)) + 1e6
    x[::4, 1] = x[5, 2] = np.nan
    ours, theirs = in_chunks(SlabScaler(), x, [13, 50]), StandardScaler().fit(x)
    np.testing.assert_array_equal(ours.n_samples_seen_, theirs.n_samples_seen_)
    assert ours.nan_count_.tolist() == [0, 23, 1]
    y = ours.transform(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_allclose(np.nanstd(y, 0), 1, rtol=1e-9)
    np.testing.assert_allclose(ours.inverse_transform(y), x, rtol=4e-16)


def test_a_feature_without_values():
    x = np.array([[1.0, np.nan], [3.0, np.nan]])
    scaler = SlabScaler().fit(x)
    assert np.isnan([scaler.mean_[1], scaler.var_[1], scaler.scale_[1], scaler.data_min_[1]]).all()
    np.testing.assert_array_equal(scaler.transform([[2.0, 5.0]]), [[0.0, np.nan]])
    with pytest.raises(DataError, match="only NaN in feature 1"):
        scaler.to_norm()
    scaler.partial_fit([[2.0, 4.0], [2.0, 6.0]])
    assert scaler.transform([[2.0, 6.0]]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, bool])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [60, 25_000])  # in one block, and in three
def test_output_is_that_of_the_input_norm(dtype, order, rows):
    x = np.asarray(RNG.integers(0, 2 if dtype is bool else 50, (rows, 3)), dtype, order=order)
    scaler = SlabScaler(MinMax(out=(-1, 3), clip=(-0.5, 2))).fit(x[:50])
    y = scaler.transform(x)
    assert y.dtype == (np.float32 if dtype == np.float32 else np.float64)
    expected = scaler.to_norm()(torch.from_numpy(np.array(x, y.dtype))).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-6 if dtype == np.float32 else 1e-15)
    assert (y.min(), y.max()) == (-0.5, 2)


def test_float32_is_rounded_once_from_float64():
    x = (1e6 + RNG.standard_normal((500, 2))).astype(np.float32)
    scaler = SlabScaler().fit(x)
    wide = SlabScaler().fit(x.astype(np.float64)).transform(x.astype(np.float64))
    np.testing.assert_array_equal(scaler.transform(x), wide.astype(np.float32))
    back = scaler.inverse_transform(scaler.transform(x))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x, rtol=1.2e-7)


@pytest.mark.parametrize(
    "scheme", ["zscore", "minmax", FixedScale(-1, 9, out=(0, 2)), ZScore(ddof=1, eps=0.5)]
)
def test_inverse(scheme):
    x = RNG.standard_normal((70, 4)) * [1, 1e-6, 1e6, 3] + [0, 1, 1e9, -5]
    scaler = SlabScaler(scheme).fit(x)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(x)), x, rtol=1e-14, atol=1e-14)
    with pytest.raises(ShapeError, match="4 features"):
        scaler.inverse_transform(x[:, :3])


def test_copy_false_writes_in_place_and_true_never():
    x = RNG.standard_normal((5, 2))
    kept, scaler = x.copy(), SlabScaler().fit(x)
    y = scaler.transform(x)
    scaler.inverse_transform(y)
    np.testing.assert_array_equal(x, kept)
    in_place = SlabScaler(copy=False).fit(x)
    work = x.copy()
    assert np.shares_memory(in_place.transform(work), work)
    np.testing.assert_array_equal(work, y)
    np.testing.assert_allclose(in_place.inverse_transform(work), x, rtol=0, atol=4e-15)
    work.flags.writeable = False
    in_place.transform(work)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_tables_are_refused(kind):
    table = kind(np.eye(3))
    scaler = SlabScaler().fit(np.eye(3))
    for call in (SlabScaler().fit, scaler.partial_fit, scaler.transform, scaler.inverse_transform):
        with pytest.raises(DtypeError, match=r"sparse.*\n.*toarray"):
            call(table)


@pytest.mark.parametrize(
    ("scaler", "words"),
    [
        (SlabScaler("z-score"), "did you mean 'zscore'"),
        (SlabScaler("fixed"), "FixedScale"),
        (SlabScaler(MinMax), r"make an object of it: slabnorm.MinMax\(\)"),
        (SlabScaler("robust"), "reads quantiles"),
        (SlabScaler(clip=True), r"ZScore\(clip="),
        (SlabScaler("minmax", clip=1), "clip must be True or False"),
        (SlabScaler(copy="no"), "copy must be True or False"),
    ],
)
def test_parameters_that_cannot_be(scaler, words):
    with pytest.raises(OptionError, match=words):
        scaler.fit([[1.0], [2.0]])
    assert set(vars(scaler)) == {"scheme", "clip", "copy"}


def test_an_older_scikit_learn_is_named(monkeypatch):
    monkeypatch.delattr("sklearn.utils.validation.validate_data")
    with pytest.raises(ExtraError, match=r"scikit-learn 1\.6(.|\n)*pip install 'scikit-learn>=1\.6'"):
        runpy.run_path(sys.modules[SlabScaler.__module__].__file__)


def test_an_error_changes_nothing():
    scaler = SlabScaler().fit([[1.0, 2.0], [3.0, 5.0]])
    before = dict(vars(scaler))
    with pytest.raises(StatisticsError, match="out of the range"):
        scaler.fit(pd.DataFrame({"a": [1e200, -1e200], "b": [0.0, 1.0], "c": [0.0, 1.0]}))
    with pytest.raises(StatisticsError):
        scaler.partial_fit([[1e300, 1.0]])
    with pytest.raises(StatisticsError, match="overflows float64"):
        SlabScaler("minmax").fit([[1.7e308], [-1.7e308]])
    with pytest.raises(ValueError, match="infinity"):
        scaler.partial_fit([[np.inf, 1.0]])
    with pytest.raises(ValueError, match="features"):
        scaler.partial_fit([[1.0]])
    assert vars(scaler) == before
    empty = SlabScaler()
    with pytest.raises(StatisticsError):
        empty.partial_fit([[1e200], [-1e200]])
    for call in (empty.transform, empty.inverse_transform):
        with pytest.raises(NotFittedError):
            call([[1.0]])
    with pytest.raises(NotFittedError):
        empty.to_norm()


@pytest.mark.parametrize("scheme", ["zscore", "minmax", FixedScale(0, 16)])
def test_pipelines_search_and_persistence(scheme):
    x, y = load_digits(return_X_y=True)
    x, y = x[:400], y[:400]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a logistic regression that is stopped early
        pipe = make_pipeline(SlabScaler(scheme), LogisticRegression(max_iter=30))
        search = GridSearchCV(
            pipe, {"slabscaler__scheme": ["zscore", "minmax", MinMax(out=(-1, 1))]}, cv=2
        ).fit(x, y)
        assert search.best_score_ > 0.8
        assert clone(pipe).fit(x, y).score(x, y) > 0.95
    scaler = pipe[0].fit(x)
    copied = pickle.loads(pickle.dumps(scaler))
    np.testing.assert_array_equal(copied.transform(x), scaler.transform(x))
    assert same(copied.partial_fit(x).moments_, scaler.partial_fit(x).moments_)
    assert not hasattr(clone(scaler), "moments_")


def test_tables_with_names():
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [1, 5, 9], "k": ["x", "y", "x"]})
    columns = ColumnTransformer([("num", SlabScaler(), ["a", "b"])], verbose_feature_names_out=False)
    out = columns.set_output(transform="pandas").fit_transform(frame)
    assert (type(out), list(out), list(out.index)) == (pd.DataFrame, ["a", "b"], [0, 1, 2])
    np.testing.assert_allclose(out, StandardScaler().fit_transform(frame[["a", "b"]]), rtol=1e-15)
    table = pl.DataFrame({"a": [1.0, 2.0, 4.0], "b": [1, 5, 9]})
    scaler = SlabScaler().set_output(transform="polars").fit(table)
    assert scaler.get_feature_names_out().tolist() == ["a", "b"]
    assert scaler.transform(table).columns == ["a", "b"]
    np.testing.assert_array_equal(scaler.transform(table).to_numpy(), out.to_numpy())
    with pytest.raises(ValueError, match="feature names"):
        SlabScaler().fit(frame[["a", "b"]]).transform(frame[["b", "a"]])
