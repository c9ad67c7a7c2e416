"""Data sets from files, whole and damaged."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from slabnorm.errors import DataError
from slabnorm.study.data import Dataset
from slabnorm.study.read import read_data
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
