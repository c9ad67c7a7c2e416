"""Tables: the same numbers as the array's, from every format and place; every kind of damage named."""

from __future__ import annotations

import gzip
import os
import pickle
import socket
import warnings
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, feather, ipc, parquet
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataError, DataWarning, LeakageError, LedgerError, OptionError
from slabnorm.inputs import fit
from slabnorm.inputs.apply import apply
from slabnorm.inputs.fitting import Effort, Opened
from slabnorm.inputs.sources import open_source

REAL = {"wine": load_wine, "breast cancer": load_breast_cancer, "diabetes": load_diabetes}
WINE = load_wine(as_frame=True).data


def write(frame, path, **options):
    """Write a pandas frame or Arrow table by the file's ending."""
    table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
    name = str(path)
    if name.endswith(".parquet"):
        parquet.write_table(table, name, **options)
    elif name.endswith(".arrow"):
        with ipc.new_stream(name, table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    elif name.endswith(".feather"):
        feather.write_feather(table, name, **{"chunksize": 50, **options})
    elif name.endswith(".gz"):
        with pa.CompressedOutputStream(name, "gzip") as stream:
            csv.write_csv(table, stream)
    else:
        csv.write_csv(table, name)
    return name


def fitted(path, *arguments, **options):
    return fit(path, *arguments, **{"split": "train", **options})


def check_same(norm, array, **options):
    """Compare with the fit of the array: counts, extremes and hashes exactly, the rest in the last digits."""
    expected = fit(array, "zscore", "n c -> c", split="train", **options)
    for name in ("count", "min", "max"):
        assert torch.equal(getattr(norm.moments, name), getattr(expected.moments, name)), name
    spread = expected.moments.var().sqrt()  # means near 0 are what is left of larger numbers
    torch.testing.assert_close(
        norm.moments.mean / spread, expected.moments.mean / spread, rtol=1e-15, atol=1e-15
    )
    torch.testing.assert_close(norm.moments.var(), expected.moments.var(), rtol=1e-13, atol=0)
    assert norm.record.content == expected.record.content
    np.testing.assert_array_equal(norm.sketch.hashes, expected.sketch.hashes)


@pytest.mark.parametrize("end", ["parquet", "feather", "arrow", "csv", "csv.gz"])
@pytest.mark.parametrize("kind", REAL)
def test_a_table_has_the_statistics_of_its_array(kind, end, tmp_path):
    frame = REAL[kind](as_frame=True).data
    norm = fitted(write(frame, tmp_path / f"a.{end}"))
    assert norm.record.names == tuple(frame.columns)
    check_same(norm, frame.to_numpy())


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int16", "int32", "uint64", "bool"])
@pytest.mark.parametrize("end", ["parquet", "feather"])
def test_every_dtype(dtype, end, tmp_path):
    array = (np.random.default_rng(0).standard_normal((500, 3)) * 40).clip(0).astype(dtype)
    norm = fitted(write(pd.DataFrame(array, columns=list("abc")), tmp_path / f"a.{end}"))
    assert norm.dtype == dtype
    check_same(norm, array)
    # A value has the same hash in every dtype that holds it.
    assert norm.record.content == fit(array.astype("f8"), split="train").record.content


def test_mixed_dtypes_and_what_fixed_says(tmp_path):
    frame = pd.DataFrame(
        {"a": np.arange(9, dtype="u1"), "b": np.linspace(0, 1, 9), "c": np.arange(9) % 2 > 0}
    )
    path = write(frame, tmp_path / "a.parquet")
    norm = fitted(path)
    assert norm.dtype == "mixed"
    check_same(norm, frame.to_numpy("f8"))
    with pytest.raises(OptionError, match=r"dtype mixed(.|\n)*FixedScale"):
        fitted(path, "fixed")
    whole = fitted(path, sn.FixedScale(0, 8))
    assert (whole.moments.count.item(), whole.moments.max.item(), whole.record.names) == (27, 8, ())
    pooled = fitted(path, "zscore", "n (g c) -> g", g=3)
    torch.testing.assert_close(pooled.moments.mean, norm.moments.mean)
    sn.save(whole, tmp_path / "w.safetensors")
    assert sn.load(tmp_path / "w.safetensors").moments.count == 27


def test_many_row_groups_batches_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.tables.SHARD_BYTES", 3000)
    monkeypatch.setattr("slabnorm.inputs.sources.tables.BATCH_ROWS", 1 << 10)
    array = np.random.default_rng(1).standard_normal((5000, 3)).astype("f4")
    frame = pd.DataFrame(array, columns=list("abc"))
    path = write(frame, tmp_path / "a.parquet", row_group_size=230)
    shards = open_source(path).shards()
    assert [shard.number for shard in shards] == list(range(22))
    assert [shard.first for shard in shards[:3]] == [0, 230, 460]
    assert all(shard.memory and shard.size and shard.fingerprint for shard in shards)
    assert len(pickle.loads(pickle.dumps(shards[3])).blocks().__next__()) == 230
    check_same(fitted(path), array)
    check_same(fitted(write(frame, tmp_path / "a.feather")), array)
    opened = Opened(open_source(path))
    tally = opened.count(opened.counting("n c -> c", {}, rows=70), Effort())
    whole = fitted(array).moments
    assert torch.equal(tally.moments.count, whole.count)
    torch.testing.assert_close(tally.moments.m2, whole.m2, rtol=1e-13, atol=0)


def test_columns_by_name(tmp_path):
    path = write(WINE, tmp_path / "a.parquet")
    names = ["proline", "ash"]
    norm = fitted(path, columns=names)
    assert norm.record.names == ("proline", "ash")
    check_same(norm, WINE[names].to_numpy())
    check_same(fitted(write(WINE, tmp_path / "a.feather"), columns=names), WINE[names].to_numpy())
    check_same(fitted(write(WINE, tmp_path / "a.csv"), columns=names), WINE[names].to_numpy())
    with pytest.raises(DataError, match=r"No column 'x' in .*a\.parquet\n  got: it has 'alcohol'"):
        fitted(path, columns=["x"])
    with pytest.raises(DataError, match=r"fix: did you mean 'alcohol'\?"):
        fitted(path, columns=["alcohl"])
    for wrong in ("ash", [], ["ash", "ash"], [3]):
        with pytest.raises(OptionError, match="columns must be a list of names"):
            fitted(path, columns=wrong)
    with pytest.raises(OptionError, match="columns= is no option of arrays"):
        fitted(np.zeros((3, 2)), columns=["a"])
    with pytest.raises(OptionError, match="key= is no option of Parquet files"):
        fitted(path, key="a")


def test_a_column_name_with_a_dot_and_markup(tmp_path):
    names = ["a.b", "<script>", "π"]
    frame = pd.DataFrame(WINE.to_numpy()[:, :3], columns=names)
    for end in ("parquet", "feather", "csv"):
        assert fitted(write(frame, tmp_path / f"a.{end}")).record.names == tuple(names)


def test_what_holds_no_numbers_is_left_out_with_a_warning(tmp_path):
    frame = WINE.assign(text="x", day=pd.Timestamp("2024-01-01")).set_index(WINE.ash)
    path = str(tmp_path / "a.parquet")
    frame.rename_axis(None).to_parquet(path)
    with pytest.warns(DataWarning, match=r"left out: text \(.*string\), day \(timestamp.*__index_level_0__"):
        check_same(fitted(path), WINE.to_numpy())
    with pytest.raises(DataError, match=r"column 'text' of .*\n  got: type"):
        fitted(path, columns=["text"])
    with pytest.raises(DataError, match="No columns of numbers"):
        fitted(write(frame[["text"]], tmp_path / "b.parquet"))


NUMBERS_THAT_ARE_NOT_PLAIN = {
    "decimal": (pa.array([Decimal("1.5")]), "cast it to float64"),
    "list of lists": (pa.array([[[1.0, 2.0]]]), "one column for each number"),
    "fixed-size list of lists": (
        pa.array([[[1.0], [2.0]]], pa.list_(pa.list_(pa.float32(), 1), 2)),
        "one column for each number",
    ),
    "list of structs": (pa.array([[{"x": 1}]]), "one column for each number"),
    "list of decimals": (pa.array([[Decimal("1.5")]]), "one column for each number"),
    "map": (pa.array([[(1, 2.0)]], pa.map_(pa.int8(), pa.float32())), "one column for each number"),
    "struct": (pa.array([{"x": 1}]), "one column for each number"),
}


@pytest.mark.parametrize("kind", NUMBERS_THAT_ARE_NOT_PLAIN)
def test_decimals_and_nested_numbers_are_refused(kind, tmp_path):
    values, fix = NUMBERS_THAT_ARE_NOT_PLAIN[kind]
    path = write(pa.table({"a": [1.0], "b": values}), tmp_path / "a.parquet")
    for columns in (None, ["b"]):
        with pytest.raises(DataError, match=rf"column 'b' of .*\n  got: type(.|\n)*{fix}"):
            fitted(path, columns=columns)
    with pytest.warns(DataWarning, match="constant"):
        assert fitted(path, columns=["a"]).samples == 1


@pytest.mark.parametrize("end", ["parquet", "feather", "arrow"])
def test_dictionaries_are_decoded(end, tmp_path):
    values = pa.array([1.5, 2.5, None, 1.5]).dictionary_encode()
    path = write(pa.table({"a": values, "b": [1, 2, 3, 4]}), tmp_path / f"a.{end}")
    norm = fitted(path, nan="omit")
    assert norm.moments.count.tolist() == [3, 4]
    assert norm.moments.mean.tolist() == [5.5 / 3, 2.5]


@pytest.mark.parametrize("end", ["parquet", "feather", "arrow", "csv"])
def test_null_and_nan_are_counted_apart(end, tmp_path):
    floats = pa.array([1.0, None, float("nan"), 4.0, None, 6.0])
    table = pa.table({"a": floats, "b": pa.array([1, 2, None, 4, 5, 6]), "c": pa.array([True, None] * 3)})
    path = write(table, tmp_path / f"a.{end}")
    norm = fitted(path, nan="omit")
    assert norm.null_count.tolist() == [2, 1, 3]
    assert norm.nan_count.tolist() == [1, 0, 0]
    assert norm.moments.count.tolist() == [3, 5, 3]
    nan = float("nan")
    array = np.array([[1, 1, 1], [nan, 2, nan], [nan, nan, 1], [4, 4, nan], [nan, 5, 1], [6, 6, nan]])
    with pytest.warns(DataWarning, match="feature 2"):
        check_same(norm, array, nan="omit")  # a null hashes as NaN does
    with pytest.raises(DataError, match=r"a\.\w+\n  got: null at row 1, column 'a'; 2 in rows 0\.\.5"):
        fitted(path)
    filled = table.set_column(0, "a", pa.array([1.0, nan, nan, 4.0, 5.0, 6.0])).drop_columns(["b", "c"])
    with pytest.raises(DataError, match=r"a\.\w+\n  got: nan at row 1, column 'a'; 2 in"):
        fitted(write(filled, path))


@pytest.fixture(autouse=True)
def _constant_c(recwarn):
    """The column c of the test above is constant, which every fit of it says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "1 of 3 features are constant.*'c'", DataWarning)
        yield


def test_a_column_of_nulls_alone(tmp_path):
    table = pa.table({"a": [1.0, 2.0], "b": pa.array([None, None], pa.float32())})
    with pytest.raises(DataError, match="only NaN or null in feature 'b'"):
        fitted(write(table, tmp_path / "a.parquet"), nan="omit")


@pytest.mark.parametrize("end", ["parquet", "feather"])
def test_integers_beyond_2_53_are_refused_also_beside_nulls(end, tmp_path):
    for kind in (pa.int64(), pa.uint64()):
        table = pa.table({"a": pa.array([1, None, 2**53 + 1], kind)})
        with pytest.raises(DataError, match=r"9007199254740993 at row 2, column 'a'"):
            fitted(write(table, tmp_path / f"a.{end}"), nan="omit")
    exact = pa.table({"a": pa.array([2**53 - 1, None, 2**53 - 3], pa.int64())})
    assert fitted(write(exact, tmp_path / f"a.{end}"), nan="omit").moments.mean.item() == 2**53 - 2


def test_infinity_names_row_and_column(tmp_path):
    table = pa.table({"a": [0.0] * 9, "b": [1.0] * 7 + [float("-inf"), 2.0]})
    path = write(table, tmp_path / "a.parquet", row_group_size=4)
    for nan in ("raise", "omit"):
        with pytest.raises(DataError, match=r"-inf at row 7, column 'b'"):
            fitted(path, nan=nan)


def parts(folder, count=4, end="parquet", **options):
    """Write the wine table as several files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.array_split(np.arange(len(WINE)), count)
    return [write(WINE.iloc[some], folder / f"part-{at}.{end}", **options) for at, some in enumerate(rows)]


def test_folders_globs_and_files_of_several_formats(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    parts(folder)
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").touch()
    whole = WINE.to_numpy()
    check_same(fitted(folder), whole)
    check_same(fitted(f"{folder}/part-*.parquet"), whole)
    check_same(fitted(f"{tmp_path}/**/*.parquet"), whole)
    check_same(fitted(folder.as_uri()), whole)
    check_same(fitted(f"file://localhost{folder}/part-?.parquet"), whole)
    monkeypatch.chdir(tmp_path)
    assert fitted("data/part-[01].parquet").samples == 90
    assert fitted("d*").samples == 178
    monkeypatch.chdir(folder)
    check_same(fitted("*.parquet"), whole)
    check_same(fitted("."), whole)
    write(WINE, folder / "z.feather")
    write(WINE, folder / "z.csv.gz")
    check_same(fitted(folder), np.concatenate([whole] * 3))


def test_a_partitioned_folder(tmp_path):
    frame = WINE.assign(year=np.where(WINE.ash > 2, 2023, 2024))
    frame.to_parquet(tmp_path / "data", partition_cols=["year"])
    ordered = frame.sort_values("year", kind="stable").drop(columns="year")
    norm = fitted(tmp_path / "data")
    check_same(norm, ordered.to_numpy())
    frame.assign(split="test").to_parquet(tmp_path / "more", partition_cols=["split"])
    with pytest.raises(LeakageError, match="the folder split=test"):
        fitted(tmp_path / "more")


@pytest.mark.parametrize(
    "place", ["test.parquet", "val/a.parquet", "data/x_test/a.parquet", "data/val/b/a.parquet"]
)
def test_the_split_guard_reads_paths(place, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    write(WINE, path)
    source = path.parent if "x_test" not in place else path
    source = tmp_path / "data" if "dev" in place else source
    if "x_test" in place:
        assert fitted(source).samples == 178  # a folder counts only as a whole
        return
    with pytest.raises(LeakageError, match="the word"):
        fitted(source)


@pytest.mark.parametrize("place", ["split=test/a.parquet", "test/sub/a.parquet", "test/sub", "split=val/b/c"])
def test_the_split_guard_reads_the_folders_above(place, tmp_path):
    path = tmp_path / place
    file = path if path.suffix else path / "p0.parquet"
    file.parent.mkdir(parents=True)
    write(WINE, file)
    for source in (path, f"{file.parent}/*.parquet"):
        with pytest.raises(LeakageError, match="the folder"):
            fitted(source)


def test_the_split_guard_reads_the_nearest_folder(tmp_path):
    (tmp_path / "test/train").mkdir(parents=True)
    write(WINE, tmp_path / "test/train/a.parquet")
    for source in ("test/train/a.parquet", "test/train", "test/train/*.parquet"):
        assert fitted(tmp_path / source).samples == 178
    (tmp_path / "data").mkdir()
    (tmp_path / "val").mkdir()
    write(WINE, tmp_path / "val/b.parquet")
    (tmp_path / "data/a.parquet").symlink_to(tmp_path / "val/b.parquet")
    with pytest.raises(LeakageError, match="the folder val"):
        fitted(tmp_path / "data")


def test_the_split_guard_reads_urls(tmp_path):
    write(WINE, tmp_path / "a.csv")
    memory = fsspec.filesystem("memory")
    for place in ("/guard/test/sub/a.csv", "/guard/test/train/a.csv"):
        memory.put(str(tmp_path / "a.csv"), place)
    for source in ("test/sub/a.csv", "test/sub", "test/sub/*.csv"):
        with pytest.raises(LeakageError, match="the folder test"):
            fitted(f"memory://guard/{source}")
    assert fitted("memory://guard/test/train").samples == 178
    (tmp_path / "test").mkdir()
    (tmp_path / "a.csv").rename(tmp_path / "test/a.csv")
    with pytest.raises(LeakageError, match="the folder test"):
        fitted(f"file://{tmp_path}/test/a.csv")


def test_another_filesystem(tmp_path):
    memory = fsspec.filesystem("memory")
    for path in parts(tmp_path / "data", end="csv") + parts(tmp_path / "data", end="parquet"):
        memory.put(path, f"/tables/{path.split('.')[-1]}/{os.path.basename(path)}")
    check_same(fitted("memory://tables/parquet"), WINE.to_numpy())
    check_same(fitted("memory://tables/csv", workers=2), WINE.to_numpy())
    assert fitted("memory://tables/*/part-0.*").samples == 90
    with pytest.raises(DataError, match="memory://tables/nowhere"):
        fitted("memory://tables/nowhere")
    with pytest.raises(DataError, match="nothing://"):
        fitted("nothing://a/b.parquet")
    source = open_source("memory://tables/csv/part-1.csv")
    shard = pickle.loads(pickle.dumps(source.shards()[0]))
    assert shard.fingerprint
    assert shard.name == "memory://tables/csv/part-1.csv"
    memory.pipe("/tables/csv/part-1.csv", b"alcohol\n1\n")
    with pytest.raises(DataError, match=r"Changed since it was listed: memory://tables/csv/part-1\.csv"):
        next(shard.blocks())


def artifact(norm, path):
    sn.save(norm, path)
    return path.read_bytes()


def test_workers_and_resume_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.tables.SHARD_BYTES", 4000)
    parts(tmp_path / "data", row_group_size=20)
    parts(tmp_path / "data", end="csv")
    out, ledger = tmp_path / "a.safetensors", tmp_path / "ledger"
    once = artifact(fitted(tmp_path / "data", workers=1), out)
    assert artifact(fitted(tmp_path / "data", workers=2), out) == once
    for workers in (1, 2):
        seen = []

        def stop(done, total, seen=seen):
            seen.append(done)
            if len(seen) == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "data", ledger=ledger, progress=stop, workers=workers)
        assert artifact(fitted(tmp_path / "data", ledger=ledger, resume=True), out) == once
        ledger.unlink()
    seen = [None] * 4  # `stop` stops at the first shard, which with one worker is that of part-0.csv
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "data", ledger=ledger, progress=lambda *_: stop(0, 0, seen), workers=1)
    write(WINE.iloc[:44], tmp_path / "data" / "part-0.csv")
    os.utime(tmp_path / "data" / "part-0.csv", ns=(5, 5))
    with pytest.raises(LedgerError, match=r"part-0\.csv has changed"):
        fitted(tmp_path / "data", ledger=ledger, resume=True)


def cut(path, keep):
    os.truncate(path, int(os.path.getsize(path) * keep))


def shorten(path, size):
    os.truncate(path, os.path.getsize(path) - size)


def flip(path):
    """Damage the middle of a file, and leave its ends."""
    data = bytearray(Path(path).read_bytes())
    half = len(data) // 2
    data[half - 400 : half] = bytes(255 - byte for byte in data[half - 400 : half])
    Path(path).write_bytes(data)


def rewrite(text):
    return lambda path: Path(path).write_text(text)


HEAD = ",".join(f'"{name}"' for name in WINE.columns)
ROW = ",".join(["1.5"] * 13)
DAMAGE = {
    "parquet, no footer": ("parquet", lambda path: cut(path, 0.7), ""),
    "parquet, a page": ("parquet", flip, ""),
    "parquet, nothing": ("parquet", lambda path: cut(path, 0), "0 bytes"),
    "parquet, text": ("parquet", rewrite("no parquet at all, but long enough"), ""),
    "arrow file, cut": ("feather", lambda path: cut(path, 0.7), ""),
    "arrow file, nothing": ("feather", lambda path: cut(path, 0), ""),
    "arrow stream, cut": ("arrow", lambda path: cut(path, 0.7), "no end mark"),
    "arrow stream, cut between batches": ("arrow", lambda path: shorten(path, 8), "no end mark"),
    "arrow stream, nothing": ("arrow", lambda path: cut(path, 0), "no end mark"),
    "csv, nothing": ("csv", lambda path: cut(path, 0), "[Ee]mpty"),
    "csv, ragged": ("csv", rewrite(f"{HEAD}\n{ROW}\n{ROW},7\n"), "Expected 13 columns, got 14"),
    "csv, cut": ("csv", lambda path: shorten(path, 30), "Expected 13 columns"),
    "csv.gz, cut": ("csv.gz", lambda path: cut(path, 0.7), ""),
    "csv, text in a column": ("csv", rewrite(f"{HEAD}\n{ROW}\nx{ROW}\n"), "string, and float64 in the first"),
    "no such column": ("parquet", lambda path: write(WINE.drop(columns="ash"), path), "No column 'ash' in"),
    "one more column": ("parquet", lambda path: write(WINE.assign(more=1), path), "Column 'more' in"),
    "another type": ("parquet", lambda path: write(WINE.astype({"ash": "f4"}), path),
                     "float, and float64 in the first"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_named_or_left_out_and_listed(kind, tmp_path):
    end, damage, words = DAMAGE[kind]
    paths = parts(tmp_path / "data", end=end)
    damage(paths[2])
    with pytest.raises(DataError, match=words or None) as caught:
        fitted(tmp_path / "data")
    assert f"part-2.{end}" in str(caught.value).split("\n")[0]
    assert "Traceback" not in str(caught.value)
    norm = fitted(tmp_path / "data", skip_bad=True)
    assert [os.path.basename(name) for name, _ in norm.skipped] == [os.path.basename(paths[2])]
    assert (norm.samples, norm.record.skipped) == (178 - 44, 1)
    good = np.delete(WINE.to_numpy(), np.array_split(np.arange(178), 4)[2], 0)
    check_same(norm, good)


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_flipped_bit_in_a_checksummed_parquet_page_is_found(dictionary, tmp_path):
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": dictionary}
    paths = parts(tmp_path / "data", **options)
    norm = fitted(paths[3])
    whole = Path(paths[1]).read_bytes()
    for row in (45, 60, 88):  # of the second part, which has rows 45 to 89
        data = bytearray(whole)
        data[data.index(np.float64(WINE.proline[row]).tobytes()) + 5] ^= 4
        Path(paths[1]).write_bytes(data)
        with pytest.raises(DataError, match=r"part-1\.parquet(.|\n)*CRC checksum"):
            fitted(tmp_path / "data")
        with pytest.raises(DataError, match=r"part-1\.parquet(.|\n)*CRC checksum"):
            sn.audit(norm, tmp_path / "data")
        left = fitted(tmp_path / "data", skip_bad=True)
        assert ([name for name, _ in left.skipped], left.samples) == ([paths[1]], 178 - 45)


def test_a_parquet_file_that_would_end_the_process_is_named(tmp_path):
    paths = parts(tmp_path / "data")
    norm = fitted(paths[0])
    data = Path(paths[1]).read_bytes()
    # The column is said to have no nulls, against the histogram of its definition levels: pyarrow called
    # std::terminate when it was asked for this column's metadata.
    optional, required = (bytes([0x25, how, 0x18, 3]) + b"ash" for how in (2, 0))
    assert data.count(optional) == 1
    Path(paths[1]).write_bytes(data.replace(optional, required))
    with pytest.raises(DataError, match=r"part-1\.parquet\n  got: Definition level histogram"):
        fitted(tmp_path / "data")
    with pytest.raises(DataError, match=r"part-1\.parquet\n  got: Definition level histogram"):
        sn.audit(norm, paths[1])
    with pytest.raises(DataError, match=r"part-1\.parquet\n  got: Definition level histogram"):
        apply(norm, paths[1], tmp_path / "out.parquet")
    left = fitted(tmp_path / "data", skip_bad=True)
    assert ([name for name, _ in left.skipped], left.samples) == ([paths[1]], 178 - 45)


def test_thousands_of_columns_of_two_dtypes_are_those_of_the_array(tmp_path):
    # Where each column costs a look at all of them, this takes half a minute.
    array = np.random.default_rng(0).integers(0, 99, (12, 3000)).astype("f8")
    columns = {f"c{at}": array[:, at].astype("i4" if at > 1500 else "f4") for at in range(3000)}
    path = write(pa.table(columns), tmp_path / "a.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        norm, expected = fitted(path), fit(array, split="train")
    assert norm.record.names == tuple(columns)
    assert torch.equal(norm.moments.mean, expected.moments.mean)
    assert norm.record.content == expected.record.content
    assert sn.audit(norm, path).overlap.found == 12
    apply(norm, path, tmp_path / "out.parquet")
    made = parquet.read_table(tmp_path / "out.parquet")
    assert made.schema.names == list(columns)
    out = np.column_stack([column.to_numpy() for column in made.columns])
    np.testing.assert_array_equal(out, norm(torch.from_numpy(array)).numpy())


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_of_another_delimiter(delimiter, tmp_path):
    path, other = tmp_path / "a.csv", WINE.assign(name="x,y")
    other.to_csv(path, sep=delimiter, index=False)
    with pytest.warns(DataWarning, match=r"left out: name \(string\)"):
        norm = fitted(path, delimiter=delimiter)
    check_same(norm, WINE.to_numpy())
    with pytest.warns(DataWarning, match="left out"):
        assert sn.audit(norm, path, delimiter=delimiter).overlap.found == 178
    out, given = tmp_path / "a.safetensors", {";": ";", "\t": r"\t", "|": "|"}[delimiter]
    sn.save(norm, out)
    arguments = ["apply", str(out), str(path), "--out", str(tmp_path / "y.csv"), "--delimiter", given]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    made = pd.read_csv(tmp_path / "y.csv", sep=delimiter, float_precision="round_trip")
    assert list(made.columns) == list(other.columns)
    assert list(made.name) == ["x,y"] * 178
    expected = norm(torch.tensor(WINE.to_numpy())).numpy()
    np.testing.assert_array_equal(made[WINE.columns].to_numpy(), expected)
    path.write_text(f'a{delimiter}b\n1{delimiter}2\n3{delimiter}"open\n')
    with pytest.raises(DataError, match="A quote is open at the end"):
        fitted(path, delimiter=delimiter, columns=["a"])
    for wrong in ("", "::", '"', "\n", "é", None):
        with pytest.raises(OptionError, match="delimiter must be one character"):
            fitted(path, delimiter=wrong)
    with pytest.raises(OptionError, match="delimiter= is no option of"):
        fitted(WINE, delimiter=delimiter)


def test_a_csv_value_longer_than_a_block_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,name\n1,x\n" + "2," + "y" * (9 << 20) + "\n3,z\n")
    with pytest.raises(DataError, match=r"Too long a line.*a\.csv\n  got: a line has at most") as caught:
        fitted(path, columns=["a"])
    assert "block" not in str(caught.value)


@pytest.mark.parametrize("end", ["parquet", "feather", "csv", "frame"])
def test_columns_of_bool_are_warned_of_unless_they_are_named(end, tmp_path):
    table = pa.table({"a": [1.5, 2.5], "flag": [True, False]})
    source = table if end == "frame" else write(table, tmp_path / f"a.{end}")
    with pytest.warns(DataWarning, match=r"bool are counted as 0 and 1: 'flag'"):
        assert fitted(source).moments.mean.tolist() == [2, 0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(source, columns=["flag", "a"]).moments.mean.tolist() == [0.5, 2]
        assert fitted(source, columns=["a"]).samples == 2


def test_a_first_file_that_is_damaged(tmp_path):
    paths = parts(tmp_path / "data")
    cut(paths[0], 0.5)
    assert fitted(tmp_path / "data", skip_bad=True).samples == 178 - 45
    for path in paths:
        cut(path, 0.5)
    with pytest.raises(DataError, match=r"part-0\.parquet"):
        fitted(tmp_path / "data", skip_bad=True)


def test_text_far_down_a_column_of_a_csv(tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.csv.CSV_BYTES", 1 << 20)
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n" * 400_000 + "1,oops\n")
    with pytest.raises(DataError, match=r"a\.csv\n  got: .*CSV column #1.*oops"):
        fitted(tmp_path / "a.csv")


def test_columns_match_by_name_in_any_order(tmp_path):
    paths = parts(tmp_path / "data")
    write(parquet.read_table(paths[1]).select(list(WINE.columns)[::-1]), paths[1])
    check_same(fitted(tmp_path / "data"), WINE.to_numpy())


def test_csv_of_other_looks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1.5,2.5\n3.5,4.5\n")
    with pytest.raises(DataError, match="No names of columns in the first line"):
        fitted(path)
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="Several columns 'a'"):
        fitted(path)
    path.write_text('a,b\n1,"two\nlines"\n3,x\n')
    with (
        pytest.warns(DataWarning, match="2 rows from 3 lines"),
        pytest.warns(DataWarning, match=r"left out: b \(string\)"),
    ):
        assert fitted(path).moments.mean.item() == 2
    path.write_text("\ufeffa,b\r\n1,nan\r\nNA,2\r\n3,5\r\n")
    norm = fitted(path, nan="omit")
    assert (norm.record.names, norm.null_count.tolist(), norm.nan_count.tolist()) == (
        ("a", "b"),
        [1, 0],
        [0, 1],
    )
    path.write_text("a,b\n")
    with pytest.raises(DataError, match=r"a\.csv"):
        fitted(path)


LINES = "".join(f"{at},n{at}\n" for at in range(11, 1000))
TOP = "a,name\n" + "".join(f"{at},n{at}\n" for at in range(10))


@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_a_quote_that_is_not_closed(end, tmp_path):
    good = write(pd.DataFrame({"a": [1.5, 2.5], "name": ["x", "y"]}), tmp_path / f"a.{end}")
    path, opened = tmp_path / f"b.{end}", gzip.open if end == "csv.gz" else open
    # In the middle, where the rest is one value; in the last line; with the file cut off inside of a value.
    for text in (TOP + '10,"broken\n' + LINES, TOP + '10,"broken\n', TOP + '10,"bro', TOP + '10,"\r\n\r\n'):
        with opened(path, "wt", newline="") as file:
            file.write(text)
        with pytest.raises(DataError, match=rf"quote is open at the end of .*b\.{end}\n  got: 11 rows"):
            fitted(path, columns=["a"])
        norm = fitted(tmp_path, columns=["a"], skip_bad=True)
        assert ([name for name, _ in norm.skipped], norm.samples) == ([str(path)], 2)
    assert fitted(good, columns=["a"]).samples == 2


def test_values_in_quotes_that_span_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.csv._PIECE_BYTES", 7)
    path = tmp_path / "a.csv"
    path.write_text(TOP + '10,"two\n\nlines"\n' + LINES + '1000,"broken\n1001,x\n1002,"broken\n')
    with pytest.warns(DataWarning, match=r"a\.csv: 1,001 rows from 1,004 lines below the names"):
        assert fitted(path, columns=["a"]).samples == 1001
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataWarning, match="1,001 rows from 1,004 lines"):
            fitted(path, columns=["a"], skip_bad=True)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_that_are_rows_are_not_warned_of(end, tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.csv._PIECE_BYTES", 7)
    lines = ["", "a,name", '1,5" pipe', "", "", '2,"a ""b"""', '3,"x,y"', "4,z", ""]
    for text in (lines, lines[:-1], [*lines[:-2], '4,5" pipe'], [*lines, '5,5" pipe', ""], [*lines, "5,"]):
        (tmp_path / "a.csv").write_text(end.join(text), newline="")
        assert fitted(tmp_path / "a.csv", columns=["a"]).samples in (4, 5)


def test_names_of_columns_that_are_not_utf8(tmp_path):
    parts(tmp_path / "data", end="csv")
    path = tmp_path / "data" / "part-0.csv"
    path.write_bytes("gr\u00f6\u00dfe,b\n1,2\n3,5\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"A name of a column is not UTF-8: .*part-0\.csv"):
        fitted(path)
    norm = fitted(tmp_path / "data", skip_bad=True)
    assert ([name for name, _ in norm.skipped], norm.samples) == ([str(path)], 178 - 45)


def test_a_column_of_a_csv_that_begins_with_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.sources.csv.PEEK_BYTES", 1 << 10)
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,\n" * 1000 + "2,7\n4,9\n")
    with pytest.warns(DataWarning, match=r"left out: b \(nothing in its first rows; columns= takes it\)"):
        fitted(path, sn.MinMax())
    norm = fitted(path, columns=["b", "a"], nan="omit")
    assert (norm.moments.mean[0].item(), norm.null_count.tolist()) == (8, [1000, 0])
    with pytest.raises(DataError, match="nan at row 0; 1000 such"):
        fitted(path, columns=["a"], weights="b")
    path.write_text("a,b\n" + "1,\n" * 1000 + "2,text\n")
    with pytest.raises(DataError, match=r"a\.csv\n  got: .*text"):
        fitted(path, columns=["b"])
    table = pa.table({"a": [1.0, 2.0], "b": pa.nulls(2)})
    with pytest.raises(DataError, match=r"column 'b' of .*\n  got: type null"):
        fitted(write(table, tmp_path / "a.parquet"), columns=["b"])


def test_files_that_change_or_vanish(tmp_path):
    path = write(WINE, tmp_path / "a.parquet")
    source = open_source(path)
    shard = source.shards()[0]
    write(WINE.iloc[:50], path)
    with pytest.raises(DataError, match=r"Changed since it was listed: .*a\.parquet"):
        list(shard.blocks())
    os.unlink(path)
    with pytest.raises(DataError, match=r"Gone while it was read: .*a\.parquet"):
        list(shard.blocks())
    with pytest.raises(DataError, match=r"Gone while it was read: .*a\.parquet"):
        source.shards()[0].blocks().__next__()


def test_empty_and_odd_folders(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"No data in .*(.|\n)*check the path"):
        fitted(tmp_path)
    with pytest.raises(DataError, match=r"No such data file: .*nowhere"):
        fitted(tmp_path / "nowhere.parquet")
    with pytest.raises(DataError, match="No tables in"):
        fitted(f"{tmp_path}/*.parquet")
    parts(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self").symlink_to("self")
    (tmp_path / "data" / "README.md").write_text("hello")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        listening.bind("data/s.parquet")
        with pytest.warns(DataWarning, match="left out") as caught:
            check_same(fitted(tmp_path / "data"), WINE.to_numpy())
    (message,) = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert "README.md (no table by its name)" in message
    assert "and 1 more" in message
    with pytest.raises(DataError, match="is empty"):
        fitted(write(WINE.iloc[:0], tmp_path / "none.parquet"))


def test_from_the_command_line(tmp_path):
    parts(tmp_path / "data")
    out = tmp_path / "a.safetensors"
    arguments = ["fit", str(tmp_path / "data"), "--split", "train", "--column", "ash", "--column", "proline"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sn.load(out).record.names == ("ash", "proline")
    wrong = CliRunner().invoke(app, [*arguments, "--column", "nothing"], catch_exceptions=False)
    assert wrong.exit_code == 2


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    path = write(WINE, tmp_path / "a.parquet")
    for name in [name for name in sys.modules if name.startswith("slabnorm.inputs.sources.table")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(sn.errors.ExtraError, match=r"slabnorm\[tables\]"):
        fitted(path)


def test_the_example_of_the_docstring_runs():
    import doctest

    from slabnorm.inputs.sources import tables

    assert doctest.testmod(tables) == (0, 6)


def test_a_sketch_of_many_samples_at_once_is_that_of_a_few_at_a_time():
    from slabnorm.inputs.sketch import Sketch

    draw = np.random.default_rng(3)
    for hashes in (draw.integers(0, 1 << 63, 5000, np.uint64), draw.integers(0, 300, 5000, np.uint64)):
        whole, parts = Sketch(size=100).add(hashes), Sketch(size=100)
        for some in np.array_split(hashes, 50):
            parts = parts.add(some)
        np.testing.assert_array_equal(whole.hashes, np.unique(hashes)[:100])
        np.testing.assert_array_equal(parts.hashes, whole.hashes)
