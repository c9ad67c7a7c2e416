"""The one-pass kernel and the hashes, against exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slabnorm.inputs.kernels.column_moments import EXACT_DTYPES, ColumnMoments
from slabnorm.inputs.kernels.hashing import JOIN, KEYS, add_values, finish_hashes, keys
from tests.inputs.oracle import mean_var, relative

RNG = np.random.default_rng(11)
# (features, run): narrow, joined, one strip, several strips, short runs, long runs and their tails
SHAPES = [(1, 1), (3, 1), (7, 1), (64, 1), (1500, 1), (3, 5), (5, 1030), (2, 8192), (1, 20001)]
FLOATS = {
    "normal": lambda n: RNG.standard_normal(n),
    "1e12 +- 1": lambda n: 1e12 + RNG.standard_normal(n),
    "sorted": lambda n: np.sort(1e6 + RNG.standard_normal(n)),
    "cauchy": RNG.standard_cauchy,
    "outlier first": lambda n: np.append(1e9, RNG.standard_normal(n - 1)),
    "times 1e30": lambda n: 1e30 * RNG.standard_normal(n),
    "denormals": lambda n: RNG.integers(-50, 50, n) * 5e-324,
    "constant": lambda n: np.full(n, 14.62),
}


def columns(values: np.ndarray, features: int, run: int) -> np.ndarray:
    return values.reshape(-1, features, run).transpose(1, 0, 2).reshape(features, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FLOATS)
def test_floats(shape, name):
    features, run = shape
    rows = max(3, 5000 // (features * run))
    values = FLOATS[name](rows * features * run)
    if name not in ("1e12 +- 1", "denormals"):
        values = values.astype(np.float32) if features % 2 else values
    sums = ColumnMoments(values.dtype, features)
    sums.add(values, run)
    found = sums.moments()
    for feature, column in enumerate(columns(values, features, run)[:: max(1, features // 3)]):
        feature *= max(1, features // 3)
        mean, var = mean_var(column)
        assert found.count[feature] == column.size
        assert relative(found.mean[feature].item() + found.mean_low[feature].item(), mean) <= 1e-13 or (
            abs(found.mean[feature].item() - mean) <= max(1e-14 * float(var) ** 0.5, 5e-324)
        )
        if name != "denormals":  # whose squares are nothing
            assert relative(found.var()[feature].item(), var) <= 1e-13
        assert (found.min[feature], found.max[feature]) == (column.min(), column.max())


@pytest.mark.parametrize("dtype", sorted(EXACT_DTYPES))
@pytest.mark.parametrize("shape", SHAPES)
def test_narrow_integers_are_exact(dtype, shape):
    features, run = shape
    ends = np.iinfo(dtype)
    rows = max(3, 5000 // (features * run))
    values = RNG.integers(ends.min, ends.max + 1, rows * features * run).astype(dtype)
    sums = ColumnMoments(values.dtype, features)
    half = rows // 2 * features * run
    for part in (values[:half], values[half:]):
        sums.add(part, run)
    found = sums.moments()
    for feature, column in enumerate(columns(values, features, run)[:3]):
        mean, var = mean_var(column)
        assert found.mean[feature].item() == float(mean)
        assert found.var()[feature].item() == pytest.approx(float(var), rel=1e-15)
        assert (found.min[feature], found.max[feature]) == (column.min(), column.max())


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_wide_integers(dtype):
    values = RNG.integers(1 << 30, (1 << 30) + 1000, 3000).astype(dtype)
    sums = ColumnMoments(values.dtype, 3)
    sums.add(values)
    _, var = mean_var(values[::3])
    assert relative(sums.moments().var()[0].item(), var) <= 1e-13


@settings(max_examples=60, deadline=None)
@given(
    features=st.integers(1, 40), run=st.integers(1, 6), rows=st.integers(1, 300),
    holes=st.floats(0, 1), seed=st.integers(0, 999), dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_nan_is_left_out_and_counted(features, run, rows, holes, seed, dtype):
    random = np.random.default_rng(seed)
    values = (1e4 + random.standard_normal(rows * features * run)).astype(dtype)
    values[random.random(values.size) < holes] = np.nan
    sums = ColumnMoments(values.dtype, features)
    sums.add(values, run)
    found, table = sums.moments(), columns(values, features, run)
    assert sums.nan.tolist() == np.isnan(table).sum(1).tolist()
    assert found.count.tolist() == (~np.isnan(table)).sum(1).tolist()
    for feature, column in enumerate(table[:4]):
        left = column[~np.isnan(column)]
        if left.size:
            mean, var = mean_var(left)
            assert relative(found.mean[feature].item(), mean) <= 1e-15
            assert relative(found.var()[feature].item(), var) <= 1e-13 if var else found.m2[feature] == 0
            assert (found.min[feature], found.max[feature]) == (left.min(), left.max())
        else:
            assert (found.min[feature], found.max[feature]) == (np.inf, -np.inf)


def test_squares_that_leave_float64():
    sums = ColumnMoments(np.dtype(np.float64), 1)
    sums.add(np.array([1e300, -1e300, 1e299]))
    sums.add(np.array([1e300, -1e300, 1e299]))
    assert sums.moments().m2.tolist() == [np.inf]
    assert sums.moments().max.tolist() == [1e300]


def unfinished(values, length):
    hashes = np.full(values.size // length, length, np.uint64)
    add_values(values, length, 0, hashes)
    return hashes


def finished(values, length):
    hashes = unfinished(values, length)
    finish_hashes(hashes, np.empty_like(hashes))
    return hashes


@pytest.mark.parametrize("length", [1, 3, 64, 4095, 4096, 4097, 9000])
def test_a_sample_has_one_hash_in_every_dtype_and_from_columns(length):
    whole = RNG.integers(0, 200, (7, length))
    hashes = finished(whole.astype(np.float32).ravel(), length)
    assert len(set(hashes.tolist())) == 7 or length == 1
    for dtype in ("uint8", "int16", "int64", "uint64", "float64"):
        assert (finished(whole.astype(dtype).ravel(), length) == hashes).all()
    if length < 5000:
        out = np.full(7, length, np.uint64)
        for place in range(length):
            column = np.ascontiguousarray(whole[:, place])
            add_values(column, 1, place, out)
        finish_hashes(out, np.empty_like(out))
        assert (out == hashes).all()


def defined(values, length):
    """Unfinished hashes as the format defines them, in plain integers."""
    words = np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0)).view(np.uint32)
    hashes = []
    for sample in words.reshape(-1, length).tolist():
        h = length
        for first in range(0, length, KEYS):
            block = sample[first : first + KEYS]
            h = h * int(JOIN) + sum(map(int.__mul__, block, keys()[0].tolist()))
        hashes.append(h % 2**64)
    return hashes


@pytest.mark.parametrize("length", [1, 2, 7, 8, 15, 16, 63, 64, 100, 4096, 4097, 8200])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_hash_is_what_its_format_says(length, count):
    values = RNG.standard_normal(count * length).astype(np.float32)
    values[:: max(3, length // 3)] = -0.0
    assert unfinished(values, length).tolist() == defined(values, length)
    values[1::5] = np.frombuffer(np.uint32(0xFFC00001).tobytes(), np.float32)
    assert unfinished(values, length).tolist() == defined(values, length)


# (samples, rows of a sample, features, run): narrow, wider than a strip, over several pieces, long runs
@pytest.mark.parametrize(
    "shape", [(9000, 1, 7, 1), (3000, 1, 64, 1), (300, 1, 1500, 1), (3, 200_000, 3, 1), (60, 1, 3, 9000)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64"])
def test_counting_hashes_the_same(shape, dtype):
    count, _, features, run = shape
    values = (100 + 20 * RNG.standard_normal(np.prod(shape))).astype(dtype)
    length = values.size // count
    for nan in (False, True)[: 1 + (values.dtype.kind == "f")]:
        if nan:
            values[values.size // 2 :: 100_001] = np.nan
        hashes, sums, alone = np.full(count, length, np.uint64), *(
            ColumnMoments(values.dtype, features) for _ in range(2)
        )  # fmt: skip
        sums.add(values, run, hashes)
        alone.add(values, run)
        assert (hashes == unfinished(values, length)).all()
        assert sums.hold_refusable(False) == nan
        for a, b in zip(sums.fields(), alone.fields(), strict=True):
            assert (a == b).all()


def test_hashes_tell_apart_what_differs_a_little():
    x = RNG.standard_normal((2000, 5))
    y = x.copy()
    y[np.arange(2000), np.arange(2000) % 5] *= 1 + 2**-52  # a unit in the last place, which float32 loses
    changed = (x != y).any(1)
    assert changed.sum() > 1900
    a, b = finished(x.ravel(), 5), finished(y.ravel(), 5)
    assert (a[changed] != b[changed]).all()
    swapped = x[:, [1, 0, 2, 3, 4]].ravel()
    assert (finished(swapped, 5) != a).all()
    assert len(np.unique(finished(np.arange(1e5), 1))) == 100_000


def test_one_zero_and_one_nan():
    strange = np.frombuffer(np.uint32(0xFFC00001).tobytes(), np.float32)
    a = finished(np.array([0.0, np.nan], np.float32), 1)
    b = finished(np.array([-0.0, strange[0]], np.float32), 1)
    assert (a == b).all()
    assert (finished(np.array([-0.0, np.nan]), 1) == a).all()


def test_hashes_are_uniform():
    hashes = finished(RNG.integers(0, 3, (60_000, 20)).astype(np.uint8).ravel(), 20)
    counts = np.bincount((hashes >> np.uint64(58)).astype(int), minlength=64)
    assert ((counts - 60_000 / 64) ** 2 / (60_000 / 64)).sum() < 120  # chi squared, 63 degrees of freedom


def test_finishing_picks_small_hashes_and_adds_up_all():
    hashes = unfinished(RNG.standard_normal(1000), 1)
    room = np.empty_like(hashes)
    some, total = finish_hashes(hashes.copy(), room, 1 << 62)
    every, same = finish_hashes(hashes, room)
    assert total == same == sum(hashes.tolist()) % 2**64
    assert (every == hashes).all()
    assert (some == hashes[hashes < np.uint64(1 << 62)]).all()
    assert 150 < len(some) < 350
