"""JSON of openpi, of nnU-Net and plain: there and back, what is not said, and files that are damaged."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import slabnorm as sn
from slabnorm.contracts.formats import json_file
from slabnorm.contracts.read import write
from slabnorm.errors import ContractError, DataError, OptionError, PatternError, SlabError

RNG = np.random.default_rng(0)
X = RNG.normal([1.0, -20.0, 3e5], [2.0, 0.1, 7.0], (50, 3))


def openpi_stats(x):
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    return {"mean": x.mean(0).tolist(), "std": x.std(0).tolist(), "q01": q01.tolist(), "q99": q99.tolist()}


def text_file(tmp_path, name, value):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# openpi


def test_openpi_there_and_back(tmp_path):
    whole = {"norm_stats": {"state": openpi_stats(X), "actions": openpi_stats(X[:, :2])}}
    path = text_file(tmp_path, "norm_stats.json", whole)
    write(sn.contract(path), tmp_path / "again.json", "openpi")
    assert json.loads((tmp_path / "again.json").read_text()) == whole
    folder = sn.contract(tmp_path)  # as openpi's load() takes it
    assert list(folder) == ["state", "actions"]


def test_openpi_normalises_as_its_formula_but_for_what_it_adds(tmp_path):
    path = text_file(tmp_path, "norm_stats.json", {"norm_stats": {"state": openpi_stats(X)}})
    contract = sn.contract(path)
    z = contract["state"](torch.from_numpy(X[:, None]))
    np.testing.assert_allclose(z[:, 0], (X - X.mean(0)) / X.std(0), rtol=1e-12, atol=1e-12)
    openpis = (X - X.mean(0)) / (X.std(0) + 1e-6)
    np.testing.assert_allclose(
        z[:, 0].numpy() * X.std(0) / (X.std(0) + 1e-6), openpis, rtol=1e-12, atol=1e-12
    )


def test_openpi_by_quantiles(tmp_path):
    path = text_file(tmp_path, "norm_stats.json", {"norm_stats": {"state": openpi_stats(X)}})
    contract = sn.contract(path, {"state": sn.Key("n ... c -> c", "quantile")})
    z = contract["state"](torch.from_numpy(X))
    q01, q99 = np.quantile(X, [0.01, 0.99], axis=0)
    np.testing.assert_allclose(z, (X - q01) / (q99 - q01) * 2 - 1, rtol=1e-10, atol=1e-10)
    write(contract, tmp_path / "again.json", "openpi")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


def test_openpi_has_one_scheme_for_all_keys(tmp_path):
    whole = {"norm_stats": {"state": openpi_stats(X), "actions": openpi_stats(X)}}
    path = text_file(tmp_path, "norm_stats.json", whole)
    contract = sn.contract(path, {"state": sn.Key("n ... c -> c", "quantile")})
    with pytest.raises(ContractError, match=r"'actions'(.|\n)*one for all keys"):
        write(contract, tmp_path / "again.json", "openpi")


def test_what_openpi_does_not_say_is_unknown(tmp_path):
    stats = openpi_stats(X) | {"q01": None, "q99": None}
    contract = sn.contract(text_file(tmp_path, "norm_stats.json", {"norm_stats": {"actions": stats}}))
    norm, key = contract["actions"], contract.key("actions")
    found = norm.statistics
    assert found.known().keys() == {"mean", "std"}
    assert (norm.split, norm.samples) == ("", None)
    assert (key.unit, key.names, key.role, key.valid) == ("", (), "output", None)


OPENPI_ERRORS = {
    "clipping": ({"state": sn.Key("n c -> c", sn.ZScore(clip=(-5, 5)))}, "does not compute"),
    "a range": ({"state": sn.Key("n c -> c", "minmax")}, "does not compute"),
    "an output of another name": ({"state": sn.Key("n c -> c", role="output")}, "calls outputs"),
    "features elsewhere": ({"state": "n c t -> c"}, "not the last axis"),
}


@pytest.mark.parametrize("case", OPENPI_ERRORS)
def test_what_openpi_cannot_express_is_not_written(case, tmp_path):
    keys, message = OPENPI_ERRORS[case]
    x = torch.randn((4, 3, 2) if case == "features elsewhere" else (4, 3)).double()
    contract = sn.fit_contract({"state": x}, keys, split="train")
    with pytest.raises(ContractError, match=message):
        write(contract, tmp_path / "norm_stats.json", "openpi")
    assert not (tmp_path / "norm_stats.json").exists()


def test_openpi_needs_mean_and_deviation(tmp_path):
    path = text_file(tmp_path, "a.json", {"state": {"min": [0.0], "max": [1.0]}})
    with pytest.raises(ContractError, match="nobody says its mean and std"):
        write(sn.contract(path), tmp_path / "norm_stats.json", "openpi")


# nnU-Net


def properties(x):
    low, median, high = np.percentile(x, [0.5, 50, 99.5])
    found = {"mean": x.mean(), "median": median, "std": x.std(), "min": x.min(), "max": x.max()}
    return {k: float(v) for k, v in found.items()} | {"percentile_00_5": low, "percentile_99_5": high}


def fingerprint(channels):
    return {
        "foreground_intensity_properties_per_channel": {
            str(n): properties(x) for n, x in enumerate(channels)
        },
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [[9, 9, 9]] * 4,
        "spacings": [[1.0, 1.0, 1.0]] * 4,
    }


def test_nnunet_fingerprint(tmp_path):
    channels = [RNG.normal(100, 30, 500), RNG.exponential(5, 500)]
    path = text_file(tmp_path, "dataset_fingerprint.json", fingerprint(channels))
    text_file(tmp_path, "dataset.json", {"channel_names": {"0": "CT", "1": "PET"}})
    contract = sn.contract(path)
    norm, key = contract["data"], contract.key("data")
    assert (key.names, key.role, key.unit) == (("CT", "PET"), "input", "")
    assert (norm.split, norm.samples) == ("imagesTr", 4)
    found = norm.statistics
    assert found.count is None
    assert list(found.quantiles) == [0.005, 0.5, 0.995]
    assert found.quantiles[0.5].tolist() == [float(np.median(x)) for x in channels]
    assert found.min.tolist() == [float(x.min()) for x in channels]
    x = torch.from_numpy(np.stack(channels)).reshape(1, 2, 10, 10, 5)
    expected = [(c - c.mean()) / c.std() for c in channels]
    np.testing.assert_allclose(norm(x).reshape(2, -1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["nnUNetPlans.json", "plans.json", "other.json"])
def test_nnunet_plans(name, tmp_path):
    stats = {"0": properties(X[:, 0])}
    plans = {"configurations": {}, "foreground_intensity_properties_per_channel": stats}
    norm = sn.contract(text_file(tmp_path, name, plans))["data"]
    assert norm.statistics.mean.item() == X[:, 0].mean()
    assert norm.samples is None
    plans = {"foreground_intensity_properties_by_modality": stats}
    assert sn.contract(text_file(tmp_path, name, plans))["data"].statistics.std.item() == X[:, 0].std()


def test_nnunet_names_that_do_not_fit_are_none(tmp_path):
    path = text_file(tmp_path, "dataset_fingerprint.json", fingerprint([X[:, 0], X[:, 1]]))
    for names in ({"0": "MRI", "1": "MRI"}, {"0": "CT"}, ["CT", "PET"], {"0": 1, "1": 2}):
        text_file(tmp_path, "dataset.json", {"channel_names": names})
        assert sn.contract(path).key("data").names == ()


NNUNET_ERRORS = {
    "no channels": {"foreground_intensity_properties_per_channel": {}},
    "a gap": {"foreground_intensity_properties_per_channel": {"0": properties(X), "2": properties(X)}},
    "a list": {"foreground_intensity_properties_per_channel": [properties(X)]},
    "a channel says less": {
        "foreground_intensity_properties_per_channel": {"0": properties(X), "1": {"mean": 0.0}}
    },
    "nothing": {"spacings": []},
}


@pytest.mark.parametrize("case", NNUNET_ERRORS)
def test_damaged_nnunet(case, tmp_path):
    path = text_file(tmp_path, "dataset_fingerprint.json", NNUNET_ERRORS[case])
    with pytest.raises(DataError, match=r"dataset_fingerprint.json"):
        sn.contract(path)


# Plain JSON


def test_plain_json_by_hand(tmp_path):
    path = text_file(tmp_path, "stats.json", {"x": {"mean": [1, 2], "std": [3.0, 4.0], "note": "by hand"}})
    contract = sn.contract(path)
    found, key = contract["x"], contract.key("x")
    assert (key.unit, key.names, key.role, key.valid, key.scheme) == ("", (), "input", None, sn.ZScore())
    assert found.statistics.known().keys() == {"mean", "std"}
    assert (found.split, found.samples) == ("", None)
    z = contract({"x": torch.tensor([[4.0, 2.0], [1.0, 10.0]])})["x"]
    assert z.tolist() == [[1.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("value", [{"mean": 2.0, "std": 4.0}, {"mean": [2.0], "std": [4.0]}], ids=str)
def test_statistics_of_one_key_alone(value, tmp_path):
    contract = sn.contract(text_file(tmp_path, "a.json", value))
    assert list(contract) == ["x"]
    x = torch.tensor([6.0]) if value["mean"] == 2.0 else torch.tensor([[6.0]])
    assert contract["x"](x).flatten().tolist() == [1.0]


def test_all_that_plain_json_can_say(tmp_path):
    value = {
        "mean": [1.0, 2.0],
        "std": [3.0, 4.0],
        "min": [-5.0, -6.0],
        "max": [7.0, 8.0],
        "count": 9,
        "q05": [-1.0, -2.0],
        "q0.995": [6.0, 7.0],
        "unit": "rad",
        "names": ["a", "b"],
        "role": "output",
        "valid": [-10, 10],
        "split": "train",
        "samples": 9,
        "pattern": "n c t -> c",
        "scheme": {"name": "minmax", "out": [-1.0, 1.0]},
    }
    contract = sn.contract(text_file(tmp_path, "a.json", {"y": value}))
    key, norm = contract.key("y"), contract["y"]
    assert (key.unit, key.names, key.role, key.valid) == ("rad", ("a", "b"), "output", (-10.0, 10.0))
    assert key.scheme == sn.MinMax(out=(-1, 1))
    assert (norm.split, norm.samples) == ("train", 9)
    assert norm.statistics.count.tolist() == [9, 9]
    assert {rank: q.tolist() for rank, q in norm.statistics.quantiles.items()} == {
        0.05: [-1.0, -2.0],
        0.995: [6.0, 7.0],
    }
    y = torch.tensor([[[7.0, -5.0], [1.0, 8.0]]])
    assert norm(y).tolist() == [[[1.0, -1.0], [0.0, 1.0]]]
    write(contract, tmp_path / "b.json", "json")
    again = sn.contract(tmp_path / "b.json")
    assert again.key("y").to_plain() == key.to_plain()
    assert again["y"].source.split == "train"
    for name, part in norm.statistics.known().items():
        assert torch.equal(again["y"].statistics.known()[name], part), name


def test_a_fit_goes_to_plain_json_and_back(tmp_path):
    x = {"state": torch.from_numpy(X), "image": torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)}
    keys = {
        "state": sn.Key("n c -> c", sn.ZScore(ddof=1, clip=(-2, 2)), unit="m", names=("a", "b", "c")),
        "image": sn.Key("n c h w -> c", "robust"),
        "index": "keep",
    }
    contract = sn.fit_contract(x, keys, split="train")
    write(contract, tmp_path / "a.json", "json")
    again = sn.contract(tmp_path / "a.json")
    assert list(again) == ["state", "image"]
    assert again.key("state").unit == "m"
    for name in again:
        np.testing.assert_allclose(again[name](x[name]), contract[name](x[name]), rtol=1e-9, atol=1e-10)
    z = (X - X.mean(0)) / X.std(0, ddof=1)
    np.testing.assert_allclose(again["state"](x["state"]), z.clip(-2, 2), rtol=1e-9, atol=1e-9)
    with pytest.raises(ContractError, match="no key 'index'"):
        again(x | {"index": torch.arange(5)})


def test_what_plain_json_cannot_express_is_not_written(tmp_path):
    key = sn.Key("n (g c) -> g", sizes={"g": 2})
    contract = sn.fit_contract({"x": torch.randn(5, 4).double()}, {"x": key}, split="train")
    with pytest.raises(ContractError, match=r"'x'(.|\n)*brackets"):
        write(contract, tmp_path / "a.json", "json")


def test_a_writer_does_not_take_the_place_of_data(tmp_path):
    np.savez(tmp_path / "data.npz", x=X)
    contract = sn.fit_contract(tmp_path / "data.npz", {"x": "n c -> c"}, split="train")
    before = (tmp_path / "data.npz").read_bytes()
    with pytest.raises(SlabError):
        write(contract, tmp_path / "data.npz", "json")
    assert (tmp_path / "data.npz").read_bytes() == before


# Files that are damaged, or made to do damage


def key_of(**parts):
    return json.dumps({"arm": {"mean": [1.0, 2.0], "std": [1.0, 1.0]} | parts})


KEY_ERRORS = {
    "NaN": key_of(mean=[math.nan, 1.0]),
    "infinity": key_of(std=[math.inf, 1.0]),
    "beyond float64": key_of().replace("2.0", "1e999"),
    "too many digits": key_of().replace("2.0", "9" * 400),
    "negative deviation": key_of(std=[-1.0, 1.0]),
    "minimum above maximum": key_of(min=[3.0, 0.0], max=[2.0, 1.0]),
    "falling quantiles": key_of(q01=[1.0, 1.0], q99=[0.0, 2.0]),
    "another shape": key_of(std=[1.0, 1.0, 1.0]),
    "lists of unequal length": key_of(mean=[[1.0], [1.0, 2.0]]),
    "text": key_of(mean=["1.0", "2.0"]),
    "text for a list": key_of(mean="1.0"),
    "flags": key_of(mean=[True, False]),
    "an object": key_of(mean={"a": 1.0}),
    "null inside": key_of(mean=[None, 1.0]),
    "nothing inside": json.dumps({"arm": {"mean": [], "std": []}}),
    "no numbers": json.dumps({"arm": {"unit": "rad"}}),
    "not an object": json.dumps({"arm": 3}),
    "a negative count": key_of(count=-1),
    "half a count": key_of(count=0.5),
    "a huge count": key_of(count=1e300),
    "a role": key_of(role="teacher"),
    "a role of another type": key_of(role=["input"]),
    "a unit": key_of(unit=3),
    "names of another type": key_of(names=3),
    "names twice": key_of(names=["a", "a"]),
    "a range": key_of(valid=[1, 0]),
    "a scheme": key_of(scheme={"name": "pickle"}),
    "a scheme of another type": key_of(scheme={"name": []}),
    "a scheme's argument": key_of(scheme={"name": "zscore", "ddof": "1"}),
    "a pattern": key_of(pattern="n c"),
    "a pattern of another type": key_of(pattern=7),
    "a pattern of another rank": key_of(pattern="n c h -> c h"),
    "brackets": key_of(pattern="n (g c) -> g"),
    "a split": key_of(split=1),
    "samples": key_of(samples=-1),
    "a rank": key_of(**{"q7.5": [1.0, 1.0]}),
    "seven axes": key_of(mean=[[[[[[[1.0]]]]]]], std=[[[[[[[1.0]]]]]]]),
    "deep lists": key_of().replace("[1.0, 2.0]", "[" * 200 + "1.0" + "]" * 200),
    "a square beyond float64": key_of(
        mean=[0.0, 0.0], std=[1e-320, 1.0], scheme={"name": "zscore", "eps": -1}
    ),
}


@pytest.mark.parametrize("case", KEY_ERRORS)
def test_a_key_that_cannot_be_used_is_named_with_its_file(case, tmp_path):
    path = text_file(tmp_path, "stats of a robot.json", KEY_ERRORS[case])
    with pytest.raises(DataError) as caught:
        sn.contract(path, format="json")
    assert "'arm'" in str(caught.value)
    assert str(path) in str(caught.value)


LAYER_ERRORS = {
    "no such scheme": key_of(scheme="zscores"),
    "too few names": key_of(names=["a"]),
    "a scheme that reads more": key_of(scheme="minmax"),
    "a square beyond float64": key_of(std=[1e200, 1.0]),
    "a square that vanishes": key_of(mean=[0.0, 2.0], std=[1e-320, 1.0]),
    "a range beyond float64": json.dumps({"arm": {"min": [-1.7e308], "max": [1.7e308]}}),
    "a mean alone": json.dumps({"arm": {"mean": [1.0]}}),
}


@pytest.mark.parametrize("case", LAYER_ERRORS)
def test_a_key_that_gives_no_layer_is_named_with_its_file(case, tmp_path):
    path = text_file(tmp_path, "a.json", LAYER_ERRORS[case])
    with pytest.raises(SlabError) as caught:
        sn.contract(path)
    assert "'arm'" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_pattern_of_the_caller_that_does_not_fit(tmp_path):
    path = text_file(tmp_path, "a.json", key_of())
    with pytest.raises((PatternError, SlabError), match=r"'arm' of .*a\.json"):
        sn.contract(path, {"arm": "n c h -> c h"})


FILE_ERRORS = {
    "empty": b"",
    "torn": key_of().encode()[:-10],
    "a list": b"[1, 2]",
    "a number": b"3",
    "a key twice": b'{"arm": {"mean": 1.0, "std": 1.0, "std": 2.0}}',
    "a name twice": b'{"arm": {"mean": 1.0}, "arm": {"mean": 2.0}}',
    "no UTF-8": b'{"arm\xff": {}}',
    "deep": b'{"arm": ' + b"[" * 100_000,
    "deep objects": b'{"arm": ' * 100_000,
    "more": key_of().encode() + b"{}",
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("case", FILE_ERRORS)
@pytest.mark.parametrize("form", ["json", "openpi", "lerobot", "nnunet"])
def test_a_damaged_file_is_named(form, case, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(FILE_ERRORS[case])
    with pytest.raises(DataError, match=r"a\.json"):
        sn.contract(path, format=form)


def test_a_key_that_stands_twice_is_named(tmp_path):
    path = text_file(tmp_path, "a.json", '{"arm": {"mean": 1.0}, "leg": {"mean": 1.0}, "arm": {"mean": 2.0}}')
    with pytest.raises(DataError) as caught:
        sn.contract(path)
    assert "'arm' twice" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_read(encoding, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"m\u00fc": {"mean": 1.0, "std": 2.0}}'.encode(encoding))
    assert sn.contract(path, format="json")["m\u00fc"].statistics.std.item() == 2.0


@pytest.mark.parametrize("form", ["json", "openpi", "lerobot", "nnunet"])
def test_folders_devices_and_huge_files(form, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(json_file.LARGEST + 1)  # a file of zeros that takes no place
    for name in ("pipe.json", "folder.json", "loop.json", "huge.json", "missing.json"):
        with pytest.raises(DataError) as caught:
            sn.contract(tmp_path / name, format=form)
        assert name in str(caught.value)
    assert f"{json_file.LARGEST:,}" in str(_error(tmp_path / "huge.json"))


def _error(path):
    with pytest.raises(DataError) as caught:
        sn.contract(path, format="json")
    return caught.value


def test_a_link_to_a_file_is_read(tmp_path):
    text_file(tmp_path, "a.json", key_of())
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert list(sn.contract(tmp_path / "b.json")) == ["arm"]


def test_a_million_keys_are_refused_before_they_become_layers(tmp_path):
    keys = "{" + ",".join(f'"{n}":0' for n in range(1_000_000)) + "}"
    path = text_file(tmp_path, "norm_stats.json", f'{{"norm_stats": {keys}}}')
    with pytest.raises(DataError, match=r"Too many entries: .*norm_stats\.json"):
        sn.contract(path)


@pytest.mark.parametrize("form", ["json", "lerobot", "nnunet", "openpi"])
def test_more_keys_than_a_contract_may_have(form, tmp_path):
    outer = {"openpi": "norm_stats", "nnunet": "foreground_intensity_properties_per_channel"}
    keys = {str(number): {"mean": 0.0, "std": 1.0} for number in range(json_file.MOST_KEYS + 1)}
    path = text_file(tmp_path, "a.json", {outer[form]: keys} if form in outer else keys)
    with pytest.raises(DataError, match=r"Too many entries: .*a\.json"):
        sn.contract(path, format=form)


def test_names_from_outside_are_shown_without_what_a_terminal_acts_on(tmp_path):
    path = text_file(tmp_path, "a.json", json.dumps({"\x1b[31marm": {"mean": "x"}}))
    with pytest.raises(DataError) as caught:
        sn.contract(path)
    assert "\x1b" not in str(caught.value)


def test_what_may_not_be_read_is_a_typed_error(tmp_path, monkeypatch):
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"mean": [2.0], "std": [4.0]}))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for method in ("exists", "is_file", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuse)
            with pytest.raises(DataError, match=r"(?s)Cannot read .*statistics\.json.*Permission denied"):
                sn.contract(path)
    with pytest.raises(DataError, match=r"(?s)Cannot read xxx.*too long"):
        sn.contract("x" * 5000)


def test_slabnorms_own_file_has_a_name_of_its_format_too(tmp_path):
    path = tmp_path / "own.safetensors"
    given = sn.contract(text_file(tmp_path, "s.json", {"a": {"mean": [2.0], "std": [4.0]}}))
    write(given, path, "slabnorm")
    assert sn.contract(path, format="slabnorm")({"a": torch.tensor([[10.0]])})["a"].tolist() == [[2.0]]
    with pytest.raises(OptionError, match=r"(?s)no format 'xyz'.*one of slabnorm, lerobot, openpi, nnunet"):
        sn.contract(path, format="xyz")
    with pytest.raises(
        OptionError, match=r"(?s)no format 'xyz'.*slabnorm, lerobot, openpi, huggingface or json"
    ):
        write(given, path, "xyz")


def test_a_ddof_beyond_any_count_is_refused(tmp_path):
    entry = {"mean": [1.0], "std": [1.0], "count": 5, "scheme": {"name": "zscore", "ddof": 10**400}}
    with pytest.raises(DataError, match=r"(?s)key 'a'.*ddof must be an integer, 0 or more"):
        sn.contract(text_file(tmp_path, "s.json", {"a": entry}))
