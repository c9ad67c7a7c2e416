"""convert(): the norms of a model become norms of another kind, in place."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from slabnorm.errors import ModelError, OptionError, PatternError, SlabError
from slabnorm.nn import SlabNorm
from slabnorm.notation import parse
from slabnorm.surgery import warm_start
from slabnorm.surgery.effect import Before, after, before
from slabnorm.surgery.kinds import NAMES, OURS, Norm, describe, elements_of, layer_of, take_place
from slabnorm.surgery.native import changes_of, foreign, native_layer
from slabnorm.surgery.norms import input_of, norm_like
from slabnorm.surgery.parameter_groups import Born, check_optimizer, exchange, unchanged_if_it_fails
from slabnorm.surgery.recognise import called_norm, fits_norm, recognise
from slabnorm.surgery.record import Changed, Left, Surgery
from slabnorm.surgery.transaction import transaction
from slabnorm.surgery.walk import Place, Where, meant, walk
from slabnorm.text import did_you_mean, listing

_Shapes = dict[str, tuple[int, ...]]  # of the inputs of norms, by the first name

_UNTRAINED = "its running statistics start anew: train it before eval mode, or give loader="
_FITTED = "fitted to the loader's batches"


def convert(
    model: nn.Module, to: str, *, where: Where | None = None, optimizer: Optimizer | None = None,
    loader: Iterable[Any] | None = None, call: Callable[[nn.Module, Any], Any] | None = None,
    batch: Any = None, **sizes: int,
) -> Surgery:  # fmt: skip
    """Make the norms of a model norms of another kind, in place; or, where anything fails, change nothing.

        y = weight * (x - mean_S) / sqrt(var_S + eps) + bias          with another S

    Norms of torch.nn, slabnorm's and accelerated ones become slabnorm's layers. Each stays the same object
    under another class: all its names and references stay, its mode, the user's attributes, and its hooks,
    which see inputs and outputs of the new norm. So the model itself may be a norm. eps, device and dtype
    stay, too; weight and bias are the same Parameters where their shapes agree, and running statistics the
    same tensors where both norms compute the same. A norm has weight and bias if it had them, but for RMS
    norm, which has no bias; what was an RMS norm gets one of 0, and DyT has an `alpha`. Ghost batches and
    batch renormalisation stay where the new norm can have them.

    Norms of other classes, such as LlamaRMSNorm, become slabnorm's layers, too, where their results show what
    they compute. Their parameters then have slabnorm's names, also in a `state_dict`, and a weight that
    counted from 0 counts from 1: its values are 1 more. A subclass of slabnorm's layers is left, as it may
    compute something else.

    Args:
        model: any module.
        to: "batch", "layer", "instance", "group", "rms", "dyt" (Dynamic Tanh); "torch" for torch.nn's layer
            of the same function; or a pattern that names its channels `c`, such as "n (g c) h w -> n g".
            Where channels are the second axis, layer and RMS norm pool a sample; where they are the last, as
            in transformers, a position.
        where: a function of a norm's name and the norm that says whether it is meant; by default all are.
        optimizer: the model's. It gets parameters that are new, in the group that the norm's others are in,
            and loses those that are gone, with their state.
        loader: batches, which can be gone through more than once. Where the function changes, weight and bias
            become such that over these batches each channel has the mean and variance that the norm before
            gave it in eval mode (nearly, of a norm that runs more than once). A norm that pools samples has
            its running statistics from them as well. A copy of the model runs on all batches once, and then
            up to each norm that changes.
        call: how the model runs on a batch of the loader, as in `lambda model, batch: model(batch["image"])`;
            by default `model(batch)`, or `model(batch[0])` where the batch is a tuple or a list.
        batch: a tensor, a tuple of positional or a dict of keyword arguments, to measure by how much outputs
            in eval mode change, and how many elements a slab has.
        **sizes: of axes of the pattern, as in `g=32`; also the number of groups of "group", which is else the
            largest up to 32 that divides the channels and leaves each group at least two.

    Returns:
        What was converted, what was left, and why: print it.

    Raises:
        OptionError: `to`, `optimizer` or `loader` is nothing that can be used.
        PatternError: the pattern is wrong, or a size is missing or belongs to no axis of it.
        ModelError: `model` is no module, does not run on a batch, or is in a DistributedDataParallel, and the
            function of a norm would change.
        StatisticsError: outputs over the loader's batches are not finite.

    Batch norm to group norm: Wu and He, "Group Normalization" (2018), https://arxiv.org/abs/1803.08494.
    DyT: Zhu et al., "Transformers without Normalization" (2025), https://arxiv.org/abs/2503.10622

    >>> import slabnorm as sn, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> sn.convert(model, "batch")
    1 converted, 0 left
      1  BatchNorm2d  -> BatchNorm
    >>> sn.convert(model, "group")
    1 converted, 0 left
      1  BatchNorm  -> GroupNorm(4 groups)    another function
    """
    _check(model, to, optimizer, sizes)
    with transaction(model), unchanged_if_it_fails(optimizer):
        norms, left = _norms([p for p in walk(model) if _considered(p.module) and meant(p, where)])
        found = before(model, batch, [(place.name,) for place, _ in norms]) if batch is not None else None
        shapes = _shapes(found)
        warm = _Warm(model, norms, loader, call or warm_start.run_batch) if loader is not None else None
        if warm is not None:
            shapes |= {name: seen.shape for name, seen in warm.seen.items()}
        changes: list[_Change] = []
        for place, norm in norms:
            change = _change(place, norm, to, sizes, shapes)
            if isinstance(change, _Change):
                changes.append(change)
            elif change:
                left.append(Left(place.names, type(place.module).__name__, change))
        if warm is not None:
            warm.start(changes)
        _commit(model, changes, optimizer)
        whole, parts = after(model, found) if found is not None else (None, {})
        changed = (
            Changed(c.place.names, c.was, c.became, "; ".join(c.notes), parts.get((c.place.name,)))
            for c in changes
        )
        return Surgery("converted", tuple(changed), tuple(left), whole)


@dataclass
class _Change:
    """A norm, the layer that takes its place, and what the user should know."""

    place: Place
    norm: Norm
    new: nn.Module
    same: bool
    notes: list[str] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)  # of weight, bias and running statistics

    def __post_init__(self) -> None:
        self.was, self.became = _words(self.place.module), _words(self.new)


def _check(model: Any, to: Any, optimizer: Any, sizes: dict[str, int]) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError("convert() needs a torch.nn.Module", type(model).__name__, "give it the model")
    if isinstance(to, str) and "->" in to:
        pattern = parse(to)
        if not pattern.default_affine:
            raise PatternError(f'"{pattern}" names no channels', "", "name the axis of the channels `c`")
        pattern.check_sizes(sizes)
        if "c" in sizes:
            problem = "The size of `c` follows from each norm's channels"
            raise PatternError(problem, f"c={sizes['c']!r}", "leave it away")
        missing = [name for name in pattern.default_affine[0] if name != "c" and name not in sizes]
        if missing:
            problem = f"The size of {missing[0]!r} is missing, by which the channels are divided"
            raise PatternError(problem, f'"{pattern}"', f"add {missing[0]}=<size>")
    elif to not in NAMES:
        known = f"use {listing([repr(name) for name in NAMES], 'or')}, or a pattern such as 'n c ... -> n c'"
        raise OptionError(f"There is no norm {to!r}", "", f"{did_you_mean(to, NAMES)} {known}".strip())
    elif set(sizes) - ({"g"} if to == "group" else set()):
        raise OptionError(f"{to!r} has no axis whose size could be given", str(sizes), "leave the sizes away")
    if optimizer is not None:
        check_optimizer(optimizer, model)


def _considered(module: nn.Module) -> bool:
    if norm_like(module) or isinstance(module, OURS) or called_norm(module):
        return True
    return fits_norm(module) and recognise(module).computes is not None


def _norms(places: list[Place]) -> tuple[list[tuple[Place, Norm]], list[Left]]:
    norms, left = [], []
    for place in places:
        norm = describe(place.module)
        if isinstance(norm, str):
            left.append(Left(place.names, type(place.module).__name__, norm))
        else:
            norms.append((place, norm))
    return norms, left


def _shapes(found: Before | None) -> _Shapes:
    """Return the shapes that a batch had before each norm."""
    shapes: _Shapes = {}
    for (name, *_), given in (found.inputs if found is not None else {}).items():
        x = input_of(*given)
        if isinstance(x, Tensor):
            shapes[name] = tuple(x.shape)
    return shapes


def _change(place: Place, norm: Norm, to: str, sizes: dict[str, int], shapes: _Shapes) -> _Change | str:
    """Return what a norm is to become; why it is left; or "" where it is that already."""
    shape = shapes.get(place.name)
    if norm.spatial is None and shape is not None and not norm.last:
        norm = replace(norm, spatial=max(len(shape) - 2, 1))
    if shape is not None and _unbatched(norm, shape):
        return "its input has no axis of samples"
    tensors = [*place.module.parameters(False), *place.module.buffers(False)]
    made_like = next(((t.device, t.dtype) for t in tensors if t.is_floating_point()), (None, None))
    new = layer_of(norm, to, sizes, *made_like)
    if isinstance(new, str):
        return new
    made = describe(new)
    same = isinstance(made, Norm) and made.function == norm.function
    if same and type(place.module) is type(new):
        return ""
    try:
        elements, exactly = elements_of(new, shape)
    except SlabError as error:
        return "; ".join((error.problem, error.got))
    if elements == 1 and exactly:
        return "a slab would have one element, and its output would be the bias alone"
    change = _Change(place, norm, new, same)
    change.notes += _notes(change)
    if elements == 1 and not same:
        change.notes.append("a slab has one element where nothing stands behind the channels: batch= shows")
    return change


def _unbatched(norm: Norm, shape: tuple[int, ...]) -> bool:
    """Whether torch's instance norm is given a single sample, which slabnorm's layers do not take."""
    return norm.kind == "instance" and norm.spatial is not None and len(shape) == norm.spatial + 1


def _notes(change: _Change) -> list[str]:
    old, new = change.place.module, change.new
    notes = [] if change.same else ["another function"]
    if foreign(old):
        notes += changes_of(old)
        native = native_layer(old)
        assert not isinstance(native, str)
        old = native
    if isinstance(old, nn.SyncBatchNorm):
        notes.append("statistics of each process by itself")
    pairs = [
        (name, old._parameters.get(name), new._parameters.get(name)) for name in ("weight", "bias", "alpha")
    ]
    for name, was, now in pairs:
        if was is None and now is not None:
            notes.append(f"with a new {name}")
        elif was is not None and now is None:
            notes.append(f"without its {name}")
        elif was is not None and now is not None and was.shape != now.shape:
            notes.append(f"its {name} starts anew")
    for name, words in (("ghost", "ghost batches"), ("renorm", "batch renormalisation")):
        if getattr(change.norm, name) is not None and getattr(new, name, None) is None:
            notes.append(f"without its {words}")
    if not change.same and new._buffers.get("running_mean") is not None:
        notes.append(_UNTRAINED)
    return notes


def _words(layer: nn.Module) -> str:
    kind = type(layer).__name__
    if isinstance(layer, nn.GroupNorm):
        return f"{kind}({layer.num_groups} groups)"
    return f'{kind}("{layer.pattern}")' if type(layer) is SlabNorm else kind


class _Warm:
    """A copy of the model, on which the norms are converted one after another and get their values."""

    def __init__(
        self, model: nn.Module, norms: list[tuple[Place, Norm]], loader: Iterable[Any], run: warm_start.Run
    ) -> None:
        self.loader, self.run = loader, run
        self.twin = warm_start.twin_of(model)
        self.seen = self._look({place.name: norm.last for place, norm in norms})

    def _look(self, last: dict[str, bool], stop: bool = False) -> dict[str, warm_start.Seen]:
        return warm_start.look(self.twin, last, self.loader, self.run, stop)

    def _again(self, name: str, last: bool) -> warm_start.Seen:
        return self._look({name: last}, stop=not self.seen[name].repeated)[name]

    def start(self, changes: list[_Change]) -> None:
        """Find values for what changes its function, in the order in which the norms run.

        The inputs of a norm are those that it has behind the norms converted before it.
        """
        holders = Counter(id(p) for m in self.twin.modules() for p in m._parameters.values() if p is not None)
        order = {name: place for place, name in enumerate(self.seen)}
        for change in sorted(changes, key=lambda c: order.get(c.place.name, -1)):
            if change.same:
                continue
            name, last = change.place.name, change.norm.last
            norm = self.twin.get_submodule(name)
            tied = any(holders[id(p)] > 1 for p in norm.parameters(False))
            take_place(norm, copy.deepcopy(change.new))
            reason = "it shares a parameter" if tied else _no_start(change, name in self.seen)
            if reason:
                change.notes.append(f"not {_FITTED}: {reason}")
                continue
            seen = self.seen[name]
            warm_start.start(norm, seen.returned, partial(self._again, name, last))
            stored = [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]
            change.values = {name: value.detach().clone() for name, value in stored}
            once = "" if not seen.repeated else ", not exactly: it runs more than once"
            change.notes = [*(note for note in change.notes if note != _UNTRAINED), _FITTED + once]


def _no_start(change: _Change, seen: bool) -> str:
    """Return why values cannot come from the loader; "" if they can."""
    if not seen:
        return "its batches do not reach the norm"
    if change.norm.activation is not None:
        return f"{change.norm.activation} follows inside the layer"
    channels = (change.norm.channels,)
    stored = [change.new._parameters.get("weight"), change.new._buffers.get("running_mean")]
    if any(t is not None and t.shape != channels for t in stored):
        return "its values are not one for each channel"
    return "" if any(t is not None for t in stored) else "it has no weight and bias"


def _commit(model: nn.Module, changes: list[_Change], optimizer: Optimizer | None) -> None:
    wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    if wrapped and not all(change.same for change in changes):
        got = "DistributedDataParallel knows the parameters and buffers that it was given"
        fix = "convert the model before you wrap it"
        raise ModelError("The model is wrapped, and its norms cannot change", got, fix)
    before, beside = list(model.parameters()), {}
    for change in changes:
        norm = change.place.module
        beside[id(norm)] = tuple(norm.parameters(recurse=False))
        take_place(norm, change.new)
        for name, value in change.values.items():
            parameter = norm._parameters.get(name)
            if parameter is not None:
                parameter.data = value
            else:
                norm._buffers[name] = value
    _fast_paths(model, changes)
    was, now = ({id(p) for p in held} for held in (before, model.parameters()))
    gone = [p for p in before if id(p) not in now]
    born = [
        Born(p, f"{change.place.name}.{name}".lstrip("."), beside[id(change.place.module)])
        for change in changes
        for name, p in change.place.module.named_parameters(recurse=False)
        if id(p) not in was
    ]
    if optimizer is not None:
        exchange(optimizer, born, gone)


def _fast_paths(model: nn.Module, changes: list[_Change]) -> None:
    """Switch off what computes layer norm in eval mode, whatever the norms of a layer are; or on again."""
    changed = {id(change.place.module) for change in changes}
    for layer in model.modules():
        if (
            not isinstance(layer, nn.TransformerEncoderLayer)
            or not {id(layer.norm1), id(layer.norm2)} & changed
        ):
            continue
        plain = all(isinstance(n, nn.LayerNorm) and n.bias is not None for n in (layer.norm1, layer.norm2))
        relu = layer.activation is F.relu or isinstance(layer.activation, nn.ReLU)
        gelu = layer.activation is F.gelu or isinstance(layer.activation, nn.GELU)
        layer.activation_relu_or_gelu = (1 if relu else 2 if gelu else 0) if plain else 0
