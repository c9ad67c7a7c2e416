"""audit names the samples that were in training: by file and row, in the record, JSON, terminal and page."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.inputs.audit.counts import MOST_PLACES
from slabnorm.report.audit import LeakedSample, render_audit

TRAIN = np.random.default_rng(0).normal(size=(600, 3))
TEST = np.random.default_rng(1).normal(size=(400, 3))
TEST[[3, 7, 7 + 350]] = TRAIN[[10, 20, 20]]  # one of them twice


@pytest.fixture(scope="module")
def norm():
    return sn.fit(TRAIN, split="train")


def named(record):
    return [(Path(sample.file).name, sample.row) for sample in record.leaked.samples]


def test_rows_of_an_array_a_file_and_a_loader_are_named(norm, tmp_path):
    np.save(tmp_path / "test.npy", TEST)
    for source, name in (
        (TEST, "array"),
        (tmp_path / "test.npy", "test.npy"),
        (iter([TEST[:5], TEST[5:]]), None),
    ):
        record = sn.audit(norm, source)
        assert [row for _, row in named(record)] == [3, 7, 357]
        assert name is None or {found for found, _ in named(record)} == {name}
        assert (record.leaked.known, record.leaked.about, record.leaked.exact) == (3, 3, True)
    assert sn.audit(norm, TEST[8:300]).leaked is None


def test_rows_of_tables_are_numbered_within_their_file(norm, tmp_path):
    for name, part in (("a", TEST[:5]), ("b", TEST[5:])):
        table = pa.table(dict(zip("xyz", part.T, strict=True)))
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=100)
    record = sn.audit(norm, tmp_path)
    assert named(record) == [("a.parquet", 3), ("b.parquet", 2), ("b.parquet", 352)]


def test_rows_keep_their_numbers_where_a_chunk_before_them_cannot_be_read(norm, tmp_path):
    path = tmp_path / "test.zarr"
    zarr.create_array(path, data=TEST, chunks=(50, 3))
    (path / "c/2/0").unlink()
    record = sn.audit(norm, path, skip_bad=True)
    assert record.samples == 350
    assert named(record) == [("test.zarr", 3), ("test.zarr", 7), ("test.zarr", 357)]


def test_images_are_named_by_path_and_member(tmp_path):
    rng = np.random.default_rng(2)
    for folder, seeds in (("train", range(8)), ("val", (20, 3, 21, 5))):
        (tmp_path / folder).mkdir()
        for number, seed in enumerate(seeds):
            pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "val" / "2.png").write_bytes(rng.bytes(50))  # damaged, and left out
    norm = sn.fit(tmp_path / "train", split="train")
    record = sn.audit(norm, tmp_path / "val", skip_bad=True)
    assert named(record) == [("1.png", None), ("3.png", None)]
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for number in (0, 1, 3):
            tar.add(tmp_path / "val" / f"{number}.png", arcname=f"{number}.png")
    record = sn.audit(norm, tmp_path / "val.tar")
    assert [sample.file for sample in record.leaked.samples] == [
        f"{tmp_path}/val.tar/{n}.png" for n in (1, 3)
    ]


def test_of_a_large_training_set_it_says_how_many_can_be_named():
    train = np.random.default_rng(3).normal(size=(100_000, 2)).astype(np.float32)
    test = np.random.default_rng(4).normal(size=(3000, 2)).astype(np.float32)
    test[1000:2000] = train[:1000]
    leaked = sn.audit(sn.fit(train, split="train"), test).leaked
    assert not leaked.exact
    assert 100 < leaked.known < 230  # 16384 of 100,000
    assert leaked.about == pytest.approx(1000, rel=0.3)
    assert len(leaked.samples) == leaked.known
    assert all(1000 <= sample.row < 2000 for sample in leaked.samples)
    assert f"About {leaked.about:,} samples" in leaked.text


def test_the_list_ends_where_nobody_reads_on(norm):
    leaked = sn.audit(norm, np.tile(TRAIN, (20, 1))).leaked
    assert leaked.known == leaked.about == 12_000
    assert [sample.row for sample in leaked.samples] == list(range(MOST_PLACES))


def test_they_are_in_the_json_in_the_terminal_and_on_the_page(norm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sn.save(norm, "s.safetensors")
    np.save("evil<b>\x1b[31m.npy", np.concatenate([TEST, TRAIN[100:120]]))
    result = CliRunner().invoke(
        app, ["audit", "s.safetensors", "--against", "evil<b>\x1b[31m.npy", "--json", "r.json"]
    )
    assert result.exit_code == 1
    plain = json.loads(Path("r.json").read_text())["leaked"]
    assert (plain["known"], plain["about"], plain["exact"]) == (23, 23, True)
    assert plain["samples"][1] == {"file": "evil<b>\x1b[31m.npy", "row": 7}
    lines = result.stdout.splitlines()
    assert "  evil<b>\\x1b[31m.npy, row 357" in lines
    assert sum(", row " in line for line in lines) == 10
    assert "  and 13 more; --json lists the first 23" in lines
    page = Path("audit.html").read_text()
    assert page.count("<li>evil&lt;b&gt;\\x1b[31m.npy, row ") == 23
    record = sn.audit(norm, np.tile(TRAIN, (20, 1)))
    assert render_audit(record).count("<li>array, row ") == 200
    assert len(record.as_dict(50)["leaked"]["samples"]) == 50
    assert str(LeakedSample("a.png", None)) == "a.png"
