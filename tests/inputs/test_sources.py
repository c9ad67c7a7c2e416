"""Kinds of data in memory: arrays, tensors, data sets, loaders, iterables; and what they may not hold."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from slabnorm.errors import DataError, DataWarning, ExtraError, OptionError
from slabnorm.inputs import FixedScale, fit
from slabnorm.inputs.sources import open_source
from slabnorm.inputs.sources.open import FORMATS, format_of_name

DATA = np.random.default_rng(5).standard_normal((41, 3)).astype(np.float32)
LABELS = torch.arange(41)


def same(norm, data=DATA):
    expected = fit(np.ascontiguousarray(data), split="train").state_dict()
    found = norm.state_dict()
    return all(torch.equal(found[key], expected[key]) for key in expected)


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        yield from self.items


class Pair(NamedTuple):
    x: torch.Tensor
    y: int


class ArrayLike:
    """As HDF5 and Zarr look: a shape, a dtype and slices."""

    def __init__(self, array):
        self.array, self.asked = array, []
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, rows):
        self.asked.append(rows)
        return self.array[rows]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("asked for the whole array")


class Frame:
    """As pandas looks: a shape, and a way to become an array."""

    shape = DATA.shape

    def __array__(self, dtype=None, copy=None):
        return DATA


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


SAME = {
    "array": lambda: DATA,
    "tensor": lambda: torch.from_numpy(DATA),
    "tensor with a graph": lambda: torch.from_numpy(DATA.copy()).requires_grad_() * 1,
    "parameter": lambda: torch.nn.Parameter(torch.from_numpy(DATA.copy())),
    "fortran": lambda: np.asfortranarray(DATA),
    "negative strides": lambda: DATA[::-1][::-1],
    "every second of a larger": lambda: np.repeat(DATA, 2, 0)[::2],
    "transposed tensor": lambda: torch.from_numpy(DATA.T.copy()).T,
    "other byte order": lambda: DATA.astype(">f4"),
    "read only": lambda: read_only(DATA),
    "array-like": lambda: ArrayLike(DATA),
    "frame": Frame,
    "dict": lambda: {"x": DATA, "y": LABELS},
    "batches of arrays": lambda: [DATA[:10], DATA[10:]],
    "batches and an empty one": lambda: [DATA[:0], DATA[:10], DATA[10:10], DATA[10:]],
    "generator of (x, y)": lambda: ((DATA[i : i + 7], LABELS[i : i + 7]) for i in range(0, 41, 7)),
    "generator of dicts": lambda: ({"x": DATA[i : i + 7], "y": 0} for i in range(0, 41, 7)),
    "arrays and tensors in turn": lambda: [DATA[:10], torch.from_numpy(DATA[10:])],
    "items of arrays": lambda: Items(*DATA),
    "items of (x, y)": lambda: TensorDataset(torch.from_numpy(DATA), LABELS),
    "items of lists": lambda: Items(*([row, 0] for row in DATA)),
    "items of named tuples": lambda: Items(*(Pair(torch.from_numpy(row), 0) for row in DATA)),
    "items of dicts with x": lambda: Items(*({"y": 0, "x": row} for row in DATA)),
    "items of dicts with one": lambda: Items(*({"pixels": row} for row in DATA)),
    "iterable data set": lambda: Stream(DATA),
    "loader with a smaller last batch": lambda: DataLoader(TensorDataset(torch.from_numpy(DATA), LABELS), 8),
    "loader of batch size 1": lambda: DataLoader(TensorDataset(torch.from_numpy(DATA)), 1),
    "loader of an iterable": lambda: DataLoader(Stream(DATA), 8),
    "loader without batching": lambda: DataLoader(Items(DATA[:20], DATA[20:]), batch_size=None),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_every_source_gives_the_same_bits(kind):
    assert same(fit(SAME[kind](), split="train"))


def test_an_array_like_is_read_by_slices(monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.memory.BLOCK_BYTES", 120)
    source = ArrayLike(DATA)
    assert same(fit(source, split="train"))
    assert [rows.stop for rows in source.asked] == [
        10,
        20,
        30,
        40,
        41,
    ]  # each once


def test_a_key_names_the_entry_of_a_dict():
    items = Items(*({"pixels": row, "mask": -row} for row in DATA))
    assert same(fit(items, split="train", key="pixels"))
    loader = DataLoader(items, 8)
    assert same(fit(loader, split="train", key="mask"), -DATA)


def test_single_numbers_are_samples_of_one_feature():
    for items in (
        Items(1.0, 2.0, 6.0),
        Items((1.0, 0), (2.0, 1), (6.0, 1)),
        Items(*np.array([1.0, 2.0, 6.0])),
    ):
        norm = fit(items, split="train")
        assert (norm.pattern.text, norm.moments.mean.item(), norm.dtype) == ("n ->", 3.0, "float64")


def test_pictures_as_items():
    pictures = [Image.new(mode, (6, 5), colour) for mode, colour in [("RGB", (9, 8, 7)), ("RGB", (1, 2, 3))]]
    norm = fit(Items(*((picture, 0) for picture in pictures)), "zscore", "n h w c -> c", split="train")
    assert norm.moments.mean.tolist() == [5.0, 5.0, 5.0]
    assert norm.dtype == "uint8"
    with pytest.raises(DataError, match=r"palette(.|\n)*item 0 of Items"):
        fit(Items(pictures[0].convert("P")), "fixed", split="train")
    with pytest.raises(DataError, match=r"item 1 of Items\n  got: samples of shape \(5, 6\)"):
        fit(Items(pictures[0], pictures[1].convert("L")), "fixed", split="train")


def test_a_loader_in_another_process():
    loader = DataLoader(TensorDataset(torch.from_numpy(DATA), LABELS), 8, num_workers=1)
    assert same(fit(loader, split="train"))


def test_a_loader_that_leaves_samples_out():
    data = TensorDataset(torch.from_numpy(DATA))
    with pytest.warns(DataWarning, match="1 of 41 samples are left out"):
        assert fit(DataLoader(data, 8, drop_last=True), split="train").samples == 40
    assert fit(DataLoader(data, 41, drop_last=True), split="train").samples == 41


def test_a_loader_that_repeats_samples():
    data = TensorDataset(torch.from_numpy(DATA))
    for sampler in (WeightedRandomSampler([1.0] * 41, 41), RandomSampler(data, replacement=True)):
        with pytest.warns(DataWarning, match="with replacement"):
            fit(DataLoader(data, 8, sampler=sampler), split="train")
    shuffled = fit(DataLoader(data, 8, shuffle=True), split="train")
    np.testing.assert_allclose(shuffled.scale, fit(DATA, split="train").scale, rtol=1e-14)


BAD = {
    "0-d array": (lambda: np.array(3.0), "array is a single number"),
    "0-d tensor": (lambda: torch.tensor(3.0), "tensor is a single number"),
    "no samples": (lambda: DATA[:0], "array is empty"),
    "no features": (lambda: DATA[:, :0], r"samples of shape \(0,\)"),
    "no pixels": (lambda: np.zeros((2, 3, 0, 4)), r"samples of shape \(3, 0, 4\)"),
    "no batches": (list, "list is empty"),
    "no items": (Items, "Items is empty"),
    "empty generator": (lambda: (x for x in ()), "generator is empty"),
    "empty batches": (lambda: [DATA[:0], DATA[:0]], "list is empty"),
    "objects": (lambda: np.array([[1], [1, 2]], dtype=object), "dtype object"),
    "complex array": (lambda: DATA.astype(complex), "dtype complex128"),
    "complex tensor": (lambda: torch.zeros(2, 2, dtype=torch.complex64), "complex64"),
    "structured": (lambda: np.zeros(3, dtype=[("a", "f4"), ("b", "f4")]), "take one field"),
    "text": (lambda: np.array(["a", "b"]), "dtype <U1"),
    "times": (lambda: np.array(["2020-01-01"], dtype="datetime64[D]"), "convert times"),
    "longdouble": (lambda: DATA.astype(np.longdouble), "mind the digits"),
    "masked": (lambda: np.ma.masked_array(DATA, DATA > 0), r"filled\(np.nan\)"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "to_dense"),
    "meta": (lambda: torch.empty(3, 3, device="meta"), "meta"),
    "nested lists": (lambda: [[1.0, 2.0], [3.0, 4.0]], "numpy.asarray"),
    "a list of numbers": (lambda: [1.0, 2.0], "numpy.asarray"),
    "a list of names": (lambda: ["a.npy", "b.npy"], "numpy.asarray"),
    "a number": (lambda: 3.0, "data: float"),
    "none": (lambda: None, "data: NoneType"),
    "bytes": (lambda: b"123", "data: bytes"),
    "items of text": (lambda: Items("a"), "item 0 of Items is a str"),
    "items of none": (lambda: Items(DATA[0], None), "item 1 of Items is a NoneType"),
    "items of lists of numbers": (lambda: Items([1.0, 2.0]), "item 0 of Items is a list of numbers"),
    "items of empty tuples": (lambda: Items(()), "item 0 of Items is empty"),
    "items of dicts without x": (lambda: Items({"a": 1.0, "b": 2.0}), "holds 'a', 'b'"),
    "items of empty dicts": (lambda: Items({}), "No entries in item 0 of Items"),
    "batches of numbers": (lambda: iter([1.0, 2.0]), "batch 0 of list_iterator is a single number"),
    "batches with one object": (lambda: [DATA, DATA.astype(object)], "batch 1 of list of dtype object"),
    "another shape": (lambda: [DATA, DATA[:, :2]], r"batch 1 of list\n  got: samples of shape \(2,\)"),
    "pictures as batches": (lambda: [Image.new("RGB", (4, 4))], "batch 0 of list is one picture"),
    "another rank": (lambda: [DATA, DATA[0]], r"batch 1 of list\n  got: samples of shape \(\)"),
    "another dtype": (lambda: [DATA, DATA.astype(float)], "batch 1 of list\n  got: .* float64"),
    "another item": (lambda: Items(*DATA, DATA[0, :2]), r"item 41 of Items\n  got: samples of shape \(2,\)"),
    "(x, y)": (lambda: (DATA, LABELS), r"\(x, y\) is one batch"),
    "another shape, empty": (lambda: [DATA, DATA[:0, :2]], "batch 1 of list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_fitted_is_named(kind):
    make, words = BAD[kind]
    with pytest.raises(DataError, match=words):
        fit(make(), split="train")


def test_a_data_set_without_a_length():
    class Endless(Dataset):
        def __getitem__(self, index):
            return DATA[0]

    with pytest.raises(DataError, match="Endless without __len__"):
        fit(Endless(), split="train")


@pytest.mark.parametrize(
    "source",
    [DATA, Items(*DATA), [DATA], [(DATA, LABELS)]],
    ids=["array", "samples", "batches", "pairs"],
)
def test_a_key_where_nothing_has_names(source):
    with pytest.raises((DataError, OptionError), match="key="):
        fit(source, split="train", key="x")


def test_a_list_of_single_samples_is_not_taken_for_batches():
    with pytest.raises(OptionError, match=r"numpy\.stack"):
        fit([DATA[0], DATA[1]], split="train")
    assert fit([DATA[0], DATA[1]], "zscore", "n ->", split="train").samples == 6


def test_a_key_that_is_not_there():
    with pytest.raises(DataError, match=r"No entry 'z' in the dict\n  got: it holds 'x', 'y'"):
        fit({"x": DATA, "y": LABELS}, split="train", key="z")
    with pytest.raises(DataError, match=r"fix: did you mean 'images'\?"):
        fit({"images": DATA, "y": LABELS}, split="train", key="image")


def test_an_error_of_the_data_set_is_its_own():
    class Failing(Items):
        def __getitem__(self, index):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(Failing(1), split="train")


def test_the_source_is_left_as_it_was():
    data = DATA.copy()
    tensor = torch.from_numpy(data)
    norm = fit(tensor, split="train")
    norm(tensor)
    np.testing.assert_array_equal(data, DATA)


def test_fixed_scale_of_a_source_read_once():
    norm = fit(iter([DATA[:20], DATA[20:]]), FixedScale(-10, 10), split="train")
    assert norm.samples == 41
    assert open_source(DATA).name == "array"


class Claims:
    """Claims a shape and a dtype, and holds nothing."""

    def __init__(self, shape, dtype=np.float64):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __array__(self):
        raise AssertionError("asked for values")

    __getitem__ = __array__


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Claims((2**62, 0)), r"samples of shape \(0,\)"),
        (Claims((0, 2**62)), "at most 2\\^44 values"),
        (Claims((10**15, 3)), "at most 2\\^44 values"),
        (Claims((True, 3)), "whole numbers"),
        (Claims(("3",)), "whole numbers"),
        (Claims((-1, 3)), "0 or more"),
        (Claims((1,) * 65), "65, at most 64"),
        (Claims((3,), [("a", "f4")]), "take one field"),
        (np.broadcast_to(1.0, (2**50, 3)), "at most 2\\^44 values"),
        (np.broadcast_to(1.0, (0, 2**40)), "is empty"),
    ],
)
def test_a_shape_is_checked_before_shards_are_listed(source, words):
    with pytest.raises(DataError, match=words):
        fit(source, pattern="n ... ->", split="train")


FOREIGN = [
    ("a.npy", {"key": "x"}, r"key= is no option of \.npy files\n  got: key='x' for .*a\.npy\n.*\.npz files"),
    ("a.npy", {"columns": ["a"]}, r"columns= is no option of \.npy files(.|\n)*Parquet files"),
    ("a.npz", {"missing_chunks": "fill"}, r"missing_chunks= is no option of \.npz files(.|\n)*Zarr arrays"),
    (
        "a.npz",
        {"weights": "w"},
        r"weights= is no option of \.npz files(.|\n)*an array of one weight",
    ),
    ("a.parquet", {"delimiter": ";"}, "delimiter= is no option of Parquet files(.|\n)*CSV files"),
    ("a.csv", {"convert": "L"}, "convert= is no option of CSV files(.|\n)*tars of images"),
    ("a.tar", {"delimiter": ";"}, "delimiter= is no option of tars of images"),
    ("a.npy", {"missing_chunks": "fil"}, "missing_chunks must be 'raise' or 'fill'\n  got: 'fil'"),
    ("a.tar", {"convert": "rgb"}, "convert must be 'L', 'RGB' or 'RGBA'\n  got: 'rgb'"),
    ("a.csv", {"delimiter": ";;"}, "delimiter must be one character"),
    ("a.csv", {"columns": "a"}, "columns must be a list of names"),
]


@pytest.mark.parametrize(("name", "options", "words"), FOREIGN)
def test_an_option_that_the_data_do_not_have_is_said_before_they_are_read(name, options, words, tmp_path):
    (tmp_path / name).write_bytes(b"of no kind")
    with pytest.raises(OptionError, match=words):
        fit(tmp_path / name, split="train", **options)


def test_every_ending_is_of_one_format():
    endings = [ending for known in FORMATS for ending in known.endings]
    assert len(set(endings)) == len(endings)
    for ending in endings:
        assert ending in format_of_name(f"A{ending.upper()}").endings


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/train.npy", r"\.npy files are not read from URLs: s3://bucket/train\.npy"),
        ("memory://shards/train.tar", "Tars of images are not read from URLs"),
    ],
)
def test_urls_of_what_is_read_from_paths_only(url, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=words):
        fit(url, split="train")


def test_a_single_image_is_no_data_set(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    with pytest.raises(DataError, match=r"A single image is no data set: .*cat\.png\n  fix: give the folder"):
        fit(tmp_path / "cat.png", split="train")
    with pytest.raises(DataError, match=r"No such data file: .*\*\.png"):
        fit(f"{tmp_path}/*.png", split="train")


def test_a_package_that_is_broken_is_said_to_be(tmp_path, monkeypatch):
    (tmp_path / "pyarrow.py").write_text("raise AttributeError('half an upgrade')")
    (tmp_path / "a.csv").write_text("a\n1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ExtraError, match=r"Reading CSV files needs .*pyarrow.*\n  got: AttributeError"):
        fit(tmp_path / "a.csv", split="train")
