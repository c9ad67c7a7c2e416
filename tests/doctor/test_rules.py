"""Each rule fires from its threshold on, and not before."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from slabnorm.doctor import thresholds as t
from slabnorm.doctor.record import Drift, Layer, ModelRecord
from slabnorm.doctor.rules import CAUSES, FAMILIES, find, find_over_time, over_time
from slabnorm.doctor.rules.signal import unlike
from slabnorm.doctor.watch import Track, WatchRecord
from slabnorm.report.check import SEVERITIES, CheckRecord
from tests.doctor.records import batch_norm, linear, model, spread


def codes(record: ModelRecord) -> list[int]:
    return [finding.code for finding in find(record)]


def drift(kind: str, ratio: float = 1.0, severity: str = "error") -> Drift:
    return Drift(kind, severity, "the data differ", "mend them", ratio, {"distance": 2.0})


def activation(**changes) -> Layer:
    return Layer("act", "Sigmoid", "activation", **{"order": 2, "calls": 1} | changes)


def dropout(**changes) -> Layer:
    return Layer("drop", "Dropout", "dropout", **{"order": 0, "calls": 1, "rate": 0.5} | changes)


def deep(factor: float, layers: int = t.DEPTH) -> ModelRecord:
    return model(*(linear(str(i), order=i, output=spread(var=factor ** (2 * i))) for i in range(layers)))


def group_norm(channels: int, groups: int, elements: int) -> Layer:
    layer = batch_norm(
        family="group", pools_samples=False, tracks=False, per_channel=False, elements=elements
    )
    layer.norm.running_mean, layer.norm.running_var, layer.norm.tracked = [], [], None
    layer.norm.channels, layer.norm.groups = channels, groups
    return layer


STANDARD_ERROR = 64**-0.5  # of the mean of a batch of 64, in its standard deviations

# code: a record that has it, and the nearest one that does not.
CASES = {
    102: (model(batch_norm(training=False)), model(batch_norm(training=False, learns=False))),
    "102 frozen": (model(batch_norm(training=False)), model(batch_norm(training=False, frozen=True))),
    103: (model(batch_norm(learns=False)), model(batch_norm(learns=False, training=False))),
    104: (model(batch_norm(), mates={"norm": 2e-3, "": 2e-3}), model(batch_norm(), mates={"": 9e-4})),
    105: (model(batch_norm(gap=0.51)), model(batch_norm(gap=0.5))),
    201: (model(batch_norm(running_var=[1.0, math.nan, 1.0, 1.0])), model(batch_norm())),
    202: (
        model(batch_norm(tracked=0), training=False),
        model(batch_norm(tracked=0, running_mean=[0.1] * 4), training=False),
    ),
    # Both bounds count: half a standard deviation, and six standard errors.
    203: (
        model(batch_norm(running_mean=[6.1 * STANDARD_ERROR] * 4)),
        model(batch_norm(running_mean=[5.9 * STANDARD_ERROR] * 4)),
    ),
    "203 of many samples": (
        model(batch_norm(running_mean=[0.51] * 4, input=spread(samples=10**6))),
        model(batch_norm(running_mean=[0.49] * 4, input=spread(samples=10**6))),
    ),
    "203 variance": (
        model(batch_norm(running_var=[1 / 3.1] * 4, input=spread(samples=10**6))),
        model(batch_norm(running_var=[1 / 2.9] * 4, input=spread(samples=10**6))),
    ),
    "203 begins": (
        model(batch_norm(running_mean=[2.0] * 4, tracked=20)),
        model(batch_norm(running_mean=[2.0] * 4, tracked=19)),
    ),
    204: (model(batch_norm(momentum=0.9)), model(batch_norm(momentum=0.89))),
    205: (model(batch_norm(updates=2)), model(batch_norm(updates=1))),
    206: (model(batch_norm(), samples=7), model(batch_norm(), samples=8)),
    "206 erased": (model(group_norm(4, 4, 1)), model(group_norm(8, 2, 8))),
    "206 in a sample": (model(group_norm(8, 2, 7)), model(group_norm(8, 2, 8))),
    207: (model(batch_norm(), samples=15, ranks=2), model(batch_norm(), samples=16, ranks=2)),
    208: (
        model(batch_norm(input=spread(var=0.9e-5), running_var=[0.9e-5] * 4)),
        model(batch_norm(input=spread(var=1.1e-5), running_var=[1.1e-5] * 4)),
    ),
    301: (
        model(linear(bias=True), batch_norm(before="linear", alone=True)),
        model(linear(bias=True), batch_norm(before="linear", alone=False)),
    ),
    "301 of a norm that does not centre": (
        model(linear(bias=True), batch_norm(before="linear", alone=True)),
        model(linear(bias=True), batch_norm(before="linear", alone=True, centers=False)),
    ),
    "301 of a norm that is frozen": (
        model(linear(bias=True), batch_norm(before="linear", alone=True)),
        model(linear(bias=True), batch_norm(before="linear", alone=True, frozen=True, training=False)),
    ),
    "301 of a norm that is in eval mode in a training": (
        model(linear(bias=True), batch_norm(before="linear", alone=True, training=False), training=False),
        model(linear(bias=True), batch_norm(before="linear", alone=True, training=False, learns=False)),
    ),
    302: (model(batch_norm(), decayed=["norm"]), model(batch_norm())),
    303: (
        model(dropout(), linear(before="drop", order=1), batch_norm(before="linear")),
        model(dropout(rate=0.0), linear(before="drop", order=1), batch_norm(before="linear")),
    ),
    "303 behind another norm": (
        model(dropout(), batch_norm("first", before="drop")),
        model(dropout(), batch_norm("first", before="drop", tracks=False, pools_samples=False)),
    ),
    304: (
        model(batch_norm("first"), batch_norm("second", before="first", alone=True)),
        model(batch_norm("first"), batch_norm("second", before=None)),
    ),
    "304 before a residual": (
        model(batch_norm("first"), batch_norm("second", before="first", alone=True)),
        model(batch_norm("first"), batch_norm("second", before="first", alone=False)),
    ),
    305: (model(group_norm(4, 4, 16)), model(group_norm(4, 2, 32))),
    306: (
        model(linear(), batch_norm(before="linear", alone=True), training=False),
        model(linear(), batch_norm(before="linear", alone=True)),
    ),
    401: (model(linear(), inputs=[spread(10.1, 0.0)]), model(linear(), inputs=[spread(9.9, 0.02)])),
    "401 faint": (
        model(linear(), inputs=[spread(1.0, 0.0099**2)]),
        model(linear(), inputs=[spread(1.0, 0.0101**2)]),
    ),
    "401 behind a norm": (model(linear(), inputs=[spread(99.0)]), model(batch_norm(), inputs=[spread(99.0)])),
    "401 drift": (model(drift=[drift("scale", 11.0)]), model(drift=[drift("scale", 9.0)])),
    402: (
        model(linear(), inputs=[spread(0.01, 1e-5, min=0.0, max=0.019)]),
        model(linear(), inputs=[spread(0.01, 1.1e-4, min=0.0, max=0.02)]),
    ),
    "402 drift": (model(drift=[drift("scale", 0.09)]), model(drift=[drift("scale", 0.11)])),
    "402 normalised": (model(drift=[drift("normalised", 1.0)]), model(drift=[drift("shift", 1.0)])),
    403: (model(activation(flat=0.51)), model(activation(flat=0.5))),
    404: (model(activation(dead=0.26)), model(activation(dead=0.25))),
    "404 of few samples": (model(activation(dead=0.5)), model(activation(dead=0.5), samples=7)),
    405: (deep(5.7), deep(5.6)),  # 5.62^4 = 1000
    "405 shrinks": (deep(1 / 5.7), deep(1 / 5.6)),
    "405 too short for a trend": (deep(20.0), deep(20.0, layers=t.DEPTH - 1)),
    406: (
        model(batch_norm(weight=[0.0, 0.0, 0.9e-4, 1.0])),
        model(batch_norm(weight=[0.0, 0.0, 1.1e-4, 1.0])),
    ),
    "406 huge": (model(batch_norm(weight=[1.0, 101.0])), model(batch_norm(weight=[1.0, 99.0]))),
    "406 of a block that begins": (
        model(batch_norm(weight=[0.0] * 4, tracked=20)),
        model(batch_norm(weight=[0.0] * 4, tracked=19)),
    ),
    408: (model(drift=[drift("order")]), model()),
    # 2^-25 lies between 0 and the smallest number above it, and rounds to the even one, which is 0.
    501: (model(batch_norm(eps=2**-25, dtype="float16")), model(batch_norm(eps=3e-8, dtype="float16"))),
    502: (model(batch_norm(statistics_dtype="bfloat16")), model(batch_norm(statistics_dtype="float32"))),
    # x - mean is rounded by 2^-24 of the mean.
    503: (
        model(batch_norm(input=spread(0.051 * 2**24), running_mean=[0.051 * 2**24] * 4)),
        model(batch_norm(input=spread(0.049 * 2**24), running_mean=[0.049 * 2**24] * 4)),
    ),
}


@pytest.mark.parametrize("name", CASES, ids=str)
def test_a_rule_fires_from_its_threshold_on(name):
    code = int(str(name).split()[0])
    wrong, right = CASES[name]
    assert code in codes(wrong)
    assert code not in codes(right)


def test_healthy_records_have_no_findings():
    assert (
        codes(model(linear(), batch_norm(before="linear", alone=True), activation(flat=0.1, dead=0.0))) == []
    )
    assert codes(model()) == []


def test_every_code_has_a_case():
    found = {int(str(name).split()[0]) for name in CASES} | {int(str(name).split()[0]) for name in OVER_TIME}
    assert found | {409} == set(CAUSES)


@pytest.mark.parametrize("record", [pair[0] for pair in CASES.values()], ids=[str(name) for name in CASES])
def test_records_survive_json(record):
    plain = json.loads(json.dumps(record.as_dict()))
    again = ModelRecord.from_dict(plain)
    assert json.dumps(again.as_dict()) == json.dumps(record.as_dict())  # NaN is not equal to itself
    assert find(again) == find(record)


def test_findings_are_whole():
    for wrong, _ in CASES.values():
        for finding in find(wrong):
            assert finding.severity in SEVERITIES
            assert finding.text
            assert finding.why
            assert finding.fix
            assert not any(part.endswith(".") for part in (finding.text, finding.why))
            assert all(isinstance(value, int | float) for _, value in finding.numbers)


def test_causes_stand_before_their_consequences():
    cold = batch_norm(momentum=0.99, running_mean=[5.0] * 4, gap=2.0)
    record = model(linear(), cold, inputs=[spread(99.0)], decayed=["norm"])
    assert codes(record) == [401, 204, 203, 302, 105]
    severities = [SEVERITIES.index(finding.severity) for finding in find(record)]
    assert severities == sorted(severities)


def test_eps_vanishes_where_numpy_rounds_it_to_0():
    for eps in (1e-8, 2.9e-8, 3.1e-8, 5e-8, 7e-8, 1e-5):
        assert (codes(model(batch_norm(eps=eps, dtype="float16"))) == [501]) == (np.float16(eps) == 0)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", "0.4%"), ("float16", "0.05%")])
def test_what_half_statistics_round_away_is_half_a_step(dtype, share):
    (finding,) = find(model(batch_norm(statistics_dtype=dtype)))
    assert f"smaller than {share} of them" in finding.why
    half_step = torch.finfo(getattr(torch, dtype)).eps / 2
    assert f"{100 * half_step:.1g}%" == share


@pytest.mark.parametrize(("changes", "severity"), [({}, "warning"), ({"per_channel": False}, "note")])
def test_only_a_norm_that_keeps_channels_apart_undoes_the_one_before(changes, severity):
    second = batch_norm("second", before="first", alone=True, **changes)
    (finding,) = find(model(batch_norm("first"), second))
    assert (finding.code, finding.severity) == (304, severity)
    assert ("undoes" in finding.why) == (severity == "warning")


@pytest.mark.parametrize("channels", [2, 7, 16, 28, 30, 96])
def test_the_groups_of_a_fix_divide_the_channels(channels):
    (finding,) = find(model(group_norm(channels, channels, 16)))
    groups = int(finding.fix.removeprefix("fewer groups, such as "))
    nn.GroupNorm(groups, channels)  # refuses a number that does not divide them
    assert groups == 1 or channels / groups >= 8


@pytest.mark.parametrize("name", ["norm", "code of one's own"])
def test_running_statistics_are_advised_for_a_norm_without_them(name):
    (finding,) = find(model(batch_norm(tracks=False), mates={name: 0.5, "": 0.5}))
    assert finding.fix.startswith("track_running_stats=True") == (name == "norm")


def test_leaks_are_of_the_split():
    found = list(unlike([drift("leak")], "the data"))
    assert [finding.code for finding in found] == [409]
    assert found[0].numbers == (("distance", 2.0), ("spread", 1.0))


def test_a_frozen_layer_with_other_statistics_is_a_note():
    frozen = batch_norm(running_mean=[5.0] * 4, frozen=True, training=False)
    assert [(f.code, f.severity) for f in find(model(frozen))] == [(203, "note")]


def test_statistics_that_are_still_initial_are_told_apart():
    slow = batch_norm(running_mean=[0.2] * 4, momentum=0.001, tracked=72, input=spread(5.0))
    (finding,) = find(model(slow))
    assert "after 72 batches 93% of them is still the initial 0 and 1" in finding.text  # 0.999^72 = 0.930


def test_the_module_where_samples_meet_is_named():
    record = model(linear("b"), linear("c"), mates={"a": 0.0, "pool": 0.5, "b": 0.4, "": 0.3})
    assert [(finding.code, finding.layer) for finding in find(record)] == [(104, "pool")]


# What is seen over time.


def watched(layer: Layer | None = None, looks: int = 8, **changes) -> WatchRecord:
    record = WatchRecord("Net", 1, looks=list(range(looks)), steps=looks, passes=Counter({1: looks}))
    record.tracks["norm"] = Track(layer or batch_norm())
    for name in ("flat", "dead", "stale"):
        values = changes.pop(name, [0.0] * looks)
        setattr(record.tracks["norm"], name, array("f", values))
    for name, value in changes.items():
        setattr(record, name, value)
    return record


OVER_TIME = {
    101: (watched(without_gradients=Counter(norm=1)), watched()),
    102: (watched(in_eval=Counter(norm=1)), watched(batch_norm(learns=False), in_eval=Counter(norm=1))),
    103: (watched(batch_norm(learns=False), updates={"norm": 1}), watched(updates={"norm": 1})),
    "103 stands still": (
        watched(batch_norm(learns=False), updates={"norm": 1}),
        watched(batch_norm(learns=False), updates={"norm": 0}),
    ),
    201: (watched(first_bad={"norm": 3}), watched()),
    205: (watched(updates={"norm": 2}), watched(updates={"norm": 2}, passes=Counter({2: 8}))),
    "205 of forwards that nobody saw": (
        watched(updates={"norm": 2}, passes=Counter({0: 1, 1: 7})),
        watched(updates={"norm": 2}, passes=Counter({0: 8})),
    ),
    207: (watched(ranks=2, samples=15), watched(ranks=2, samples=16)),
    "207 alone": (watched(ranks=2, samples=15), watched(ranks=1, samples=15)),
    "207 synchronised": (
        watched(ranks=2, samples=15),
        watched(replace(batch_norm(), kind="SyncBatchNorm"), ranks=2, samples=15),
    ),
    307: (watched(passes=Counter({1: 3, 4: 5})), watched(passes=Counter({1: 4, 4: 4}))),
    "307 without pooling": (
        watched(passes=Counter({4: 8})),
        watched(batch_norm(pools_samples=False), passes=Counter({4: 8})),
    ),
    # The last quarter counts: two of eight looks.
    403: (watched(flat=[0.0] * 6 + [0.4, 0.64]), watched(flat=[1.0] * 6 + [0.4, 0.58])),
    404: (watched(dead=[0.0] * 6 + [0.2, 0.32]), watched(dead=[1.0] * 6 + [0.2, 0.28])),
    407: (watched(stale=[0.0] * 6 + [0.4, 0.62]), watched(stale=[9.0] * 6 + [0.4, 0.58])),
    "407 begins": (watched(stale=[9.0] * 8), watched(looks=4, stale=[9.0] * 4)),
}


@pytest.mark.parametrize("name", OVER_TIME, ids=str)
def test_a_rule_over_time_fires_from_its_threshold_on(name):
    code = int(str(name).split()[0])
    wrong, right = OVER_TIME[name]
    assert code in [finding.code for finding in find_over_time(wrong)]
    assert code not in [finding.code for finding in find_over_time(right)]


@pytest.mark.parametrize(("samples", "severity"), [(15, "warning"), (16, "note"), (0, "note")])
def test_large_forwards_of_one_step_are_only_noted(samples, severity):
    (finding,) = find_over_time(watched(passes=Counter({2: 8}), samples=samples))
    assert (finding.code, finding.severity) == (307, severity)


def test_every_rule_is_in_a_family():
    for family in (*FAMILIES, over_time):
        own = {
            name
            for name, value in vars(family).items()
            if getattr(value, "__module__", "") == family.__name__ and not name.startswith("_")
        }
        assert own - {"unlike"} == {rule.__name__ for rule in family.RULES}


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "x" * 10_000, "[bold]red[/bold]", "a\x1b[31mb\n"]
)
def test_hostile_names_are_harmless(name, capsys):
    from rich.console import Console

    from slabnorm.report.check import print_check

    record = model(batch_norm(name, momentum=0.99), decayed=[name], mates={name: 0.5, "": 0.5})
    record.name = name
    found = CheckRecord(name, 1, 1, 64, tuple(find(record)), (name,))
    assert json.loads(json.dumps(found.as_dict()))["findings"][0]["layer"] == name
    assert json.dumps(found.as_sarif())
    rules = {rule["id"]: rule for rule in found.as_sarif()["runs"][0]["tool"]["driver"]["rules"]}
    assert rules["SN204"]["shortDescription"] == {"text": "The momentum is that of the other convention."}
    print_check(found, Console(width=100))
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert "x" * 1000 not in printed
    assert str(found)


def test_what_is_advised_fits_the_norm():
    def advice(layer, samples=64):
        return next(f.fix for f in find(model(layer, samples=samples)) if f.code == 206)

    assert 'to="group"' in advice(batch_norm(elements=70), 7)
    assert 'to="layer"' in advice(batch_norm(elements=7), 7)
    assert advice(batch_norm(elements=1), 1).startswith("larger batches")
    assert advice(group_norm(32, 32, 1)) == "fewer groups, such as 4"
    assert advice(group_norm(4, 4, 1)) == "fewer groups, such as 1"
    groups = int(advice(group_norm(44, 44, 1)).removeprefix("fewer groups, such as "))
    assert nn.GroupNorm(groups, 44)(torch.randn(2, 44)).square().mean().sqrt() > 0.9  # as 44 / 5 would not
    assert advice(batch_norm(family="layer", pools_samples=False, elements=1)).startswith("nn.Identity()")
