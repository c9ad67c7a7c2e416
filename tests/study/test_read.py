"""Data sets from files, whole and damaged."""

import gzip
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.utils.data import IterableDataset, Subset, TensorDataset
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataError
from slabnorm.study import read
from slabnorm.study.data import Dataset
from slabnorm.study.read import CLOTHES, read_data
from tests.inputs.test_idx import idx
from tests.study.small import table


def folder(root, sizes=((4, 3), (4, 3)), count=6, mode="L", suffix="png"):
    """A folder with the classes a and b, each with images of a size (width, height)."""
    for name, size in zip("ab", sizes, strict=True):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            pixels = np.full(shape, 10 * i + ord(name), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.{suffix}")
    return root


def test_npz_gives_its_arrays(tmp_path):
    x, y = table()
    np.savez(tmp_path / "d.npz", x=x, y=y, other=x)
    data = read_data(tmp_path / "d.npz")
    assert np.array_equal(data.x, x)
    assert data.name == "d.npz"
    assert read_data(data) is data
    assert isinstance(read_data((x, y)), Dataset)


def test_folder_gives_pixels_and_classes_by_name(tmp_path):
    data = read_data(folder(tmp_path / "pets"))
    assert data.x.shape == (12, 1, 3, 4)
    assert data.classes == ("a", "b")
    assert data.y.tolist() == [0] * 6 + [1] * 6
    assert data.x[7].flatten().tolist() == [10 + ord("b")] * 12
    assert data.name == "pets"


def test_folder_of_colour_is_not_mistaken_for_channels_last(tmp_path):
    data = read_data(folder(tmp_path, sizes=((2, 9), (2, 9)), mode="RGB"))
    assert data.x.shape == (12, 3, 9, 2)


def test_other_files_are_left_out_and_counted(tmp_path):
    folder(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("x")
    os.symlink(tmp_path / "a" / "loop.png", tmp_path / "a" / "loop.png")
    data = read_data(tmp_path)
    assert len(data.y) == 12
    assert "2 entries" in data.notes[0]


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path / "d.npz"


def no_file(tmp_path):
    return tmp_path / "none.npz"


def no_y(tmp_path):
    return npz(tmp_path, x=np.ones((4, 2)))


def no_archive(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 not a zip")
    return tmp_path / "d.npz"


def cut_off(tmp_path):
    path = npz(tmp_path, **dict(zip("xy", table(), strict=True)))
    path.write_bytes(path.read_bytes()[:-200])
    return path


def objects(tmp_path):
    return npz(tmp_path, x=np.array([{}, {}], dtype=object), y=np.arange(2))


def other_kind(tmp_path):
    (tmp_path / "d.csv").write_text("1,2")
    return tmp_path / "d.csv"


def sizes_differ(tmp_path):
    return folder(tmp_path, sizes=((4, 3), (3, 4)))


def modes_differ(tmp_path):
    folder(tmp_path)
    Image.new("RGB", (4, 3)).save(tmp_path / "b" / "3.png")
    return tmp_path


def truncated(tmp_path):
    folder(tmp_path, sizes=((40, 30), (40, 30)), suffix="jpg")
    path = tmp_path / "b" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    return tmp_path


def no_image(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return tmp_path


def frames(tmp_path):
    folder(tmp_path)
    first, second = Image.new("L", (4, 3)), Image.new("L", (4, 3), 200)
    first.save(tmp_path / "a" / "9.gif", save_all=True, append_images=[second])
    return tmp_path


def one_class(tmp_path):
    folder(tmp_path)
    for path in (tmp_path / "b").iterdir():
        path.unlink()
    return tmp_path


def small_class(tmp_path):
    folder(tmp_path)
    for number in range(3):
        (tmp_path / "b" / f"{number}.png").unlink()
    return tmp_path


BAD = {
    no_file: "No such file or folder",
    no_y: r"No array 'y' in .*d\.npz",
    no_archive: "Damaged npz file",
    cut_off: "Damaged npz file",
    objects: "dtype object",
    other_kind: r"npz file nor a folder",
    sizes_differ: r"b/0\.png\n  got: 3x4 L, and 4x3 L of .*a/0\.png",
    modes_differ: r"b/3\.png\n  got: 4x3 RGB",
    truncated: r"b/2\.jpg",
    no_image: "2 folders, no image",
    frames: "2 frames",
    one_class: "One class only, 'a'",
    small_class: r"Too few samples of class 'b'.*\n  got: 3",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_data_is_refused_with_the_reason(make, tmp_path):
    with pytest.raises(DataError, match=BAD[make]):
        read_data(make(tmp_path))


@pytest.mark.parametrize("source", ["", 3, None, ("x",)])
def test_what_names_no_data_is_refused(source):
    with pytest.raises(DataError):
        read_data(source)


def test_truncated_images_are_not_padded_even_if_pillow_was_told_to(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match=r"Damaged image: .*b/2\.jpg"):
        read_data(truncated(tmp_path))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("most", [100, 20])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, most):
    # 192 pixels: over the limit of 100 (Pillow warns) and over twice that of 20 (Pillow raises).
    folder(tmp_path, sizes=((16, 12), (16, 12)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(DataError, match="decompression bomb"), warnings.catch_warnings():
        read_data(tmp_path)


def test_more_than_fits_in_memory_is_refused_before_it_is_read(tmp_path):
    path = npz(tmp_path, **dict(zip("xy", table(), strict=True)))
    whole = bytearray(path.read_bytes())
    at = -1
    while (at := whole.find(b"PK\1\2", at + 1)) >= 0:  # the table of contents: each array claims 3 GB
        whole[at + 24 : at + 28] = (3_000_000_000).to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"Too large for memory: .*d\.npz\n  got: 5\.6 GiB"):
        read_data(path)
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("L", (9000, 9000)).save(tmp_path / "images" / "a" / "0.png")
    for number in range(1, 54):
        os.link(tmp_path / "images" / "a" / "0.png", tmp_path / "images" / "a" / f"{number}.png")
    with pytest.raises(DataError, match="Too large for memory: 54 images of 77 MiB"):
        read_data(tmp_path / "images")


# Folders of IDX files.

PIXELS = np.random.default_rng(2).integers(0, 256, (90, 6, 5)).astype(np.uint8)
LABELS = (np.arange(90) % 3).astype(np.uint8)
NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def mnist(root, **others):
    """A folder of four files, as MNIST's are called: 60 training and 30 test images of three classes."""
    arrays = dict(zip(NAMES, (PIXELS[:60], LABELS[:60], PIXELS[60:], LABELS[60:]), strict=True))
    root.mkdir(exist_ok=True)
    for name, array in {
        **arrays,
        **{name.replace("_", "-"): array for name, array in others.items()},
    }.items():
        if array is not None:
            (root / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return root


def test_folder_of_idx_files_keeps_its_test_split(tmp_path):
    data = read_data(mnist(tmp_path / "small"))
    assert data.name == "small"
    assert data.x.dtype == np.uint8
    assert np.array_equal(data.x[:, 0], PIXELS)
    assert np.array_equal(data.y, LABELS)
    assert data.classes == ("0", "1", "2")
    split = data.split
    assert split.test.tolist() == list(range(60, 90))
    assert sorted([*split.train, *split.validation]) == list(range(60))
    assert sorted(np.bincount(data.y[split.validation])) == [3, 3, 4]  # a sixth, and of each class a third
    assert np.array_equal(split.train, read_data(tmp_path / "small").split.train)
    assert "come with the data" in data.split_by
    copy = pickle.loads(pickle.dumps(data))  # as to worker processes
    assert np.array_equal(copy.split.test, split.test)


def test_folder_of_idx_files_is_compared(tmp_path):
    study = sn.compare(
        "mlp", mnist(tmp_path), norms=["none"], batch_sizes=[10], seeds=2, epochs=1, schemes=()
    )
    assert (study.data.train, study.data.validation, study.data.test) == (50, 10, 30)
    assert [cell.runs for cell in study.cells] == [2]


def test_one_label_for_each_image_and_classes_that_fit(tmp_path):
    for number, (others, says) in enumerate(
        [
            ({"train_labels_idx1": LABELS[:59]}, r"Not one label for each image: .*train-l.*\n.*\(59,\)"),
            ({"t10k_labels_idx1": LABELS[:31]}, r"Not one label for each image: .*t10k-labels"),
            ({"t10k_labels_idx1": PIXELS[60:]}, r"Not one label for each image: .*t10k-labels"),
            ({"train_labels_idx1": LABELS[:60] // 3, "t10k_labels_idx1": LABELS[60:] // 3}, "One class only"),
            ({"train_labels_idx1": LABELS[:60] % 2}, "Too few samples of class '2'.*the training data of"),
            ({"train_labels_idx1": None}, r"No labels beside .*train-images.*\n.*train-labels-idx1-ubyte or"),
            ({"t10k_images_idx3": None}, r"Not one file of training images and one of test .*\n.*1 and 0"),
            ({"more_train_images_idx3": PIXELS}, r"Not one file of training .*\n.*2 and 1.*more-train"),
            ({"t10k_images_idx3": PIXELS[60:, :5]}, r"of different kinds.*\n.*\(6, 5\).*\(5, 5\)"),
            ({"t10k_images_idx3": PIXELS[60:].astype("f4")}, r"of different kinds.*\n.*float32"),
            ({"train_images_idx3": PIXELS[:60] * np.nan, "t10k_images_idx3": PIXELS[60:] / 1.0},
             "NaN or infinite values in x of the training data of"),
        ]
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_data(mnist(tmp_path / str(number), **others))


def test_damaged_idx_files_are_refused(tmp_path):
    for name in NAMES:
        path = mnist(tmp_path) / f"{name}-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(DataError, match=f"Damaged gzip file: .*{name}-ubyte.gz"):
            read_data(tmp_path)
    with pytest.raises(
        DataError, match=r"One IDX file is no labelled data set: .*\n  fix: give a folder with the four"
    ):
        read_data(path)


def test_fashion_mnist():
    assert read.FASHION_MNIST.is_dir(), "run: apt install dataset-fashion-mnist"
    data = read_data("fashion-mnist")
    assert (data.x.shape, data.x.dtype) == ((70000, 1, 28, 28), np.uint8)
    assert data.classes == CLOTHES
    assert CLOTHES[9] == "Ankle boot"
    split = data.split
    assert [len(part) for part in (split.train, split.validation, split.test)] == [50000, 10000, 10000]
    for part in (split.train, split.validation, split.test):
        assert np.bincount(data.y[part]).tolist() == [len(part) // 10] * 10
    # The first training image is an ankle boot; its first test image, too.
    assert [data.y[0], data.y[60000]] == [9, 9]
    few = data.subset(1000, 200)
    assert [len(part) for part in (few.split.train, few.split.validation, few.split.test)] == [1000, 200, 200]
    assert few.x.nbytes == 1400 * 784


def test_fashion_mnist_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "FASHION_MNIST", tmp_path / "none")
    with pytest.raises(
        DataError, match=r"Fashion-MNIST is not installed.*\n.*\n  fix: apt install dataset-fashion-mnist"
    ):
        read_data("fashion-mnist")
    monkeypatch.setattr(read, "FASHION_MNIST", mnist(tmp_path / "other"))
    with pytest.raises(DataError, match=r"Not Fashion-MNIST in .*other\n  got: 3 classes, not 10"):
        read_data("fashion-mnist")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("fasion-mnist", "did you mean 'fashion-mnist'"),
        ("Digits", "did you mean 'digits'"),
        ("photo", "did you mean 'photos'"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(typed, says):
    with pytest.raises(DataError, match=f"No such file or folder: {typed}\n  fix: {says}"):
        read_data(typed)


# torch data sets.


class Items(torch.utils.data.Dataset):
    """A map-style data set of a list, whose items may be exceptions."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        if isinstance(self.items[number], Exception):
            raise self.items[number]
        return self.items[number]


class Unsized(torch.utils.data.Dataset):
    def __getitem__(self, number):
        return PIXELS[0], 0


class Endless(IterableDataset):
    def __iter__(self):
        yield PIXELS[0], 0


KINDS = {
    "arrays": lambda pixels: pixels,
    "tensors": torch.from_numpy,
    "images": Image.fromarray,
    "lists of channels": lambda pixels: torch.from_numpy(pixels)[None],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [int, torch.tensor, lambda y: np.array([y]), lambda y: "abc"[y]])
def test_items_of_a_torch_dataset_are_stacked(kind, label):
    items = Items([(KINDS[kind](x), label(int(y))) for x, y in zip(PIXELS, LABELS, strict=True)])
    data = read_data(items)
    assert data.name == "Items"
    assert data.x.dtype == np.uint8
    assert np.array_equal(data.x[:, 0], PIXELS)
    assert np.array_equal(data.y, LABELS)
    assert data.classes == (tuple("abc") if label(0) == "a" else ("0", "1", "2"))


def test_torch_datasets_of_other_kinds():
    x, y = table()
    assert np.array_equal(read_data(TensorDataset(torch.tensor(x), torch.tensor(y))).x, x)
    some = Subset(TensorDataset(torch.tensor(x).bfloat16(), torch.tensor(y)), range(0, 60, 3))
    assert read_data(some).x.dtype == np.float32
    assert len(read_data(some).y) == 20
    pairs = list(zip(PIXELS, LABELS.tolist(), strict=True))
    assert read_data(Items(pairs, classes=["cat", "dog", "\x1b"])).classes == ("cat", "dog", "\\x1b")
    assert read_data(Items(pairs, classes=["cat", "dog"])).classes == ("0", "1", "2")


GOOD = [(x, int(y)) for x, y in zip(PIXELS, LABELS, strict=True)]
BAD_ITEMS = {
    "A Dataset without a length: Unsized": Unsized(),
    "A Dataset without a length: Endless": Endless(),
    "No samples: Items is empty": Items([]),
    r"different sizes or dtypes: item 90 of Items\n  got: uint8 of shape \(5, 6\), and .* of item 0": Items(
        [*GOOD, (PIXELS[0].T, 1)]
    ),
    "of different sizes or dtypes: item 90": Items([*GOOD, (PIXELS[0] / 255, 1)]),
    r"Not a pair \(x, y\): item 90 of Items\n  got: ndarray": Items([*GOOD, PIXELS[0]]),
    r"Not a pair \(x, y\): item 0 of Items\n  got: tuple of 3": Items([(1, 2, 3)]),
    r"Reading item 90 of Items raised an error\n  got: OSError: disk": Items([*GOOD, OSError("disk")]),
    r"Reading item 0 of Items raised an error\n  got: KeyError": Items([KeyError("a")]),
    "Image with a palette: x of item 0": Items([(Image.new("P", (3, 3)), 0)]),
    "Not a tensor, an array or a number: x of item 0 of Items is a str": Items([("cat", 0)]),
    "y of Items must be one axis of labels": Items([(x, np.eye(3)[y]) for x, y in GOOD]),
    "One class only, '0'": Items([(x, 0) for x, _ in GOOD]),
    "NaN or infinite values in x of Items": Items([(x * np.nan, y) for x, y in GOOD]),
}


@pytest.mark.parametrize("says", BAD_ITEMS)
def test_bad_torch_datasets_are_refused_with_the_item(says):
    with pytest.raises(DataError, match=says):
        read_data(BAD_ITEMS[says])


def test_torch_dataset_that_is_too_large_is_refused_before_it_is_read():
    class Large(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, number):
            assert number == 0
            return PIXELS[0], 0

    with pytest.raises(
        DataError, match=r"Too large for memory: Large\n  got: 1,000,000,000 items of 30 bytes"
    ):
        read_data(Large())


# At the command line.


def damaged(folder):
    path = mnist(folder) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-5])


def shorter(folder):
    mnist(folder, train_labels_idx1=LABELS[:10])


def single(folder):
    mnist(folder, train_labels_idx1=LABELS[:60] * 0, t10k_labels_idx1=LABELS[60:] * 0)


def with_nan(folder):
    mnist(folder, train_images_idx3=PIXELS[:60] * np.nan, t10k_images_idx3=PIXELS[60:] * 1.0)


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (damaged, "data", "Damaged gzip file: data/t10k-images-idx3-ubyte.gz"),
        (shorter, "data", "Not one label for each image: data/train-labels-idx1-ubyte.gz"),
        (single, "data", "One class only"),
        (with_nan, "data", "NaN or infinite values in x"),
        (mnist, "data/train-images-idx3-ubyte.gz", "One IDX file is no labelled data set"),
        (mnist, "mnist", "No such file or folder: mnist"),
        (mnist, "fashion-mnis", "No such file or folder: fashion-mnis"),
    ],
)
def test_bad_data_at_the_command_line(make, given, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("data"))
    result = CliRunner().invoke(app, ["compare", "--data", given], catch_exceptions=False)
    assert result.exit_code == 2
    assert f"error: {says}" in result.stderr
    assert "fix: " in result.stderr
    assert not Path("report.html").exists()
