"""Reading arrays: axes, labels, splits, and what is refused."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from slabnorm.errors import DataError, OptionError
from slabnorm.study.data import digits, from_arrays, from_splits, photos, stratified
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


def parts(data):
    return [data.split.train, data.split.validation, data.split.test]


def test_photographs_are_cut_into_patches_and_split_into_strips():
    data = photos()
    assert (data.x.shape, data.x.dtype) == ((660, 1, 28, 28), np.uint8)
    assert data.classes == ("china", "flower")
    assert np.bincount(data.y).tolist() == [330, 330]
    assert [len(part) for part in parts(data)] == [420, 120, 120]
    assert sorted(np.concatenate(parts(data))) == list(range(660))
    for number, photo in enumerate(load_sample_images().images):
        grey = np.asarray(Image.fromarray(photo).convert("L"))
        rows = [np.concatenate(row, 1) for row in data.x[data.y == number, 0].reshape(15, 22, 28, 28)]
        assert np.array_equal(np.concatenate(rows), grey[:420, :616])
        # Each row of patches has 22, of which the last four are the test strip.
        assert np.array_equal(data.split.test[number * 60 :][:4], number * 330 + np.arange(18, 22))
    assert "from the left 14 for training" in data.split_by


def test_a_subset_keeps_splits_classes_and_shares():
    whole = replace(digits(), value_range=(0.0, 16.0))
    few = whole.subset(200, 50)
    assert [len(part) for part in parts(few)] == [200, 50, 50]
    assert few.classes == whole.classes
    assert few.value_range == (0.0, 16.0)
    assert "of which 200, 50 and 50 were drawn with seed 0" in few.split_by
    for small, large in zip(parts(few), parts(whole), strict=True):
        shares = [np.bincount(d.y[p], minlength=10) / len(p) for d, p in ((few, small), (whole, large))]
        assert np.abs(shares[0] - shares[1]).max() <= 1 / len(small)
        images = {image.tobytes(): label for image, label in zip(whole.x[large], whole.y[large], strict=True)}
        assert all(images[few.x[i].tobytes()] == few.y[i] for i in small)
    assert np.array_equal(few.x, whole.subset(200, 50).x)
    assert not np.array_equal(few.x, whole.subset(200, 50, seed=1).x)
    everything = whole.subset(10**6)
    assert [len(part) for part in parts(everything)] == [1078, 359, 360]
    assert everything.split_by == whole.split_by


@pytest.mark.parametrize("samples", [9, 0, -1, 100.0, True, None, "all"])
def test_a_subset_has_a_sample_of_each_class(samples):
    with pytest.raises(OptionError, match="must be an integer, one for each class or more"):
        digits().subset(samples)


def test_stratified_draws_are_nested_and_keep_shares():
    y = np.repeat([0, 1, 2], [600, 300, 100])
    numbers = np.arange(1000)[::-1]
    drawn = [stratified(numbers, y, count, 3) for count in (3, 10, 100, 999, 2000)]
    assert [np.bincount(y[d], minlength=3).tolist() for d in drawn[1:3]] == [[6, 3, 1], [60, 30, 10]]
    assert all(set(a) <= set(b) for a, b in pairwise(drawn))
    assert drawn[-1].tolist() == list(range(1000))
    assert not np.array_equal(drawn[2], stratified(numbers, y, 100, 4))


def test_given_test_samples_stay_the_test_split():
    x = images(6, 5)
    data = from_splits((x, Y), (x[:7] + 1, Y[:7]), "two")
    assert data.split.test.tolist() == list(range(20, 27))
    assert sorted([*data.split.train, *data.split.validation]) == list(range(20))
    assert len(data.split.validation) == 3
    assert np.array_equal(data.x[20:, 0], x[:7] + 1)
    with pytest.raises(DataError, match="the test data of two must have one entry for each sample"):
        from_splits((x, Y), (x[:7], Y), "two")
    with pytest.raises(
        DataError, match=r"Too few samples of class '4' .*: the training data of two\n  got: 0"
    ):
        from_splits((x, Y), (x, Y + 4), "two")
    with pytest.raises(DataError, match="of different kinds"):
        from_splits((x, Y), (x[:7], Y[:7].astype(str)), "two")


def test_a_subset_of_samples_in_the_order_of_their_classes_is_mixed():
    x, y = np.arange(400.0).reshape(200, 2), np.repeat(np.arange(4), 50)
    few = from_arrays(x, y).subset(80, 20)
    assert set(few.y[few.split.train[:20]]) == {0, 1, 2, 3}
    assert set(few.y[few.split.validation[:10]]) == {0, 1, 2, 3}
    assert np.array_equal(few.x[:, 0] // 100, few.y)  # each sample has kept its label
