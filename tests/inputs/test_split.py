"""The split guard: names, files, data sets, and the one way past it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from slabnorm.errors import DataError, DataWarning, LeakageError, OptionError
from slabnorm.inputs import fit
from slabnorm.inputs.split import held_out

DATA = np.random.default_rng(0).standard_normal((20, 3))


class Digits(Dataset):
    """As torchvision names things."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return DATA[index], 0


def test_no_split_is_an_error_that_says_how_to_name_it():
    with pytest.raises(LeakageError, match='split="train"'):
        fit(DATA)


@pytest.mark.parametrize("split", ["", "  ", 3, True, "1"])
def test_what_names_no_split(split):
    with pytest.raises(OptionError, match="name of a split"):
        fit(DATA, split=split)


@pytest.mark.parametrize(
    "split", ["train", "training", "trainval", "fold_3", "TRAIN", "latest", "contest", "unlabelled"]
)
def test_splits_that_may_be_seen(split):
    assert fit(DATA, split=split).split == split


@pytest.mark.parametrize(
    "split",
    [
        *("validation", "valid", "val", "dev", "test", "eval", "holdout", "hold-out", "held_out", "Test"),
        *("x_test", "valSet", "test2", "train+test", "VAL", "testing", "all", "full"),
    ],
)
def test_splits_that_may_not(split):
    with pytest.raises(LeakageError, match="leak=True") as caught:
        fit(DATA, split=split)
    assert isinstance(caught.value, DataError)
    with pytest.warns(DataWarning, match="held-out data"):
        norm = fit(DATA, split=split, leak=True)
    assert norm.split == split
    assert norm.record.leak
    assert "leak=True" in repr(norm)


@pytest.mark.parametrize(
    "attributes",
    [{"train": False}, {"split": "test"}, {"_split": "val"}, {"image_set": "val"}, {"split": "validation"}],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: Subset(d, [0, 1, 2]),
        lambda d: Subset(Subset(d, [0, 1, 2]), [0, 1]),
        lambda d: ConcatDataset([Digits(train=True), d]),
        lambda d: random_split(d, [15, 5])[0],
        lambda d: DataLoader(d, batch_size=4),
        lambda d: DataLoader(Subset(d, [0, 1]), batch_size=4),
    ],
)
def test_a_data_set_that_says_it_is_held_out(attributes, wrap):
    source = wrap(Digits(**attributes))
    with pytest.raises(LeakageError, match=r"Digits\.(.|\n)*named split='train'"):
        fit(source, split="train")
    with pytest.warns(DataWarning, match=r"Digits\."):
        fit(source, split="train", leak=True)


@pytest.mark.parametrize(
    "attributes", [{"train": True}, {"split": "train"}, {"split": "letters"}, {"split": None}, {"train": 0}]
)
def test_a_data_set_that_does_not(attributes):
    assert fit(Digits(**attributes), split="train").samples == 20


def test_data_sets_in_a_ring():
    one, other = Digits(), Digits(train=False)
    one.dataset, other.dataset = other, one
    with pytest.raises(LeakageError):
        fit(one, split="train")


@pytest.mark.parametrize(
    "name", ["test.npy", "x_val.npy", "XTest.npy", "my-validation-2.npy", "val/a.npy", "Test/a.npy"]
)
def test_files_that_say_they_are_held_out(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, DATA)
    with pytest.raises(LeakageError, match="the file"):
        fit(path, split="train")
    with pytest.raises(LeakageError, match="the file"):
        fit(np.load(path, mmap_mode="r"), split="train")
    with pytest.warns(DataWarning):
        assert fit(path, split="train", leak=True).samples == 20


@pytest.mark.parametrize("name", ["train.npy", "latest.npy", "test-project/train.npy", "full.npy"])
def test_files_that_do_not(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, DATA)
    assert fit(str(path), split="train").samples == 20


def test_arrays_within_a_file(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=DATA, x_test=DATA)
    assert fit(path, split="train", key="x_train").samples == 20
    for source in (path, np.load(path), dict(np.load(path))):
        with pytest.raises(LeakageError, match="'x_test'"):
            fit(source, split="train", key="x_test")


def test_words():
    assert held_out("trainTestSplit") == "test"
    assert held_out("attestation, evaluator, interval, devious") == ""
    assert torch is not None


def test_no_data_are_read_before_the_guard():
    class Burning(Digits):
        def __getitem__(self, index):
            raise AssertionError("read")

    with pytest.raises(LeakageError):
        fit(Burning(train=False), split="train")
    with pytest.raises(LeakageError):
        fit(Burning(), split="test")
