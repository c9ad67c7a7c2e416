"""The split guard: names, files, data sets, and the one way past it."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from slabnorm.errors import DataError, DataWarning, LeakageError, OptionError
from slabnorm.inputs import fit
from slabnorm.inputs.split import held_out, path_hints

DATA = np.random.default_rng(0).standard_normal((20, 3))


class Named:
    """As the splits of Hugging Face: the name is what str() returns."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return self._name


class Parts(Enum):
    HELD = "test"
    TEST = 2


class Texts(str, Enum):  # noqa: UP042, the older way
    VAL = "val"
    TRAIN = "train"


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
    "split",
    ["train", "training", "trainset", "train_data", "fold_3", "TRAIN", "latest", "contest", "unlabelled"],
)
def test_splits_that_may_be_seen(split):
    assert fit(DATA, split=split).split == split


@pytest.mark.parametrize(
    "split",
    [
        *("validation", "valid", "val", "dev", "test", "eval", "holdout", "hold-out", "held_out", "Test"),
        *("x_test", "valSet", "test2", "train+test", "VAL", "testing", "all", "full"),
        *("testset", "valset", "testdata", "TESTset", "devsplit", "trainval", "trainvalset", "alldata"),
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
    [
        *(
            {"train": False},
            {"split": "test"},
            {"_split": "val"},
            {"image_set": "val"},
            {"split": "validation"},
        ),
        *({"train": np.False_}, {"train": 0}, {"is_train": False}, {"is_training": np.False_}),
        *({"mode": "test"}, {"phase": "val"}, {"subset": "testing"}, {"split": "trainval"}),
        *({"split": Named("test[:10%]")}, {"split": Parts.HELD}, {"split": Parts.TEST}, {"split": Texts.VAL}),
    ],
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
        lambda d: iter(DataLoader(d, batch_size=4)),
    ],
)
def test_a_data_set_that_says_it_is_held_out(attributes, wrap):
    source = wrap(Digits(**attributes))
    with pytest.raises(LeakageError, match=r"Digits\.(.|\n)*although split='train'"):
        fit(source, split="train")
    with pytest.warns(DataWarning, match=r"Digits\."):
        fit(source, split="train", leak=True)


@pytest.mark.parametrize(
    "attributes",
    [
        *({"train": True}, {"train": 1}, {"train": None}, {"is_train": np.True_}, {"train": []}),
        *({"split": "train"}, {"split": "letters"}, {"split": None}, {"split": Named("train")}),
        *({"split": Texts.TRAIN}, {"split": lambda: "test"}, {"split": ["test"]}, {"mode": "train"}),
        *({"mode": "r"}, {"phase": 3}, {"subset": np.arange(3)}, {"split": Path("/test/train.txt")}),
    ],
)
def test_a_data_set_that_does_not(attributes):
    assert fit(Digits(**attributes), split="train").samples == 20


def test_what_a_class_says_and_what_cannot_be_asked():
    class Says(Digits):
        @property
        def split(self) -> str:
            return "test"

    class Breaks(Digits):
        @property
        def split(self) -> str:
            raise RuntimeError("not yet")

        def mode(self) -> str:
            raise AssertionError("called")

        def train(self) -> bool:
            raise AssertionError("called")

    with pytest.raises(LeakageError, match=r"Says\.split is 'test'"):
        fit(Says(), split="train")
    assert fit(Breaks(), split="train").samples == 20


def test_an_object_that_is_no_name():
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError("no name")

    assert fit(Digits(split=Silent()), split="train").samples == 20


def test_data_sets_in_a_ring():
    one, other = Digits(), Digits(train=False)
    one.dataset, other.dataset = other, one
    with pytest.raises(LeakageError):
        fit(one, split="train")


@pytest.mark.parametrize(
    "name",
    [
        *("test.npy", "x_val.npy", "XTest.npy", "my-validation-2.npy", "val/a.npy", "Test/a.npy"),
        *(
            "testset/a.npy",
            "test_set/a.npy",
            "val2017/a.npy",
            "trainval.npy",
            "test/sub/a.npy",
            "test/b/c/a.npy",
        ),
        *("split=test/a.npy", "split=x_test/b/c/d/e/a.npy", "train/test/a.npy", "split=train/val/a.npy"),
        *("train/x_test.npy", "test.zarr/b/c/d/e/a.npy"),
    ],
)
def test_files_that_say_they_are_held_out(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, DATA)
    with pytest.raises(LeakageError, match="the file"):
        fit(path, split="train")
    with pytest.raises(LeakageError, match="the file"):
        fit(np.load(path, mmap_mode="r"), split="train")
    with pytest.warns(DataWarning):
        assert fit(path, split="train", leak=True).samples == 20


NOT_HELD_OUT = [
    *("train.npy", "latest.npy", "test-project/train.npy", "full.npy", "test-project/a.npy", "contest/a.npy"),
    *("test/train/a.npy", "test/training/b/a.npy", "test/train.npy", "split=test/split=train/a.npy"),
    *("test/b/c/d/a.npy", "test_something0/a.npy", "test_data0/a.npy", "env=dev/split=train/b/c/d/a.npy"),
    *("dev/project/a.npy", "tests/fixtures/a.npy"),
]


@pytest.mark.parametrize("name", NOT_HELD_OUT)
def test_files_that_do_not(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, DATA)
    assert fit(str(path), split="train").samples == 20


def test_files_that_links_and_relative_paths_lead_to(tmp_path, monkeypatch):
    for name in ("test/q.npy", "test/sub/q.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, DATA)
    (tmp_path / "p.npy").symlink_to("test/q.npy")
    (tmp_path / "train").symlink_to("test/sub")
    for path in (tmp_path / "p.npy", tmp_path / "train/q.npy"):
        with pytest.raises(LeakageError, match=r"the folder test of the file .*leads to .*q\.npy"):
            fit(path, split="train")
    for inside, path in (
        ("test", "q.npy"),
        ("test/sub", "q.npy"),
        ("test/sub", "../q.npy"),
        ("train", "q.npy"),
    ):
        monkeypatch.chdir(tmp_path / inside)
        with pytest.raises(LeakageError, match="the folder test"):
            fit(path, split="train")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "s3://bucket/test/sub/a.parquet",
            "s3://bucket/split=val/b/c/d/e/a.parquet",
            "gs://b/x_test.parquet",
        ),
        *("https://host/test/x.zarr", "https://host/x_test.zarr?token=1#a", "memory://test/a.csv"),
        *("file:///data/test/a.parquet", "s3://bucket/split%3Dtest/b/c/d/e/a.parquet", "/data/split=test/"),
        *(
            "zip://val/a.csv::s3://b/train/a.zip",
            "zip://a.csv::/test/a.zip",
            "simplecache::s3://b/test/a.csv",
        ),
    ],
)
def test_urls_are_read_as_paths(path):
    assert path_hints([path])


@pytest.mark.parametrize(
    "path",
    [
        *("s3://test-bucket/b/c/d/a.parquet", "https://test.example.com/b.zarr", "s3://b/test/train/a.csv"),
        *("https://host/x.zarr?split=test", "/home/test/a.npy", "/home/test/data/a.npy", "/Users/test/a.npy"),
        *("/data/test-drive/", "s3://test/b/c/d/a.parquet", "zip://train/a.csv::s3://b/test/a.zip"),
    ],
)
def test_urls_and_paths_that_say_nothing(path):
    assert not path_hints([path])


def test_what_lies_within_a_folder_counts_however_deep():
    deep = os.path.join("data", "test", "a", "b", "c", "d", "x.csv")
    assert path_hints([deep], "data")
    assert path_hints([deep], "data/test/a")
    assert not path_hints([deep], "data/test/a/b/c/d")
    assert not path_hints(["data/test/train/x.csv"], "data")


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
