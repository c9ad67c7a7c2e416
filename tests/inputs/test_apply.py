"""`apply`: files of exactly what the InputNorm returns, or the old file."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from sklearn.datasets import load_digits, load_sample_images, load_wine
from zarr.codecs import BloscCodec, Crc32cCodec

from slabnorm.errors import DataError, DtypeError, ExtraError, OptionError, ShapeError
from slabnorm.inputs import InputNorm, MinMax, fit, save
from slabnorm.inputs.apply import apply
from slabnorm.inputs.apply import text as csv_text

DIGITS = load_digits().data.astype(np.float32)
WINE = load_wine()
PHOTOS = np.stack(load_sample_images().images)[:, :64].reshape(16, 8, 640, 3)
pytestmark = pytest.mark.filterwarnings("ignore:.*constant:slabnorm.errors.DataWarning")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def digits():
    return fit(DIGITS, MinMax(out=(-1, 1)), split="train")


@pytest.fixture(scope="module")
def photos():
    return fit(PHOTOS, "zscore", "n h w c -> c", split="train")


def through(norm, x):
    return norm(torch.from_numpy(x)).numpy()


def as_npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i8", "f2", "f4", "f8", ">f4", "?"])
@pytest.mark.parametrize("batch_rows", [None, 100])
def test_npy(dtype, batch_rows, digits):
    x = DIGITS.astype(dtype)
    np.save("x.npy", x)
    assert apply(digits, "x.npy", "y.npy", batch_rows=batch_rows) == 1797
    expected = through(digits, x.astype(np.dtype(dtype).newbyteorder("=")))
    assert Path("y.npy").read_bytes() == as_npy(expected)
    assert apply(digits, "y.npy", "back.npy", inverse=True) == 1797
    assert np.array_equal(np.load("back.npy"), digits.inverse(torch.from_numpy(expected)).numpy())
    if dtype in ("u1", "f4"):
        assert np.abs(np.load("back.npy") - DIGITS).max() < 1e-5


def test_any_batch(digits):
    for rows in (1, 1796, 5000):
        apply(digits, DIGITS, "y.npy", batch_rows=rows)
        assert Path("y.npy").read_bytes() == as_npy(through(digits, DIGITS))


def test_what_else_is_read(digits):
    expected = as_npy(through(digits, DIGITS))
    np.savez_compressed("x.npz", a=DIGITS, b=DIGITS[:5])
    np.save("fortran.npy", np.asfortranarray(DIGITS))
    sources = [
        ("x.npz", "a"), ("fortran.npy", None), (DIGITS, None), (torch.from_numpy(DIGITS), None),
        (DIGITS[::-1][::-1], None), ((DIGITS[i : i + 100] for i in range(0, 1797, 100)), None),
        (torch.utils.data.TensorDataset(torch.from_numpy(DIGITS)), None), ({"x": DIGITS, "y": 1}, None),
    ]  # fmt: skip
    for source, key in sources:
        assert apply(digits, source, "y.npy", key=key, batch_rows=700) == 1797
        assert Path("y.npy").read_bytes() == expected


def test_images(photos):
    np.save("x.npy", PHOTOS)
    apply(photos, "x.npy", "y.npy", batch_rows=3)
    assert np.array_equal(np.load("y.npy"), through(photos, PHOTOS))
    assert np.load("y.npy").dtype == np.float32


def test_no_samples(digits):
    np.save("x.npy", DIGITS[:0])
    assert apply(digits, "x.npy", "y.npy") == 0
    assert Path("y.npy").read_bytes() == as_npy(DIGITS[:0])
    assert apply(digits, "x.npy", "y.zarr") == 0
    assert zarr.open("y.zarr", mode="r").shape == (0, 64)
    with pytest.raises(DataError, match="is empty"):
        apply(digits, iter([]), "y.npy")


LAYOUTS = {
    "v2": {"chunks": (100, 20), "zarr_format": 2},
    "v2 fortran": {"chunks": (100, 64), "zarr_format": 2, "order": "F"},
    "v3": {"chunks": (100, 20), "dimension_names": ["sample", "pixel"]},
    "v3 sharded": {"chunks": (50, 16), "shards": (200, 64), "compressors": [Crc32cCodec()]},
    "v3 raw": {"chunks": (70, 64), "shards": (700, 64), "compressors": None},
    "v3 blosc": {"chunks": (1797, 64), "compressors": [BloscCodec()]},
}


@pytest.mark.parametrize(("layout", "dtype"), list(zip(LAYOUTS, ["u1", "f4"] * 3, strict=False)))
def test_zarr(layout, dtype, digits, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.apply.writers.CHUNK_BYTES", 100_000)
    x = DIGITS.astype(dtype)
    attributes = {"made": "of digits"}
    a = zarr.create_array("x.zarr", data=x, attributes=attributes, **LAYOUTS[layout],
                          config={"write_empty_chunks": True})  # fmt: skip
    assert apply(digits, "x.zarr", "y.zarr", batch_rows=90) == 1797
    b = zarr.open("y.zarr", mode="r")
    assert np.array_equal(b[...], through(digits, x))
    assert (b.chunks, b.shards, b.metadata.zarr_format) == (a.chunks, a.shards, a.metadata.zarr_format)
    assert [type(codec) for codec in b.compressors] == [type(codec) for codec in a.compressors]
    assert dict(b.attrs) == attributes
    assert getattr(b.metadata, "dimension_names", 0) == getattr(a.metadata, "dimension_names", 0)
    if layout == "v3 blosc":
        assert b.compressors[0].typesize == 4
    apply(digits, b, "back.npy", inverse=True)
    assert np.abs(np.load("back.npy") - DIGITS).max() < 1e-5
    # Every chunk is there, so that the result can be fitted or applied to in turn.
    assert fit("y.zarr", split="train").samples == 1797


def test_arrays_of_other_kinds_to_zarr(digits, monkeypatch):
    monkeypatch.setattr("slabnorm.inputs.apply.writers.CHUNK_BYTES", 30_000)
    for number, source in enumerate([DIGITS, (DIGITS[i : i + 100] for i in range(0, 1797, 100))]):
        assert apply(digits, source, f"{number}.zarr") == 1797
        made = zarr.open(f"{number}.zarr", mode="r")
        assert np.array_equal(made[...], through(digits, DIGITS))
        assert made.chunks == (117, 64)
        assert len(list(Path(f"{number}.zarr/c").glob("*/0"))) == 16


def test_a_missing_chunk(digits):
    zarr.create_array("x.zarr", data=DIGITS, chunks=(100, 64))
    Path("x.zarr/c/3/0").unlink()
    for out in ("y.npy", "y.zarr"):
        with pytest.raises(DataError, match=r"chunk c/3/0 of x\.zarr"):
            apply(digits, "x.zarr", out)
    assert os.listdir() == ["x.zarr"]
    with pytest.warns(match="missing and count as the fill value"):
        apply(digits, "x.zarr", "y.npy", missing_chunks="fill")
    assert np.array_equal(np.load("y.npy")[300:400], through(digits, np.zeros((100, 64), "f4")))


def wine_table(**more):
    columns = dict(zip(WINE.feature_names, WINE.data.T, strict=True))
    return pa.table({"id": [f"w{i}" for i in range(178)], **columns, **more})


def named(norm, names):
    """Return statistics whose features have names, as those of a table have."""
    from dataclasses import replace

    return InputNorm(replace(norm.record, names=tuple(names)), norm.moments)


@pytest.fixture(scope="module")
def wine():
    return fit(WINE.data, split="train")


@pytest.mark.parametrize("batch_rows", [None, 7])
def test_parquet(wine, batch_rows):
    pq.write_table(wine_table(), "x.parquet", row_group_size=50, compression="zstd")
    done = []
    rows = apply(wine, "x.parquet", "y.parquet", batch_rows=batch_rows, progress=lambda *p: done.append(p))
    assert rows == 178
    assert sum(part for part, _ in done) == done[0][1] > 0
    made, file = pq.read_table("y.parquet"), pq.ParquetFile("y.parquet")
    assert made.schema.names == wine_table().schema.names
    assert made["id"] == wine_table()["id"]
    y = np.stack([made[name].to_numpy() for name in WINE.feature_names], 1)
    assert np.array_equal(y, through(wine, WINE.data))
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [50, 50, 50, 28]
    assert groups[0].column(0).compression == "ZSTD"
    apply(wine, "y.parquet", "back.parquet", inverse=True)
    back = np.stack([pq.read_table("back.parquet")[name].to_numpy() for name in WINE.feature_names], 1)
    assert np.allclose(back, WINE.data, rtol=1e-14)


def test_named_columns_in_any_order_and_dtype(wine):
    names = [f"f{i}" for i in range(13)]
    norm = named(wine, names)
    table = pa.table({
        "label": WINE.target,  # a number, and no feature
        **{name: WINE.data[:, i].astype("f4") for i, name in reversed(list(enumerate(names)))},
    })  # fmt: skip
    pq.write_table(table, "x.parquet")
    apply(norm, "x.parquet", "y.parquet")
    made = pq.read_table("y.parquet")
    assert made.schema.names == table.schema.names
    assert made["label"] == table["label"]
    y = np.stack([made[name].to_numpy() for name in names], 1)
    assert y.dtype == np.float32
    assert np.array_equal(y, through(norm, WINE.data.astype("f4")))


def test_nulls_stay_null_and_integers_stay_exact():
    norm = named(fit(np.array([[0.0, 0, 0], [2.0**53, 2, 1]]), "minmax", split="train"), "abc")
    table = pa.table({
        "a": pa.array([2**53 - 1, None, 0], pa.int64()),
        "b": pa.array([1.0, float("nan"), None]), "c": pa.array([True, None, False]),
    })  # fmt: skip
    pq.write_table(table, "x.parquet")
    apply(norm, "x.parquet", "y.parquet")
    made = pq.read_table("y.parquet").to_pydict()
    assert made["a"] == [(2**53 - 1) / 2**53, None, 0.0]
    assert made["b"][0] == 0.5
    assert np.isnan(made["b"][1])
    assert made["b"][2] is None
    assert made["c"] == [1.0, None, 0.0]


TEXT = 'id;"a ""b"" ";label;x\r\n1;0.1;"two\r\nlines; ""q""";5\r\n\r\n2;;é;7.5\r\n3;-3e-7;NA;nan\r\n'


@pytest.mark.filterwarnings("ignore:.*span lines:slabnorm.errors.DataWarning")
@pytest.mark.parametrize("batch_rows", [None, 1])
@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_csv_keeps_its_other_columns_its_header_and_its_nulls(end, batch_rows):
    Path(f"x.{end}").write_bytes(gzip.compress(TEXT.encode()) if end == "csv.gz" else TEXT.encode())
    names = ["x", 'a "b" ']
    norm = fit(f"x.{end}", split="train", delimiter=";", columns=names, nan="omit")
    assert norm.record.names == tuple(names)
    done = []
    rows = apply(norm, f"x.{end}", "y.csv", delimiter=";", batch_rows=batch_rows,
                 progress=lambda *p: done.append(p))  # fmt: skip
    assert rows == 3
    assert sum(part for part, _ in done) == os.path.getsize(f"x.{end}")
    text = Path("y.csv").read_bytes().decode()
    made = list(csv.reader(io.StringIO(text, newline=""), delimiter=";"))
    x = np.array([[5, 0.1], [7.5, np.nan], [np.nan, -3e-7]])
    y = through(norm, x)
    assert made[0] == ["id", 'a "b" ', "label", "x"]
    assert [row[::2] for row in made[1:]] == [["1", 'two\r\nlines; "q"'], ["2", "é"], ["3", "NA"]]
    assert [row[3] for row in made[1:]] == [repr(value) for value in y[:, 0].tolist()]
    assert [row[1] for row in made[1:]] == [repr(y[0, 1].item()), "", repr(y[2, 1].item())]
    assert text.count("\r\n") == 5
    apply(norm, "y.csv", "back.csv", inverse=True, delimiter=";")
    back = list(csv.reader(io.StringIO(Path("back.csv").read_text()), delimiter=";"))
    np.testing.assert_allclose([float(row[3]) for row in back if row[0] in ("1", "2")], x[:2, 0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n3\n", "row 1 has 1 values for 2 columns"),
        ("a,b\n1,2\nx,4\n", "x at row 1, column 1, which is no number"),
        ("a,b\n1,2\n3,4_0\n", "4_0 at row 1, column 2, which is no number"),
        ("a,b\n1,2\n3,٤\n", "at row 1, column 2, which is no number"),
        ('a,b\n1,2\n3,"4\n', "unexpected end"),
        ("b\n1\n", "No column 'a'"),
        ("a,a,b\n1,2,3\n", "2 columns 'a'"),
        ("", "it is empty"),
        (b"a,b\n1,\xff\n", "decode"),
    ],
)
def test_csv_that_cannot_be_applied_to(text, says):
    Path("good.csv").write_text("a,b\n1,2\n3,5\n")
    norm = fit("good.csv", split="train")
    Path("x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("y.csv").write_text("old")
    with pytest.raises(DataError, match=says) as caught:
        apply(norm, "x.csv", "y.csv")
    assert "x.csv\n" in str(caught.value)
    assert sorted(os.listdir()) == ["good.csv", "x.csv", "y.csv"]
    assert Path("y.csv").read_text() == "old"
    for out, words in (("x.csv", "no part of the data"), ("y.npy", r"ends in \.csv")):
        with pytest.raises(OptionError, match=words):
            apply(norm, "x.csv", out)
    with pytest.raises(OptionError, match="delimiter"):
        apply(norm, np.zeros((3, 2)), "y.npy", delimiter=";")


def test_one_column_and_no_rows():
    norm = fit(np.arange(5.0), "minmax", "n ->", split="train")
    pq.write_table(pa.table({"a": [0.0, 2.0], "b": ["x", "y"]}), "x.parquet")
    apply(norm, "x.parquet", "y.parquet")
    assert pq.read_table("y.parquet").to_pydict() == {"a": [0.0, 0.5], "b": ["x", "y"]}
    pq.write_table(pa.table({"a": pa.array([], pa.float32())}), "x.parquet")
    assert apply(norm, "x.parquet", "y.parquet") == 0
    assert pq.read_table("y.parquet").to_pydict() == {"a": []}


def test_tables_that_do_not_fit(wine, photos):
    table = wine_table()
    pq.write_table(table.drop_columns(["ash", "hue"]), "x.parquet")
    with pytest.raises(DataError, match=r"11 columns of numbers for 13 features: x\.parquet\n  got: alcohol"):
        apply(wine, "x.parquet", "y.parquet")
    norm = named(wine, WINE.feature_names)
    with pytest.raises(DataError, match="No column 'ash'"):
        apply(norm, "x.parquet", "y.parquet")
    pq.write_table(wine_table().set_column(3, "ash", pa.array(["x"] * 178)), "x.parquet")
    with pytest.raises(DataError, match=r"'ash' in x\.parquet\n  got: type string"):
        apply(norm, "x.parquet", "y.parquet")
    pq.write_table(wine_table().append_column("ash", pa.array([1] * 178)), "x.parquet")
    with pytest.raises(DataError, match="2 columns 'ash'"):
        apply(norm, "x.parquet", "y.parquet")
    with pytest.raises(OptionError, match="samples of one axis"):
        apply(photos, "x.parquet", "y.parquet")
    pq.write_table(table, "x.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    whole = bytearray(Path("x.parquet").read_bytes())
    whole[whole.index(WINE.data[77:80, 3].tobytes())] ^= 1
    Path("x.parquet").write_bytes(whole)
    with pytest.raises(DataError, match=r"Cannot read the table x\.parquet"):
        apply(wine, "x.parquet", "y.parquet")
    Path("x.parquet").write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"Cannot read the table x\.parquet"):
        apply(wine, "x.parquet", "y.parquet")
    assert os.listdir() == ["x.parquet"]


def test_damaged_or_endless_gzip_is_an_error_of_the_data_and_not_of_the_output():
    Path("good.csv").write_text("a,b\n1,2\n3,5\n")
    norm = fit("good.csv", split="train")
    whole = gzip.compress("".join(["a,b\n", *(f"{i},{i * i}\n" for i in range(20_000))]).encode())
    flipped, summed = bytearray(whole), bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    summed[-6] ^= 1  # of the checksum
    endless = gzip.compress(b"a" * (20 << 20))
    open_quotes = gzip.compress(b"a,b" + b',"\n"' * (5 << 20))
    cases = [(flipped, ""), (summed, "CRC"), (whole[:-9], "ended")]
    for content, says in (*cases, (endless, "characters"), (open_quotes, "characters")):
        Path("x.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=f"(?s)Damaged CSV file.*{says}"):
            apply(norm, "x.csv.gz", "y.csv")
    with pytest.raises(DataError, match=r"No such data file: nowhere\.csv"):
        apply(norm, "nowhere.csv", "y.csv")
    assert sorted(os.listdir()) == ["good.csv", "x.csv.gz"]


def test_batches_of_wide_or_long_rows_are_small(monkeypatch):
    Path("good.csv").write_text("a,b\n1,2\n3,5\n")
    norm = fit("good.csv", split="train")
    wide = "a,b" + "".join(f",c{i}" for i in range(98)) + "\n" + ("1,2" + ",x" * 98 + "\n") * 50
    Path("wide.csv").write_text(wide)
    Path("long.csv").write_text("a,b,c\n" + f"1,2,{'x' * 900}\n" * 50)
    monkeypatch.setattr(csv_text, "BATCH_BYTES", 8000)  # 10 rows of 100 values, 9 of 900 characters
    sizes = []
    for name in ("wide.csv", "long.csv"):
        with monkeypatch.context() as patch:
            patch.setattr(csv_text, "_normalise", lambda batch, *rest: sizes.append(len(batch)))
            assert apply(norm, name, "y.csv") == 50
        apply(norm, name, "y.csv", batch_rows=7)
        apply(norm, name, "z.csv")
        assert Path("y.csv").read_text() == Path("z.csv").read_text()
    assert sizes == [10] * 5 + [9] * 5 + [5]


@pytest.mark.parametrize(
    ("source", "out", "says"),
    [
        ("x.npy", "y.csv", "ends in"),
        ("x.npy", "y", "ends in"),
        ("x.npy", "y.npz", "ends in"),
        ("x.npy", "s3://bucket/y.npy", "local path"),
        ("x.npy", "x.npy", "no part of the data"),
        ("x.npy", "../{here}/x.npy", "no part of the data"),
        ("x.npy", "link.npy", "no part of the data"),
        ("x.npy", "hard.npy", "no part of the data"),
        ("x.zarr", "x.zarr/y.npy", "no part of the data"),
        ("x.npy", "x.zarr", "exists already"),
        ("x.npy", "y.parquet", "must be(.|\n)*y.parquet"),
        ("x.parquet", "y.npy", "must be(.|\n)*y.npy"),
        ("x.npy", "no/where.npy", "Cannot write"),
        ("x.npy", "no/where.zarr", "Cannot write"),
    ],
)
def test_outputs_that_are_refused(source, out, says, digits):
    np.save("x.npy", DIGITS)
    zarr.create_array("x.zarr", data=DIGITS)
    os.symlink("x.npy", "link.npy")
    os.link("x.npy", "hard.npy")
    before = sorted(os.listdir()), Path("x.npy").read_bytes()
    with pytest.raises(OptionError, match=says):
        apply(digits, source, out.format(here=Path.cwd().name))
    assert (sorted(os.listdir()), Path("x.npy").read_bytes()) == before


def test_data_that_do_not_fit(digits):
    with pytest.raises(ShapeError):
        apply(digits, DIGITS[:, :63], "y.npy")
    with pytest.raises(DataError, match="different shapes"):
        apply(digits, iter([DIGITS[:2], DIGITS[:2, :63]]), "y.npy")
    with pytest.raises(DtypeError, match="bfloat16"):
        apply(digits, torch.from_numpy(DIGITS).bfloat16(), "y.npy")
    with pytest.raises(OptionError, match="batch_rows"):
        apply(digits, DIGITS, "y.npy", batch_rows=0)
    assert os.listdir() == []


@pytest.mark.parametrize("suffix", ["npy", "parquet", "zarr"])
def test_a_full_disk(suffix, digits, wine, monkeypatch):
    norm, source = digits, DIGITS
    if suffix == "parquet":
        norm, source = wine, "x.parquet"
        pq.write_table(wine_table(), "x.parquet")
    if suffix != "zarr":
        Path(f"y.{suffix}").write_text("old")
    before = sorted(os.listdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("fsync", "rename" if suffix == "zarr" else "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OptionError, match=r"No space left|Cannot write"):
                apply(norm, source, f"y.{suffix}")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or modules are left torn
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OptionError, match="File too large"):
            apply(norm, source, f"y.{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir()) == before
    if suffix != "zarr":
        assert Path(f"y.{suffix}").read_text() == "old"


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_interrupted(suffix, digits):
    def stop(*_):
        raise KeyboardInterrupt

    Path("y.npy").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        apply(digits, DIGITS, f"y.{suffix}", progress=stop)
    assert os.listdir() == ["y.npy"]
    assert Path("y.npy").read_text() == "old"


def test_killed(digits):
    save(digits, "norm")
    np.save("x.npy", DIGITS)
    Path("y.npy").write_text("old")
    code = (
        "import os, signal, numpy as np\n"
        "from slabnorm.inputs import load\n"
        "from slabnorm.inputs.apply import apply\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "x = np.load('x.npy')\n"
        "apply(load('norm'), iter([x, x]), 'y.npy', progress=die)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path.cwd(), check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert Path("y.npy").read_text() == "old"
    assert apply(digits, "x.npy", "y.npy") == 1797


def test_extras(digits, wine, monkeypatch):
    Path("x.parquet").touch()
    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraError, match=r"slabnorm\[zarr\]"):
        apply(digits, DIGITS, "y.zarr")
    with pytest.raises(ExtraError, match="pyarrow"):
        apply(wine, "x.parquet", "y.parquet")
    assert os.listdir() == ["x.parquet"]
