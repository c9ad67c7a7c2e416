"""Tars of images: the same statistics as from a folder, and every fault named."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

import slabnorm as sn
from slabnorm.errors import DataError, DataWarning, LeakageError
from slabnorm.inputs.sources import images as image_source
from slabnorm.inputs.sources import open_source, tars
from tests.inputs.test_images import check, encoded, folder, pixels, saved


@pytest.fixture
def images(tmp_path):
    """Return a folder of 16 PNG."""
    return folder(tmp_path / "train", suffixes=["png", "jpg"], count=16)


def member(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def pack(path, files, mode="w"):
    """Write a tar as WebDataset does: beside each image its label."""
    with tarfile.open(path, mode) as tar:
        for file in files:
            member(tar, f"{file.parent.name}/{file.name}", file.read_bytes())
            member(tar, f"{file.parent.name}/{file.stem}.cls", b"3")
    return path


def shards(path, images, count=4, **options):
    """Write the images into tars."""
    path.mkdir()
    files = sorted(file for file in images.rglob("*") if file.is_file())
    step = len(files) // count
    for number in range(count):
        pack(path / f"train-{number:03}.tar", files[number * step : (number + 1) * step], **options)
    return path


def test_a_tar_is_as_good_as_a_folder(images, tmp_path, monkeypatch):
    whole = saved(sn.fit(images, split="train"), tmp_path)
    files = sorted(file for file in images.rglob("*") if file.is_file())
    tar = pack(tmp_path / "one.tar", files)
    packed = pack(tmp_path / "one.tar.gz", files, "w:gz")
    assert saved(sn.fit(tar, split="train"), tmp_path) == whole
    assert saved(sn.fit(str(packed), split="train"), tmp_path) == whole
    monkeypatch.setattr(image_source, "SHARD_BYTES", 4000)
    assert len(open_source(tar).shards()) > 3
    norm = sn.fit(tar, split="train", workers=1)
    check(norm, pixels(images))
    cut = saved(norm, tmp_path)
    assert saved(sn.fit(tar, split="train", workers=2), tmp_path) == cut
    assert saved(sn.fit(images, split="train"), tmp_path) == cut
    done = []

    def stop(*_):
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sn.fit(tar, split="train", ledger=tmp_path / "l", progress=stop)
    assert saved(sn.fit(tar, split="train", ledger=tmp_path / "l", resume=True), tmp_path) == cut


def test_many_tars_by_folder_braces_and_wildcards(images, tmp_path):
    path = shards(tmp_path / "shards", images)
    whole = saved(sn.fit(path, split="train"), tmp_path)
    for pattern in (
        "train-{000..003}.tar",
        "train-*.tar",
        "train-00[0-3].tar",
        "train-{000,001,002,003}.tar",
    ):
        assert saved(sn.fit(str(path / pattern), split="train"), tmp_path) == whole
    check(sn.fit(str(path / "train-{000..003}.tar"), split="train", workers=2), pixels(images))
    with pytest.raises(DataError, match=r"No such data file: .*train-004\.tar"):
        sn.fit(str(path / "train-{000..004}.tar"), split="train")
    with pytest.raises(DataError, match=r"No (file fits|such folder)"):
        sn.fit(str(path / "test*" / "*.tar"), split="train")
    with pytest.raises(DataError, match="more than 1,000,000 names"):
        sn.fit(str(path / "train-{0..99999999999}.tar"), split="train")
    (path / "stray.png").write_bytes(encoded("PNG"))
    with pytest.raises(DataError, match=r"1 images, and tars such as train-000\.tar"):
        sn.fit(path, split="train")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{2..1}{a,b}.tar", ["2a.tar", "2b.tar", "1a.tar", "1b.tar"]),
        ("{x}.tar", ["{x}.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(text, names):
    assert [str(path) for path in tars.expand(text)] == names


def third(data):
    """Return where the third header lies."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[2].offset


def flipped(data):
    # A byte of the third header.
    at = third(data)
    return data[:at] + b"\xff" + data[at + 1 :]


def negative(data):
    info = tarfile.TarInfo("b.png")
    field = tarfile.itn(-4096, 12, tarfile.GNU_FORMAT)
    header = bytearray(info.tobuf())
    header[124:136] = field
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header) + data


FAULTS = {
    "half": lambda data: data[: len(data) // 2],
    "in a header": lambda data: data[: third(data) + 100],
    "between members": lambda data: data[: third(data)],
    "header": flipped,
    "negative": negative,
    "no tar": lambda data: b"no tar at all" * 100,
    "empty": lambda data: b"",
    "joined": lambda data: data + data,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_damaged_tars_are_named_or_listed(name, packed, images, tmp_path):
    path = shards(tmp_path / "shards", images)
    good = sn.fit(str(path / "train-00[013].tar"), split="train")
    broken = path / "train-002.tar"
    data = FAULTS[name](broken.read_bytes())
    if packed:
        broken.unlink()
        broken = path / "train-002.tgz"
        data = gzip.compress(data)
    broken.write_bytes(data)
    with pytest.raises(DataError, match=r"Damaged tar: .*train-002\.(tar|tgz)\n"):
        sn.fit(path, split="train")
    norm = sn.fit(path, split="train", skip_bad=True)
    assert norm.samples == 12
    assert [Path(name).name for name, _ in norm.skipped] == [broken.name]
    assert norm.record.content == good.record.content


def test_a_tar_that_cannot_be_listed_is_told_before_anything_is_counted(images, tmp_path):
    path = shards(tmp_path / "shards", images)
    last = max(path.glob("*.tar"))
    last.write_bytes(b"no tar at all" * 100)
    counted = []
    with pytest.raises(DataError, match=last.name):
        sn.fit(path, split="train", workers=1, progress=lambda done, _: counted.append(done))
    assert not any(counted)


def test_damaged_gzip(images, tmp_path):
    files = sorted(file for file in images.rglob("*") if file.is_file())
    packed = pack(tmp_path / "one.tgz", files, "w:gz")
    data = packed.read_bytes()
    for damaged in (data[:-6], data[: len(data) // 2], b"not gzip", data[:-8] + b"\0\0\0\0" + data[-4:]):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"one\.tgz"):
            sn.fit(packed, split="train")


def test_members_of_every_kind(images, tmp_path):
    tar = tmp_path / "one.tar"
    good = encoded("PNG")
    long = "x" * 200 + ".png"
    with tarfile.open(tar, "w") as into:
        member(into, "../../outside.png", good)
        member(into, "/absolute.PNG", good)
        member(into, "win\\dows.png", good)
        member(into, "m\udcfcll\x1b.png", good)
        member(into, long, good)
        member(into, "._fork.png", b"no image")
        member(into, "link.png", type=tarfile.SYMTYPE, linkname="../../etc/passwd")
        member(into, "fifo.png", type=tarfile.FIFOTYPE)
        member(into, "a.json", b"{}")
    with pytest.warns(DataWarning, match=r"left out members that are links: .*link\.png and 1 more"):
        norm = sn.fit(tar, split="train")
    assert norm.samples == 5
    with tarfile.open(tar, "a") as into:
        member(into, "bad\x1b\n.png", good[:99])
    with (
        pytest.warns(DataWarning),
        pytest.raises(DataError, match=r"Damaged image: .*one\.tar/bad\\x1b\\n\.png\n"),
    ):
        sn.fit(tar, split="train")
    with pytest.warns(DataWarning):
        again = sn.fit(tar, split="train", skip_bad=True, ledger=tmp_path / "l")
    assert (again.samples, len(again.skipped)) == (5, 1)
    assert again.record.content == norm.record.content


def test_a_tar_that_changes_after_it_was_listed(images, tmp_path):
    path = shards(tmp_path / "shards", images, 1) / "train-000.tar"
    (shard,) = open_source(path).shards()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="it ends within"):
        list(shard.blocks())
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        list(shard.blocks())


def test_tars_without_images_and_held_out_tars(tmp_path, images):
    with tarfile.open(tmp_path / "none.tar", "w") as into:
        member(into, "a.json", b"{}")
    with pytest.raises(DataError, match="No images"):
        sn.fit(tmp_path / "none.tar", split="train")
    files = sorted(images.rglob("*.png"))
    with pytest.raises(LeakageError, match="val"):
        sn.fit(pack(tmp_path / "imagenet-val-0001.tar", files), split="train")
    with tarfile.open(tmp_path / "inside.tar", "w") as into:
        member(into, "data/test/1.png", encoded("PNG"))
    with pytest.raises(LeakageError, match="test"):
        sn.fit(tmp_path / "inside.tar", split="train")
    (tmp_path / "test/sub").mkdir(parents=True)
    with pytest.raises(LeakageError, match="the folder test"):
        sn.fit(pack(tmp_path / "test/sub/a.tar", files), split="train")
    with tarfile.open(tmp_path / "nearer.tar", "w") as into:
        member(into, "test/train/1.png", encoded("PNG"))
    assert sn.fit(tmp_path / "nearer.tar", split="train").samples == 1
