"""Frames in memory: what the same table in a Parquet file gives, to the bit, with the columns' names."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from sklearn.datasets import load_wine

import slabnorm as sn
from slabnorm.errors import DataError, DataWarning, ExtraError, OptionError
from slabnorm.inputs.apply import apply
from slabnorm.inputs.sources import open_source

WINE = load_wine(as_frame=True).data
FRAMES = {
    "pandas": lambda table: table.to_pandas(),
    "pandas, of Arrow": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": pl.from_arrow,
    "Table": lambda table: table,
    "RecordBatch": lambda table: table.combine_chunks().to_batches()[0],
}


def fitted(source, *arguments, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*left out", DataWarning)
        return sn.fit(source, *arguments, **{"split": "train", **options})


def check_same(a, b):
    assert a.record == b.record
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], rtol=0, atol=0, equal_nan=True)
    np.testing.assert_array_equal(a.sketch.hashes, b.sketch.hashes)


def table(rows=1000):
    draw = np.random.default_rng(0)
    gone = draw.random(rows) < 0.1
    return pa.table({
        "a": draw.standard_normal(rows), "name": [f"n{at}" for at in range(rows)],
        "b": draw.standard_normal(rows).astype("f4"),
        "c": pa.array(draw.standard_normal(rows), mask=gone),
        "d": pa.array(np.arange(rows) % 7).dictionary_encode(),
    })  # fmt: skip


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("scheme", ["zscore", "robust"])
def test_a_frame_gives_what_its_parquet_file_gives(kind, scheme, tmp_path):
    data = table()
    parquet.write_table(data, tmp_path / "a.parquet")
    expected = fitted(tmp_path / "a.parquet", scheme, nan="omit")
    norm = fitted(FRAMES[kind](data), scheme, nan="omit")
    assert norm.record.names == ("a", "b", "c", "d")
    assert norm.null_count.tolist() == [0, 0, data["c"].null_count, 0]
    check_same(norm, expected)
    check_same(fitted(FRAMES[kind](data), scheme, columns=["b", "a"]),
               fitted(tmp_path / "a.parquet", scheme, columns=["b", "a"]))  # fmt: skip
    with pytest.raises(DataError, match=r"null at row \d+, column 'c'"):
        fitted(FRAMES[kind](data))


def test_many_rows_of_a_frame_give_the_bits_of_parquet(tmp_path):
    data = pa.table({f"c{at}": np.random.default_rng(at).standard_normal(2_300_000) for at in range(5)})
    parquet.write_table(data, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    expected = fitted(tmp_path / "a.parquet")
    assert len(open_source(data).shards()) == len(open_source(str(tmp_path / "a.parquet")).shards()) == 2
    check_same(fitted(data, workers=2), expected)


def test_audit_compares_the_names_and_dtypes_of_frames(tmp_path):
    norm = fitted(WINE[:100])
    assert norm.record.names == tuple(WINE.columns)
    other = WINE[100:].rename(columns={"ash": "dust"})
    assert [finding.features for finding in sn.audit(norm, other).findings if finding.kind == "names"] == [
        ("ash",)
    ]
    WINE.to_parquet(tmp_path / "a.parquet")
    record = sn.audit(norm, tmp_path / "a.parquet")
    assert {finding.kind for finding in record.findings} <= {"overlap", "shift", "range"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        assert sn.audit(norm, pl.from_pandas(WINE.assign(more="text"))).overlap.found == 100


def test_weights_beside_a_frame_and_in_it():
    often = np.arange(178.0) % 3
    beside = fitted(WINE, weights=often)
    check_same(beside, fitted(WINE.assign(often=often), weights="often"))
    expected = fitted(WINE.to_numpy(), weights=often)
    assert torch.equal(beside.moments.mean, expected.moments.mean)
    assert beside.record.names == tuple(WINE.columns)


def test_apply_takes_a_frame_by_the_names_of_its_columns(tmp_path):
    norm = fitted(WINE)
    frame = WINE[WINE.columns[::-1]].assign(label="x")
    assert apply(norm, frame, tmp_path / "y.npy") == 178
    expected = norm(torch.tensor(WINE.to_numpy())).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
    unnamed = fitted(WINE.to_numpy())
    apply(unnamed, WINE, tmp_path / "y.npy")
    expected = unnamed(torch.tensor(WINE.to_numpy())).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_frames_that_cannot_be_taken(monkeypatch):
    twice = pd.concat([WINE[["ash"]], WINE[["ash"]]], axis=1)
    mixed = pd.DataFrame({"a": [1.0, 2.0], "b": [1, "x"]})
    for frame, words in ((twice, "ash"), (mixed, "b")):
        with pytest.raises(DataError, match=rf"Cannot take the columns of DataFrame\n  got: .*{words}"):
            fitted(frame)
    assert fitted(mixed, columns=["a"]).samples == 2
    with pytest.raises(DataError, match="No column 'x' in DataFrame"):
        fitted(WINE, columns=["x"])
    with pytest.raises(DataError, match="is empty"):
        fitted(WINE[:0])
    with pytest.raises(OptionError, match="key="):
        fitted(WINE, key="ash")
    with pytest.raises(OptionError, match="convert="):
        fitted(WINE, convert="RGB")
    with pytest.raises(sn.errors.LeakageError):
        fitted({"test": WINE})
    assert fitted({"x": WINE}).record.names == tuple(WINE.columns)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ExtraError, match=r"slabnorm\[tables\](.|\n)*to_numpy"):
        fitted(WINE)
