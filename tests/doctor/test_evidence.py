"""What `check` keeps for its page, against numbers of the tensors themselves."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import slabnorm as sn
from slabnorm.doctor.evidence import MOST

pytestmark = pytest.mark.usefixtures("in_plain_torch")


def test_numbers_are_those_of_the_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    x = torch.randn(32, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5
    record = sn.check(model, x)
    seen = record.evidence
    assert [layer["name"] for layer in seen["layers"]] == ["0", "1", "2"]
    (given,) = seen["inputs"]
    given_x = x.double()
    assert given["mean"] == pytest.approx(float(given_x.mean()), rel=1e-4)
    assert given["rms"] == pytest.approx(float(given_x.square().mean().sqrt()), rel=1e-4)
    spread = given_x.var(0, correction=0).mean().sqrt()
    assert given["spread"] == pytest.approx(float(spread), rel=1e-4)
    assert (given["min"], given["max"]) == pytest.approx((float(x.min()), float(x.max())), rel=1e-5)
    out = model[0](x).detach().double().square().mean().sqrt()
    assert seen["layers"][0]["out"] == pytest.approx(float(out), rel=1e-4)
    assert seen["layers"][1]["before"] == "0"


def test_channels_are_kept_of_findings_about_them_and_not_too_many():
    model = nn.Sequential(nn.BatchNorm1d(1000), nn.BatchNorm1d(1000))
    model[0].running_mean[0] = math.nan
    record = sn.check(model, torch.randn(16, 1000))
    assert 201 in [f.code for f in record.findings]
    channels = record.evidence["channels"]["0"]
    assert "1" not in record.evidence["channels"]
    assert channels["running_mean"][:2] == [None, 0.0]
    assert channels["number"][0] == 0
    assert channels["number"][-1] == 999
    assert len(channels["number"]) == len(channels["weight"]) == len(set(channels["number"])) == MOST
    json.dumps(record.as_dict(), allow_nan=False)


def test_what_was_in_the_record_is_still_there():
    record = sn.check(nn.Sequential(nn.Linear(2, 2)), torch.randn(8, 2))
    kept = {"model", "norms", "layers", "samples", "findings", "notes", "healthy", "verdict"}
    assert set(record.as_dict()) == kept | {"evidence"}
    assert hash(record) == hash(record)
