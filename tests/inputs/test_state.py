"""The state_dict: round trips, and what is refused before anything changes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from torch import nn

from slabnorm.errors import ShapeError, StatisticsError
from slabnorm.inputs import FixedScale, InputNorm, MinMax, ZScore, fit
from slabnorm.inputs.record import Record

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
OTHER = X * 2 + 5


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("scheme", [ZScore(ddof=1), MinMax((-1, 2)), FixedScale(-20, 20)])
def test_a_state_dict_loads_into_a_layer_of_the_same_features(scheme):
    norm, other = fit(X, scheme, "n c -> c", split="train"), fit(OTHER, MinMax(), split="fold_1")
    other.load_state_dict(saved(norm.state_dict()))
    assert torch.equal(other(X), norm(X))
    assert other.record == norm.record
    assert repr(other) == repr(norm)


def test_a_state_dict_alone_is_enough():
    data = X.clone()
    data[3, 1] = float("nan")
    norm = fit(data, "minmax", "n (g c) -> g", split="train", nan="omit", g=3)
    model = nn.Sequential(nn.Identity(), norm)
    for state, prefix in ((norm.state_dict(), ""), (model.state_dict(), "1.")):
        again = InputNorm.from_state_dict(saved(state), prefix)
        assert torch.equal(again(X), norm(X))
        assert again.record == norm.record
        assert again.nan_count.tolist() == [0, 1, 0]
        assert all(torch.equal(a, b) for a, b in zip(again.buffers(), norm.buffers(), strict=True))


def test_every_entry_is_a_tensor():
    # So that safetensors, DDP and torch.load(weights_only=True) take it.
    state = fit(X, split="train").state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert {key for key in state if not key.startswith("moments_")} == {
        *("shift", "shift_low", "scale", "nan_count", "null_count", "quantiles", "_extra_state")
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("scale", 0.0), ("scale", -1.0), ("scale", float("nan")), ("scale", float("inf"))),
        *(("shift", float("nan")), ("shift_low", float("inf")), ("moments_m2", -1.0), ("moments_count", -1)),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_statistics_that_cannot_be(name, value, assign):
    norm, other = fit(X, split="train"), fit(OTHER, "minmax", split="fold_1")
    state = norm.state_dict()
    state[name] = state[name].clone()
    state[name][1] = value
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(StatisticsError):
        other.load_state_dict(state, assign=assign)
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
    with pytest.raises(StatisticsError):
        InputNorm.from_state_dict(state)


def test_the_error_names_the_entry():
    model = nn.ModuleDict({"norm": fit(X, split="train")})
    state = model.state_dict()
    state["norm.scale"] = -state["norm.scale"]
    with pytest.raises(StatisticsError, match=r"norm\.scale must be finite and above 0\n  got: -"):
        model.load_state_dict(state)


def test_statistics_of_other_features():
    norm = fit(X, split="train")
    with pytest.raises(ShapeError, match=r"shift must have shape \(3,\)(.|\n)*\(2,\)"):
        norm.load_state_dict(fit(X[:, :2], split="train").state_dict())
    with pytest.raises(StatisticsError, match=r"'n \.\.\. c -> c', not"):
        norm.load_state_dict(fit(X, "zscore", "n ... c -> c", split="train").state_dict())


@pytest.mark.parametrize("missing", ["scale", "_extra_state", "moments_mean"])
def test_a_state_dict_with_a_hole(missing):
    norm = fit(X, split="train")
    state = norm.state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=missing):
        norm.load_state_dict(state)
    with pytest.raises((StatisticsError, RuntimeError), match=missing):
        InputNorm.from_state_dict(state)
    with pytest.raises(StatisticsError, match="prefix"):
        InputNorm.from_state_dict(norm.state_dict(), "inputs.")


def test_a_checkpoint_that_was_cast_stays_float64_in_the_layer():
    norm = fit(X, split="train")
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in norm.state_dict().items()
    }
    for assign in (False, True):
        other = fit(OTHER, split="train")
        other.load_state_dict(state, assign=assign)
        assert other.scale.dtype == torch.float64
        np.testing.assert_allclose(other.scale, norm.scale, rtol=1e-3)


def test_a_loaded_range_decides_how_to_work():
    tiny = fit((X * 1e-40).float(), split="train")
    norm = fit(X.float(), split="train")
    norm.load_state_dict(tiny.state_dict())
    x = (X * 1e-40).float()
    assert torch.equal(norm(x), tiny(x))


def record(**changes):
    plain = json.loads(bytes(fit(X, split="train").get_extra_state().tolist()))
    for key, value in changes.items():
        plain[key] = value
    return torch.tensor(list(json.dumps(plain).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "state",
    [
        torch.tensor([], dtype=torch.uint8),
        torch.tensor([255, 254], dtype=torch.uint8),
        torch.tensor(list(b"[" * 100000), dtype=torch.uint8),
        torch.tensor(list(b"[]"), dtype=torch.uint8),
        torch.tensor(list(b"{}"), dtype=torch.uint8),
        record(version=2),
        record(scheme={"name": "nope"}),
        record(scheme={"name": "zscore", "ddof": -1}),
        record(pattern="n c -> q"),
        record(pattern="n c -> n"),
        record(sample=[3, 4]),
        record(sample="abc"),
        record(other=1),
        record(sizes=[1]),
        None,
        "text",
    ],
    ids=range(16),
)
def test_a_record_that_is_damaged(state):
    norm = fit(X, split="train")
    before = norm.record
    with pytest.raises(StatisticsError, match="extra state"):
        norm.load_state_dict({**norm.state_dict(), "_extra_state": state})
    assert norm.record is before


def test_the_record_is_the_same_bytes_again():
    one, two = (fit(X, split="train").record for _ in range(2))
    assert torch.equal(one.to_tensor(), two.to_tensor())
    assert Record.from_tensor(one.to_tensor()) == one


def test_what_was_kept_of_other_samples_goes():
    norm, other = fit(X, split="train"), fit(OTHER, split="train")
    kept = norm.sketch
    norm.load_state_dict(norm.state_dict())
    assert norm.sketch is kept
    norm.load_state_dict(other.state_dict())
    assert len(norm.sketch.hashes) == 0


@pytest.mark.parametrize("left_out", ["shift", "scale", "moments_mean"])
def test_a_state_dict_in_part(left_out):
    norm, state = fit(X, split="train"), fit(OTHER, split="train").state_dict()
    before = norm(X)
    del state[left_out]
    with pytest.raises(StatisticsError, match="do not follow from the moments"):
        norm.load_state_dict(state, strict=False)
    assert torch.equal(norm(X), before)
    if left_out != "moments_mean":
        with pytest.raises(StatisticsError, match=f"no tensor '{left_out}'"):
            InputNorm.from_state_dict(state)
