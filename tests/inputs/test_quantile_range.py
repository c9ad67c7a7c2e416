"""QuantileRange: y = (x - q_low) / (q_high - q_low), mapped onto `out`, against NumPy's quantiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.preprocessing import RobustScaler
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataWarning, OptionError
from slabnorm.inputs import exports
from slabnorm.inputs.schemes import from_plain, to_plain

TABLE = load_breast_cancer().data
WINE = load_wine().data


def by_hand(x: np.ndarray, low: float = 0.01, high: float = 0.99, out: tuple[float, float] = (-1, 1)):
    bottom, top = np.quantile(x, low, axis=0), np.quantile(x, high, axis=0)
    return (x - bottom) / (top - bottom) * (out[1] - out[0]) + out[0]


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [
        ("quantile", by_hand(TABLE)),
        (sn.QuantileRange(0.1, 0.9), by_hand(TABLE, 0.1, 0.9)),
        (sn.QuantileRange(0.2, 0.5, (0, 5)), by_hand(TABLE, 0.2, 0.5, (0, 5))),
        (sn.QuantileRange(0, 1), 2 * (TABLE - TABLE.min(0)) / np.ptp(TABLE, 0) - 1),
    ],
    ids=["quantile", "tenths", "one side", "all"],
)
def test_quantiles_come_out_at_the_ends(scheme: str | sn.QuantileRange, wanted: np.ndarray) -> None:
    norm = sn.fit(TABLE, scheme, split="train")
    assert norm.rank_error == 0
    x = torch.from_numpy(TABLE)
    np.testing.assert_allclose(norm(x).numpy(), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(norm.inverse(norm(x)).numpy(), TABLE, rtol=1e-13, atol=1e-13)
    y = norm(x.float())  # the largest are some 100, and a float32 of x has lost 6e-8 of it
    np.testing.assert_allclose(y.numpy(), wanted, rtol=2e-5, atol=2e-5)


def test_it_is_what_policies_of_robots_are_trained_with() -> None:
    norm = sn.fit(WINE, "quantile", split="train")
    q01, q99 = np.quantile(WINE, 0.01, axis=0), np.quantile(WINE, 0.99, axis=0)
    lerobot = 2.0 * (WINE - q01) / (q99 - q01) - 1.0  # NormalizationMode.QUANTILES
    openpi = (WINE - q01) / (q99 - q01 + 1e-6) * 2.0 - 1.0  # use_quantile_norm
    y = norm(torch.from_numpy(WINE)).numpy()
    np.testing.assert_allclose(y, lerobot, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y, openpi, atol=1e-5)
    assert y.max() > 1.2  # it does not clip


def test_ranks_of_large_data_are_within_the_error_that_is_said() -> None:
    data = np.random.default_rng(0).exponential(size=(200_000, 3)).astype(np.float32)
    norm = sn.fit(data, "quantile", split="train")
    assert 0.012 < norm.rank_error < 0.013
    for row, rank in enumerate((0.01, 0.99)):
        ranks = (data <= norm.quantiles[row].numpy().astype(np.float32)).mean(0)
        assert np.abs(ranks - rank).max() <= 0.002


def test_clipping_ends_at_the_output_range() -> None:
    norm = sn.fit(TABLE, sn.QuantileRange(out=(0, 2), clip=True), split="train")
    y = norm(torch.from_numpy(TABLE)).numpy()
    np.testing.assert_allclose(y, np.clip(by_hand(TABLE, out=(0, 2)), 0, 2), rtol=1e-12, atol=1e-12)
    assert (y.min(), y.max()) == (0, 2)


def test_features_without_a_range() -> None:
    data = np.zeros((1000, 3))
    data[:, 0], data[3, 1], data[:, 2] = 7, 0.5, np.arange(1000)
    with pytest.warns(DataWarning) as caught:
        norm = sn.fit(data, "quantile", split="train")
    assert norm.scale.tolist()[:2] == [1.0, 1.0]
    same, flat = (str(warning.message) for warning in caught)
    assert same.endswith("1 of 3 features are constant and get scale 1: feature 0")
    assert flat.endswith("1 of 3 features have equal quantiles and get scale 1: feature 1")
    assert norm(torch.from_numpy(data))[3].tolist()[:2] == [-1.0, 0.0]


def test_whole_weights_are_repetitions() -> None:
    weights = np.random.default_rng(1).integers(0, 4, len(WINE))
    norm = sn.fit(WINE, "quantile", split="train", weights=weights)
    wanted = by_hand(np.repeat(WINE, weights, axis=0))
    got = norm(torch.from_numpy(np.repeat(WINE, weights, axis=0)))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_it_travels(tmp_path: Path) -> None:
    norm, x = sn.fit(TABLE, sn.QuantileRange(0.1, 0.9, (0, 1)), split="train"), torch.from_numpy(TABLE)
    sn.save(norm, tmp_path / "a")
    for other in (sn.load(tmp_path / "a"), sn.InputNorm.from_state_dict(norm.state_dict())):
        assert other.scheme == sn.QuantileRange(0.1, 0.9, (0.0, 1.0))
        assert torch.equal(other(x), norm(x))
    assert from_plain(to_plain(norm.scheme)) == norm.scheme


@pytest.mark.parametrize(
    "ranks", [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.9), (0.1, 1.5), ("a", 1), (0, float("nan"))]
)
def test_ranks_that_are_none(ranks: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="ranks with 0 <= low < high <= 1"):
        sn.QuantileRange(*ranks)


def test_a_range_that_is_none() -> None:
    with pytest.raises(OptionError, match="out must be two finite numbers"):
        sn.QuantileRange(out=(1, -1))


def test_scikit_learn_gets_the_same_numbers() -> None:
    norm = sn.fit(WINE, sn.QuantileRange(0.05, 0.95, (-2, 3)), split="train")
    scaler = exports.to_sklearn(norm)
    assert isinstance(scaler, RobustScaler)
    np.testing.assert_allclose(
        scaler.transform(WINE), by_hand(WINE, 0.05, 0.95, (-2, 3)), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(WINE)), WINE, rtol=1e-12)
    clipped = sn.fit(WINE, sn.QuantileRange(clip=True), split="train")
    with pytest.raises(OptionError, match="cannot clip"):
        exports.to_sklearn(clipped)
    with pytest.raises(OptionError, match="reads quantiles") as refused:
        sn.SlabScaler("quantile").fit(WINE)
    assert refused.value.fix == 'fit it as a layer: slabnorm.fit(x, "quantile", split="train")'


def test_the_command_fits_and_shows_it(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", WINE)
    command = ["fit", str(tmp_path / "train.npy"), "--split", "train", "--scheme", "quantile"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "inputs")])
    assert done.exit_code == 0, done.output
    assert "QuantileRange(low=0.01, high=0.99, out=(-1.0, 1.0)), n c -> c" in done.stdout
    assert "mean █, from quantile 0.01 to 0.99 ▒" in done.stdout
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "inputs"), "--json"])
    plain = json.loads(shown.stdout)
    assert plain["ranks"] == [0.01, 0.99]
    found = [feature["quantiles"] for feature in plain["features"]]
    np.testing.assert_allclose(found, np.quantile(WINE, [0.01, 0.99], axis=0).T, rtol=1e-12)


def test_another_scheme_of_the_same_statistics(tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (50, 3)).astype(np.uint8))
    sn.save(sn.fit(pixels, "quantile", split="train"), tmp_path / "pixels.safetensors")
    norm = sn.load(tmp_path / "pixels.safetensors")
    other = norm.half().with_scheme("minmax")
    x = pixels.double().numpy()
    want = (x - x.min(0)) / (x.max(0) - x.min(0))
    np.testing.assert_allclose(other(pixels.double()).numpy(), want, rtol=1e-12, atol=1e-12)
    assert other(pixels).dtype == torch.float16  # integers come out as the layer was cast to
    np.testing.assert_allclose(other(pixels).double().numpy(), want, atol=2**-11)
    with pytest.raises(OptionError, match="pixels"):  # the file that the statistics were read from
        exports.export(other, "json", tmp_path / "pixels.safetensors")
