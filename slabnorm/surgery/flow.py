"""Who takes what from whom in a model: its linear layers and batch norms, and the values between them.

A trace by torch.fx shows the flow for any input, and a recorded run in eval mode shows it for one batch. In
both a value is known by what made it, and every use of it is counted: by a layer, by anything else, by a
hook, by an attribute that keeps it. Neither shows everything: a trace follows one branch of what asks
`isinstance(x, Tensor)`, a run the branches of its batch, and what leaves torch (`x.numpy()`) is seen by none.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slabnorm.errors import ModelError
from slabnorm.kernels.backend import using
from slabnorm.nn import SlabNorm
from slabnorm.surgery.derived import plain_class
from slabnorm.surgery.effect import arguments
from slabnorm.surgery.walk import walk

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


class LayerCall(NamedTuple):
    """A call of a layer or norm: its name, the one value that it takes, the value that it makes.

    Attributes:
        value: None if it is called with anything but one positional argument.
        rank: the number of axes of what it takes; 0 if a trace does not know.
    """

    name: str
    value: Hashable | None
    made: Hashable
    rank: int = 0


@dataclass
class Flow:
    """The calls of a model's layers and norms, and how often each value is used.

    Attributes:
        calls: in order.
        uses: of a value, by anything at all.
        touched: the layers and norms whose parameters or buffers are used beside a call.
        written: in a run, the values that operations have written to after a layer or norm took them.
        entry: what the model itself is given first.
    """

    calls: list[LayerCall] = field(default_factory=list)
    uses: Counter[Hashable] = field(default_factory=Counter)
    touched: set[str] = field(default_factory=set)
    written: set[Hashable] = field(default_factory=set)
    entry: Hashable | None = None

    def of(self, name: str) -> list[LayerCall]:
        """Return the calls of a layer or norm."""
        return [call for call in self.calls if call.name == name]

    def maker(self, value: Hashable | None) -> str | None:
        """Return the layer or norm that makes a value; None if it is none."""
        return next((call.name for call in self.calls if value is not None and call.made == value), None)

    def taker(self, value: Hashable | None) -> str | None:
        """Return the layer or norm that alone uses a value; None if there is none."""
        if value is None or self.uses[value] != 1:
            return None
        return next((call.name for call in self.calls if call.value == value), None)


def flows(model: nn.Module, batch: Any) -> tuple[list[Flow], str]:
    """Return what is known of the flow through a model in eval mode, and why a trace knows nothing.

    Args:
        model: it stays as it is.
        batch: what the model can be called with: a tensor, a tuple or a dict. None: it is not run.

    Returns:
        Flows that hold at once: a trace of a call with all arguments, one with the defaults of those that
        have some, and a run on the batch; each where it is possible.

    Raises:
        ModelError: the model does not run on the batch.
    """
    if plain_class(type(model)) in LAYERS:
        return [Flow([LayerCall("", 0, 1)], Counter({0: 1, 1: 1}), entry=0)], ""
    found: list[Flow] = []
    why = ""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(model).forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for fixed in [{}, defaults] if defaults else [{}]:
        try:
            found.append(_traced(model, fixed))
        except Exception as error:  # whatever a forward does with what is no tensor
            why = f"{type(error).__name__}: {error}".splitlines()[0]
    if batch is not None:
        found.append(_recorded(model, batch))
    return found, why


def _leaf(module: nn.Module) -> bool:
    return plain_class(type(module)) in LAYERS or isinstance(module, _BatchNorm)


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy with the same parameters, which neither a trace nor a run in eval mode writes to."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    made = (value for value in attributes if isinstance(value, Tensor))  # of pruning, and not to be copied
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *made)})


def _owners(model: nn.Module) -> dict[int, str]:
    """Return which layer or norm has a parameter or buffer, by its id."""
    return {
        id(t): place.name
        for place in walk(model)
        if _leaf(place.module)
        for t in (*place.module._parameters.values(), *place.module._buffers.values())
        if t is not None
    }


class _Tracer(fx.Tracer):
    """Traces down to layers and norms; `seen` are the values that hooks see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if _leaf(module) or isinstance(module, SlabNorm):
            return True
        return super().is_leaf_module(module, name) and not any(map(_leaf, module.modules()))

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(module, forward, args, kwargs)
        if not _leaf(module) and (module._forward_hooks or module._forward_pre_hooks):
            self.seen += [args, kwargs, result]
        return result


def _traced(model: nn.Module, fixed: dict[str, Any]) -> Flow:
    tracer, twin = _Tracer(), _twin(model)
    recorder = _Recorder(
        _owners(twin)
    )  # of operations on parameters alone, which the trace takes for constants
    with warnings.catch_warnings(), recorder:
        warnings.simplefilter("ignore")
        graph = tracer.trace(twin, fixed or None)
    flow = recorder.flow
    for node in graph.nodes:
        flow.uses[node] += len(node.users)
        if node.op == "call_module":
            alone = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)
            flow.calls.append(LayerCall(node.target, node.args[0] if alone else None, node))
        elif node.op == "get_attr":
            flow.touched.add(node.target.rpartition(".")[0])
        elif node.op == "placeholder" and flow.entry is None:
            flow.entry = node
    for value in _leaves([tracer.seen, *_kept(twin)]):
        if isinstance(value, fx.Proxy):
            flow.uses[value.node] += 1
    return flow


def _kept(model: nn.Module) -> list[Any]:
    """Return the attributes of all modules, one of which may have kept a value."""
    tensors = ("_parameters", "_buffers")
    return [value for module in model.modules() for key, value in vars(module).items() if key not in tensors]


def _leaves(anything: Any) -> Iterator[Any]:
    """Return all that containers and objects hold, and what these hold; of modules and classes nothing."""
    seen: set[int] = set()
    waiting = [anything]
    while waiting:
        for leaf in pytree.tree_leaves(waiting.pop()):
            yield leaf
            if id(leaf) in seen or isinstance(
                leaf, Tensor | nn.Module | fx.Proxy | fx.Node | type | ModuleType
            ):
                continue
            seen.add(id(leaf))
            slots = getattr(type(leaf), "__slots__", ())
            waiting += [
                *getattr(leaf, "__dict__", {}).values(),
                *(getattr(leaf, name, None) for name in slots),
            ]


class _Recorder(TorchDispatchMode):
    """Counts the uses of what layers and norms make, by any operation of torch outside them."""

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.flow, self.inside = Flow(), 0
        self.values: dict[int, Tensor] = {}  # kept, so that no other tensor gets the id of one
        self.owners = owners  # of parameters and buffers, by id

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no compiler comes here, and importing it takes 2 s

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.use(pytree.tree_leaves((args, kwargs)))
            if function._schema.is_mutable and args and id(args[0]) in self.values:
                self.flow.written.add(id(args[0]))
        return function(*args, **(kwargs or {}))

    def know(self, value: Tensor) -> int:
        self.values[id(value)] = value
        return id(value)

    def use(self, values: Iterable[Any]) -> None:
        for value in values:
            if id(value) in self.values:
                self.flow.uses[id(value)] += 1
            elif id(value) in self.owners:
                self.flow.touched.add(self.owners[id(value)])

    def watch(self, module: nn.Module, name: str) -> None:
        """Have the calls of a layer or norm recorded."""

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.use(_leaves((args, kwargs)))
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            entered.append((self.know(args[0]), args[0].dim()) if alone else (None, 0))
            self.flow.written.discard(entered[-1][0])  # before the call
            self.inside += 1

        def leave(_: nn.Module, args: Any, result: Any) -> None:
            self.inside -= 1
            value, rank = entered.pop()
            made = self.know(result) if isinstance(result, Tensor) else -1
            self.flow.calls.append(LayerCall(name, value, made, rank))

        entered: list[tuple[int | None, int]] = []
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave)


def _recorded(model: nn.Module, batch: Any) -> Flow:
    try:
        twin = _twin(model).eval()
    except Exception as error:
        raise ModelError(
            "The model could not be copied, to be run on the batch given as batch=",
            f"{type(error).__name__}: {error}",
            "leave batch= away",
        ) from error
    recorder = _Recorder(_owners(twin))
    for module in twin.modules():
        if not _leaf(module) and (module._forward_hooks or module._forward_pre_hooks):
            module.register_forward_hook(lambda _, args, result: recorder.use(_leaves((args, result))))
    for place in walk(twin):
        if _leaf(place.module):
            recorder.watch(place.module, place.name)
    args, options = arguments(copy.deepcopy(batch))
    given = [value for value in pytree.tree_leaves((args, options)) if isinstance(value, Tensor)]
    recorder.flow.entry = recorder.know(given[0]) if given else None
    try:
        # In plain torch, whose operations the recorder sees; compiled kernels work on addresses.
        with torch.no_grad(), using("eager"), torch.random.fork_rng(devices=[]), recorder:
            result = twin(*args, **options)
    except Exception as error:
        raise ModelError(
            "The model does not run on the batch given as batch=",
            f"{type(error).__name__}: {error}",
            "give a tensor, a tuple of positional or a dict of keyword arguments",
        ) from error
    recorder.use(_leaves([result, *_kept(twin)]))
    return recorder.flow


def agreed(found: Sequence[Flow], name: str, other: Any) -> str | None:
    """Return the layer that all flows in which a norm is called name by `other(flow, call)`; None if none."""
    named = {other(flow, call) for flow in found for call in flow.of(name)}
    return named.pop() if len(named) == 1 else None
