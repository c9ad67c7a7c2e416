"""What is measured of a model: hooks on copies of it, in one train and three eval forwards."""

from __future__ import annotations

import copy
import math
import random
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from slabnorm.doctor.record import Layer, ModelRecord, Norm, Spread
from slabnorm.doctor.reference import drift_of, is_comparable
from slabnorm.errors import ModelError, ShapeError
from slabnorm.functional import moments
from slabnorm.inputs import InputNorm
from slabnorm.inputs.normalizer import FeatureNorm
from slabnorm.kernels import using
from slabnorm.nn import SlabNorm
from slabnorm.slab import plan
from slabnorm.surgery.computes import Computes
from slabnorm.surgery.effect import arguments, difference
from slabnorm.surgery.freeze import Frozen
from slabnorm.surgery.recognise import called_norm, fits_norm, recognise
from slabnorm.surgery.walk import walk

LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
DROPOUT = nn.modules.dropout._DropoutNd
NORMS = (SlabNorm, _BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
FLAT = 0.01  # of an activation's largest derivative: below that it is flat
# Of an activation's derivative, in units of its largest value. What has no flat sides is not here.
DERIVATIVES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Sigmoid: lambda x: 4 * x.sigmoid() * (1 - x.sigmoid()),
    nn.Tanh: lambda x: 1 - x.tanh().square(),
    nn.Hardsigmoid: lambda x: (x.abs() < 3).to(x.dtype),
    nn.ReLU6: lambda x: (x < 6).to(x.dtype),  # a Hardtanh to torch; to be flat below 0 is what it is for
    nn.Hardtanh: lambda x: (x.abs() < 1).to(x.dtype),
}
# The inputs below and above which the derivative is that small.
LIMITS: dict[type[nn.Module], tuple[float | None, float | None]] = {
    nn.Sigmoid: (-2 * math.atanh(math.sqrt(1 - FLAT)), 2 * math.atanh(math.sqrt(1 - FLAT))),
    nn.Tanh: (-math.atanh(math.sqrt(1 - FLAT)), math.atanh(math.sqrt(1 - FLAT))),
    nn.Hardsigmoid: (-3.0, 3.0),
    nn.ReLU6: (0.0, 6.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.ReLU: (0.0, None),
}
RECTIFIERS = (nn.ReLU, nn.ReLU6)
ACTIVATIONS = (*DERIVATIVES, *RECTIFIERS, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Mish)
FAMILIES = {
    "BatchNorm": "batch", "InstanceNorm": "instance", "GroupNorm": "group", "LayerNorm": "layer",
    "RMSNorm": "rms",
}  # fmt: skip
TARGETS = frozenset(("label", "labels", "target", "targets"))  # arguments that are compared with outputs
# By how many roundings of its dtype a model's outputs may move with the size of the batch, since sums may be
# taken in another order. On a CPU it is none for a transformer of 12 layers in bfloat16.
ROUNDINGS = 4


def examine(
    model: nn.Module,
    batch: Any,
    optimizer: torch.optim.Optimizer | None = None,
    reference: InputNorm | None = None,
) -> ModelRecord:
    """Return the record of a model on a batch; the model, its mode and the random numbers stay as they are.

    Args:
        model: any module.
        batch: a tensor, a tuple of positional or a dict of keyword arguments.
        optimizer: the model's, for what it does to the weights of norms.
        reference: the statistics of the training inputs, with which the first input is compared.

    Raises:
        ModelError: the model cannot be copied, has lazy layers without sizes, or does not run on the batch in
            train mode.
    """
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        fix = "run it on a batch once, which gives them their sizes"
        raise ModelError("The model has lazy layers that have no sizes yet", type(model).__name__, fix)
    record = ModelRecord(type(model).__name__, model.training, ranks=ranks())
    record.layers = described(model)
    if optimizer is not None:
        record.decayed = _decayed(model, optimizer)
    with _untouched_generators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if reference is not None:
            first = next((x for x in pytree.tree_leaves(batch) if is_comparable(x)), None)
            record.drift = [] if first is None else drift_of(reference, first, record.notes)
        _train(_twin(model), batch, record)
        try:
            _evaluate(_twin(model), batch, record)
        except Exception as error:
            record.notes.append(f"the model does not run in eval mode: {type(error).__name__}: {error}")
    record.layers.sort(key=lambda layer: (layer.order is None, layer.order or 0))
    return record


def _twin(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            "The model cannot be copied, and the doctor works on copies",
            f"{type(error).__name__}: {error}",
            "give it a model whose copy.deepcopy works",
        ) from error


@contextmanager
def _untouched_generators() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


# What a module is.


def described(model: nn.Module) -> list[Layer]:
    """Return the modules of a model that the doctor looks at."""
    frozen = _staying_in_eval(model)
    layers = (_layer(place.name, place.module, frozen) for place in walk(model))
    return [layer for layer in layers if layer is not None]


def _layer(name: str, module: nn.Module, frozen: set[str]) -> Layer | None:
    role = _role(module)
    if role is None:
        return None
    layer = Layer(name, type(module).__name__, role, module.training, name in frozen)
    if role == "norm":
        layer.norm = _norm(module)
    elif role == "linear":
        layer.bias = getattr(module, "bias", None) is not None
    elif role == "dropout":
        layer.rate = float(getattr(module, "p", 0.0))
    return layer


def _role(module: nn.Module) -> str | None:
    kinds = (("input", FeatureNorm), ("norm", NORMS), ("linear", LINEAR), ("activation", ACTIVATIONS))
    for role, kind in (*kinds, ("dropout", DROPOUT)):
        if isinstance(module, kind):
            return role
    return "norm" if _recognised(module) is not None else None


def _recognised(module: nn.Module) -> Computes | None:
    """Return what a norm of another class computes, as each model of transformers has one; None: it is none.

    Its results say so: T5LayerNorm is an RMS norm, and the weight of GemmaRMSNorm is around 0 and 1 is added.
    To try a class takes 0.1 to 0.2 s, once. Norms whose statistics are fixed are no concern of the doctor.
    """
    if not called_norm(module) and not fits_norm(module):
        return None
    computes = recognise(module).computes
    return None if computes is None or computes.source == "fixed" else computes


def _staying_in_eval(model: nn.Module) -> set[str]:
    """Return the names of modules that are frozen: train() leaves them in eval mode.

    A copy is asked, since train() may do more: some change weights in it.
    """
    if all(_obeys(module) for module in model.modules()):
        return set()
    try:
        twin = copy.deepcopy(model)
    except Exception:
        return set()
    twin.train()
    return {place.name for place in walk(twin) if not place.module.training}


def _obeys(module: nn.Module) -> bool:
    """Whether train() puts a module itself into train mode, as far as its class says."""
    own_train = getattr(module.train, "__func__", None) is not nn.Module.train
    return not own_train and not isinstance(module, Frozen)


def _norm(module: Any) -> Norm:
    if not isinstance(module, NORMS):
        return _other_norm(module)
    family, per_channel, pools = _family(module)
    mean, var = (getattr(module, key, None) for key in ("running_mean", "running_var"))
    weight, tracked = getattr(module, "weight", None), getattr(module, "num_batches_tracked", None)
    learned = [t for t in (weight, getattr(module, "bias", None)) if isinstance(t, Tensor)]
    eps = getattr(module, "eps", None)
    first = learned[0] if learned else mean
    return Norm(
        family=family,
        pools_samples=pools,
        tracks=isinstance(mean, Tensor),
        centers=family != "rms" and getattr(module, "center", True),
        per_channel=per_channel,
        eps=float(eps) if eps is not None else torch.finfo(torch.float32).eps,
        momentum=getattr(module, "momentum", None),
        channels=int(getattr(module, "num_channels", 0)),
        groups=int(getattr(module, "num_groups", 0)),
        dtype=_dtype(first),
        statistics_dtype=_dtype(mean) if isinstance(mean, Tensor) else "",
        running_mean=_numbers(mean),
        running_var=_numbers(var),
        tracked=int(tracked) if isinstance(tracked, Tensor) and not tracked.is_meta else None,
        weight=_numbers(weight),
        learns=any(t.requires_grad for t in learned) if learned else None,
    )


def _other_norm(module: Any) -> Norm:
    """Return what a norm of another library is."""
    computes = _recognised(module)
    assert computes is not None
    mean, var, weight, bias, counter = (
        None if name is None else getattr(module, name)
        for name in (computes.mean, computes.var, computes.weight, computes.bias, computes.counter)
    )
    learned = [t for t in (weight, bias) if t is not None]
    return Norm(
        family=FAMILIES[computes.layer],
        pools_samples=computes.layer == "BatchNorm",
        tracks=mean is not None,
        centers=computes.center,
        per_channel=computes.layer in ("BatchNorm", "InstanceNorm"),
        eps=computes.eps,
        momentum=computes.momentum if mean is not None else None,
        channels=(computes.channels or 0) if computes.groups else 0,
        groups=computes.groups,
        dtype=_dtype(learned[0] if learned else mean),
        statistics_dtype="" if mean is None else _dtype(mean),
        running_mean=_numbers(mean),
        running_var=_numbers(var),
        tracked=int(counter) if isinstance(counter, Tensor) and not counter.is_meta else None,
        weight=[value + computes.shift for value in _numbers(weight)],
        learns=any(t.requires_grad for t in learned) if learned else None,
    )


def _family(module: Any) -> tuple[str, bool, bool]:
    """Return the family of a norm, whether its slabs keep channels apart, and whether they pool samples."""
    if isinstance(module, _BatchNorm):
        return "batch", True, True
    if isinstance(module, _InstanceNorm):
        return "instance", True, False
    for kind, family in ((nn.GroupNorm, "group"), (nn.LayerNorm, "layer"), (nn.RMSNorm, "rms")):
        if isinstance(module, kind):
            return family, False, False
    pattern = module.pattern
    return "pattern", ("c",) in pattern.right, pattern.pools_samples


def _dtype(t: Tensor | None) -> str:
    return "float32" if t is None else str(t.dtype).removeprefix("torch.")


def _numbers(t: Tensor | None) -> list[float]:
    if not isinstance(t, Tensor) or t.is_meta:
        return []
    return whole(t.detach()).double().cpu().flatten().tolist()


def whole(t: Tensor) -> Tensor:
    """Return a tensor of which each process may hold a part, as a DTensor."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def _decayed(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the norms whose weight or bias an optimiser decays."""
    shrunk = {
        id(p) for group in optimizer.param_groups if group.get("weight_decay", 0) for p in group["params"]
    }
    return [
        place.name
        for place in walk(model)
        if _role(place.module) == "norm" and any(id(p) in shrunk for p in place.module.parameters(False))
    ]


def ranks() -> int:
    """Return the number of processes that train together."""
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return 1 if alone else torch.distributed.get_world_size()


# One forward and backward in train mode.


class _Trail:
    """Which module made a tensor that another takes, and how many take it."""

    def __init__(self) -> None:
        self.entered = 0  # how many modules were called so far
        self.makers: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.nodes: dict[str, Any] = {}

    def made(self, name: str, output: Any) -> None:
        """Note a module's output."""
        if isinstance(output, Tensor):
            self.makers[id(output)] = weakref.ref(output), name
            self.nodes[name] = output.grad_fn

    def maker(self, x: Any) -> str | None:
        """Return the module whose output a tensor is."""
        found = self.makers.get(id(x))
        return found[1] if found is not None and found[0]() is x else None

    def takers(self, outputs: list[Tensor]) -> Counter[Any]:
        """Return how many operations of the graph take the result of each."""
        taken: Counter[Any] = Counter()
        seen, waiting = set(), [y.grad_fn for y in outputs if y.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            for inner, _ in node.next_functions:
                if inner is not None:
                    taken[inner] += 1
                    waiting.append(inner)
        return taken


def _train(twin: nn.Module, batch: Any, record: ModelRecord) -> None:
    """Fill in what one step in train mode shows."""
    modules = {layer.name: twin.get_submodule(layer.name) for layer in record.layers}
    before = {name: _tracked(module) for name, module in modules.items()}
    trail = _Trail()
    twin.train()
    with hooks() as handles:
        for layer in record.layers:
            _watch(layer, modules[layer.name], trail, handles, record.notes)
        args, options = copy.deepcopy(arguments(batch))
        features = {name: value for name, value in options.items() if name not in TARGETS}
        inputs = [x for x in pytree.tree_leaves((args, features)) if _floating(x)]
        # One number for each sample, such as the time of a diffusion, is no set of features.
        record.inputs = [_spread(x) for x in inputs if x.dim() > 1 and x.numel()]
        record.samples = len(inputs[0]) if inputs and inputs[0].dim() else 0
        outputs = _run(twin, args, options)
    taken = trail.takers(outputs)
    for layer in record.layers:
        layer.alone = layer.before is not None and taken[trail.nodes.get(layer.before)] <= 1
    _backward(outputs, record)
    for layer in record.layers:
        _after_backward(layer, modules[layer.name], before[layer.name])


def _run(twin: nn.Module, args: Any, options: Any) -> list[Tensor]:
    try:
        with torch.enable_grad():
            return [y for y in pytree.tree_leaves(twin(*args, **options)) if _floating(y)]
    except Exception as error:
        raise ModelError(
            "The model does not run on the batch in train mode",
            f"{type(error).__name__}: {error}",
            "give a tensor, a tuple of positional or a dict of keyword arguments, as the model takes them",
        ) from error


@contextmanager
def hooks() -> Iterator[list[Any]]:
    """Remove, whatever happens, the hooks that the block appends."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _watch(layer: Layer, module: nn.Module, trail: _Trail, handles: list[Any], notes: list[str]) -> None:
    def enter(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        layer.calls += 1
        trail.entered += 1
        x = first_of(given, named)
        if layer.order is None and x is not None:
            layer.order = trail.entered
            layer.before = trail.maker(x)
            layer.input = _spread(x.detach())
            if layer.norm is not None:
                layer.norm.elements = _elements(module, x)
            if layer.role == "activation":
                flat = flat_share(module, x.detach())
                layer.flat = None if flat is None else float(flat)
            if isinstance(module, InputNorm) and is_comparable(x):
                layer.drift = drift_of(module, x, notes)

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        trail.made(layer.name, output)
        if layer.output is None and isinstance(output, Tensor) and _floating(output):
            layer.output = _spread(output.detach())
            if isinstance(module, RECTIFIERS):
                layer.dead = float(dead_share(output.detach()))

    handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
    handles.append(module.register_forward_hook(leave))


def first_of(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """Return the first argument of a layer, if it is a tensor."""
    first = next(iter((*given, *named.values())), None)
    return first if isinstance(first, Tensor) else None


def _backward(outputs: list[Tensor], record: ModelRecord) -> None:
    taken = [y for y in outputs if y.requires_grad]
    if not taken:
        return
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in taken]
    try:
        torch.autograd.backward(taken, directions)
    except Exception as error:
        record.notes.append(f"the backward of the model does not run: {type(error).__name__}: {error}")


def _after_backward(layer: Layer, module: nn.Module, before: int | None) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.grad is not None:
        layer.gradient = float(weight.grad.double().norm())
    now = _tracked(module)
    if layer.norm is not None and now is not None and before is not None:
        layer.norm.updates = now - before


def _tracked(module: nn.Module) -> int | None:
    counter = getattr(module, "num_batches_tracked", None)
    return int(counter) if isinstance(counter, Tensor) and not counter.is_meta else None


# Forwards in eval mode: of the batch, of its first half alone, and of the batch again, to see what is random.
# One sample would say as much as half of them, but batch norm in train mode refuses a single one.


def _evaluate(twin: nn.Module, batch: Any, record: ModelRecord) -> None:
    twin.eval()
    for layer in record.norms:
        _measure_gap(twin.get_submodule(layer.name), layer)
    whole = _outputs(twin, batch)
    count = record.samples // 2
    first = _first(batch, record.samples, count)
    if first is None:
        return
    alone, again = _outputs(twin, first), _outputs(twin, batch)
    if any(difference(outputs, again.get(name, [])) > 0 for name, outputs in whole.items()):
        record.notes.append("outputs in eval mode are random: whether samples change each other was not seen")
        return
    for name, outputs in whole.items():  # in the order in which forwards ended
        pairs = list(zip(outputs, alone.get(name, []), strict=False))
        if pairs and all(len(some) == record.samples and len(few) == count for some, few in pairs):
            moved = difference([y[:count] for y, _ in pairs], [y for _, y in pairs])
            rounding = ROUNDINGS * max(torch.finfo(y.dtype).eps for y, _ in pairs)
            record.mates[name] = moved if moved > rounding else 0.0


def _outputs(twin: nn.Module, batch: Any) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    with hooks() as handles, torch.no_grad():
        for place in walk(twin):

            def leave(module: nn.Module, given: Any, output: Any, name: str = place.name) -> None:
                leaves = [y.detach() for y in pytree.tree_leaves(output) if _floating(y) and y.dim()]
                found.setdefault(name, [y.clone() for y in leaves])

            handles.append(place.module.register_forward_hook(leave))
        args, options = copy.deepcopy(arguments(batch))
        twin(*args, **options)
    return found


def _first(batch: Any, samples: int, count: int) -> Any:
    """Return the batch of the first samples alone; None if not all tensors have a row for each sample."""
    leaves, spec = pytree.tree_flatten(batch)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    if samples < 2 or not tensors or any(x.dim() == 0 or len(x) != samples for x in tensors):
        return None
    return pytree.tree_unflatten([x[:count] if isinstance(x, Tensor) else x for x in leaves], spec)


def _measure_gap(module: nn.Module, layer: Layer) -> None:
    """Compare a norm's outputs in both modes, channel by channel: the same input, other mean and variance."""
    norm, seen = layer.norm, layer.input
    assert norm is not None
    if (
        seen is None
        or not norm.per_channel
        or len(seen.mean) != len(norm.running_mean)
        or not norm.pools_samples
    ):
        return
    mean, var, here, spread = (
        np.asarray(v) for v in (norm.running_mean, norm.running_var, seen.mean, seen.var)
    )
    weight = np.asarray(norm.weight) if len(norm.weight) == len(mean) else np.ones_like(mean)
    # In train mode a channel has mean 0 and spread 1 before weight and bias; in eval mode it has these.
    with np.errstate(all="ignore"):
        scale = np.sqrt((spread + norm.eps) / (var + norm.eps))
        shift = (here - mean) / np.sqrt(var + norm.eps)
        moved = (weight**2 * ((scale - 1) ** 2 + shift**2)).sum()
        size = (weight**2).sum()
        norm.gap = float(np.sqrt(moved / size)) if size else 0.0


# Numbers of a tensor.


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _spread(x: Tensor) -> Spread:
    """Return the distribution of each channel: the second axis, or the last of sequences and tables."""
    x = x.detach()
    finite = x.isfinite()
    bad = int((~finite).sum())
    if bad:
        x = torch.where(finite, x, torch.zeros_like(x))
    names = " ".join(f"a{i}" for i in range(x.dim()))
    with using("eager"):  # any layout without a kernel to compile
        m = moments(x.float() if x.dtype != torch.float64 else x, f"{names} -> a{channel_axis(x)}")
    count = int(m.count.flatten()[0]) if m.count.numel() else 0
    low, high = (float(m.min.min()), float(m.max.max())) if count else (0.0, 0.0)
    samples = len(x) if x.dim() else 1
    return Spread(m.mean.tolist(), m.var().tolist(), low, high, count, samples, bad)


def channel_axis(x: Tensor) -> int:
    """Return the axis of channels: the second, but the last of sequences (samples, time, features)."""
    return 1 if x.dim() in (2, 4, 5) else x.dim() - 1


def flat_share(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return the share of inputs of an activation at which its derivative is next to nothing."""
    derivative = next((d for kind, d in DERIVATIVES.items() if isinstance(module, kind)), None)
    return None if derivative is None else (derivative(x.float()) < FLAT).double().mean()


def flat_beyond(module: nn.Module) -> tuple[float | None, float | None]:
    """Return the inputs below and above which an activation is flat; None where it is not."""
    return next((limits for kind, limits in LIMITS.items() if isinstance(module, kind)), (None, None))


def dead_share(y: Tensor) -> Tensor:
    """Return the share of channels of a ReLU that are 0 everywhere."""
    others = [dim for dim in range(y.dim()) if dim != channel_axis(y)]
    if not others or not y.numel():
        return y.new_zeros((), dtype=torch.float64)
    # Nothing is negative here, and the maximum is found in a tenth of the time that counting takes.
    return y.amax(others).eq(0).double().mean()


def _elements(module: Any, x: Tensor) -> int:
    """Return how many values stand behind each statistic of a norm, for this input."""
    if isinstance(module, _BatchNorm):
        return x.numel() // max(1, x.shape[1]) if x.dim() > 1 else 0
    if isinstance(module, _InstanceNorm):
        return x[0, 0].numel() if x.dim() > 2 else 0
    if isinstance(module, nn.GroupNorm):
        return x[0].numel() // module.num_groups
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        count = 1
        for size in module.normalized_shape:
            count *= size
        return count
    if isinstance(module, SlabNorm):
        return plan(module.pattern, (), tuple(x.shape), module._sizes).count
    computes = _recognised(module)
    assert computes is not None
    try:
        return plan(computes.pattern, (), tuple(x.shape), computes.sizes).count
    except ShapeError:  # it takes this shape, and computes something else
        return 0
