"""`near_constant`: what becomes of features whose scale is tiny compared with their own values."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slabnorm as sn
from slabnorm.cli.fit import print_norm
from slabnorm.errors import ArtifactError, DataWarning, OptionError
from slabnorm.inputs import exports
from slabnorm.inputs.schemes import Affine, Scheme, from_plain, to_plain

RNG = np.random.default_rng(0)
# The joints of a robot: the first two move, the third hardly, the fourth not at all; a gripper is shut.
MOVES = RNG.normal(size=(4000, 2)) * [1, 5] + [0, 12]
STUCK = 1.5691 + 2e-4 * RNG.normal(size=4000)
GRIPPER = np.where(np.arange(4000) % 1000 == 7, 0.9, 0.0)
X = np.column_stack([MOVES, -STUCK, np.full(4000, 0.25), GRIPPER])
NEAR = np.array([False, False, True, False, False])

# Each scheme beside its shift and scale, by hand.
SCHEMES: dict[str, tuple[Any, Any]] = {
    "zscore": (sn.ZScore, lambda x: (x.mean(0), x.std(0))),
    "minmax": (sn.MinMax, lambda x: (x.min(0), np.ptp(x, 0))),
    "robust": (sn.Robust, lambda x: (np.median(x, 0), np.subtract(*np.quantile(x, [0.75, 0.25], axis=0)))),
    "quantile": (
        sn.QuantileRange,
        lambda x: (np.quantile(x, 0.01, 0), np.subtract(*np.quantile(x, [0.99, 0.01], axis=0))),
    ),
}
EVERY = pytest.mark.parametrize("name", SCHEMES)
UNITS = pytest.mark.parametrize("unit", [1e-12, 1.0, 1e9])


def fitted(scheme: Any, x: np.ndarray = X) -> sn.InputNorm:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return sn.fit(x, scheme, split="train")


def by_hand(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shift and scale without a policy, with scale 1 where there is none."""
    shift, scale = SCHEMES[name][1](x)
    return shift, np.where(scale > 1e-14 * np.abs(x).max(0), scale, 1.0)


@UNITS
@EVERY
def test_floor_is_a_thousandth_of_the_largest_value(name: str, unit: float) -> None:
    x = X * unit
    norm = fitted(SCHEMES[name][0](near_constant="floor"), x)
    shift, scale = by_hand(name, x)
    assert (scale[NEAR] < 1e-3 * np.abs(x).max(0)[NEAR]).all()
    wanted = np.where(NEAR, 1e-3 * np.abs(x).max(0), scale)
    np.testing.assert_allclose(norm.scale, wanted, rtol=1e-11)
    np.testing.assert_allclose((norm.shift.numpy() - shift) / wanted, 0, atol=1e-9)
    span, low = norm.scheme.target
    y = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y[:, NEAR], ((x - shift) / wanted * span + low)[:, NEAR], atol=1e-8)


@UNITS
@EVERY
def test_keep_passes_them_on_as_they_are(name: str, unit: float) -> None:
    x = X * unit
    norm = fitted(SCHEMES[name][0](near_constant="keep"), x)
    shift, scale = by_hand(name, x)
    span, low = norm.scheme.target
    y = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y[:, 2], x[:, 2], rtol=1e-15, atol=3e-16)
    others = ((x - shift) / scale * span + low)[:, ~NEAR]
    np.testing.assert_allclose(y[:, ~NEAR], others, rtol=1e-9, atol=1e-9)
    back = norm.inverse(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(back[:, :3], x[:, :3], rtol=1e-12, atol=1e-12 * unit + 3e-16)


@pytest.mark.parametrize("out", [(0, 1), (-1, 1), (-3, 5), (10, 20)])
def test_keep_undoes_any_output_range(out: tuple[float, float]) -> None:
    norm = fitted(sn.MinMax(out, near_constant="keep"))
    x = torch.from_numpy(X)
    assert (norm(x)[:, 2] - x[:, 2]).abs().max() <= 4e-15
    assert (norm(x.float())[:, 2] - x.float()[:, 2]).abs().max() <= 3e-6  # 1e-6 of the size of `out` at most
    assert (norm(x)[:, 0].min(), norm(x)[:, 0].max()) == out


@EVERY
def test_warn_changes_no_scale(name: str) -> None:
    made = SCHEMES[name][0]
    shift, scale = by_hand(name, X)
    norm = fitted(made(near_constant="warn"))
    np.testing.assert_allclose(norm.scale, scale, rtol=1e-11)
    np.testing.assert_allclose(norm.shift, shift, rtol=1e-11, atol=1e-15)
    own = made().affine(norm.moments, norm.quantiles)
    assert torch.equal(norm.scale, own.scale)
    assert torch.equal(norm.shift, own.shift)


@pytest.mark.parametrize("policy", ["warn", "floor", "keep"])
@EVERY
def test_what_has_no_spread_gets_scale_1_all_the_same(name: str, policy: str) -> None:
    norm = fitted(SCHEMES[name][0](near_constant=policy), X * 1e6)
    assert norm.scale[3] == 1
    assert norm.shift[3] == 0.25e6
    if name in ("robust", "quantile"):  # the gripper's quantiles are equal
        assert (norm.shift[4], norm.scale[4]) == (0, 1)


def test_the_joint_of_a_public_report() -> None:
    # https://github.com/Physical-Intelligence/openpi/issues/814: an action of 0 became -3200.49.
    low, high = 1.568642928333805, 1.5696224851423788
    x = np.linspace(low, high, 101)[:, None]
    zero = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.warns(DataWarning, match="values are up to 1,602 times as large"):
        norm = sn.fit(x, sn.QuantileRange(0, 1), split="train")
    assert norm(zero).item() == pytest.approx(2 * (0 - low) / (high - low) - 1)
    assert -3205 < norm(zero).item() < -3200
    floor = fitted(sn.QuantileRange(0, 1, near_constant="floor"), x)
    assert floor(zero).item() == pytest.approx(2 * (0 - low) / (1e-3 * high) - 1)
    assert fitted(sn.QuantileRange(0, 1, near_constant="keep"), x)(zero).item() == 0


@UNITS
@pytest.mark.parametrize("name", ["robust", "quantile"])
def test_quantiles_that_are_nearly_equal_are_warned_of(name: str, unit: float) -> None:
    x = X[:, :3] * unit
    with pytest.warns(
        DataWarning, match=r"1 of 3 features is nearly constant between quantiles: feature 2\."
    ) as caught:
        norm = sn.fit(x, name, split="train")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    scale = by_hand(name, x)[1][2]
    assert f"The scale of feature 2 is {scale:.3g}, " in text
    assert f"up to {np.abs(x[:, 2]).max() / scale:,.0f} times as large" in text
    assert f"slabnorm.{type(norm.scheme).__name__}(near_constant='keep')" in text


@pytest.mark.parametrize(
    "scheme",
    [
        sn.ZScore(),
        sn.MinMax(),
        sn.Robust(clip=(-10, 10)),
        *(made(near_constant=policy) for made, _ in SCHEMES.values() for policy in ("floor", "keep")),
    ],
    ids=str,
)
def test_no_warning_where_data_far_from_0_are_healthy_or_the_policy_is_said(scheme: Scheme) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sn.fit(X[:, :3], scheme, split="train")


@pytest.mark.parametrize(
    "scheme", [sn.ZScore(ddof=1, near_constant="keep"), sn.QuantileRange(near_constant="floor")]
)
def test_the_policy_travels(scheme: Scheme, tmp_path: Path) -> None:
    norm, x = fitted(scheme), torch.from_numpy(X)
    sn.save(norm, tmp_path / "a")
    assert from_plain(to_plain(scheme)) == scheme
    for other in (sn.load(tmp_path / "a"), sn.InputNorm.from_state_dict(norm.state_dict())):
        assert other.scheme == scheme
        assert torch.equal(other(x), norm(x))
    again = fitted(type(scheme)())
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again(x), norm(x))
    assert f"near_constant='{scheme.near_constant}'" in repr(norm)


def test_the_usual_policy_is_not_written_down() -> None:
    # As before there was a choice, so that files of the same statistics have the same bytes and digest.
    assert to_plain(sn.ZScore()) == {"name": "zscore", "ddof": 0, "eps": 0.0, "clip": None}
    assert to_plain(sn.MinMax()) == {"name": "minmax", "out": (0.0, 1.0), "clip": None}
    assert to_plain(sn.Robust()) == {"name": "robust", "low": 0.25, "high": 0.75, "unit": False, "clip": None}
    assert from_plain({"name": "zscore", "ddof": 0, "eps": 0.0, "clip": None}) == sn.ZScore()
    assert "near_constant" not in json.loads(exports.to_json(fitted("zscore")))["scheme"]
    kept = json.loads(exports.to_json(fitted(sn.ZScore(near_constant="keep"))))
    assert kept["scheme"]["near_constant"] == "keep"
    assert (kept["features"][2]["shift"], kept["features"][2]["scale"]) == (0, 1)


def test_a_file_with_a_policy_that_is_none(tmp_path: Path) -> None:
    norm = fitted(sn.ZScore(near_constant="keep"))
    object.__setattr__(norm.scheme, "near_constant", "drop")
    sn.save(norm, tmp_path / "a")
    with pytest.raises(ArtifactError, match="near_constant must be 'warn', 'floor' or 'keep'"):
        sn.load(tmp_path / "a")


@pytest.mark.parametrize("policy", ["drop", "", None, True, ["keep"]])
def test_policies_that_are_none(policy: Any) -> None:
    with pytest.raises(OptionError, match="near_constant must be 'warn', 'floor' or 'keep'"):
        sn.ZScore(near_constant=policy)


def test_a_given_range_has_no_such_features() -> None:
    with pytest.raises(OptionError, match="FixedScale has no near_constant"):
        sn.FixedScale(0, 255, near_constant="keep")


@pytest.mark.parametrize("policy", ["floor", "keep"])
def test_a_scheme_of_ones_own_has_the_policy(policy: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class HalfRange(Scheme):
        def affine(self, moments: sn.Moments, quantiles: torch.Tensor) -> Affine:
            scale = torch.where(moments.max > moments.min, (moments.max - moments.min) / 2, 1.0)
            return Affine(moments.mean.clone(), moments.mean_low.clone(), scale)

    norm = fitted(HalfRange(near_constant=policy))
    floor = 1e-3 * np.abs(X[:, 2]).max()
    assert norm.scale[2].item() == (floor if policy == "floor" else 1)
    np.testing.assert_allclose(norm.scale[:2], np.ptp(X, 0)[:2] / 2, rtol=1e-15)
    assert fitted(HalfRange()).scale[2].item() == pytest.approx(np.ptp(STUCK) / 2, rel=1e-15)


@pytest.mark.parametrize("policy", ["floor", "keep"])
@pytest.mark.parametrize("name", SCHEMES)
def test_scikit_learn_gets_the_same_numbers(name: str, policy: str) -> None:
    norm = fitted(SCHEMES[name][0](near_constant=policy))
    wanted = norm(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(exports.to_sklearn(norm).transform(X), wanted, rtol=1e-9, atol=1e-9)
    if name == "minmax":
        scaler = exports.to_sklearn(norm)
        np.testing.assert_array_equal([scaler.data_min_, scaler.data_max_], [X.min(0), X.max(0)])


@pytest.mark.parametrize("policy", ["floor", "keep"])
def test_slab_scaler_has_the_policy(policy: str) -> None:
    scaler = sn.SlabScaler(sn.MinMax((-1, 1), near_constant=policy)).fit(X)
    norm = fitted(sn.MinMax((-1, 1), near_constant=policy))
    np.testing.assert_array_equal(scaler.transform(X), norm(torch.from_numpy(X)).numpy())
    assert scaler.scale_[2] == (2 if policy == "keep" else 1e-3 * np.abs(X[:, 2]).max())


def test_a_kept_feature_is_folded_as_it_is() -> None:
    norm, layer = fitted(sn.MinMax((-1, 1), near_constant="keep")), torch.nn.Linear(5, 3).double()
    x = torch.from_numpy(X)
    wanted = norm(x) @ layer.weight.T + layer.bias
    torch.testing.assert_close(norm.fold_into(layer)(x), wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(norm.fold_into(layer).weight[:, 2], layer.weight[:, 2])


def test_show_names_the_features(capsys: pytest.CaptureFixture[str]) -> None:
    print_norm(fitted(sn.ZScore(near_constant="keep")))
    assert "nearly constant, kept as is: feature 2\n" in capsys.readouterr().out
    print_norm(fitted(sn.ZScore(near_constant="floor"), np.repeat(X[:, 2:3], 7, 1)))
    said = "nearly constant, divided by 0.001 times the largest value: features 0, 1, 2, 3, 4 and 2 more"
    assert said in " ".join(capsys.readouterr().out.split())
    print_norm(fitted(sn.ZScore(near_constant="keep"), STUCK))
    assert "nearly constant, kept as is: feature all\n" in capsys.readouterr().out
    print_norm(fitted("zscore"))
    assert "nearly constant" not in capsys.readouterr().out
