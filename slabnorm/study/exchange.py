"""A user's model as it is: its norms found, and exchanged for each norm of the comparison."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slabnorm.errors import ModelError, SlabError
from slabnorm.study.networks import Channels, Norm
from slabnorm.surgery.norms import NORM_TYPES, TORCH_TYPES
from slabnorm.surgery.walk import walk
from slabnorm.text import listing, printable

FIX = "give a function build(norm) that uses norm(channels) there"


@dataclass(frozen=True)
class Found:
    """A norm layer of a model.

    Args:
        names: its names in the model; several if it is shared.
        kind: its class.
        channels: how many channels it normalises.
        last: whether these are the last axis of its input, and not the second.
    """

    names: tuple[str, ...]
    kind: str
    channels: int
    last: bool


def exchange(own: nn.Module | Callable[[], nn.Module], x: Tensor) -> Exchanged:
    """Return a function `build(norm)` that makes a user's model with other norms.

    Args:
        own: a network, of which every run gets a copy, or a function without an argument that makes one.
        x: a few samples, which show what each norm layer is given.

    Raises:
        ModelError: there is no norm to exchange, one cannot be exchanged, or the model cannot be run.
    """
    with torch.random.fork_rng(devices=[]):
        model = made(own)
        shapes, fewer = input_shapes(model, x), input_shapes(model, x[1:])
    layers = [place for place in walk(model) if isinstance(place.module, NORM_TYPES)]
    found = tuple(describe(layer.module, layer.names, shapes.get(id(layer.module))) for layer in layers)
    for layer in layers:
        if shapes[id(layer.module)][0] * (len(x) - 1) != fewer[id(layer.module)][0] * len(x):
            raise refused(layer.names, type(layer.module).__name__, "its first axis is not the samples")
    if not found:
        raise ModelError(
            "The model has no norm layer to exchange",
            f"none of {len(list(model.modules()))} layers is a norm of torch.nn or slabnorm",
            "give a function build(norm) that uses norm(channels) where a norm belongs",
        )
    check_that_all_run(Exchanged(own, found, redraw=False), x)
    return Exchanged(own, found, isinstance(own, nn.Module) and can_redraw(model, found))


def check_that_all_run(build: Exchanged, x: Tensor) -> None:
    """Raise ModelError if the network keeps a norm where it is not exchanged, as in a list, and runs it."""
    ran: list[nn.Module] = []
    new: list[nn.Module] = []

    def marker(channels: int) -> nn.Module:
        layer = nn.Identity()
        layer.register_forward_pre_hook(lambda layer, given: ran.append(layer))
        new.append(layer)
        return layer

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        build(marker).eval()(x)
    for layer, found in zip(new, build.found, strict=True):
        if not any(layer is one for one in ran):
            raise refused(found.names, found.kind, "the network runs it from another place, such as a list")


def made(own: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return a new network of the user's.

    Raises:
        ModelError: the function raises an error or does not return a network, or the network has no copy.
    """
    try:
        model: Any = copy.deepcopy(own) if isinstance(own, nn.Module) else own()
    except SlabError:
        raise
    except Exception as error:  # the user's function may raise anything
        what = "The model cannot be copied" if isinstance(own, nn.Module) else "The function raises an error"
        raise ModelError(what, f"{type(error).__name__}: {printable(error)}", "mend it") from error
    if not isinstance(model, nn.Module):
        got = f"an object of type {type(model).__name__}"
        raise ModelError("The function does not return a torch.nn.Module", got, "return the network")
    return model


def input_shapes(model: nn.Module, x: Tensor) -> dict[int, tuple[int, ...]]:
    """Return the shape of what each norm layer is given, by the layer's id; this also settles lazy layers."""
    shapes: dict[int, tuple[int, ...]] = {}

    def look(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            shapes[id(layer)] = tuple(given[0].shape)

    layers = [layer for layer in model.modules() if isinstance(layer, NORM_TYPES)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with torch.no_grad():
            model.eval()(x)
    except SlabError:
        raise
    except Exception as error:
        kinds = {weight.dtype for weight in model.parameters()} - {torch.float32}
        raise ModelError(
            f"The network raises an error on input of shape {tuple(x.shape)}",
            f"{type(error).__name__}: {printable(error)}",
            "make it one of float32, with model.float()"
            if kinds
            else "compare the shape with the first layer of the network",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def describe(layer: nn.Module, names: tuple[str, ...], shape: tuple[int, ...] | None) -> Found:
    """Return what is to be known of a norm layer.

    Args:
        layer, names: the layer, and its names in the model.
        shape: of its input; None where it has none.

    Raises:
        ModelError: another norm cannot take its place.
    """
    kind = type(layer).__name__
    if shape is None:
        raise refused(names, kind, "the network does not run it, or not on a tensor")
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        sizes = tuple(layer.normalized_shape)
        if sizes == shape[1:]:  # a whole sample; of (n, channels) the last axis is the second
            return Found(names, kind, sizes[0], last=False)
        if len(sizes) == 1:
            return Found(names, kind, sizes[0], last=True)
        raise refused(names, kind, f"it normalises the last {len(sizes)} axes {sizes} of {shape}")
    pattern = None if isinstance(layer, TORCH_TYPES) else getattr(layer, "pattern", None)
    if len(shape) < 2 or (pattern is not None and "c" not in pattern.left[1]):
        raise refused(names, kind, "its second axis is not the channels")
    return Found(names, kind, shape[1], last=False)


def refused(names: tuple[str, ...], kind: str, why: str) -> ModelError:
    """Return the error about a layer that cannot be exchanged."""
    where = printable(names[0]) or "the model itself"
    return ModelError(f"The norm layer {where} ({kind}) cannot be exchanged", why, FIX)


def can_redraw(model: nn.Module, found: tuple[Found, ...]) -> bool:
    """Return whether every layer with weights, norms aside, knows how to draw them anew."""
    norms = {name for layer in found for name in layer.names}
    return all(
        hasattr(module, "reset_parameters")
        for name, module in model.named_modules()
        if name not in norms and next(module.parameters(recurse=False), None) is not None
    )


class Exchanged:
    """A function `build(norm)` that makes a user's model, with `norm` in the place of its norm layers.

    Attributes:
        own: the user's network, or the function that makes it.
        found: the norm layers that are exchanged.
        redraw: whether the weights of a network are drawn anew; those of a function are as it draws them.
    """

    def __init__(
        self, own: nn.Module | Callable[[], nn.Module], found: tuple[Found, ...], redraw: bool
    ) -> None:
        self.own, self.found, self.redraw = own, found, redraw

    def __call__(self, norm: Norm) -> nn.Module:
        model = made(self.own)
        for layer in self.found:
            new = norm(layer.channels)
            for name in layer.names:
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, Channels(new) if layer.last else new)
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                # Its fast path for eval mode would compute layer norm, whatever its norms are.
                module.activation_relu_or_gelu = 0
        if self.redraw:
            inside = {id(module) for new in getattr(norm, "made", ()) for module in new.modules()}
            for module in model.modules():
                if id(module) not in inside and next(module.parameters(recurse=False), None) is not None:
                    module.reset_parameters()  # type: ignore[operator]
        return model

    def notes(self) -> tuple[str, ...]:
        """Return what a reader should know: which layers were exchanged, and where the weights come from."""
        kinds: dict[str, list[str]] = {}
        for layer in self.found:
            kinds.setdefault(layer.kind, []).append(printable(layer.names[0], 60))
        layers = "; ".join(f"{kind} {listing(names)}" for kind, names in kinds.items())
        notes = [
            f"Exchanged for each norm: {layers}. All norms have weight and bias, and their own eps and "
            "momentum; what the old ones had learned is not kept."
        ]
        if isinstance(self.own, nn.Module):
            notes.append(
                "The network's weights are drawn anew for every seed, by reset_parameters() of its layers."
                if self.redraw
                else "Every run starts from the network's weights as they are, since not all of its layers "
                "have reset_parameters(): seeds differ in the order of the samples alone."
            )
        return tuple(notes)
