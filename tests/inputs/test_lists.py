"""Columns of lists: a feature for each place in them, with the bits of the same numbers as plain columns."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from pyarrow import feather, ipc, parquet
from sklearn.datasets import load_diabetes

import slabnorm as sn
from slabnorm.errors import DataError, DataWarning
from slabnorm.inputs.apply import apply
from tests.inputs.test_frames import check_same, fitted

DATA = load_diabetes().data[:, :4]
ROWS = {0: None, 3: [1.0, None, float("nan"), 2.0], 150: None, 441: None}  # in place of DATA's
NAME = "observation.state"  # as data sets of robots call it
NAMES = tuple(f"{NAME}[{at}]" for at in range(4))
KINDS = {
    "fixed": lambda value, size: pa.list_(value, size),
    "list": lambda value, _: pa.list_(value),
    "large list": lambda value, _: pa.large_list(value),
    "view": lambda value, _: pa.list_view(value),
}


def lists(kind, array, rows=(), value=None):
    """Return an array as a column of lists, some of whose rows are others."""
    values = [dict(rows).get(at, row) for at, row in enumerate(array.tolist())]
    if array.dtype == np.float16:
        values = [np.array(row, array.dtype) for row in values]
    return pa.array(values, KINDS[kind](value or pa.from_numpy_dtype(array.dtype), array.shape[1]))


def plain(column, **others):
    """Return a column of lists as plain columns with the names of its features, beside others."""
    rows, value = column.to_pylist(), column.type.value_type
    columns = [[None if row is None else row[at] for row in rows] for at in range(4)]
    columns = [pa.array(some, value) for some in columns]
    return pa.table({**others, **dict(zip(NAMES, columns, strict=True))})


def write(table, path):
    """Write a table by the file's ending, in parts."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=100)
    elif path.suffix == ".feather":
        feather.write_feather(table, str(path), chunksize=100)
    else:
        with ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["parquet", "feather", "arrow", "frame"])
def test_lists_have_the_bits_of_plain_columns(kind, end, tmp_path):
    column, number = lists(kind, DATA, ROWS), pa.array(range(442))
    tables = [pa.table({"id": number, NAME: column}), plain(column, id=number)]
    if end != "frame":
        tables = [write(table, tmp_path / f"{at}.{end}") for at, table in enumerate(tables)]
    norm, expected = (fitted(table, "robust", nan="omit") for table in tables)
    assert norm.record.names == ("id", *NAMES)
    assert (norm.null_count.tolist(), norm.nan_count.tolist()) == ([0, 3, 4, 3, 3], [0, 0, 0, 1, 0])
    check_same(norm, expected)
    only = fitted(tables[0], columns=[NAME], nan="omit")
    check_same(only, fitted(tables[1], columns=NAMES, nan="omit"))
    check_same(only, fitted(tables[0], columns=NAMES, nan="omit"))
    with pytest.raises(DataError, match=rf"null at row 0, column '{NAME}\[0\]'; 3 in rows"):
        fitted(tables[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int64", "bool"])
def test_lists_of_every_dtype(dtype, tmp_path):
    array = (DATA * 100).clip(0).astype(dtype)
    path = write(pa.table({"x": lists("fixed", array)}), tmp_path / "a.parquet")
    norm, expected = fitted(path, columns=["x"]), fitted(array.astype("f8"), "zscore", "n c -> c")
    assert (norm.dtype, norm.record.content) == (dtype, expected.record.content)
    assert torch.equal(norm.moments.max, expected.moments.max)
    if dtype == "bool":
        with pytest.warns(DataWarning, match="bool are counted as 0 and 1: 'x'"):
            fitted(path)


def test_slices_and_chunks_of_lists():
    for kind in KINDS:
        column = lists(kind, DATA, ROWS)
        chunks = pa.chunked_array([column.slice(7, 0), column.slice(2, 140), column.slice(142)])
        table = pa.table({NAME: chunks})
        check_same(fitted(table, nan="omit"), fitted(plain(column.slice(2)), nan="omit"))
        part = table.slice(5, 50)
        check_same(fitted(part), fitted(plain(column.slice(7, 50))))


FRAMES = {
    "pandas": pd.DataFrame({NAME: list(DATA), "t": "x"}),
    "pandas, of lists": pd.DataFrame({NAME: DATA.tolist(), "t": "x"}),
    "polars, Array": pl.DataFrame({NAME: pl.Series(DATA, dtype=pl.Array(pl.Float64, 4)), "t": "x"}),
    "polars, List": pl.DataFrame({NAME: DATA.tolist(), "t": "x"}),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_lists(kind, tmp_path):
    norm = fitted(FRAMES[kind])
    check_same(norm, fitted(plain(lists("list", DATA))))
    check_same(norm, fitted(FRAMES[kind], columns=[NAME]))
    assert norm.record.content == fitted(DATA).record.content
    apply(norm, FRAMES[kind], tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), norm(torch.from_numpy(DATA)).numpy())
    weights = np.arange(442.0) % 3
    assert torch.equal(fitted(FRAMES[kind], weights=weights).shift, fitted(DATA, weights=weights).shift)


def test_weights_beside_lists(tmp_path):
    column, often = lists("list", DATA, ROWS), pa.array(np.arange(442.0) % 3)
    path = write(pa.table({NAME: column, "w": often}), tmp_path / "a.parquet")
    expected = fitted(plain(column, w=often), weights="w", nan="omit")
    check_same(fitted(path, weights="w", nan="omit"), expected)
    with pytest.raises(DataError, match=rf"column '{NAME}' of .*\n  got: type list(.|\n)*weights="):
        fitted(path, weights=NAME)


@pytest.mark.parametrize("end", ["parquet", "feather", "frame"])
def test_a_list_of_another_length_is_named_by_its_row(end, tmp_path):
    table = pa.table({"x": pa.array([None, *DATA[:310].tolist(), [1.0, 2.0], *DATA[310:].tolist()])})
    source = table if end == "frame" else write(table, tmp_path / f"a.{end}")
    with pytest.raises(DataError, match=r"'x' of .*(a\.\w+|Table)\n  got: 2 values, not 4, at row 311"):
        fitted(source, nan="omit")
    good = fitted(pa.table({"x": lists("fixed", DATA)}))
    if end == "parquet":
        with pytest.raises(DataError, match="2 values, not 4, at row 311"):
            apply(good, source, tmp_path / "y.parquet")
        write(table.slice(0, 200), tmp_path / "b.parquet")
        assert fitted(tmp_path, nan="omit", skip_bad=True).samples == 200


def columns_that_cannot_be_taken():
    """Yield columns of lists, and what is said of them."""
    yield pa.array([[], []], pa.list_(pa.float32(), 0)), "Empty lists in column 'x'"
    yield pa.array([None, [], [1.0]]), "Empty lists in column 'x'"
    yield pa.array([None, None], pa.list_(pa.float32())), "No list in column 'x'"
    yield pa.array([[[1.0]], [[2.0]]]), "'x' of Table\n  got: type list<item: list<"
    yield pa.array([[Decimal("1.5")], None]), "'x' of Table\n  got: type list<item: decimal"
    yield pa.array([{"a": [1.0]}, None]), "'x' of Table\n  got: type struct<"


def test_lists_that_cannot_be_taken(tmp_path):
    for column, says in columns_that_cannot_be_taken():
        table = pa.table({"a": [1.0, 2.0, 4.0][: len(column)], "x": column})
        for columns in (None, ["x"]):
            with pytest.raises(DataError, match=f"{says}(.|\n)*leave it out|{says}(.|\n)*name the columns"):
                fitted(table, columns=columns)
        norm = fitted(table, columns=["a"])
        assert sn.audit(norm, table).features[0].new.count == len(table)
    words = pa.table({"x": lists("list", DATA), "words": [["a", "b"]] * 442})
    with pytest.warns(DataWarning, match=r"left out: words \(list<"):
        assert sn.fit(words, split="train").record.names == tuple(f"x[{at}]" for at in range(4))
    with pytest.raises(DataError, match=r"'words' of .*\n  got: type list"):
        fitted(words, columns=["words"])
    with pytest.raises(DataError, match="No list in column 'x'"):
        fitted(words[:0], columns=["x"])


def test_a_column_of_lists_is_taken_whole_and_its_names_are_its_own():
    table = pa.table({"x": lists("fixed", DATA), "x[7]": range(442), "y[0]": lists("list", DATA)})
    assert fitted(table, columns=["y[0]"]).record.names[2] == "y[0][2]"
    order = ["y[0][3]", "y[0][0]", "y[0][2]", "y[0][1]"]
    turned = fitted(table, columns=order)
    assert turned.record.names == tuple(order)
    assert torch.equal(turned.shift, fitted(table, columns=["y[0]"]).shift[[3, 0, 2, 1]])
    for columns in (["y[0][1]"], ["y[0]", "y[0][1]"], order[:3]):
        with pytest.raises(DataError, match=r"4 values in a row(.|\n)*taken whole(.|\n)*\['y\[0\]'\]"):
            fitted(table, columns=columns)
    with pytest.raises(DataError, match=r"No column 'z\[0\]'"):
        fitted(table, columns=["z[0]"])
    for columns in (["x[7]"], None):
        with pytest.raises(DataError, match=r"'x\[7\]' in .*\n  got: it is a column, and also a value"):
            fitted(table, columns=columns)


def test_files_whose_lists_differ(tmp_path):
    one, many = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write(pa.table({"x": lists("fixed", DATA)}), one)
    write(pa.table({"x": lists("fixed", np.tile(DATA, 2))}), many)
    with pytest.raises(DataError, match=r"b\.parquet\n  got: fixed_size_list<.*\[8\], and the first.* 4"):
        fitted(tmp_path)
    assert fitted(tmp_path, skip_bad=True).skipped[0][0].endswith("b.parquet")
    write(pa.table({"x": DATA[:, 0]}), many)
    with pytest.raises(DataError, match=r"b\.parquet\n  got: double, and lists of float64 in the first"):
        fitted(tmp_path)
    write(pa.table({"x": lists("list", DATA)}), many)  # no type says its length, which is the same
    assert fitted(tmp_path).samples == 884
    write(pa.table({"x": pa.array([None] * 9, pa.list_(pa.float64()))}), one)
    assert fitted(tmp_path, nan="omit").null_count.tolist() == [9] * 4  # the second file says the length


@pytest.mark.parametrize("kind", ["fixed", "list", "large list"])
def test_apply_writes_lists_back(kind, tmp_path):
    value = pa.field("item", pa.float32(), metadata={"unit": "rad"})
    column = lists(kind, DATA.astype("f4"), {**ROWS, 3: [1.0, None, None, 2.0]}, value)
    field = pa.field(NAME, column.type, metadata={"of": "arm"})
    schema = pa.schema([pa.field("t", pa.string()), field, pa.field("z", pa.float32())], {"robot": "aloha"})
    z = pa.array(np.arange(442, dtype="f4"))
    table = pa.table([pa.array(["a"] * 442), column, z], schema=schema)
    write(table, tmp_path / "a.parquet")
    write(plain(column, z=z), tmp_path / "b.parquet")
    norm = fitted(tmp_path / "a.parquet", columns=["z", NAME], nan="omit")
    for inverse in (False, True):
        for name in "ab":
            out = tmp_path / f"{name}{inverse}.pq"
            apply(norm, tmp_path / f"{name}.parquet", out, inverse=inverse, batch_rows=30)
        made, expected = (parquet.read_table(tmp_path / f"{name}{inverse}.pq") for name in "ab")
        assert made.schema.equals(parquet.read_schema(tmp_path / "a.parquet"), check_metadata=True)
        assert made["t"].equals(table["t"])
        assert made["z"].equals(expected["z"])
        assert [row is None for row in made[NAME].to_pylist()] == [at in (0, 150, 441) for at in range(442)]
        assert plain(made[NAME]).equals(expected.select(NAMES).cast(plain(made[NAME]).schema))
    doubles = fitted(tmp_path / "b.parquet", columns=NAMES, nan="omit")  # by names, from plain columns
    apply(doubles, tmp_path / "a.parquet", tmp_path / "y.parquet")
    assert parquet.read_table(tmp_path / "y.parquet")["z"].equals(table["z"])


def test_apply_to_lists_of_integers_and_by_their_number(tmp_path):
    counts = (DATA * 1000).astype("i4")
    write(pa.table({"x": lists("list", counts), "w": ["a"] * 442}), tmp_path / "a.parquet")
    norm = fitted(counts)  # without names: the table's numbers are as many
    apply(norm, tmp_path / "a.parquet", tmp_path / "y.parquet")
    made = parquet.read_table(tmp_path / "y.parquet")
    assert made.schema.field("x").type.value_type == pa.float32()
    np.testing.assert_array_equal(np.stack(made["x"].to_numpy()), norm(torch.from_numpy(counts)).numpy())
    longer = fitted(pa.table({"x": lists("fixed", np.tile(DATA, 2))}))
    write(pa.table({"x": lists("fixed", DATA)}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"fixed_size_list<.*\[4\], and the statistics\s+have 8 values"):
        apply(longer, tmp_path / "b.parquet", tmp_path / "y.parquet")
    write(pa.table({"x": lists("fixed", DATA), "x[0]": counts[:, 0]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"x\[0\] is a column, and also a value"):
        apply(longer, tmp_path / "b.parquet", tmp_path / "y.parquet")


def test_audit_calls_the_values_of_lists_by_their_names(tmp_path):
    path = write(pa.table({NAME: lists("fixed", DATA[:300]), "t": range(300)}), tmp_path / "a.parquet")
    norm = fitted(path, columns=[NAME])
    other = DATA[300:] + np.array([0, 0, 9, 0])
    record = sn.audit(norm, pa.table({"t": range(142), NAME: lists("list", other)}))
    assert [feature.name for feature in record.features] == list(NAMES)
    assert {finding.features for finding in record.findings} == {(NAMES[2],)}
    with pytest.raises(DataError, match="has 8 values in a row"):
        sn.audit(norm, pa.table({NAME: lists("fixed", np.tile(DATA, 2))}))


def test_other_columns_are_not_read_and_a_fit_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    pictures = [bytes(np.random.default_rng(at).bytes(2000)) for at in range(442)]
    table = pa.table({NAME: lists("fixed", DATA), "observation": pictures})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(pictures[300]) + 100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        parquet.read_table(path, page_checksum_verification=True)
    assert fitted(path).samples == fitted(path, columns=[NAME]).samples == 442
    monkeypatch.setattr("slabnorm.inputs.sources.tables.SHARD_BYTES", 3000)
    path = write(pa.table({NAME: lists("list", DATA)}), tmp_path / "b.parquet")
    artifacts = []
    for ledger in (tmp_path / "x.ledger", tmp_path / "y.ledger"):
        norm = fitted(path, ledger=ledger)
        norm = fitted(path, ledger=ledger, resume=True, workers=2)
        sn.save(norm, tmp_path / "a.safetensors")
        artifacts.append((tmp_path / "a.safetensors").read_bytes())
    sn.save(fitted(plain(lists("list", DATA))), tmp_path / "a.safetensors")
    assert artifacts[0] == artifacts[1]
