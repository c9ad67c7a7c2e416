"""Weights: a sample of weight w counts as w equal ones, wherever it comes from."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataError, LedgerError, OptionError, ShapeError
from tests.inputs.chunking import small

WINE = load_wine(as_frame=True).data
X = np.array(WINE)
RNG = np.random.default_rng(11)
WHOLE = RNG.integers(0, 4, len(X))
REAL = RNG.random(len(X))


def fitted(source, scheme="zscore", **options):
    return sn.fit(source, scheme, split="train", **options)


def check_same(a, b, exact=False):
    """The same statistics; bit by bit, or as sums in another order are."""
    assert torch.equal(a.moments.count, b.moments.count)
    for name in ("mean", "m2", "min", "max"):
        x, y = getattr(a.moments, name), getattr(b.moments, name)
        assert torch.equal(x, y) if exact else torch.allclose(x, y, rtol=1e-13, atol=0), name
    assert torch.equal(a.nan_count + a.null_count, b.nan_count + b.null_count)


def sources(tmp_path, kind):
    """Wine as one kind of source, and the weights that go with it."""
    if kind in ("parquet", "csv"):
        frame = WINE.assign(often=WHOLE)
        path = tmp_path / f"wine.{kind}"
        if kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.iloc[:, [13, *range(13)]].to_parquet(path, row_group_size=50)
        return path, "often"
    if kind == "npy":
        np.save(tmp_path / "wine.npy", X)
        return tmp_path / "wine.npy", WHOLE.tolist()
    tensor = torch.from_numpy(X)
    batches = [X[i : i + 7] for i in range(0, len(X), 7)]
    given = {"array": X, "tensor": tensor, "batches": batches, "dataset": TensorDataset(tensor)}
    return given[kind], torch.from_numpy(WHOLE)


@pytest.mark.parametrize("kind", ["array", "tensor", "batches", "dataset", "npy", "parquet", "csv"])
@pytest.mark.parametrize("scheme", ["zscore", "minmax", "robust", sn.FixedScale(0, 1e4)])
def test_whole_weights_are_samples_that_come_again(tmp_path, kind, scheme):
    source, weights = sources(tmp_path, kind)
    norm, again = fitted(source, scheme, weights=weights), fitted(np.repeat(X, WHOLE, axis=0), scheme)
    check_same(norm, again)
    assert torch.allclose(norm.shift, again.shift, rtol=1e-13, atol=0)
    assert torch.allclose(norm.scale, again.scale, rtol=1e-13, atol=0)
    assert (norm.samples, norm.record.weights) == ((WHOLE > 0).sum(), "whole")
    assert norm.rank_error == 0
    # The sketch is of samples that count, each once.
    assert norm.sketch.hashes.tolist() == again.sketch.hashes.tolist()


def test_the_same_bits_from_any_source_by_any_workers():
    one = fitted(small(X, 13), "robust", weights=REAL, workers=1)
    for source, options in (
        (X, {"workers": 4}),
        (TensorDataset(torch.from_numpy(X)), {"workers": 2}),
        ((X[i : i + 30] for i in range(0, len(X), 30)), {}),
    ):
        other = fitted(small(source, 13), "robust", weights=REAL, **options)
        check_same(one, other, exact=True)
        assert torch.equal(one.quantiles, other.quantiles)


def exact(column, weights):
    """Count, mean and sum of squares of a column, in fractions."""
    values, w = list(map(Fraction, column)), list(map(Fraction, weights))
    mean = sum(a * b for a, b in zip(values, w, strict=True)) / sum(w)
    return sum(w), mean, sum(b * (a - mean) ** 2 for a, b in zip(values, w, strict=True))


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_real_weights_against_fractions(offset):
    x = RNG.standard_normal((300, 2)) + offset
    weights = RNG.random(300) * 5
    moments = fitted(x, weights=weights).moments
    for at in range(2):
        count, mean, m2 = exact(x[:, at], weights)
        assert abs(Fraction(moments.count[at].item()) / count - 1) < 1e-14
        assert abs(Fraction(moments.mean[at].item()) + Fraction(moments.mean_low[at].item()) - mean) < 1e-15
        assert abs(Fraction(moments.m2[at].item()) / m2 - 1) < 1e-13


@pytest.mark.parametrize("pattern", ["n c h w -> c", "n c h w -> h c", "n c h w ->", "n (g c) h w -> g"])
def test_any_pattern(pattern):
    images, weights = RNG.integers(0, 255, (40, 4, 3, 5)).astype(np.uint8), RNG.integers(0, 3, 40)
    sizes = {"g": 2} if "(g" in pattern else {}
    norm = fitted(images, pattern=pattern, weights=weights, **sizes)
    again = fitted(np.repeat(images, weights, axis=0), pattern=pattern, **sizes)
    check_same(norm, again)
    robust = fitted(images, "robust", pattern=pattern, weights=weights, **sizes)
    repeated = fitted(np.repeat(images, weights, axis=0), "robust", pattern=pattern, **sizes)
    assert torch.equal(robust.quantiles, repeated.quantiles)


def test_samples_without_weight_may_hold_anything(tmp_path):
    x, weights = X.copy(), np.where(np.arange(len(X)) % 3, 1.0, 0.0)
    x[::3] = np.nan
    x[0] = np.inf
    check_same(fitted(x, weights=weights), fitted(X[weights > 0]))
    frame = pd.DataFrame({"a": [None, 2.0, 3.0, None], "b": [2**60, 5, 6, 7], "w": [0, 1, 2, 1]})
    frame.astype({"b": "int64"}).to_parquet(tmp_path / "a.parquet")
    norm = fitted(tmp_path / "a.parquet", weights="w", nan="omit")
    assert norm.count.tolist() == [3, 4]
    assert (norm.nan_count.tolist(), norm.null_count.tolist()) == ([0, 0], [1, 0])
    assert norm.moments.mean.tolist() == [8 / 3, 6.0]
    with pytest.raises(DataError, match="null at row 3, column 'a'"):
        fitted(tmp_path / "a.parquet", weights="w")


def test_nan_is_left_out():
    x = X[:50].copy()
    x[3, 2] = x[7, 2] = x[9, 4] = np.nan
    weights = np.arange(50) % 4
    norm, again = fitted(x, weights=weights, nan="omit"), fitted(np.repeat(x, weights, 0), nan="omit")
    assert torch.equal(norm.count, again.count)
    assert norm.nan_count[[2, 4]].tolist() == [2, 1]  # values; again those of weight 3 come thrice
    with pytest.raises(DataError, match="nan at row 3, c=2"):
        fitted(x, weights=weights)


def test_quantiles_of_real_weights():
    x = np.array([[1.0], [2.0], [3.0], [np.nan], [4.0]])
    norm = fitted(x, "robust", weights=[0.1, 0.2, 0.3, 9.0, 0.4], nan="omit")
    assert norm.quantiles.reshape(-1).tolist() == [2.0, 3.0, 4.0]


def test_a_sample_of_positions_says_what_it_is_worth():
    x = RNG.standard_normal((40_000, 1))
    alike = fitted(x, "robust", weights=np.full(len(x), 0.5))
    unlike = fitted(x, "robust", weights=RNG.exponential(size=len(x)))
    assert (alike.record.positions, alike.rank_error) == (1 << 14, fitted(x, "robust").rank_error)
    assert 0.45 < unlike.record.positions / (1 << 14) < 0.55  # E(w)^2 / E(w^2)
    assert unlike.rank_error > alike.rank_error
    assert (unlike.quantiles - fitted(x, "robust").quantiles).abs().max() < 0.05


@pytest.mark.parametrize("weights", [WHOLE, REAL])
def test_it_travels(tmp_path, weights):
    norm = fitted(X, "robust", weights=weights)
    sn.save(norm, tmp_path / "a.safetensors")
    loaded = sn.load(tmp_path / "a.safetensors")
    state = sn.InputNorm.from_state_dict(norm.state_dict())
    taken = fitted(X, "robust")
    taken.load_state_dict(norm.state_dict())
    for other in (loaded, state, taken, taken.half()):
        check_same(norm, other, exact=True)
        assert other.record == norm.record
        assert other.nan_count.dtype == torch.int64
    back = fitted(X, "robust")
    taken.load_state_dict(back.state_dict())
    assert taken.count.dtype == torch.int64
    assert torch.equal(taken.count, back.count)
    assert sn.audit(norm, X).overlap.found > 100


def test_the_ledger_is_of_these_weights(tmp_path):
    np.save(tmp_path / "x.npy", X)
    ledger = tmp_path / "ledger"
    first = fitted(tmp_path / "x.npy", weights=WHOLE, ledger=ledger)
    check_same(first, fitted(tmp_path / "x.npy", weights=WHOLE, ledger=ledger, resume=True), exact=True)
    for other in (None, WHOLE + 1):
        with pytest.raises(LedgerError):
            fitted(tmp_path / "x.npy", weights=other, ledger=ledger, resume=True)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1.0], ShapeError, r"shape \(1,\) for 178 samples"),
        (np.ones((178, 1)), ShapeError, "one number per sample"),
        (-WHOLE, DataError, "0 or more(.|\n)*such"),
        (np.where(WHOLE, 1, np.nan), DataError, "finite(.|\n)*nan at row"),
        (np.full(178, np.inf), DataError, "finite"),
        (np.zeros(178), DataError, "All weights of array are zero"),
        (["a"] * 178, DataError, "weights must be numbers"),
        ("often", OptionError, "weights= is no option of arrays"),
    ],
)
def test_weights_that_cannot_be(weights, error, words):
    with pytest.raises(error, match=words):
        fitted(X, weights=weights)


def test_weights_that_do_not_go_with_the_data(tmp_path):
    for weights in (WHOLE[:-1], np.append(WHOLE, 1)):
        with pytest.raises(ShapeError, match="one number per sample"):
            fitted((X[i : i + 7] for i in range(0, len(X), 7)), weights=weights)
    path, _ = sources(tmp_path, "parquet")
    for options, words in (
        ({"weights": WHOLE}, "one of its columns"),
        ({"weights": "nothing"}, "No column 'nothing'"),
        ({"weights": "often", "columns": ["ash", "often"]}, "both weights and feature"),
    ):
        with pytest.raises((DataError, OptionError), match=words):
            fitted(path, **options)
    WINE.assign(often=np.where(WHOLE, 1.0, np.nan)).to_parquet(path)
    with pytest.raises(DataError, match="finite numbers"):
        fitted(path, weights="often")
    with pytest.raises(OptionError, match="skip_bad"):
        fitted(X, weights=WHOLE, skip_bad=True)


def test_from_the_command_line(tmp_path):
    path, _ = sources(tmp_path, "parquet")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "w.npy", REAL)
    runner, out = CliRunner(), str(tmp_path / "a.safetensors")
    for data, weights in ((path, "often"), (tmp_path / "x.npy", str(tmp_path / "w.npy"))):
        arguments = ["fit", str(data), "--split", "train", "--weights", weights, "--out", out]
        result = runner.invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "by their weights" in runner.invoke(app, ["show", out]).output
    check_same(sn.load(out), fitted(X, weights=REAL), exact=True)
    missing = ["fit", str(path), "--split", "train", "--weights", str(tmp_path / "no.npy"), "--out", out]
    assert runner.invoke(app, missing, catch_exceptions=False).exit_code == 2


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(3, complex), "dtype complex128"),
        (["1", "2", "3"], "dtype <U1"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "masked"),
        (torch.ones(3, requires_grad=True), "requires grad"),
        (np.full(3, 1e308), "sum of weights overflows"),
        ([1, None, 2], "nan at row 1"),
    ],
)
def test_weights_that_are_no_real_numbers(weights, words):
    with pytest.raises(DataError, match=words):
        fitted(X[:3], weights=weights)


@pytest.mark.parametrize("content", [b"", b"PK\3\4damaged", b"\x93NUMPY\x01\x00", "complex", "half"])
def test_a_damaged_file_of_weights_is_named(content, tmp_path):
    np.save(tmp_path / "x.npy", X)
    path = tmp_path / "w.npy"
    np.save(path, np.ones(len(X), complex if content == "complex" else float))
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        path.write_bytes(path.read_bytes()[:-9])
    result = CliRunner().invoke(app, ["fit", str(tmp_path / "x.npy"), "--split=train", f"--weights={path}",
                                      f"--out={tmp_path / 'out'}"])  # fmt: skip
    assert result.exit_code == 2
    assert "w.npy" in result.stderr.replace("\n", "")
    assert result.exception is None or isinstance(result.exception, SystemExit)
