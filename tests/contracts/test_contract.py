"""A contract normalises what it knows, and says of everything else what is wrong; its numbers are NumPy's."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.contracts import GivenNorm, Statistics
from slabnorm.contracts.statistics import Provenance
from slabnorm.errors import (
    ContractError,
    DtypeError,
    OptionError,
    PatternError,
    ShapeError,
    SlabError,
    StatisticsError,
)

RNG = np.random.default_rng(0)


def batch(samples: int = 50) -> dict[str, Any]:
    return {
        "observation.state": torch.from_numpy(RNG.normal(5, 3, (samples, 4))),
        "observation.image": torch.from_numpy(RNG.integers(0, 256, (samples, 3, 2, 2), np.uint8)),
        "action": torch.from_numpy(RNG.normal(-1, 0.1, (samples, 2))),
        "index": torch.arange(samples),
        "task": ["lift"] * samples,
    }


KEYS: dict[str, str | sn.Key] = {
    "observation.state": sn.Key("n c -> c", unit="rad", names=("a", "b", "c", "d"), valid=(-50, 50)),
    "observation.image": sn.Key("n c h w -> c", "fixed"),
    "action": sn.Key("n c -> c", sn.MinMax(out=(-1, 1)), unit="m", role="output"),
    "index": "keep",
    "task": "keep",
}


@pytest.fixture
def data() -> dict[str, Any]:
    return batch()


@pytest.fixture
def contract(data: dict[str, Any]) -> sn.Contract:
    return sn.fit_contract(data, KEYS, split="train")


def wanted(data: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the contract makes of a batch, in NumPy and float64."""
    state, image, action = (
        data[name].double().numpy() for name in ("observation.state", "observation.image", "action")
    )
    low, high = action.min(0), action.max(0)
    return {
        "observation.state": (state - state.mean(0)) / state.std(0),
        "observation.image": image / 255,
        "action": (action - low) / (high - low) * 2 - 1,
    }


def test_a_batch_is_normalised_and_comes_back(contract: sn.Contract, data: dict[str, Any]) -> None:
    before = {name: copy.deepcopy(value) for name, value in data.items()}
    y = contract(data)
    for name, right in wanted(data).items():
        assert np.abs(y[name].double().numpy() - right).max() < 1e-6, name
    assert y["index"] is data["index"]
    assert y["task"] is data["task"]
    assert list(y) == list(data)
    for name, value in before.items():
        assert value == data[name] if name == "task" else torch.equal(value, data[name])
    back = contract.inverse(y)
    for name in wanted(data):
        assert (back[name].double() - data[name].double()).abs().max() < 1e-4, name


def nested(data: dict[str, Any]) -> dict[str, Any]:
    inside = {name: data[f"observation.{name}"] for name in ("state", "image")}
    return {"observation": inside, **{name: data[name] for name in ("action", "index", "task")}}


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType, nested])
def test_batches_of_any_mapping(kind: Any, contract: sn.Contract, data: dict[str, Any]) -> None:
    y = contract(kind(data))
    found = y["observation"]["state"] if kind is nested else y["observation.state"]
    assert np.abs(found.numpy() - wanted(data)["observation.state"]).max() < 1e-12
    assert y["index"] is data["index"]


@pytest.mark.parametrize("lazy", [False, True])
def test_tensordicts(lazy: bool, data: dict[str, Any]) -> None:
    contract = sn.fit_contract(data, {n: k for n, k in KEYS.items() if n != "task"}, split="train")
    del data["task"]
    inside = {"state": data["observation.state"], "image": data["observation.image"]}
    given = TensorDict({"observation": inside, "action": data["action"], "index": data["index"]}, [50])
    if lazy:
        given = LazyStackedTensorDict(*given.unbind(0), stack_dim=0)
    y = contract(given.lock_())
    assert isinstance(y, type(given))
    assert np.abs(y["observation", "state"].numpy() - wanted(data)["observation.state"]).max() < 1e-12
    assert torch.equal(given["observation", "state"], data["observation.state"])
    assert (contract.inverse(y)["action"] - data["action"]).abs().max() < 1e-12


BROKEN: dict[str, tuple[Any, type[SlabError], str]] = {
    "missing": (lambda d: d.pop("observation.state"), ContractError, "no 'observation.state', an input"),
    "unknown": (lambda d: d.update(extra=torch.ones(50, 1)), ContractError, "no key 'extra'"),
    "renamed": (
        lambda d: d.update({"observation.sate": d.pop("observation.state")}),
        ContractError,
        r"(?s)no key 'observation.sate'.*did you mean 'observation.state'",
    ),
    "narrow": (
        lambda d: d.update({"observation.state": d["observation.state"][:, :3]}),
        ShapeError,
        "Entry 'observation.state'.*50, 3",
    ),
    "one sample": (
        lambda d: d.update({"observation.state": d["observation.state"][0]}),
        ShapeError,
        r"(?s)'observation.state'.*x\[None\]",
    ),
    "no tensor": (
        lambda d: d.update({"observation.state": d["observation.state"].tolist()}),
        ContractError,
        "(?s)'observation.state' of the batch is no tensor.*\"keep\"",
    ),
    "sparse": (
        lambda d: d.update(action=d["action"].to_sparse()),
        DtypeError,
        "Entry 'action': The batch must be a dense tensor",
    ),
    "None": (lambda d: d.update(action=None), ContractError, "'action' of the batch is no tensor"),
    "twice": (
        lambda d: d.update(observation={"state": d["observation.state"]}),
        ContractError,
        "two entries of the name 'observation.state'",
    ),
    "a key that is no text": (lambda d: d.update({3: torch.ones(50)}), ContractError, "no key 3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_nothing_passes_by_accident(name: str, contract: sn.Contract, data: dict[str, Any]) -> None:
    change, kind, said = BROKEN[name]
    change(data)
    with pytest.raises(kind, match=said):
        contract(data)


def test_an_entry_is_found_by_any_way_that_leads_to_it() -> None:
    x = torch.tensor([[1.0], [3.0]])
    contract = sn.fit_contract({"a.b.c": x}, {"a.b.c": "n c -> c", "a.d": "keep"}, split="train")
    ways: list[dict[str, Any]] = [{"a.b": {"c": x}, "a": {"d": 7}}, {"a": {"b": {}, "d": 7}, "a.b": {"c": x}}]
    for given in ways:
        found = contract(given)
        assert found["a.b"]["c"].tolist() == [[-1.0], [1.0]]
        assert found["a"] == given["a"]
        assert given["a.b"]["c"] is x


def test_a_batch_without_names(contract: sn.Contract) -> None:
    for given in (torch.ones(3, 4), [torch.ones(3, 4)], None, "text"):
        with pytest.raises(ContractError, match="needs a batch with names"):
            contract(given)


def test_outputs_may_be_left_out_forwards_and_inputs_backwards(
    contract: sn.Contract, data: dict[str, Any]
) -> None:
    action = contract(data)["action"]
    back = contract.inverse({"action": action})
    assert back.keys() == {"action"}
    del data["action"]
    assert "action" not in contract(data)
    with pytest.raises(ContractError, match="no 'action', an output of the contract"):
        contract.inverse(contract(data))


def test_units_are_compared(contract: sn.Contract, data: dict[str, Any]) -> None:
    y = contract(data, units={"observation.state": "rad", "action": "m"})
    assert torch.equal(contract.inverse(y, units={"action": "m"})["index"], data["index"])
    for call in (contract, contract.inverse):
        with pytest.raises(ContractError, match=r"(?s)'observation.state' is in 'rad'.*'deg'"):
            call(data, units={"observation.state": "deg"})
        with pytest.raises(ContractError, match=r"'observation\.image' is in no known unit"):
            call(data, units={"observation.image": "lux"})
        with pytest.raises(ContractError, match="no key 'state'"):
            call(data, units={"state": "rad"})
        with pytest.raises(OptionError, match="units must be a dict"):
            call(data, units=["rad"])


def test_it_is_a_collection_of_its_names(contract: sn.Contract) -> None:
    assert list(contract) == list(KEYS)
    assert len(contract) == 5
    assert "action" in contract
    assert "act" not in contract
    assert 3 not in contract
    assert contract.names() == ["observation.state", "observation.image", "action"]
    assert contract.names("output") == ["action"]
    assert contract.key("action").unit == "m"
    assert contract["task"](["lift"]) == ["lift"]
    for ask in (contract.key, contract.__getitem__):
        with pytest.raises(ContractError, match=r"(?s)no key 'actoin'.*did you mean 'action'"):
            ask("actoin")


NAMES = [
    "keys",
    "training",
    "forward",
    "a.b",
    "a/b",
    "100%",
    "a%2Eb",
    "%keys",
    "ü",
    "日本",
    " ",
    "0",
    "<b>",
    "\n",
]


def test_names_of_any_kind(tmp_path: Any) -> None:
    """Also those of attributes of modules, and pairs that one way to escape dots would mix up."""
    data = {name: torch.tensor([[float(i)], [i + 2.0]]) for i, name in enumerate(NAMES)}
    contract = sn.fit_contract(data, dict.fromkeys(NAMES, "n c -> c"), split="train")
    contract.save(tmp_path / "c")
    state = contract.state_dict()
    for found in (contract, sn.contract(tmp_path / "c"), sn.Contract.from_state_dict(state)):
        assert list(found) == NAMES
        for i, name in enumerate(NAMES):
            assert float(found[name].moments.mean) == i + 1
        assert not repr(found).count("\n\n")
    assert len({key.split(".")[1] for key in state if key.startswith("norms.")}) == len(NAMES)


def one(**options: Any) -> tuple[sn.Key, sn.InputNorm]:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    return sn.Key("n c -> c", **options), sn.fit(x, split="train")


def running() -> sn.RunningInputNorm:
    norm = sn.RunningInputNorm("n c -> c")
    norm.update(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    return norm


def test_a_stream_becomes_a_key_when_it_is_frozen() -> None:
    norm = running()
    for given in (norm, {"a": norm}):
        with pytest.raises(ContractError, match=r"(?s)RunningInputNorm.*freeze\(\)"):
            sn.contract(given)
    y = sn.contract({"a": norm.freeze()})({"a": torch.tensor([[4.0, 8.0]])})["a"].numpy()
    assert np.abs(y - [[2.0, 2.0]]).max() < 1e-6


@pytest.mark.parametrize(
    ("entries", "kind", "said"),
    [
        ({}, ContractError, "without keys"),
        ({"": one()}, ContractError, "must be text"),
        ({("a", "b"): one()}, ContractError, "must be text"),
        ({"a": (sn.Key("keep"), one()[1])}, ContractError, "'a' passes unchanged"),
        ({"a": (sn.Key("n c -> c"), None)}, ContractError, "'a' has no statistics"),
        ({"a": (sn.Key("n c ->"), one()[1])}, ContractError, "another pattern"),
        ({"a": one(names=("x", "y", "z"))}, ContractError, "3 names for 2 features"),
        ({"a": one()[1]}, ContractError, r"(?s)must be a Key and a layer.*slabnorm.contract\("),
        ({"a": ("n c -> c", one()[1])}, ContractError, "must be a Key and a layer"),
        ({"a": (one()[0], nn.Identity())}, ContractError, "'a' must be an InputNorm"),
        ({"a": (one()[0], running())}, ContractError, r"(?s)'a' must be an InputNorm.*freeze\(\)"),
    ],
    ids=[f"{i}" for i in range(11)],
)
def test_entries_that_do_not_go_together(entries: Any, kind: type[SlabError], said: str) -> None:
    with pytest.raises(kind, match=said):
        sn.Contract(entries)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"pattern": 3}, OptionError, "pattern of a key must be text"),
        ({"pattern": "n c"}, PatternError, "->"),
        ({"scheme": "z-score"}, OptionError, "did you mean 'zscore'"),
        ({"scheme": None}, OptionError, "scheme must be"),
        ({"role": "target"}, OptionError, '"input" or "output"'),
        ({"unit": 3}, OptionError, "unit must be text"),
        ({"names": "xy"}, OptionError, "list of texts"),
        ({"names": 3}, OptionError, "list of texts"),
        ({"names": ("x", "x")}, OptionError, "names must differ"),
        ({"valid": (1, 0)}, OptionError, "valid must be two finite numbers"),
        ({"valid": (0, float("inf"))}, OptionError, "valid must be two finite numbers"),
        ({"sizes": 3}, OptionError, "sizes must be a dict"),
        ({"sizes": {"g": 0}}, OptionError, "sizes must be a dict"),
    ],
    ids=[f"{i}" for i in range(13)],
)
def test_keys_out_of_range(options: dict[str, Any], kind: type[SlabError], said: str) -> None:
    with pytest.raises(kind, match=said):
        sn.Key(**{"pattern": "n c -> c", **options})


# Statistics that were given, and a contract in a state_dict.


def test_merged_statistics_are_those_of_all_values() -> None:
    parts = [RNG.normal(1e6, 1, (n, 3)) for n in (1, 2, 50)]
    merged = None
    for x in parts:
        some = Statistics(x.mean(0), x.std(0), x.min(0), x.max(0), [len(x)] * 3)  # type: ignore[arg-type]
        merged = some if merged is None else merged.merge(some)
    whole = np.concatenate(parts)
    assert merged is not None
    assert merged.mean is not None
    assert merged.std is not None
    assert np.abs(merged.mean.numpy() - whole.mean(0)).max() < 1e-9
    assert np.abs(merged.std.numpy() / whole.std(0) - 1).max() < 1e-9
    assert merged.max is not None
    assert np.array_equal(merged.max.numpy(), whole.max(0))
    assert merged.count is not None
    assert merged.count.tolist() == [53] * 3
    two = Statistics(mean=[1.0], std=[0.0], count=[1])
    with pytest.raises(ShapeError, match="other features"):
        merged.merge(two)
    assert two.merge(two).min is None
    with pytest.raises(StatisticsError, match=r"(?s)cannot be merged.*no count"):
        two.merge(Statistics(mean=[1.0], std=[0.0]))


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        ({}, ShapeError, "without a number"),
        ({"mean": [1.0], "std": [1.0, 2.0]}, ShapeError, "differ in shape"),
        ({"mean": [float("nan")]}, StatisticsError, "mean is finite"),
        ({"std": [-1.0]}, StatisticsError, "std is not negative"),
        ({"count": [2.5]}, StatisticsError, "no whole number"),
        ({"min": [2.0], "max": [1.0]}, StatisticsError, "min <= max"),
        ({"quantiles": {0.1: [2.0], 0.9: [1.0]}}, StatisticsError, "quantile 0.1 <= quantile 0.9"),
        ({"quantiles": {99: [2.0]}}, StatisticsError, "between 0 and 1"),
        ({"mean": ["a"]}, StatisticsError, "must be numbers"),
        ({"mean": [None]}, StatisticsError, "must be numbers"),
    ],
    ids=[f"{i}" for i in range(10)],
)
def test_statistics_that_no_data_have(parts: Any, kind: type[SlabError], said: str) -> None:
    with pytest.raises(kind, match=said):
        Statistics(**parts)


def given(unit: str = "m") -> sn.Contract:
    """A contract of statistics that another program wrote."""
    key = sn.Key("n c -> c", "minmax", unit=unit)
    found = Statistics(min=[0.0, -1.0], max=[2.0, 1.0], mean=[1.0, 0.0], quantiles={0.01: [0.1, -0.9]})
    return sn.Contract({"a": (key, GivenNorm(key, found, (2,), Provenance("LeRobot", "train", 7)))})


def test_statistics_that_were_given() -> None:
    contract, x = given(), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    assert contract({"a": x})["a"].tolist() == [[0.5, 0.75]]
    assert contract.inverse({"a": x})["a"].tolist() == [[2.0, 0.0]]
    assert contract["a"].samples == 7
    assert contract["a"].split == "train"
    assert "count" not in contract["a"].statistics.known()
    key = sn.Key("n c -> c", "zscore")
    with pytest.raises(StatisticsError, match=r"(?s)zscore|ZScore.*no std"):
        GivenNorm(key, contract["a"].statistics, (2,))


def test_nearly_constant_features_of_given_statistics() -> None:
    found = Statistics(mean=[5.0, 5.0], std=[1.0, 1e-4], min=[2.0, 4.999], max=[9.0, 5.001])
    x = torch.tensor([[7.0, 5.001]], dtype=torch.float64)
    for policy, right in (("warn", 10.0), ("floor", 0.001 / 0.005001), ("keep", 5.001)):
        key = sn.Key("n c -> c", sn.ZScore(near_constant=policy))
        y = GivenNorm(key, found, (2,))(x)
        assert np.abs(y.numpy() - [2.0, right]).max() < 1e-9, policy
        if policy != "warn":
            with pytest.raises(StatisticsError, match="no min, max"):
                GivenNorm(key, Statistics(mean=[5.0], std=[1.0]), (1,))


@pytest.mark.parametrize("which", ["fitted", "given"])
def test_a_state_dict_is_enough(which: str, contract: sn.Contract, tmp_path: Any) -> None:
    whole = contract if which == "fitted" else given()
    model = nn.ModuleDict({"contract": whole, "net": nn.Linear(1, 1)})
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    state = torch.load(path, weights_only=True)
    found = sn.Contract.from_state_dict(state, prefix="contract.")
    assert found.entries().keys() == whole.entries().keys()
    for name in whole:
        assert found.key(name) == whole.key(name)
    for label, value in whole.state_dict().items():
        assert torch.equal(value, found.state_dict()[label]), label
    if which == "given":
        assert found["a"].source == whole["a"].source
        whole.save(tmp_path / "a")
        found.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    model.load_state_dict(state)
    found.load_state_dict(whole.state_dict())


@pytest.mark.parametrize("prefix", ["", "norm.", "contract"])
def test_a_state_dict_without_a_contract(prefix: str, contract: sn.Contract) -> None:
    state = nn.ModuleDict({"contract": contract}).state_dict()
    with pytest.raises(ContractError, match=r'(?s)no contract under this prefix.*prefix="contract."'):
        sn.Contract.from_state_dict(state, prefix=prefix)


def _text(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


@pytest.mark.parametrize(
    "extra",
    [
        None,
        3,
        _text(b""),
        _text(b"{}"),
        _text(b"[]"),
        _text(b'{"version": 2, "keys": []}'),
        _text(b'{"version": 1}'),
        _text(b'{"version": 1, "keys": 3}'),
        _text(b'{"version": 1, "keys": [["a"]]}'),
        _text(b'{"version": 1, "keys": [["a", {}]]}'),
        _text(b'{"version": 1, "keys": [["", {}]]}'),
        _text(b'{"version": 1, "keys": [[["a"], {}]]}'),
        _text(b'{"version": 1, "keys": NaN}'),
        _text(b"[" * 100_000),
        torch.ones(3, 3),
    ],
    ids=[f"{i}" for i in range(15)],
)
def test_damaged_extra_states(extra: Any, contract: sn.Contract) -> None:
    state = {**contract.state_dict(), "_extra_state": extra}
    for call in (sn.Contract.from_state_dict, contract.load_state_dict):
        with pytest.raises(ContractError):
            call(state)


@pytest.mark.parametrize("which", ["fitted", "given"])
def test_parts_of_a_contract_are_refused_whatever_strict_says(which: str, contract: sn.Contract) -> None:
    whole = contract if which == "fitted" else given()
    state = whole.state_dict()
    for label in state:
        part = {other: value for other, value in state.items() if other != label}
        for strict in (True, False):
            with pytest.raises(SlabError):
                copy.deepcopy(whole).load_state_dict(part, strict=strict)


def test_checkpoints_of_other_contracts_are_refused(contract: sn.Contract, data: dict[str, Any]) -> None:
    others = {
        "unit is 'deg', not 'rad'": {"observation.state": sn.Key("n c -> c", unit="deg")},
        "role is 'input', not 'output'": {"action": sn.Key("n c -> c", sn.MinMax(out=(-1, 1)), unit="m")},
        "no such key": {"observation.state": None},
        "more keys": {"index": "n ->", "more": "keep"},
    }
    for said, change in others.items():
        keys = {n: k for n, k in {**KEYS, **change}.items() if k is not None}
        if said == "more keys":
            keys = {**KEYS, "more": "keep"}
        other = sn.fit_contract(data, keys, split="train")
        with pytest.raises(ContractError, match=rf"(?s)another contract.*{said}"):
            contract.load_state_dict(other.state_dict())
    with pytest.raises(ContractError, match="unit is 'mm', not 'm'"):
        given().load_state_dict(given("mm").state_dict())


def test_shift_and_scale_follow_from_what_was_given() -> None:
    contract, state = given(), given().state_dict()
    state["norms.a.scale"] = state["norms.a.scale"] * 2
    before = copy.deepcopy(contract.state_dict())
    with pytest.raises(StatisticsError, match=r"norms\.a\.scale does not follow"):
        contract.load_state_dict(state)
    for label, value in contract.state_dict().items():
        assert torch.equal(value, before[label])


def test_statistics_of_a_checkpoint_are_taken(contract: sn.Contract) -> None:
    other = sn.fit_contract(batch(), KEYS, split="train")
    assert not torch.equal(other["action"].moments.mean, contract["action"].moments.mean)
    contract.load_state_dict(other.state_dict())
    assert torch.equal(other["action"].moments.mean, contract["action"].moments.mean)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.float64)])
def test_statistics_stay_exact_under_casts(cast: Any, contract: sn.Contract) -> None:
    before = copy.deepcopy(contract.state_dict())
    for whole in (contract, given()):
        cast(whole)
        assert all(b.dtype in (torch.float64, torch.int64) for b in whole.buffers())
    for label, value in contract.state_dict().items():
        assert torch.equal(value, before[label])


def test_copies(contract: sn.Contract, data: dict[str, Any]) -> None:
    right = contract(data)["observation.state"]
    copies = [copy.deepcopy(contract), pickle.loads(pickle.dumps(contract))]
    copies.append(contract._replicate_for_data_parallel())  # as DataParallel has one on each device
    for other in copies:
        assert torch.equal(other(data)["observation.state"], right)
        assert other.key("action") == contract.key("action")


def test_compiled_and_inside_a_sequential(contract: sn.Contract, data: dict[str, Any]) -> None:
    class Last(nn.Module):
        def forward(self, entries: dict[str, Tensor]) -> Tensor:
            return entries["observation.state"] * 2

    model = nn.Sequential(contract, Last())
    assert np.abs(model(data).numpy() - 2 * wanted(data)["observation.state"]).max() < 1e-12
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    del data["task"]
    assert torch.equal(compiled(data), model(data))


def test_gradients_pass(contract: sn.Contract, data: dict[str, Any]) -> None:
    x = data["observation.state"].requires_grad_()
    contract(data)["observation.state"].backward(torch.ones_like(x))
    right = 1 / x.detach().numpy().std(0)
    assert np.abs(x.grad.numpy() / right - 1).max() < 1e-12
