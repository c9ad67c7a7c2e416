"""Folders of images: exact statistics, one mode, and every fault named."""

import io
import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataError, DataWarning, LeakageError, OptionError, PatternError
from slabnorm.inputs.apply import apply
from slabnorm.inputs.sources import images, open_source

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]
SUFFIXES = {"RGB": ("png", "jpg", "bmp", "webp", "tif", "ppm"), "L": ("png", "jpg", "gif", "pgm"),
            "RGBA": ("png", "tif", "webp"), "I;16": ("png", "tif")}  # fmt: skip


def picture(number, mode="RGB", size=None):
    """Return a part of a photo, each of another size."""
    left, width, height = 7 * number, *(size or (40 + 3 * number, 30 + 2 * number))
    part = PHOTOS[number % 2].crop((left, 9, left + width, 9 + height))
    if mode == "I;16":
        return Image.fromarray(np.asarray(part.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        part.putalpha(part.convert("L"))
    return part.convert(mode)


def folder(path, mode="RGB", count=12, suffixes=None, size=None):
    """Write pictures into nested folders."""
    suffixes = suffixes or SUFFIXES[mode]
    for number in range(count):
        inside = path / "ab"[number % 2]
        inside.mkdir(parents=True, exist_ok=True)
        kind = suffixes[number % len(suffixes)]
        # A GIF has its grey as a palette: of the kinds of L, it is left to those who convert.
        kind = "png" if kind == "gif" else kind
        picture(number, mode, size).save(inside / f"{number:03}.{kind}")
    return path


def pixels(path):
    """Return the pixels of a folder's images in order, (h * w, c) each."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    arrays = [np.asarray(Image.open(file)) for file in files]
    return [a.reshape(-1, 1 if a.ndim == 2 else a.shape[2]) for a in arrays]


def encoded(kind, **options):
    buffer = io.BytesIO()
    picture(0).save(buffer, kind, **options)
    return buffer.getvalue()


def check(norm, values):
    """Hold a norm's moments against sums of integers."""
    together = np.concatenate(values).astype(np.int64)
    n, totals, squares = len(together), together.sum(0), (together * together).sum(0)
    for c, (total, square) in enumerate(zip(totals.tolist(), squares.tolist(), strict=True)):
        mean, m2 = Fraction(total, n), square - Fraction(total * total, n)
        assert abs(Fraction(norm.moments.mean[c].item()) - mean) <= mean * Fraction(1, 1 << 52)
        assert abs(Fraction(norm.moments.m2[c].item()) - m2) <= m2 * Fraction(1, 1 << 52)
    assert norm.moments.count.tolist() == [n] * together.shape[1]
    assert norm.moments.min.tolist() == together.min(0).tolist()
    assert norm.moments.max.tolist() == together.max(0).tolist()


def saved(norm, path):
    """Return the bytes of a norm's file."""
    sn.save(norm, path / "norm.safetensors")
    return (path / "norm.safetensors").read_bytes()


@pytest.mark.parametrize("mode", SUFFIXES)
def test_statistics_are_those_of_all_pixels(mode, tmp_path):
    path = folder(tmp_path / "train", mode)
    norm = sn.fit(str(path), split="train")
    check(norm, pixels(path))
    assert norm.samples == 12
    assert norm.dtype == ("uint16" if mode == "I;16" else "uint8")
    assert norm.record.sample == (len(norm.count), None, None)
    assert norm.record.reader.startswith("Pillow 1")
    assert "libjpeg-turbo" in norm.record.reader


def test_images_are_the_same_samples_as_arrays(tmp_path):
    path = folder(tmp_path / "train", size=(20, 10))
    stack = np.stack([p.reshape(10, 20, 3) for p in pixels(path)])
    arrays = sn.fit(stack, "zscore", "n h w c -> c", split="train")
    norm = sn.fit(path, split="train")
    assert norm.record.content == arrays.record.content
    assert (norm.sketch.hashes == arrays.sketch.hashes).all()
    assert norm.moments.mean.tolist() == arrays.moments.mean.tolist()
    again = norm(sn.load(_saved_path(norm, tmp_path)).inverse(norm(_batch(stack))))
    assert again.shape == (12, 3, 10, 20)


def _saved_path(norm, path):
    sn.save(norm, path / "n.safetensors")
    return path / "n.safetensors"


def _batch(stack):
    import torch

    return torch.from_numpy(stack).permute(0, 3, 1, 2)


def test_workers_and_an_interruption_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SHARD_BYTES", 9000)
    path = folder(tmp_path / "train", count=24)
    whole = saved(sn.fit(path, split="train", workers=1), tmp_path)
    shards = open_source(path).shards()
    assert len(shards) > 3
    assert saved(sn.fit(path, split="train", workers=2, memory=1), tmp_path) == whole
    done = []

    def stop(bytes_done, bytes_all):
        done.append(bytes_done)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sn.fit(path, split="train", ledger=tmp_path / "l", progress=stop)
    assert saved(sn.fit(path, split="train", ledger=tmp_path / "l", resume=True), tmp_path) == whole
    first = path / "a" / "000.png"
    os.utime(first, ns=(0, 1))
    with pytest.raises(DataError, match="changed"):
        sn.fit(path, split="train", ledger=tmp_path / "l", resume=True)


def test_patterns_that_keep_pixels_want_one_size(tmp_path):
    path = folder(tmp_path / "train", size=(8, 6))
    norm = sn.fit(path, pattern="n c h w -> c h w", split="train")
    stack = np.stack([p.reshape(6, 8, 3) for p in pixels(path)]).astype(np.float64)
    np.testing.assert_allclose(norm.moments.mean.numpy(), stack.mean(0).transpose(2, 0, 1), rtol=1e-14)
    picture(1, size=(8, 7)).save(path / "b" / "other.png")
    with pytest.raises(DataError, match=r"other\.png\n  got: samples of shape \(3, 7, 8\).*\(3, 6, 8\)"):
        sn.fit(path, pattern="n c h w -> c h w", split="train")
    rows = sn.fit(path, pattern="n c h w -> w", split="train")
    assert rows.count.tolist() == [3 * (12 * 6 + 7)] * 8
    with pytest.raises(PatternError):
        sn.fit(path, pattern="n c h w -> n c", split="train")


def test_one_mode_or_a_conversion(tmp_path):
    path = folder(tmp_path / "train", suffixes=["png"])
    picture(1, "L").save(path / "b" / "grey.png")
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"grey\.png\n  got: mode L, where the first image has RGB\n"):
            sn.fit(path, split="train", skip_bad=skip_bad)
    picture(2).convert("P").save(path / "a" / "palette.png")
    picture(3).convert("CMYK").save(path / "a" / "print.jpg")
    converted = [np.asarray(Image.open(f).convert("RGB")).reshape(-1, 3) for f in path.rglob("*.*")]
    check(sn.fit(path, split="train", convert="RGB"), converted)
    assert sn.fit(path, split="train", convert="L").count.numel() == 1
    (path / "0.png").write_bytes((path / "a" / "palette.png").read_bytes())
    with pytest.raises(DataError, match=r"Images of mode P do not count as they are: .*0\.png"):
        sn.fit(path, split="train")
    picture(1, "I;16").save(path / "0.png")
    with pytest.raises(DataError, match="would drop bits"):
        sn.fit(path, split="train", convert="RGB")
    for wrong in ("CMYK", "rgb", 3):
        with pytest.raises(OptionError, match="convert must be 'L', 'RGB' or 'RGBA'"):
            sn.fit(path, split="train", convert=wrong)
    with pytest.raises(OptionError, match="convert= is no option of"):
        sn.fit(np.zeros((2, 2)), split="train", convert="RGB")


def deep_png(kind, channels):
    """Return a PNG of 3 x 2 pixels with 16 bits a channel, of a colour type."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, kind, 0, 0, 0))
    rows = zlib.compress((b"\0" + bytes(range(6 * channels))) * 2)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_tiff(end):
    """Return a TIFF of 1 x 1 pixel with 16 bits a channel, in a byte order."""
    tags = ((256, 1, 1), (257, 1, 1), (258, 3, 122), (259, 1, 1), (262, 1, 2), (273, 1, 128), (277, 1, 3),
            (278, 1, 1), (279, 1, 6))  # fmt: skip
    entries = []
    for tag, count, value in tags:
        if tag in (256, 257, 259, 262, 277, 278):  # numbers of 16 bits, which lie left in a field of 32
            entries.append(struct.pack(end + "HHIHH", tag, 3, count, value, 0))
        else:
            entries.append(struct.pack(end + "HHII", tag, 3 if tag == 258 else 4, count, value))
    head = {"<": b"II", ">": b"MM"}[end] + struct.pack(end + "HI", 42, 8) + struct.pack(end + "H", len(tags))
    return head + b"".join(entries) + bytes(4) + struct.pack(end + "6H", 16, 16, 16, 100, 40000, 65535)


DEEP = {
    "2.png": deep_png(2, 3), "4.png": deep_png(4, 2), "6.png": deep_png(6, 4),
    "a.ppm": b"P6 2 1 65535\n" + bytes(12), "b.ppm": b"P6 2 1 1023\n" + bytes(12),
    "c.ppm": b"P3 1 1 65535\n1 2 3\n", "a.tif": deep_tiff("<"), "b.tif": deep_tiff(">"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_a_channel_are_not_cut(name, tmp_path):
    path = folder(tmp_path / "train", suffixes=["png"])
    (path / "b" / name).write_bytes(DEEP[name])
    for convert in (None, "L", "RGB", "RGBA"):
        with pytest.raises(DataError, match=rf"More than 8 bits a channel .*{name}\n  got: mode RGB"):
            sn.fit(path, split="train", convert=convert, skip_bad=True)
    (path / "0").mkdir()
    (path / "0" / name).write_bytes(DEEP[name])
    with pytest.raises(DataError, match=rf"More than 8 bits a channel .*{name}\n  got: mode RGB"):
        sn.fit(path, split="train")


def test_urls_of_files(tmp_path, monkeypatch):
    path = folder(tmp_path / "train #1 100%", count=4)
    norm = sn.fit(path, split="train")
    assert sn.fit(path.as_uri(), split="train").record.content == norm.record.content
    array = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array)
    for name in ("a.npy", "a.npz"):
        url = (tmp_path / name).as_uri()
        assert sn.fit(url, split="train").moments.mean.tolist() == array.mean(0).tolist()
        assert sn.fit(url.replace("file://", "FILE://localhost"), split="train").samples == 4
    for wrong in ("file://a.npy", "file://data/a.npy", "file://"):
        with pytest.raises(DataError, match=rf"Not a file:// URL of this machine: {wrong}\n.*three slashes"):
            sn.fit(wrong, split="train")
    with pytest.raises(DataError, match=r"No such data file: /nowhere\.npy"):
        sn.fit("file:///nowhere.npy", split="train")
    norm = sn.fit(array, split="train")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError):
        apply(norm, (tmp_path / "a.npy").as_uri(), "a.npy")
    assert apply(norm, (tmp_path / "a.npy").as_uri(), "b.npy") == 4


@pytest.mark.parametrize("inside", ["val", "test/x", "."])
def test_held_out_folders_are_refused(inside, tmp_path):
    name = "photos" if inside != "." else "photos-test"
    folder(tmp_path / name / inside, count=2)
    with pytest.raises(LeakageError, match=r"val|test"):
        sn.fit(tmp_path / name, split="train")
    with pytest.warns(DataWarning, match="held-out"):
        assert sn.fit(tmp_path / name, split="train", leak=True).samples == 2


def test_the_folders_above_and_where_links_lead(tmp_path, monkeypatch):
    folder(tmp_path / "val/birds", count=2)
    (tmp_path / "photos").symlink_to("val/birds")
    (tmp_path / "mixed/cats").mkdir(parents=True)
    for path in [path for path in (tmp_path / "val/birds").rglob("*") if path.is_file()]:
        (tmp_path / "mixed/cats" / path.name).symlink_to(path)
    for name in ("val/birds", "photos", "mixed"):
        with pytest.raises(LeakageError, match="the folder val"):
            sn.fit(tmp_path / name, split="train")
    monkeypatch.chdir(tmp_path / "val/birds")
    with pytest.raises(LeakageError, match="the folder val"):
        sn.fit(".", split="train")
    monkeypatch.chdir(tmp_path)
    folder(Path("test/train/birds"), count=2)
    folder(Path("trips/test-drive"), count=2)  # a class
    assert sn.fit("test/train", split="train").samples == 2
    assert sn.fit("test/train/birds", split="train").samples == 2
    assert sn.fit("trips", split="train").samples == 2


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = folder(Path("photos/train"), suffixes=["png"], count=30)
    picture(1, "L").save(path / "grey.png")
    for number in range(22):
        (path / f"bad{number:02}\x1b[1m.jpg").write_bytes(encoded("JPEG")[:200])

    def run(*arguments):
        return CliRunner().invoke(app, ["fit", "photos/train", "--split", "train", *arguments])

    assert run("--out", "other.safetensors").exit_code == 2
    result = run("--convert", "RGB", "--skip-bad", "--workers", "2", "--memory", "100MB")
    assert result.exit_code == 0, result.stderr
    assert "31 samples of uint8, 3 features" in result.stdout
    assert "could not be read: 22" in result.stderr
    assert result.stderr.count("bad") == 20
    assert "\x1b" not in result.stderr
    assert "and 2 more" in result.stderr
    assert sn.load("inputs.safetensors").record.skipped == 22
    assert sum(1 for file in path.rglob("*.*")) == 31 + 22


def turned(path):
    """Write a photo as files that say it is to be turned by 90 degrees; return them."""
    exif = Image.Exif()
    exif[0x112] = 6
    path.mkdir()
    for kind in ("jpg", "png", "webp", "tif"):
        picture(0, size=(24, 24)).save(
            path / f"a.{kind}", exif=exif, **{"lossless": True} if kind == "webp" else {}
        )
    return sorted(path.iterdir())


def test_an_orientation_is_what_pillow_makes_of_it_in_fit_audit_and_apply(tmp_path):
    files = turned(tmp_path / "train")
    # As torchvision's and other loaders decode for training: only TIFF is turned.
    arrays = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    stored = np.asarray(picture(0, size=(24, 24))).transpose(2, 0, 1)
    assert [(array == stored).all() for array in arrays[1:]] == [True, False, True]
    norm = sn.fit(tmp_path / "train", pattern="n c h w -> h w", split="train")
    np.testing.assert_allclose(norm.moments.mean, arrays.mean((0, 1)), rtol=1e-13)
    found = sn.audit(norm, tmp_path / "train").overlap
    assert (found.found, found.told) == (3, 3)  # PNG and WebP hold one image
    apply(norm, tmp_path / "train", tmp_path / "y.npy")
    assert np.array_equal(np.load(tmp_path / "y.npy"), norm(torch.from_numpy(arrays.copy())).numpy())


@pytest.mark.parametrize(
    ("mode", "kind", "convert"),
    [("P", "png", None), ("CMYK", "jpg", None), ("LA", "png", None), ("1", "png", None), ("F", "tif", None),
     ("LAB", "tif", None), ("LAB", "tif", "L"), ("F", "tif", "RGB")],
)  # fmt: skip
def test_modes_that_do_not_count_are_named(mode, kind, convert, tmp_path):
    (tmp_path / "train").mkdir()
    picture(0, "L" if mode == "F" else "RGB").convert(mode).save(tmp_path / "train" / f"a.{kind}")
    with pytest.raises(DataError, match=rf"a\.{kind}") as caught:
        sn.fit(tmp_path / "train", split="train", convert=convert)
    assert ("uint16" in str(caught.value) or ".npy" in str(caught.value)) == (mode == "F" and not convert)


def test_transparency_of_palettes_and_colours_by_conversion(tmp_path):
    (tmp_path / "train").mkdir()
    palette = picture(0).quantize(16)
    palette.save(tmp_path / "train" / "a.png", transparency=3)
    numbers = np.asarray(palette)
    colours = np.array(palette.getpalette()[:48]).reshape(16, 3)[numbers]
    means = [*colours.mean((0, 1)), 255 * (numbers != 3).mean()]
    for convert, expected in [("RGB", means[:3]), ("RGBA", means)]:
        found = sn.fit(tmp_path / "train", split="train", convert=convert).moments.mean
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_images_of_more_than_one_frame_are_named(kind, tmp_path):
    (tmp_path / "train").mkdir()
    frames = [picture(number, size=(9, 9)) for number in range(3)]
    suffix = {"TIFF": "tif"}.get(kind, kind.lower())
    frames[0].save(tmp_path / "train" / f"a.{suffix}", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"a\.{suffix}: 3 frames"):
        sn.fit(tmp_path / "train", split="train", convert="RGB")
