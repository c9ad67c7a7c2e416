"""From a robot's data set on disk to a policy that runs elsewhere, and every way to lose a key on it.

The data set is laid out as LeRobot lays out its version 2.1: a Parquet file for each episode with columns of
lists, meta/info.json, meta/stats.json and meta/episodes_stats.jsonl.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.contracts import Statistics
from slabnorm.errors import ContractError, ShapeError

RNG = np.random.default_rng(0)
WIDTHS = {"observation.state": 6, "observation.environment_state": 3, "action": 2}
SCALES = {
    "observation.state": [0.5, 1.0, 2.0, 0.1, 0.3, 1.5],
    "observation.environment_state": [0.2, 0.05, 0.6],
    "action": [0.1, 0.04],
}
KEYS: dict[str, str | sn.Key] = {
    "observation.state": sn.Key("n c -> c", unit="rad"),
    "observation.environment_state": sn.Key("n c -> c", unit="m"),
    "action": sn.Key("n c -> c", sn.MinMax(out=(-1, 1)), unit="m", role="output"),
    **dict.fromkeys(("timestamp", "frame_index", "episode_index", "index", "task_index"), "keep"),
}
PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    part: lambda x, part=part: getattr(x, part)(0)  # type: ignore[misc]
    for part in ("min", "max", "mean", "std")
}


def episodes() -> list[dict[str, np.ndarray]]:
    """20 smooth motions from one place to another, each at its own length, in float32."""
    rng, made, index = np.random.default_rng(7), [], 0
    for episode in range(20):
        frames = int(rng.integers(80, 160))
        t = np.linspace(0, 1, frames)[:, None]
        values = {}
        for name, width in WIDTHS.items():
            scale = np.array(SCALES[name])
            start, end = rng.normal(size=(2, width)) * scale
            offset = np.arange(width) * scale
            moved = start + (end - start) * (3 * t**2 - 2 * t**3) + offset
            values[name] = (moved + rng.normal(size=(frames, width)) * 0.05 * scale).astype("f4")
        at = np.arange(frames)
        values |= {"timestamp": (at / 30).astype("f4"), "frame_index": at, "index": at + index}
        values |= {"episode_index": np.full(frames, episode), "task_index": np.zeros(frames, np.int64)}
        made.append(values)
        index += frames
    return made


def write(root: Path, made: list[dict[str, np.ndarray]]) -> Path:
    """Write the data set as its format asks; return the folder of the samples."""
    folder, meta = root / "data" / "chunk-000", root / "meta"
    folder.mkdir(parents=True)
    meta.mkdir()
    lines = []
    for number, values in enumerate(made):
        columns = {
            name: pa.array(list(value), pa.list_(pa.float32(), WIDTHS[name])) if name in WIDTHS else value
            for name, value in values.items()
        }
        pq.write_table(pa.table(columns), folder / f"episode_{number:06}.parquet")
        lines.append({"episode_index": number, "stats": {n: stats_of(values[n]) for n in WIDTHS}})
    (meta / "episodes_stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {name: np.concatenate([values[name] for values in made]) for name in WIDTHS}
    (meta / "stats.json").write_text(json.dumps({name: stats_of(x) for name, x in whole.items()}, indent=4))
    features = {name: {"dtype": "float32", "shape": [width]} for name, width in WIDTHS.items()}
    info = {"codebase_version": "v2.1", "robot_type": "arm", "total_episodes": len(made), "fps": 30}
    info |= {"total_frames": len(whole["action"]), "chunks_size": 1000, "splits": {"train": "0:20"}}
    info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
    (meta / "info.json").write_text(json.dumps({**info, "features": features}, indent=4))
    return root / "data"


def stats_of(x: np.ndarray) -> dict[str, Any]:
    found = {part: how(x.astype("f8")).tolist() for part, how in PARTS.items()}
    return {**found, "count": [len(x)]}


EPISODES = episodes()
WHOLE = {name: np.concatenate([values[name] for values in EPISODES]) for name in EPISODES[0]}


class Policy(nn.Module):
    """A small policy on normalised values, as one trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.environment, self.head = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        inside = self.state(batch["observation.state"])
        inside = inside + self.environment(batch["observation.environment_state"])
        return {"action": self.head(torch.tanh(inside))}


class ByPosition(nn.Module):
    """The policy with an argument for each key, as ONNX has them."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, state: Tensor, environment: Tensor) -> Tensor:
        batch = {"observation.state": state, "observation.environment_state": environment}
        return self.policy(batch)["action"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("robot"), EPISODES)


@pytest.fixture(scope="module")
def contract(folder: Path) -> sn.Contract:
    return sn.fit_contract(folder, KEYS, split="train")


def batch(samples: int = 32) -> dict[str, Any]:
    at = RNG.integers(0, len(WHOLE["action"]), samples)
    return {name: torch.from_numpy(value[at]) for name, value in WHOLE.items()}


def policy() -> Policy:
    torch.manual_seed(0)
    return Policy().eval()


def in_units(model: Policy, given: dict[str, Any]) -> np.ndarray:
    """What the policy does, by NumPy in float64: normalise, three products, back to units."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    state, environment = (
        (given[name].numpy() - WHOLE[name].astype("f8").mean(0)) / WHOLE[name].astype("f8").std(0)
        for name in ("observation.state", "observation.environment_state")
    )
    y = layer("head", np.tanh(layer("state", state) + layer("environment", environment)))
    low, high = (WHOLE["action"].astype("f8").min(0), WHOLE["action"].astype("f8").max(0))
    return (y + 1) / 2 * (high - low) + low


def test_the_merge_of_all_episodes_is_the_fit_of_all(folder: Path, contract: sn.Contract) -> None:
    lines = (folder.parent / "meta" / "episodes_stats.jsonl").read_text().splitlines()
    written = json.loads((folder.parent / "meta" / "stats.json").read_text())
    for name, width in WIDTHS.items():
        parts = []
        for line in lines:
            stats = json.loads(line)["stats"][name]
            parts.append(Statistics(**{**stats, "count": stats["count"] * width}))
        merged, fitted = reduce(Statistics.merge, parts), Statistics.of(contract[name])
        x = WHOLE[name].astype("f8")
        spread = x.std(0)
        for part, how in PARTS.items():
            found = getattr(merged, part).numpy()
            for other in (getattr(fitted, part).numpy(), how(x), np.array(written[name][part])):
                assert (np.abs(found - other) / spread).max() < 1e-13, (name, part)
        assert merged.count is not None
        assert merged.count.tolist() == [len(x)] * width


def test_raw_in_and_units_out_after_saving_and_loading(contract: sn.Contract, tmp_path: Path) -> None:
    bare, given = policy(), batch()
    wanted = in_units(bare, given)
    model = contract.attach(copy.deepcopy(bare))
    assert np.abs(model(given)["action"].detach().numpy() - wanted).max() < 1e-5
    torch.save(model.state_dict(), tmp_path / "policy.pt")
    contract.save(tmp_path / "robot.safetensors")
    state = torch.load(tmp_path / "policy.pt", weights_only=True)
    for found in (
        sn.contract(tmp_path / "robot.safetensors"),
        sn.Contract.from_state_dict(state, "contract."),
    ):
        loaded = found.attach(Policy().eval())
        loaded.load_state_dict(state)
        assert torch.equal(loaded(given)["action"], model(given)["action"])


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
def test_onnx_from_raw_inputs_to_units(contract: sn.Contract, tmp_path: Path) -> None:
    bare, given = policy(), batch(50)
    names = ["observation.state", "observation.environment_state"]
    model = contract.wrap(ByPosition(copy.deepcopy(bare)), inputs=names).eval()
    dynamic = {"args": ({0: torch.export.Dim("samples")},) * 2}
    example = tuple(given[name][:3] for name in names)
    made = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    made.save(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    fed = {i.name: given[name].numpy() for i, name in zip(session.get_inputs(), names, strict=True)}
    (found,) = session.run(None, fed)
    assert np.abs(found - in_units(bare, given)).max() < 1e-5
    with torch.no_grad():
        assert np.abs(found - model(*(given[name] for name in names)).numpy()).max() < 1e-5


def renamed(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given.update({name.replace("a", "A"): given.pop(name)})


def moved(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given.update({name: change(given[name])})


INPUTS = ["observation.state", "observation.environment_state"]
CAUGHT_BY_THE_CALL: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"{name} left out": lambda given, name=name: given.pop(name) for name in INPUTS},  # type: ignore[misc]
    **{f"{name} renamed": renamed(name) for name in WIDTHS},
    **{f"{name} cut": moved(name, lambda x: x[:, :-1]) for name in WIDTHS},
    "an extra key": lambda given: given.update(extra=torch.ones(32, 1)),
}
CAUGHT_BY_CHECK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "state in degrees": moved("observation.state", lambda x: x * 180 / math.pi),
    **{f"{name} in mm": moved(name, lambda x: x * 1000) for name in WIDTHS},
    **{f"{name} permuted": moved(name, lambda x: x.flip(1)) for name in WIDTHS},
    "state normalised already": moved("observation.state", lambda x: (x - x.mean(0)) / x.std(0)),
}


@pytest.mark.parametrize("name", CAUGHT_BY_THE_CALL)
def test_the_call_itself_refuses(name: str, contract: sn.Contract) -> None:
    given = batch()
    CAUGHT_BY_THE_CALL[name](given)
    with pytest.raises((ContractError, ShapeError), match=r"action|observation|extra"):
        contract.attach(policy())(given)
    assert any(found.severity == "error" for found in contract.check(given))


@pytest.mark.parametrize("name", CAUGHT_BY_CHECK)
def test_check_finds(name: str, contract: sn.Contract) -> None:
    given = batch(64)
    CAUGHT_BY_CHECK[name](given)
    found = contract.check(given)
    assert found, name
    assert found[0].severity == "error", found


def test_what_the_model_returns_has_to_be_there(contract: sn.Contract) -> None:
    for lost in ({}, {"actions": torch.ones(3, 2)}, {"action": torch.ones(3, 3)}, {"action": None}):
        model = contract.wrap(lambda _, lost=lost: lost)
        with pytest.raises((ContractError, ShapeError), match="action"):
            model(batch())


def test_another_unit_is_refused_where_the_caller_names_it(contract: sn.Contract) -> None:
    for name in WIDTHS:
        with pytest.raises(ContractError, match="is in"):
            contract(batch(), units={name: "mm"})


def test_200_random_batches_of_the_training_data_are_well(contract: sn.Contract) -> None:
    for _ in range(200):
        given = batch(int(RNG.integers(1, 65)))
        assert contract.check(given) == (), len(given["action"])


def test_frames_of_one_episode_are_no_random_batch(contract: sn.Contract) -> None:
    """They vary less, about another mean: 64 in a row are found, fewer than 20 show too little."""
    for values in EPISODES[:6]:
        first = {name: torch.from_numpy(value) for name, value in values.items()}
        assert contract.check({name: value[:16] for name, value in first.items()}) == ()
        kinds = {found.kind for found in contract.check({name: value[:64] for name, value in first.items()})}
        assert kinds & {"shift", "spread", "unit", "order", "scale", "constant"}


def test_the_folder_itself_is_well(folder: Path, contract: sn.Contract) -> None:
    assert contract.check(folder) == ()


def test_the_statistics_that_come_with_the_data_do_as_well(folder: Path, contract: sn.Contract) -> None:
    keys = {name: sn.Key("n c -> c", unit=contract.key(name).unit) for name in INPUTS}
    brought = sn.contract(folder.parent, keys)
    assert brought.key("action").role == "output"
    given = {name: value for name, value in batch().items() if name in WIDTHS}
    for name in INPUTS:
        found, right = brought(given)[name], contract[name](given[name])
        assert (found - right).abs().max() < 1e-6
    for _ in range(20):
        assert brought.check({name: value for name, value in batch(40).items() if name in WIDTHS}) == ()
    assert brought.check(folder) == ()
    wrong = {**given, "observation.state": given["observation.state"] * 180 / math.pi}
    assert brought.check(wrong)[0].kind == "scale"
    del given["observation.state"]
    with pytest.raises(ContractError, match=r"observation\.state"):
        brought(given)
