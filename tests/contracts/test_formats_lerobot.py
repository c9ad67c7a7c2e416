"""LeRobot's statistics: whole files, episodes and their merge, and folders of data sets."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import slabnorm as sn
from slabnorm.contracts.formats import lerobot
from slabnorm.contracts.read import write
from slabnorm.errors import ContractError, DataError, DataWarning

RANKS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MOTORS = ["pan", "lift", "elbow"]


def stats_of(x, quantiles=True):
    """The statistics of values (frames, features), as LeRobot's compute_stats.py has them."""
    found = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    found |= {name: np.quantile(x, rank, axis=0) for name, rank in RANKS.items() if quantiles}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(x)]}


def images(x):
    """The statistics of images (images, channels, height, width) of bytes, in LeRobot's shape (3, 1, 1)."""
    values = x.transpose(0, 2, 3, 1).reshape(-1, 3) / 255
    found = stats_of(values, quantiles=False)
    return {k: v if k == "count" else np.reshape(v, (3, 1, 1)).tolist() for k, v in found.items()} | {
        "count": [len(x)]
    }


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    return [rng.normal(rng.normal(0, 5, 3), 1 + np.arange(3), (n, 3)) for n in rng.integers(1, 40, 20)]


def info_of(episodes, **more):
    return {
        "codebase_version": "v3.0",
        "total_episodes": len(episodes),
        "total_frames": sum(map(len, episodes)),
        "splits": {"train": f"0:{len(episodes)}"},
        "features": {
            "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": MOTORS}},
            "action": {"dtype": "float32", "shape": [3], "names": MOTORS},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    } | more


def entries(x):
    return {"observation.state": stats_of(x), "action": stats_of(2 * x), "timestamp": stats_of(x[:, :1])}


def data_set(tmp_path, episodes, form, **more):
    """Write the folder meta of a data set of version v2.1 (jsonl) or v3.0 (Parquet)."""
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(info_of(episodes, **more)))
    if form == "jsonl":
        rows = [{"episode_index": n, "stats": entries(x)} for n, x in enumerate(episodes)]
        (meta / "episodes_stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path
    rows = []
    for number, x in enumerate(episodes):
        flat = {f"stats/{k}/{part}": v for k, raw in entries(x).items() for part, v in raw.items()}
        rows.append({"episode_index": number, "length": len(x), **flat})
    for number, part in enumerate([rows[: len(rows) // 2], rows[len(rows) // 2 :]]):
        path = meta / f"episodes/chunk-000/file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(part), path)
    return tmp_path


def averaged(episodes):
    """What LeRobot writes for all episodes: moments of all, and averages of quantiles."""
    whole = entries(np.concatenate(episodes))
    counts = np.array(list(map(len, episodes)))
    for key, raw in whole.items():
        for name in RANKS:
            each = np.array([entries(x)[key][name] for x in episodes])
            raw[name] = ((each * counts[:, None]).sum(0) / counts.sum()).tolist()
    return whole


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_episodes_merge_to_the_fit_of_all_frames(form, episodes, tmp_path):
    contract = sn.contract(data_set(tmp_path, episodes, form))
    whole = np.concatenate(episodes)
    found = contract["observation.state"].statistics
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.std, whole.std(0), rtol=1e-13)
    fitted = sn.fit(torch.from_numpy(whole), split="train").moments
    np.testing.assert_allclose(found.mean, fitted.mean, rtol=1e-13)
    np.testing.assert_allclose(found.std, fitted.std(), rtol=1e-13)
    assert found.min.tolist() == whole.min(0).tolist()
    assert found.max.tolist() == whole.max(0).tolist()
    assert found.count.tolist() == [len(whole)] * 3
    assert found.quantiles == {}  # those of the episodes do not say them
    expected = (2 * whole - (2 * whole).mean(0)) / (2 * whole).std(0)
    np.testing.assert_allclose(contract["action"](torch.from_numpy(2 * whole)), expected, atol=1e-12)


def test_what_info_says(episodes, tmp_path):
    contract = sn.contract(data_set(tmp_path, episodes, "jsonl"))
    assert {name: contract.key(name).role for name in contract.names()} == {
        "observation.state": "input",
        "action": "output",
    }
    assert contract.key("timestamp").keep
    assert contract.key("observation.state").names == contract.key("action").names == tuple(MOTORS)
    assert contract.key("action").unit == ""
    norm = contract["action"]
    assert (norm.split, norm.samples, norm.source.format) == ("train", sum(map(len, episodes)), "LeRobot")


def test_a_batch_of_lerobots_loader(episodes, tmp_path):
    contract = sn.contract(data_set(tmp_path, episodes, "jsonl"), {"task": "keep"})
    batch = {
        "observation.state": torch.randn(4, 3),
        "action": torch.randn(4, 16, 3),  # a sequence for each sample
        "timestamp": torch.zeros(4),
        "task": ["lift"] * 4,
    }
    found = contract(batch)
    statistics = contract["action"].statistics
    expected = (batch["action"].double() - statistics.mean) / statistics.std
    torch.testing.assert_close(found["action"].double(), expected, atol=1e-5, rtol=1e-5)
    assert found["task"] is batch["task"]
    with pytest.raises(ContractError, match=r"no key 'next.done'"):
        contract(batch | {"next.done": torch.zeros(4)})


def exact(rows):
    """Mean and standard deviation of merged (count, mean, std), by rational arithmetic."""
    total = sum(count for count, _, _ in rows)
    mean = sum(count * Fraction(m) for count, m, _ in rows) / total
    square = sum(count * (Fraction(s) ** 2 + (Fraction(m) - mean) ** 2) for count, m, s in rows) / total
    return float(mean), math.sqrt(square)


def write_episodes(path, rows):
    """Write (count, mean, std) of one feature for each episode."""
    with path.open("w") as file:
        for number, (count, mean, std) in enumerate(rows):
            raw = {"mean": [mean], "std": [std], "min": [mean - std], "max": [mean + std], "count": [count]}
            file.write(json.dumps({"episode_index": number, "stats": {"action": raw}}) + "\n")


@pytest.mark.parametrize("spread", [1.0, 1e-6, 0.0])
@pytest.mark.parametrize("offset", [0.0, 1e6, 1e12])
def test_the_merge_is_exact(offset, spread, tmp_path):
    rng = np.random.default_rng(1)
    counts = [1, *rng.integers(1, 500, 19).tolist()]
    rows = [(n, offset + spread * float(rng.normal()), spread * float(n > 1)) for n in counts]
    path = tmp_path / "episodes_stats.jsonl"
    write_episodes(path, rows)
    found = sn.contract(path)["action"].statistics
    mean, std = exact(rows)
    assert found.mean.item() == pytest.approx(mean, rel=1e-13)
    assert found.std.item() == pytest.approx(std, rel=1e-13, abs=1e-300)
    assert found.count.item() == sum(counts)


def test_episodes_without_frames_count_nothing(tmp_path):
    path = tmp_path / "episodes_stats.jsonl"
    write_episodes(path, [(0, math.nan, math.nan), (3, 1.0, 0.0), (0, 0.0, 0.0), (1, 5.0, 0.0)])
    found = sn.contract(path)["action"].statistics
    assert (found.mean.item(), found.count.item()) == (2.0, 4)
    assert (found.min.item(), found.max.item()) == (1.0, 5.0)
    write_episodes(path, [(0, math.nan, math.nan)])
    with pytest.raises(DataError, match="'action'"):
        sn.contract(path)


def test_more_episodes_than_are_merged_at_once(tmp_path):
    rows = [(n % 7 + 1, math.sin(n), 0.5) for n in range(lerobot.TOGETHER * 2 + 5)]
    path = tmp_path / "episodes_stats.jsonl"
    write_episodes(path, rows)
    found = sn.contract(path)["action"].statistics
    mean, std = exact(rows)
    assert found.mean.item() == pytest.approx(mean, rel=1e-12)
    assert found.std.item() == pytest.approx(std, rel=1e-13)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_averages_of_quantiles_are_left_out(form, episodes, tmp_path):
    root = data_set(tmp_path, episodes, form)
    (root / "meta/stats.json").write_text(json.dumps(averaged(episodes)))
    with pytest.warns(DataWarning, match=r"observation.state and action") as caught:
        contract = sn.contract(root / "meta/stats.json")
    assert len(caught) == 1
    assert contract["action"].statistics.quantiles == {}
    np.testing.assert_allclose(contract["action"].statistics.std, 2 * np.concatenate(episodes).std(0))


def test_the_outermost_quantiles_are_left_out(episodes, tmp_path):
    root = data_set(tmp_path, episodes, "jsonl")
    whole = averaged(episodes)
    lows = np.array([entries(x)["action"]["q01"] for x in episodes])
    highs = np.array([entries(x)["action"]["q99"] for x in episodes])
    whole["action"] |= {"q01": lows.min(0).tolist(), "q99": highs.max(0).tolist()}
    (root / "meta/stats.json").write_text(json.dumps(whole))
    with pytest.warns(DataWarning, match="outermost"):
        assert sn.contract(root)["action"].statistics.quantiles == {}


def test_quantiles_of_all_frames_stay(episodes, tmp_path):
    root = data_set(tmp_path, episodes, "jsonl")
    whole = entries(np.concatenate(episodes))
    (root / "meta/stats.json").write_text(json.dumps(whole))
    found = sn.contract(root)["action"].statistics
    assert {f"q{rank * 100:02.0f}": value.tolist() for rank, value in found.quantiles.items()} == {
        name: whole["action"][name] for name in RANKS
    }


def test_statistics_of_several_splits_together_are_warned_of(episodes, tmp_path):
    root = data_set(tmp_path, episodes, "jsonl", splits={"train": "0:15", "val": "15:20"})
    with pytest.warns(DataWarning, match=r"train \+ val together"):
        assert sn.contract(root)["action"].split == "train + val"


def test_one_file_alone_says_no_split_and_a_file_of_v20_no_count(episodes, tmp_path):
    path = tmp_path / "stats.json"
    raw = stats_of(episodes[3], quantiles=False)
    del raw["count"]
    path.write_text(json.dumps({"observation.state": raw, "action": raw}))
    norm = sn.contract(path)["action"]
    assert (norm.split, norm.samples) == ("", None)
    assert norm.statistics.count is None
    assert norm.statistics.quantiles == {}
    assert sn.contract(path).key("action").names == ()


def test_images_are_of_pixels_divided_by_255(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"observation.images.top": images(x), "action": stats_of(x[:, 0, 0])}))
    contract = sn.contract(path)
    key, norm = contract.key("observation.images.top"), contract["observation.images.top"]
    assert (key.pattern, key.valid) == ("n ... c h w -> c", (0.0, 1.0))
    assert norm.statistics.count is None  # of pixels, nobody says it
    assert norm.samples == 5
    z = norm(torch.from_numpy(x / 255).float())
    expected = (x / 255 - (x / 255).mean((0, 2, 3), keepdims=True)) / (x / 255).std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(z, expected, atol=1e-5)
    again = norm(torch.from_numpy(x / 255).float()[:, None])[:, 0]  # (n, t, c, h, w)
    assert torch.equal(again, z)


def test_images_of_episodes(tmp_path):
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 200 + n, (n, 3, 4, 6), dtype=np.uint8) for n in (1, 4, 7)]
    path = tmp_path / "episodes_stats.jsonl"
    rows = [{"episode_index": n, "stats": {"observation.image": images(each)}} for n, each in enumerate(x)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    norm = sn.contract(path)["observation.image"]
    whole = np.concatenate(x) / 255
    np.testing.assert_allclose(norm.statistics.mean, whole.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(norm.statistics.std, whole.std((0, 2, 3)), rtol=1e-13)
    assert norm.statistics.count is None
    assert norm.samples == 12


def test_what_no_policy_is_given_passes_unchanged_and_nothing_else(tmp_path):
    one = {"mean": [2.0], "std": [4.0]}
    kept = ["timestamp", "index", "frame_index", "task_index", "next.reward", "complementary_info.penalty"]
    read = ["observation.task_index", "action.index", "state"]
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"action": one} | dict.fromkeys(kept + read, one)))
    contract = sn.contract(path)
    assert contract.names() == ["action", *read]
    reward = sn.contract(path, {"next.reward": sn.Key("n ... ->", role="output")})["next.reward"]
    assert reward(torch.tensor([6.0])).tolist() == [1.0]


def test_what_is_no_data_set_is_not_taken_for_one(episodes, tmp_path):
    (tmp_path / "info.json").write_text("{}")
    with pytest.raises(DataError, match="No known format"):
        sn.contract(tmp_path)
    root = data_set(tmp_path, episodes, "jsonl")
    (root / "norm_stats.json").write_text('{"norm_stats": {}}')
    assert sn.contract(root)["action"].source.format == "LeRobot"
    assert sn.contract(root / "meta")["action"].source.format == "LeRobot"


def test_flags_pass_unchanged(tmp_path):
    flag = {"min": [False], "max": [True], "mean": [0.25], "std": [0.4], "count": [8]}
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"next.done": flag, "action": {"mean": [0.0], "std": [1.0]}}))
    contract = sn.contract(path)
    assert contract.key("next.done").keep
    done = torch.tensor([True, False])
    assert contract({"action": torch.zeros(2), "next.done": done})["next.done"] is done


MODES = {
    "MEAN_STD": (sn.ZScore(), lambda x: (x - x.mean(0)) / x.std(0)),
    "MIN_MAX": (sn.MinMax(out=(-1, 1)), lambda x: (x - x.min(0)) / (x.max(0) - x.min(0)) * 2 - 1),
    "QUANTILES": (sn.QuantileRange(), lambda x: between(x, 0.01, 0.99)),
    "QUANTILE10": (sn.QuantileRange(0.1, 0.9), lambda x: between(x, 0.1, 0.9)),
}


def between(x, low, high):
    first, last = np.quantile(x, [low, high], axis=0)
    return (x - first) / (last - first) * 2 - 1


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_lerobot(mode, episodes, tmp_path):
    scheme, formula = MODES[mode]
    x = np.concatenate(episodes)
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"action": stats_of(x)}))
    contract = sn.contract(path, {"action": sn.Key("n ... c -> c", scheme, role="output")})
    np.testing.assert_allclose(contract["action"](torch.from_numpy(x)), formula(x), rtol=1e-11, atol=1e-11)
    write(contract, tmp_path / "out.json", "lerobot")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(path.read_text())


def test_there_and_back(episodes, tmp_path):
    x = np.concatenate(episodes)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    whole = {
        "observation.state": stats_of(x),
        "observation.image": images(pictures),
        "action": stats_of(x[:, :1]),
    }
    path, other = tmp_path / "stats.json", tmp_path / "other_stats.json"
    path.write_text(json.dumps(whole))
    write(sn.contract(path), other, "lerobot")
    assert json.loads(other.read_text()) == whole


def test_a_fit_becomes_a_file_of_lerobot(episodes, tmp_path):
    x = torch.from_numpy(np.concatenate(episodes))
    keys = {"observation.state": "n c -> c", "action": sn.Key("n c -> c", role="output"), "index": "keep"}
    contract = sn.fit_contract({"observation.state": x, "action": -x}, keys, split="train")
    write(contract, tmp_path / "stats.json", "lerobot")
    plain = json.loads((tmp_path / "stats.json").read_text())
    assert plain.keys() == {"observation.state", "action"}
    assert plain["action"].keys() == {"min", "max", "mean", "std", "count"}
    np.testing.assert_allclose(plain["action"]["std"], x.numpy().std(0), rtol=1e-13)
    assert plain["action"]["count"] == [len(x)]
    assert plain["action"]["min"] == (-x.numpy()).min(0).tolist()


WRITE_ERRORS = {
    "an output of another name": ({"y": sn.Key("n c -> c", role="output")}, "begins with 'action'"),
    "an input of another name": ({"x": "n c -> c"}, "begins with 'observation'"),
    "a scheme without a mode": ({"action": sn.Key("n c -> c", "minmax", role="output")}, "no mode"),
    "clipping": ({"action": sn.Key("n c -> c", sn.MinMax((-1, 1), clip=True), role="output")}, "no mode"),
    "features elsewhere": ({"observation.x": "n c t -> c"}, "neither the last axes"),
}


@pytest.mark.parametrize("case", WRITE_ERRORS)
def test_what_lerobot_cannot_express_is_not_written(case, tmp_path):
    keys, message = WRITE_ERRORS[case]
    (name,) = keys
    shape = (4, 3, 2) if case == "features elsewhere" else (4, 3)
    contract = sn.fit_contract({name: torch.randn(shape).double()}, keys, split="train")
    with pytest.raises(ContractError, match=message) as caught:
        write(contract, tmp_path / "stats.json", "lerobot")
    assert repr(name) in str(caught.value)
    assert not (tmp_path / "stats.json").exists()


def test_unknown_extremes_are_named(tmp_path):
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"action": {"mean": [0.0, 1.0], "std": [1.0, 1.0]}}))
    with pytest.raises(ContractError, match="nobody says its min and max"):
        write(sn.contract(path), tmp_path / "out.json", "lerobot")


def line(number, **more):
    return json.dumps({"episode_index": number, "stats": {"action": stats_of(np.ones((2, 2))) | more}})


EPISODE_ERRORS = {
    "torn": (line(0) + "\n" + line(1)[:-20], "line 2"),
    "twice": (line(0) + "\n" + line(0), "Episode 0 comes twice"),
    "other keys": (line(0) + "\n" + json.dumps({"episode_index": 1, "stats": {}}), "'action'"),
    "other width": (line(0) + "\n" + line(1, mean=[1.0]), "'action'"),
    "no count": (line(0, count=None), "count"),
    "half a count": (line(0, count=[1.5]), "count"),
    "negative count": (line(0, count=[-1]), "count"),
    "no index": (json.dumps({"stats": {}}), "episode_index"),
    "no stats": (json.dumps({"episode_index": 0, "stats": 3}), "line 1"),
    "NaN": (line(0, std=[math.nan, 1.0]), "'action'"),
    "no std": (line(0).replace('"std"', '"sd"'), "'action'"),
}


@pytest.mark.parametrize("case", EPISODE_ERRORS)
def test_damaged_episodes(case, tmp_path):
    text, message = EPISODE_ERRORS[case]
    path = tmp_path / "episodes_stats.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        sn.contract(path)
    assert "episodes_stats.jsonl" in str(caught.value)


def test_a_missing_episode_is_noticed(episodes, tmp_path):
    root = data_set(tmp_path, episodes, "jsonl")
    path = root / "meta/episodes_stats.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    message = r"Not the statistics of all episodes: .*episodes_stats\.jsonl"
    with pytest.raises(DataError, match=message) as caught:
        sn.contract(root)
    assert "19 of the 20" in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = tmp_path / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "file-000.parquet")
    with pytest.raises(DataError, match=r"Not a file: .*file-000\.parquet"):
        sn.contract(tmp_path, format="lerobot")


def test_a_damaged_parquet_file_is_named(episodes, tmp_path):
    root = data_set(tmp_path, episodes, "parquet")
    path = root / "meta/episodes/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"file-001.parquet"):
        sn.contract(root)


def test_info_of_another_shape(episodes, tmp_path):
    features = {"action": {"dtype": "float32", "shape": [4], "names": None}}
    root = data_set(tmp_path, episodes, "jsonl", features=features)
    with pytest.raises(DataError, match=r"'action'(.|\n)*info.json says \[4\]"):
        sn.contract(root)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (["a", "b"], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        (["state"], ()),  # the name of an axis
        (["a", "a"], ()),
        ([["a", "b"]], ()),
        ({"a": 0, "b": 7}, ()),
        (None, ()),
        (3, ()),
    ],
    ids=str,
)
def test_names(said, names, tmp_path):
    root = data_set(
        tmp_path, [np.ones((2, 3))], "jsonl", features={"action": {"names": said}, "timestamp": 3}
    )
    (root / "meta/stats.json").write_text(json.dumps({"action": {"mean": [0.0, 0.0], "std": [1.0, 1.0]}}))
    assert sn.contract(root).key("action").names == names
