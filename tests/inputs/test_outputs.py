"""No output takes the place of what is read, and no file that is not ours is touched."""

from __future__ import annotations

import os
import sqlite3
import stat
import tarfile
from contextlib import closing
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
from slabnorm.errors import LedgerError, OptionError
from slabnorm.files import check_writable, write_atomically
from slabnorm.inputs.apply import apply
from slabnorm.inputs.exports import export
from slabnorm.inputs.outputs import check_distinct

ROWS = np.random.default_rng(0).normal(size=(20, 3))


@pytest.fixture(scope="module")
def norm():
    return sn.fit(ROWS, split="train")


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch, norm):
    monkeypatch.chdir(tmp_path)
    for name in ("gl/sub", "img/a", "tars"):
        os.makedirs(name)
    for name in ("gl/p0", "gl/p1", "gl/sub/q"):
        pq.write_table(pa.table(dict(zip("abc", ROWS.T, strict=True))), f"{name}.parquet")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save("img/a/0.png")
    for number in range(2):
        with tarfile.open(f"tars/t-{number}.tar", "w") as tar:
            tar.add("img/a/0.png")
    np.save("x.npy", ROWS)
    np.save("w.npy", np.ones(20))
    zarr.create_array("v.zarr", data=ROWS)
    sn.save(norm, "s.safetensors")
    for source, link in (("gl/p0.parquet", "hard"), ("img/a/0.png", "imghard"), ("tars/t-0.tar", "tarhard")):
        os.link(source, link)
    os.symlink("gl", "folder")
    with closing(sqlite3.connect("db.ledger")) as base, base:
        base.execute("CREATE TABLE mine (a)")


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def held():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


FIT, AUDIT = ("--split", "train", "--out"), ("audit", "s.safetensors", "--against")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "gl/*.parquet", *FIT, "gl/p0.parquet"),
        ("fit", "gl/**/*.parquet", *FIT, "gl/sub/q.parquet"),
        ("fit", "gl/p[0-9].parquet", *FIT, "hard"),
        ("fit", "folder", *FIT, "gl/p0.parquet"),
        ("fit", "gl", *FIT, "hard"),
        ("fit", "gl", *FIT, "gl/new.parquet"),
        ("fit", "gl/*.parquet", *FIT, "gl/new.parquet"),
        ("fit", "tars/t-{0..1}.tar", *FIT, "tars/t-0.tar"),
        ("fit", "tars/t-{0,1}.tar", *FIT, "tarhard"),
        ("fit", "tars/*.tar", *FIT, "tars/t-1.tar"),
        ("fit", "img", *FIT, "imghard"),
        ("fit", "x.npy", "--weights", "w.npy", *FIT, "w.npy"),
        ("fit", "v.zarr", *FIT, "v.zarr/zarr.json"),
        (*AUDIT, "v.zarr", "--json", "v.zarr/zarr.json"),
        (*AUDIT, "x.npy", "--train", "gl/*.parquet", "--json", "hard"),
        (*AUDIT, "gl/*.parquet", "--out", "gl/p1.parquet"),
        ("apply", "s.safetensors", "x.npy", "--out", "x.npy"),
        ("compare", "--data", "img", "--out", "img/a/0.png"),
    ],
)
def test_an_output_that_is_read_through_a_pattern_a_link_or_a_weight_is_refused(arguments):
    before = held()
    result = run(*arguments)
    assert result.exit_code == 2
    assert "no part of the data" in result.stderr
    assert held() == before


def test_an_output_of_the_python_functions_is_none_of_the_data(norm):
    before = held()
    fitted = sn.fit("gl/*.parquet", split="train")
    loaded = sn.load("s.safetensors")
    with pytest.raises(OptionError, match="no part of the data"):
        sn.save(fitted, "gl/p1.parquet")
    with pytest.raises(OptionError, match="no part of the data"):
        export(loaded, "json", "s.safetensors")
    with pytest.raises(OptionError, match="no part of the data"):
        apply(norm, np.load("x.npy", mmap_mode="r"), "x.npy")
    with pytest.raises(OptionError, match="no part of the data"):
        sn.fit("x.npy", split="train", ledger="x.npy", resume=True)
    assert held() == before
    sn.save(loaded, "s.safetensors")  # its own file it may replace


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_database_of_another_program_under_a_ledgers_name_is_not_touched(resume):
    before = held()
    result = run("fit", "x.npy", *resume, *FIT, "db")
    assert result.exit_code == 2
    assert "a database of another program" in result.stderr
    assert held() == before


@pytest.mark.filterwarnings("ignore:.*(constant|left out):slabnorm.errors.DataWarning")
@pytest.mark.parametrize(("data", "out"), [("gl", "gl/s.safetensors"), ("img", "img/s.safetensors")])
def test_a_fit_whose_output_lies_in_the_folder_it_reads_goes_on(data, out):
    arguments = ("fit", data, *FIT, out)
    assert run(*arguments).exit_code == 0
    source, ledger = sn.load(out), Path(f"{out}.ledger")
    sn.fit(data, split="train", ledger=ledger)  # which stays, as after a kill
    Path(f"{ledger}-journal").write_bytes(b"")
    assert "--resume" in run(*arguments).stderr
    assert run(*arguments, "--resume").exit_code == 0
    assert sn.load(out).record.content == source.record.content
    assert not ledger.exists()
    for _ in range(2):  # a ledger under any name
        sn.fit(data, split="train", ledger=f"{data}/counted.db", resume=True)


def test_a_file_under_a_ledgers_name_outlives_a_fit_that_keeps_none():
    np.savez("x.npz", x=ROWS)
    assert run("fit", "x.npz", *FIT, "db").exit_code == 0
    assert Path("db.ledger").exists()


def test_what_is_beside_a_ledger_and_not_its_journal_is_not_touched():
    Path("l-journal").write_text("notes")
    with pytest.raises(LedgerError, match="not a ledger"):
        sn.fit("x.npy", split="train", ledger="l")
    assert Path("l-journal").read_text() == "notes"
    os.mkfifo("pipe")
    with pytest.raises(LedgerError, match="regular file"):
        sn.fit("x.npy", split="train", ledger="pipe")


@pytest.mark.parametrize("out", ["", "q/", "a" * 251, "a" * 300, "no/where", "gl", "/dev/null", "/proc/x"])
def test_an_output_that_cannot_be_is_an_error_beforehand(out):
    before = held()
    result = run("fit", "x.npy", *FIT, out)
    assert result.exit_code == 2
    assert "Cannot write" in result.stderr or "The output must be a file" in result.stderr
    assert held() == before


def test_names_with_a_nul_are_refused(norm):
    with pytest.raises(OptionError, match="null byte"):
        sn.save(norm, "a\0b")
    with pytest.raises(LedgerError, match="null byte"):
        sn.fit("x.npy", split="train", ledger="a\0b")


def test_an_output_that_is_no_utf_8():
    assert run("fit", "x.npy", *FIT, "s\udcff").exit_code == 0
    assert sn.load(os.fsdecode(b"s\xff")).samples == 20


def test_two_outputs_that_a_file_system_may_take_for_one():
    for one, other in (("r.html", "R.HTML"), ("é.html", "é.html"), ("hard", "gl/p0.parquet")):
        with pytest.raises(OptionError, match="one file"):
            check_distinct([Path(one), Path(other)])
    check_distinct([Path("r.html"), Path("r.json"), Path("gl/r.html")])


def test_a_new_file_is_as_private_as_the_one_it_replaces(monkeypatch):
    path = Path("r.html")
    path.write_text("secret")
    path.chmod(0o600)
    seen, real = [], os.fsync

    def fsync(descriptor):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    check_writable(path)
    write_atomically(path, "new")
    assert seen == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    old = os.umask(0o027)
    try:
        write_atomically(Path("other.html"), "new")
    finally:
        os.umask(old)
    assert stat.S_IMODE(Path("other.html").stat().st_mode) == 0o640
