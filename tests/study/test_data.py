"""Reading arrays: axes, labels, splits, and what is refused."""

import numpy as np
import pytest
import torch

from slabnorm.errors import DataError
from slabnorm.study.data import digits, from_arrays
from tests.study.small import table

Y = np.arange(20) % 2


def images(*shape):
    return np.random.default_rng(0).integers(0, 255, (20, *shape)).astype(np.uint8)


def test_digits_are_split_into_disjoint_stratified_parts():
    data = digits()
    split = data.split
    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [1078, 359, 360]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    shares = [np.bincount(data.y[part]) / len(part) for part in parts]
    assert np.abs(shares[0] - shares[2]).max() < 0.005
    assert np.array_equal(split.train, digits().split.train)


@pytest.mark.parametrize(
    ("shape", "sample"),
    [
        ((3,), (3,)),
        ((6, 5), (1, 6, 5)),
        ((3, 6, 5), (3, 6, 5)),
        ((6, 5, 3), (3, 6, 5)),
        ((4, 6, 4), (4, 6, 4)),
        ((6, 7, 5), (5, 6, 7)),
    ],
)
def test_channels_are_the_shorter_of_second_and_last_axis(shape, sample):
    x = images(*shape)
    data = from_arrays(x, Y)
    assert data.sample_shape == sample
    assert str(x.shape) in data.axes
    assert data.x.sum() == x.sum()


def test_moving_channels_keeps_the_pixels():
    x = images(6, 5, 3)
    assert np.array_equal(from_arrays(x, Y).x[4, 2], x[4, :, :, 2])


@pytest.mark.parametrize("labels", [["b", "a"], [b"b", b"a"], [2.5, 1.5], [True, False], [7, -3]])
def test_labels_of_any_kind_become_numbers_in_their_own_order(labels):
    data = from_arrays(*(np.arange(40.0).reshape(20, 2), np.array(labels * 10)))
    assert data.y.tolist() == [1, 0] * 10
    assert len(data.classes) == 2


def test_tensors_columns_of_labels_and_foreign_dtypes_are_taken():
    x, y = table()
    assert np.array_equal(from_arrays(torch.tensor(x), torch.tensor(y)).x, x)
    assert np.array_equal(from_arrays(x.astype(">f4"), y[:, None]).x, x)
    for dtype in (np.uint32, np.uint64, np.longdouble, ">i2"):
        taken = from_arrays(np.arange(120).reshape(60, 2).astype(dtype), y).x
        assert torch.as_tensor(taken).sum() == 7140


def with_nan(x):
    x = np.array(x, dtype=np.float64)
    x[3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (images(3), Y[:-1], "one entry for each sample"),
        (images(3), np.zeros(20), "One class only"),
        (with_nan(images(3)), Y, r"first at x\[3, 1\]"),
        (images(3), np.where(Y, np.nan, 1.0), "NaN or infinite values in y"),
        (images(3).astype(object), Y, "integers, booleans or real numbers"),
        (images(3).astype(complex), Y, "integers, booleans or real numbers"),
        (images(3), Y.astype(object), "one axis of labels"),
        (images(3), np.eye(2)[Y], "one axis of labels"),
        (images(), Y, "two axes"),
        (images(2, 2, 2, 2), Y, "two axes"),
        (np.float64(3), Y, "one entry for each sample"),
        (images(0), Y, "No samples"),
        (np.empty((0, 3)), np.empty(0), "No samples"),
        (images(3), np.arange(20) // 16, r"class '1' .*\n  got: 4, at least 5"),
        (images(3), np.arange(20) / 7, r"got: 1, at least 5 \(20 classes\)"),
        ([[1, 2], [3]], [0, 1], "is no array"),
        (torch.ones(20, 2, requires_grad=True), Y, "is no array"),
    ],
)
def test_bad_arrays_are_refused_with_the_reason(x, y, says):
    with pytest.raises(DataError, match=says):
        from_arrays(x, y)


def test_names_from_outside_cannot_act_on_a_terminal():
    data = from_arrays(images(3), np.array(["\x1b[31mred", "‮evil"] * 10), "a\nb")
    assert data.classes == ("\\x1b[31mred", "\\u202eevil")
    assert data.name == "a\\nb"
