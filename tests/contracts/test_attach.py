"""A contract as a part of a model: raw inputs in, outputs in units out, against NumPy."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import slabnorm as sn
from slabnorm.contracts.attach import detach
from slabnorm.errors import ContractError, ModelError, OptionError, SlabError

RNG = np.random.default_rng(0)
X, Z, Y = (np.random.default_rng(i).normal(5 * i, i, (30, 2)) for i in (1, 2, 3))
Pair = namedtuple("Pair", ["action", "value"])


def norm(x: np.ndarray) -> np.ndarray:
    return (x - {id(X): X, id(Z): Z}.get(id(x), x).mean(0)) / x.std(0)


def right() -> np.ndarray:
    """The action for a model that adds its two inputs, normalised, back in units."""
    return (norm(X) + norm(Z)) * Y.std(0) + Y.mean(0)


def fitted(**roles: str) -> sn.Contract:
    keys: Any = {"x": "n c -> c", "z": "n c -> c", "action": sn.Key("n c -> c", role="output", unit="m")}
    keys["value"] = sn.Key("n c -> c", role="output")
    data = {"x": X, "z": Z, "action": Y, "value": Y}
    return sn.fit_contract(data, {n: k for n, k in keys.items() if n in roles or not roles}, split="train")


THREE = dict.fromkeys(("x", "z", "action"), "")
BATCH = {"x": torch.from_numpy(X), "z": torch.from_numpy(Z)}


def same(y: Tensor) -> Any:
    return y


class Plain(nn.Module):
    """A model with a parameter, whose result has any form."""

    def __init__(self, form: Any = same) -> None:
        super().__init__()
        self.weight, self.form = nn.Parameter(torch.ones(2, dtype=torch.float64)), form

    def forward(self, x: Any, z: Any = None, scale: float = 1.0) -> Any:
        if z is None:
            x, z = x["x"], x["z"]
        return self.form((x + z) * self.weight * scale)


def dict_of(y: Tensor) -> Any:
    return {"action": y, "hidden": y}


def tensordict(y: Tensor) -> Any:
    return TensorDict({"action": y}, [30])


def named(y: Tensor) -> Any:
    return Pair(y, "kept")


def first(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    return result["action"] if hasattr(result, "keys") else result[0]


@pytest.mark.parametrize("form", [same, dict_of, tensordict, named, lambda y: (y, 7), lambda y: [y]])
@pytest.mark.parametrize("way", ["dict", "by position", "by name"])
@pytest.mark.parametrize("how", ["attach", "wrap"])
def test_raw_inputs_in_and_outputs_in_units_out(how: str, way: str, form: Any) -> None:
    outputs = None if form in (dict_of, tensordict) else ["action"]
    inputs: Any = {"dict": None, "by position": ["x", "z"], "by name": {"x": "x", "z": "z"}}[way]
    model = getattr(fitted(**THREE), how)(Plain(form), inputs=inputs, outputs=outputs)
    x, z = BATCH["x"], BATCH["z"]
    found = model(BATCH) if way == "dict" else model(x, z) if way == "by position" else model(z=z, x=x)
    assert np.abs(first(found).detach().numpy() - right()).max() < 1e-12
    made = Plain(form)(*(torch.from_numpy(norm(v)) for v in (X, Z)))
    assert type(found) is type(made)
    if form is named:
        assert found.value == "kept"
    if form is dict_of:
        assert (found["hidden"] - made["hidden"]).abs().max() < 1e-12


def test_one_input_and_one_output_need_no_names() -> None:
    x = np.concatenate([X, X * 3])
    contract = sn.fit_contract(
        {"x": x, "y": x * 2 + 1}, {"x": "n c -> c", "y": sn.Key("n c -> c", role="output")}, split="train"
    )
    model = contract.attach(nn.Identity())
    assert np.abs(model(torch.from_numpy(x)).numpy() - (x * 2 + 1)).max() < 1e-12
    function = contract.wrap(lambda v: v)
    assert np.abs(function(torch.from_numpy(x)).numpy() - (x * 2 + 1)).max() < 1e-12


def test_two_outputs() -> None:
    model = fitted().attach(Plain(lambda y: (y, y * 2)), outputs=["action", "value"])
    action, value = model(BATCH)
    assert np.abs(value.detach().numpy() - (2 * (norm(X) + norm(Z)) * Y.std(0) + Y.mean(0))).max() < 1e-12
    assert np.abs(action.detach().numpy() - right()).max() < 1e-12


def test_without_outputs_results_stay() -> None:
    keys: Any = {"x": "n c -> c", "z": "n c -> c"}
    model = sn.fit_contract({"x": X, "z": Z}, keys, split="train").attach(Plain())
    assert np.abs(model(BATCH).detach().numpy() - norm(X) - norm(Z)).max() < 1e-12


def test_other_arguments_pass() -> None:
    model = fitted(**THREE).attach(Plain(), inputs=["x", "z"])
    y = model(BATCH["x"], BATCH["z"], 2.0)
    assert torch.equal(y, model(BATCH["x"], BATCH["z"], scale=2.0))
    assert (y - model(BATCH["x"], BATCH["z"])).abs().min() > 1e-4


CALLS: dict[str, tuple[Any, dict[str, Any], Any, type[SlabError], str]] = {
    "which input": (Plain(), {}, lambda m: m(BATCH["x"], BATCH["z"]), ContractError, "which argument"),
    "one too few": (Plain(), {"inputs": ["x", "z"]}, lambda m: m(BATCH["x"]), ContractError, "without 'z'"),
    "no name": (Plain(), {"inputs": {"x": "x", "z": "z"}}, lambda m: m(x=1), ContractError, "the argument z"),
    "by name only": (Plain(), {}, lambda m: m(x=BATCH), ContractError, "got: x by name.*by position"),
    "nothing": (Plain(), {}, lambda m: m(), ContractError, "got: no arguments"),
    "a key fewer": (Plain(), {}, lambda m: m({"x": BATCH["x"]}), ContractError, "no 'z', an input"),
    "a key more": (Plain(), {}, lambda m: m({**BATCH, "w": 1}), ContractError, "no key 'w'"),
    "no tensor": (Plain(lambda y: "text"), {}, lambda m: m(BATCH), ContractError, "does not return 'action'"),
    "which result": (Plain(lambda y: (y, y)), {}, lambda m: m(BATCH), ContractError, "which result"),
    "another name": (Plain(lambda y: {"act": y}), {}, lambda m: m(BATCH), ContractError, "'action'.*'act'"),
    "two batches": (Plain(), {}, lambda m: m(BATCH, BATCH), ContractError, "argument.*'x', too"),
    "two by name": (Plain(), {}, lambda m: m(BATCH, scale=BATCH), ContractError, "argument.*'x', too"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_do_not_fit(name: str) -> None:
    model, options, call, kind, said = CALLS[name]
    model = fitted(**THREE).wrap(copy.deepcopy(model), **options)
    with pytest.raises(kind, match=f"(?s){said}"):
        call(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": ["x", "y"]}, "no key 'y'"),
        ({"inputs": ["x"]}, "leaves out 'z'"),
        ({"inputs": []}, "leaves out 'x' and 'z'"),
        ({"inputs": ["x", "z", "x"]}, "twice"),
        ({"inputs": {"a": "x", "b": "action"}}, "'action' is an output"),
        ({"outputs": ["x"]}, "'x' is an input"),
        ({"outputs": {"a": "action"}}, "list of keys"),
        ({"inputs": 3}, "list of keys"),
    ],
    ids=[f"{i}" for i in range(8)],
)
def test_names_that_do_not_fit(options: Any, said: str) -> None:
    with pytest.raises((ContractError, OptionError), match=said):
        fitted(**THREE).attach(Plain(), **options)


class Calls(Plain):
    def __call__(self, x: Any) -> Any:
        return x


class Reduces(Plain):
    def __reduce__(self) -> Any:
        return Reduces, (), vars(self)


class Copies(Plain):
    def __deepcopy__(self, memo: Any) -> Any:
        return Copies()


def test_models_that_would_go_round_the_contract() -> None:
    contract, patched, own = fitted(**THREE), Plain(), Plain()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    own.contract = 3
    compiled = Plain()
    compiled.compile(backend="eager")
    refused: list[Any] = [
        nn.Sequential(Plain()),
        torch.compile(Plain(), backend="eager"),
        compiled,
        patched,
        own,
        lambda x: x,
        Plain,
    ]
    refused += [Calls(), Reduces(), Copies(), torch.fx.symbolic_trace(nn.Linear(2, 2))]
    for model in refused:
        before = dict(vars(model)) if isinstance(model, nn.Module) else None
        with pytest.raises(ModelError, match=r"(?s)wrap\(|attach\(\) needs"):
            contract.attach(model)
        assert before is None or vars(model) == before
    wrapped = contract.wrap(nn.Sequential(Plain()))
    assert np.abs(wrapped(BATCH).detach().numpy() - right()).max() < 1e-12
    with pytest.raises(ModelError, match="module or a function"):
        contract.wrap(3)


def test_a_parametrized_model_keeps_the_contract_in_copies() -> None:
    keys: Any = {"x": "n c -> c", "y": sn.Key("n c -> c", role="output")}
    contract = sn.fit_contract({"x": X, "y": Y}, keys, split="train")
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, dtype=torch.float64))
    weight, bias = linear.weight.detach().numpy().copy(), linear.bias.detach().numpy()
    wanted = (norm(X) @ weight.T + bias) * Y.std(0) + Y.mean(0)
    found = copy.deepcopy(contract.attach(linear))(torch.from_numpy(X))
    assert np.abs(found.detach().numpy() - wanted).max() < 1e-12


def test_no_input_is_normalised_twice() -> None:
    contract = fitted(**THREE)
    attached, wrapped = contract.attach(Plain()), contract.wrap(Plain())
    twice: list[Any] = [attached, wrapped, attached.forward, wrapped.forward]
    twice += [nn.DataParallel(attached), torch.compile(attached, backend="eager")]
    for model in twice:
        with pytest.raises(ModelError, match="has a contract already"):
            contract.wrap(model)
    for model in (attached, wrapped, nn.DataParallel(attached)):
        with pytest.raises(ModelError, match="has a contract already"):
            contract.attach(model)


@pytest.mark.parametrize("how", ["attach", "wrap"])
def test_a_checkpoint_of_one_model_leaves_others_alone(how: str) -> None:
    contract = fitted(**THREE)
    one, two = (getattr(contract, how)(Plain()) for _ in range(2))
    data = {"x": X * 3, "z": Z, "action": Y}
    keys = {name: contract.key(name) for name in data}
    two.load_state_dict(getattr(sn.fit_contract(data, keys, split="train"), how)(Plain()).state_dict())
    assert np.abs(one(BATCH).detach().numpy() - right()).max() < 1e-12
    assert np.abs(contract(BATCH)["x"].numpy() - norm(X)).max() < 1e-12
    found = two({**BATCH, "x": BATCH["x"] * 3})
    assert np.abs(found.detach().numpy() - right()).max() < 1e-12


def test_detach() -> None:
    model, contract = Plain(), fitted(**THREE)
    weight = model.weight
    assert contract.attach(model) is model
    assert isinstance(model, Plain)
    assert type(model).__name__ == "Plain"
    with pytest.raises(ModelError, match="has a contract already"):
        contract.attach(model)
    assert detach(model).key("action") == contract.key("action")
    assert type(model) is Plain
    assert model.weight is weight
    assert list(model.state_dict()) == ["weight"]
    assert torch.equal(model(BATCH), BATCH["x"] + BATCH["z"])
    with pytest.raises(ModelError, match="has no contract"):
        detach(model)
    contract.attach(model)
    assert np.abs(model(BATCH).detach().numpy() - right()).max() < 1e-12


def test_copies_and_checkpoints() -> None:
    model = fitted(**THREE).attach(Plain())
    y = model(BATCH)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(BATCH), y)
        assert detach(other).key("action").unit == "m"
    state = model.state_dict()
    bare = Plain()
    for strict in (True, False):
        with pytest.raises(ContractError, match="saved without its contract"):
            model.load_state_dict(bare.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        bare.load_state_dict(state)
    sn.Contract.from_state_dict(state, prefix="contract.").attach(bare)
    bare.load_state_dict(state)
    assert torch.equal(bare(BATCH), y)


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_compile_and_export() -> None:
    keys: Any = {"x": "n c -> c", "y": sn.Key("n c -> c", role="output")}
    contract = sn.fit_contract({"x": X, "y": Y}, keys, split="train")
    bare = Single().eval()
    with torch.no_grad():
        z = bare(torch.from_numpy(norm(X)).float()).double().numpy()
    wanted = z * Y.std(0) + Y.mean(0)
    x = torch.from_numpy(X).float()
    model = contract.attach(copy.deepcopy(bare))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    shapes = {"args": ({0: torch.export.Dim("n")},)}
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    for found in (model, compiled, exported):
        assert np.abs(found(x).detach().double().numpy() - wanted).max() < 1e-5
    assert np.abs(exported(x[:7]).detach().double().numpy() - wanted[:7]).max() < 1e-5
    with pytest.raises(ModelError, match="has a contract already"):
        contract.attach(model)
