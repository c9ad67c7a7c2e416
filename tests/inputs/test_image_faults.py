"""Images that are damaged, hostile or no images: each an error that names it, or a line of a list."""

import io
import os
import socket
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import slabnorm as sn
from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.sources import images, open_source
from tests.inputs.test_images import encoded, folder, picture

KINDS = {"jpg": ("JPEG", {}), "progressive.jpg": ("JPEG", {"progressive": True}), "png": ("PNG", {}),
         "webp": ("WEBP", {}), "bmp": ("BMP", {}), "tif": ("TIFF", {}),
         "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
         "gif": ("GIF", {}), "ppm": ("PPM", {})}  # fmt: skip


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_truncated_images_are_never_padded(name, padded, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", padded)
    kind, options = KINDS[name]
    whole = encoded(kind, **options)
    images.decode(whole)
    pixels_of = np.asarray(images.decode(whole))
    for place in [0, 1, 9, *np.linspace(20, len(whole) - 1, 40).astype(int).tolist(), len(whole) - 1]:
        try:
            found = np.asarray(images.decode(whole[:place]))
        except images.DamageError:
            continue
        # What is cut off then is behind the pixels, such as a GIF's last byte.
        assert len(whole) - place <= 2, place
        np.testing.assert_array_equal(found, pixels_of)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is padded


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_changed_bit_is_found_where_there_are_checksums(kind, padded, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", padded)
    whole = encoded(kind, compression="tiff_deflate") if kind == "TIFF" else encoded(kind)
    good = np.asarray(images.decode(whole))
    # A TIFF's directory, which has none, is at its end.
    for place in np.linspace(40, len(whole) - (300 if kind == "TIFF" else 14), 60).astype(int).tolist():
        try:
            found = images.decode(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        except images.DamageError:
            continue
        np.testing.assert_array_equal(np.asarray(found), good)


def vanish(path):
    (path / "a" / "bad.png").symlink_to(path / "nothing")


def animate(path):
    frames = [picture(i, size=(9, 9)).convert("P") for i in range(3)]
    frames[0].save(path / "a" / "bad.gif", save_all=True, append_images=frames[1:])


def put(name, content):
    return lambda path: (path / "a" / name).write_bytes(content)


FAULTS = {
    "zero": (put("bad.png", b""), r"bad\.png\n  got: the file is empty"),
    "text": (put("bad.png", b"hello\n" * 50), r"bad\.png\n  got: no image of the kinds"),
    "cut": (put("bad.jpg", encoded("JPEG")[:-300]), r"bad\.jpg\n  got: .*[Tt]runcated"),
    "no end": (put("bad.png", encoded("PNG")[:-12]), r"bad\.png\n  got: .*ends with IEND"),
    "link": (vanish, r"bad\.png\n  got: No such file"),
    "animation": (animate, r"bad\.gif\n  got: 3 frames"),
    "hostile": (put("bad\x1b[31m\n\udcff.png", b""), r"bad\\x1b\[31m\\n\\udcff\.png"),
    "windows": (put("C:\\x\\bad.PNG", b""), r"C:\\x\\bad\.PNG"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_files_are_named_or_listed(name, tmp_path):
    make, says = FAULTS[name]
    path = folder(tmp_path / "train", suffixes=["png"])
    good = sn.fit(path, split="train")
    make(path)
    with pytest.raises(DataError, match=says):
        sn.fit(path, split="train")
    norm = sn.fit(path, split="train", skip_bad=True, ledger=tmp_path / "ledger")
    assert norm.samples == 12
    assert norm.record.skipped == len(norm.skipped) == 1
    assert "bad" in norm.skipped[0][0]
    assert norm.record.content == good.record.content


@pytest.mark.parametrize("most", [400, 900, None])
def test_decompression_bombs(most, tmp_path, monkeypatch):
    # Beyond twice Pillow's limit, beyond the limit, and beyond ours where somebody has lifted Pillow's.
    path = folder(tmp_path / "train", suffixes=["png"], size=(10, 10))
    picture(0, size=(40, 30)).save(path / "b" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    monkeypatch.setattr(images, "PIXELS", 900)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=r"bomb\.png\n  got: .*decompression bomb"):
            sn.fit(path, split="train")


def test_links_sockets_and_hidden_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder(Path("train"), suffixes=["png"])
    good = sn.fit(path, split="train")
    (path / "a" / "again").symlink_to(path.absolute())
    os.mkfifo(path / "a" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("train/socket.jpg")
    (path / ".hidden.png").write_bytes(b"nothing")
    (path / "notes.txt").write_text("no image")
    with pytest.warns(
        DataWarning,
        match=r"left out train/a/again \(a link .*\), train/a/pipe\.png \(.*\), train/socket\.jpg",
    ) as caught:
        norm = sn.fit(path, split="train")
    assert len(caught) == 1
    assert norm.record.content == good.record.content
    picture(20).save("elsewhere.png")
    (path / "b" / "linked.png").symlink_to(Path("elsewhere.png").absolute())
    with pytest.warns(DataWarning):
        assert sn.fit(path, split="train").samples == 13


def test_a_file_that_changes_or_goes_after_it_was_listed(tmp_path):
    path = folder(tmp_path / "train", suffixes=["png"], count=4)
    shards = open_source(path).shards()
    (path / "a" / "000.png").unlink()
    (path / "b" / "001.png").write_bytes(encoded("PNG"))
    found = [block for shard in shards for block in shard.blocks()]
    assert "No such file" in found[0].why
    assert "when the folder was listed" in found[2].why
    assert [block.block.shape[:2] for block in (found[1], found[3])] == [(1, 3)] * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_rights(tmp_path):
    path = folder(tmp_path / "train", suffixes=["png"])
    (path / "a" / "000.png").chmod(0)
    with pytest.raises(DataError, match=r"000\.png\n  got: Permission denied"):
        sn.fit(path, split="train")
    (path / "b").chmod(0)
    with pytest.raises(DataError, match=r"b\n  got: Permission denied"):
        sn.fit(path, split="train")
    (path / "b").chmod(0o700)


def test_folders_without_images(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="No data in the folder"):
        sn.fit(tmp_path / "train", split="train")
    (tmp_path / "train" / "a.png").write_bytes(b"x")
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"No image can be read: .*\n  got: .*a\.png: no image"):
            sn.fit(tmp_path / "train", split="train", skip_bad=skip_bad)


def test_a_tiff_whose_strips_do_not_cover_it_is_not_padded():
    whole = encoded("TIFF")
    image = Image.open(io.BytesIO(whole))
    height = image.size[1]
    entry = whole.index(struct.pack("<HH", 257, 4)) + 8  # the value of ImageLength
    assert struct.unpack_from("<I", whole, entry) == (height,)
    for claimed in (height + 1000, height | 1 << 16):
        damaged = whole[:entry] + struct.pack("<I", claimed) + whole[entry + 4 :]
        with pytest.raises(images.DamageError, match=f"do not cover .* x {claimed} pixels"):
            images.decode(damaged)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
def test_tiffs_in_strips_tiles_and_planes_are_whole(tiles, planar):
    """As written by hand: Pillow writes neither planes nor tiles."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3)).astype(np.uint8)
    planes = [pixels] if planar == 1 else list(pixels.transpose(2, 0, 1))
    parts = []
    for plane in planes:
        if tiles:  # of 32 x 16, of which the right ones end beyond the image
            wide = np.pad(plane, ((0, 0), (0, 16), *[(0, 0)] * (plane.ndim - 2)))
            parts += [wide[y : y + 16, x : x + 32].tobytes() for y in range(0, 64, 16) for x in (0, 32)]
        else:
            parts += [plane[y : y + 16].tobytes() for y in range(0, 64, 16)]
    offsets = (8 + np.cumsum([0, *map(len, parts)])[:-1]).tolist()
    where = {322: [32], 323: [16], 324: offsets, 325: list(map(len, parts))}
    if not tiles:
        where = {273: offsets, 278: [16], 279: list(map(len, parts))}
    tags = {256: [48], 257: [64], 258: [8, 8, 8], 259: [1], 262: [2], 277: [3], 284: [planar], **where}
    assert (np.asarray(images.decode(tiff(b"".join(parts), tags))) == pixels).all()
    short = {tag: values[:-1] if tag in (273, 279, 324, 325) else values for tag, values in tags.items()}
    with pytest.raises(images.DamageError):
        images.decode(tiff(b"".join(parts), short))


def tiff(data: bytes, tags: dict[int, list[int]]) -> bytes:
    """Return a TIFF: the header, the data from byte 8 on, and its tags, all of 32 bits."""
    directory, more = struct.pack("<H", len(tags)), b""
    after = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        body = struct.pack(f"<{len(values)}I", *values)
        if len(body) > 4:
            body, more = struct.pack("<I", after + len(more)), more + body
        directory += struct.pack("<HHI", tag, 4, len(values)) + body
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4) + more
