"""A contract as a part of a model: raw inputs in, outputs in units out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from slabnorm.contracts.key import name_of
from slabnorm.contracts.nested import get, is_mapping, known_names, replaced
from slabnorm.errors import ContractError, ModelError, OptionError
from slabnorm.surgery.derived import Derived, derived, without
from slabnorm.text import listing

if TYPE_CHECKING:
    from slabnorm.contracts.contract import Contract

Model = TypeVar("Model", bound=nn.Module)
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Ports:
    """Which of a model's arguments and results are which keys.

    Attributes:
        inputs: the keys of the positional arguments, in their order; or of the arguments by name; None for
            one argument that is a batch with names, or one input.
        outputs: the keys of the results, in their order; None for a result with names, or one output.
    """

    def __init__(self, inputs: Any, outputs: Any, contract: Contract) -> None:
        if isinstance(outputs, Mapping):
            raise OptionError("outputs must be a list of keys", type(outputs).__name__, 'as ["action"]')
        self.inputs = _checked(inputs, "input", contract)
        self.outputs = _checked(outputs, "output", contract)

    def enter(
        self, contract: Contract, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call, normalised."""
        if isinstance(self.inputs, Mapping):
            return args, self._enter_named(contract, args, named)
        if self.inputs is None and args and is_mapping(args[0]):
            _check_further(contract, (*args[1:], *named.values()))
            return (contract(args[0]), *args[1:]), named
        if self.inputs is None and not args and contract.names("input"):
            raise ContractError(
                "The model was called without a positional argument, which the contract normalises",
                f"{', '.join(named)} by name" if named else "no arguments",
                'give the batch by position; or say inputs={"argument": "key"} in attach()',
            )
        names = self.inputs if self.inputs is not None else _the_only(contract, "input", "argument", args)
        if len(args) < len(names):
            raise ContractError(
                f"The model was called without {listing([name_of(n) for n in names[len(args):]])}",
                f"{len(args)} positional arguments", 'give it; or say inputs={"argument": "key"} in attach()',
            )  # fmt: skip
        given = contract(dict(zip(names, args, strict=False)))
        return (*(given[name] for name in names), *args[len(names) :]), named

    def _enter_named(
        self, contract: Contract, args: tuple[Any, ...], named: dict[str, Any]
    ) -> dict[str, Any]:
        missing = [argument for argument in self.inputs if argument not in named]
        if missing:
            raise ContractError(
                f"The model was called without the argument {listing(missing)}",
                f"{len(args)} positional arguments, and {', '.join(named) or 'no names'}",
                "give it by name, as attach() was told",
            )
        given = contract({key: named[argument] for argument, key in self.inputs.items()})
        return named | {argument: given[key] for argument, key in self.inputs.items()}

    def leave(self, contract: Contract, result: Any) -> Any:
        """Return the result of a call in units."""
        if self.outputs is None and is_mapping(result):
            names = known_names(result, list(contract))
            missing = [name for name in contract.names("output") if name not in names]
            if missing:
                what = listing([name_of(name) for name in missing])
                got = f"it has {', '.join(map(name_of, names[:10])) or 'nothing'}"
                fix = "name its entries as the contract does"
                raise ContractError(f"The model's result has no {what}, an output of the contract", got, fix)
            known = [name for name in names if name in contract]
            return replaced(result, contract.inverse({name: get(result, name) for name in known}))
        several = isinstance(result, tuple | list)
        parts = list(result) if several else [result]
        names = self.outputs if self.outputs is not None else _the_only(contract, "output", "result", parts)
        if not names:
            return result
        if len(parts) < len(names) or not all(isinstance(part, Tensor) for part in parts[: len(names)]):
            raise ContractError(
                f"The model does not return {listing([name_of(name) for name in names])}",
                type(result).__name__, 'say which results are which keys: outputs=["action"]',
            )  # fmt: skip
        back = contract.inverse(dict(zip(names, parts, strict=False)))
        parts[: len(names)] = [back[name] for name in names]
        if not several:
            return parts[0]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)


class Contracted(Derived):
    """What a model becomes to which a contract is attached."""

    contract: Contract
    ports: Ports

    def forward(self, *args: Any, **named: Any) -> Any:
        """Normalise the inputs, run the model, and bring its outputs back to units."""
        args, named = self.ports.enter(self.contract, args, named)
        return self.ports.leave(self.contract, super().forward(*args, **named))


class Wrapped(nn.Module):
    """A policy between a contract: raw inputs in, outputs in units out.

    Attributes:
        contract: the statistics.
        policy: the module or function in between, which sees normalised inputs only.
    """

    def __init__(self, contract: Contract, policy: Callable[..., Any], ports: Ports) -> None:
        super().__init__()
        self.contract, self.policy, self.ports = contract, policy, ports

    def forward(self, *args: Any, **named: Any) -> Any:
        """Normalise the inputs, run the policy, and bring its outputs back to units."""
        args, named = self.ports.enter(self.contract, args, named)
        return self.ports.leave(self.contract, self.policy(*args, **named))


def attach(
    contract: Contract,
    model: Model,
    *,
    inputs: str | Sequence[str] | Mapping[str, str] | None = None,
    outputs: str | Sequence[str] | None = None,
) -> Model:
    """Make a contract a part of a model, in place, and return the model.

    Its forward then takes raw inputs and returns outputs in units; methods that do not go through forward, as
    `generate` may, stay as they are. The model has a copy of the contract, which lies in its `state_dict` as
    `contract.*`, may be changed by a checkpoint that is loaded, and goes through `torch.export`, ONNX and
    `torch.compile`. A checkpoint without a contract is refused, also under `strict=False`. Train a model on
    `contract(batch)`, and attach the contract when its outputs are to be used; `detach` takes it off again.

    Args:
        contract: the statistics.
        model: any module whose class has a forward.
        inputs: the keys of its positional arguments, in their order, as ["observation.state"]; or of its
            arguments by name, as {"state": "observation.state"}. Not needed if the first argument is a dict
            with the names of keys, or if contract and model have one input each.
        outputs: the keys of its results, in their order. Not needed if it returns a dict with the names of
            keys, of which all are brought back, or if contract and model have one output each. Without
            outputs in the contract, other results stay as they are.

    Raises:
        ContractError: a name is no key, or not of this role; or a key of this role is left out.
        ModelError: `model` is no module, is a Sequential, is compiled already, has a contract or another
            attribute of that name, or calls or copies itself in a way of its own.

    >>> import torch, slabnorm as sn
    >>> data = {"x": torch.tensor([[0.0], [10.0]]), "y": torch.tensor([[100.0], [300.0]])}
    >>> keys = {"x": "n c -> c", "y": sn.Key("n c -> c", role="output")}
    >>> contract = sn.fit_contract(data, keys, split="train")
    >>> model = contract.attach(torch.nn.Identity())
    >>> model(torch.tensor([[10.0]]))
    tensor([[300.]])
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "attach() needs a torch.nn.Module", type(model).__name__, "wrap() takes any function"
        )
    _check_attachable(model)
    ports, kind = Ports(inputs, outputs, contract), derived(Contracted, type(model))
    model.contract = copy.deepcopy(contract)
    model.ports = ports  # type: ignore[assignment]
    object.__setattr__(model, "__class__", kind)
    return model


def detach(model: Model) -> Contract:
    """Take the contract off a model, which then takes normalised inputs again, and return it.

    Raises:
        ModelError: it has none.
    """
    if not isinstance(model, Contracted):
        raise ModelError(
            "The model has no contract", type(model).__name__, "contract.attach(model) gives it one"
        )
    contract = model.contract
    object.__setattr__(model, "__class__", without(type(model), Contracted))
    del model.contract, model.ports
    return contract


def wrap(
    contract: Contract,
    policy: Callable[..., Any],
    *,
    inputs: str | Sequence[str] | Mapping[str, str] | None = None,
    outputs: str | Sequence[str] | None = None,
) -> Wrapped:
    """Return a module that normalises on the way into a policy and inverts on the way out.

    The policy stays as it is. Arguments and errors are those of `attach`.
    """
    if not callable(policy):
        raise ModelError("wrap() needs a module or a function", type(policy).__name__)
    _check_bare(policy)
    return Wrapped(copy.deepcopy(contract), policy, Ports(inputs, outputs, contract))


def _check_bare(model: Any) -> None:
    """Raise ModelError for what has a contract already: its inputs would be normalised twice."""
    inner = getattr(model, "__self__", model)  # of a bound method
    below = inner
    while isinstance(below, nn.Module):  # through data parallelism, and through torch.compile
        inner, below = below, below._modules.get("module" if isinstance(below, PARALLEL) else "_orig_mod")
    if isinstance(inner, Contracted | Wrapped):
        fix = "use it as it is; or take the contract off first with slabnorm.contracts.attach.detach"
        raise ModelError("The model has a contract already", type(model).__name__, fix)


def _check_attachable(model: nn.Module) -> None:
    """Raise ModelError for a model whose forward would go round the contract, or that has no room for it."""
    _check_bare(model)
    kind = type(model).__name__
    if isinstance(model, nn.Sequential):
        problem = "A Sequential runs all that it has one after another, and so cannot have a contract"
        raise ModelError(problem, kind, "contract.wrap(model) returns a module around it")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("A compiled TorchScript module cannot be changed", kind, "use wrap()")
    if "forward" in vars(model) or getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(
            "The model does not run the forward of its class, as after torch.compile", kind,
            "attach the contract before that; or use wrap()",
        )  # fmt: skip
    parametrized = nn.utils.parametrize.is_parametrized(model)  # whose __deepcopy__ keeps the class
    for name in ("__call__", "__reduce__", *([] if parametrized else ["__deepcopy__"])):
        if getattr(type(model), name, None) is not getattr(nn.Module, name, None):
            raise ModelError(
                f"The class of the model has a {name} of its own, which can go round the contract", kind,
                "contract.wrap(model) returns a module around it",
            )  # fmt: skip
    for name in ("contract", "ports"):
        if hasattr(model, name):
            raise ModelError(f"The model has an attribute {name} of its own", kind, "use wrap()")


def _checked(names: Any, role: str, contract: Contract) -> Any:
    """Return the names of keys as a list, or by argument, or None.

    Raises:
        ContractError: a name is no key, is there twice or of another role; or a key of the role is left out.
        OptionError: they are no names.
    """
    if names is None:
        return None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Mapping | Sequence):
        fix = f'such as {role}s=["state"]'
        raise OptionError(f"{role}s must be a list of keys", type(names).__name__, fix)
    chosen = list(names.values()) if isinstance(names, Mapping) else list(names)
    for name in chosen:
        key = contract.key(name)
        if key.role != role and not key.keep:
            raise ContractError(
                f"Key {name_of(name)} is an {key.role} of the contract", f"{role}s={chosen!r:.200}",
                f'fit it with slabnorm.Key(..., role="{role}")',
            )  # fmt: skip
    left_out = [name for name in contract.names(role) if name not in chosen]
    if left_out or len(set(chosen)) < len(chosen):
        some = listing([name_of(name) for name in left_out])
        raise ContractError(
            f"{role}s= leaves out {some}" if left_out else f"{role}s= names a key twice",
            f"{chosen!r:.200}", f"name each {role} of the contract once",
        )  # fmt: skip
    return dict(names) if isinstance(names, Mapping) else chosen


def _check_further(contract: Contract, arguments: Sequence[Any]) -> None:
    """Raise ContractError if an argument besides the batch has entries that the contract normalises."""
    normalised = contract.names()
    for argument in arguments:
        names = known_names(argument, normalised) if is_mapping(argument) else []
        both = [name for name in names if name in normalised]
        if both:
            raise ContractError(
                f"Another argument of the model has {name_of(both[0])}, too", type(argument).__name__,
                "only the first is normalised: give one batch, with another key for each of its entries",
            )  # fmt: skip


def _the_only(contract: Contract, role: str, what: str, values: Sequence[Any]) -> list[str]:
    """Return the one key of a role, for the one argument or result of the model.

    Raises:
        ContractError: there are several of either.
    """
    names = contract.names(role)
    if len(names) > 1:
        raise ContractError(
            f"Cannot tell which {what} of the model is which key", f"the contract has {listing(names)}",
            f"say it: attach(model, {role}s={names!r}), or use a dict",
        )  # fmt: skip
    if names and len(values) > 1:
        raise ContractError(
            f"Cannot tell which {what} of the model is {name_of(names[0])}", f"{len(values)} {what}s",
            f"say it: attach(model, {role}s={names!r}) if it is the first of them",
        )  # fmt: skip
    return names
