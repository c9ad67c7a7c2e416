"""The user's model, tried once before hours are spent on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from slabnorm.errors import ModelError, SlabError, SlabWarning, StatisticsError
from slabnorm.nn import SlabNorm
from slabnorm.report.labels import norm_label
from slabnorm.slab import plan
from slabnorm.study.train import Bench, batches, quiet_corner, start
from slabnorm.text import printable


def try_model(
    bench: Bench, norms: tuple[str, ...], scheme: str, batch_sizes: tuple[int, ...]
) -> tuple[int, tuple[str, ...]]:
    """Build, run forward and train one step of the network with every norm, and return its parameter count.

    This also compiles the kernels that the runs will use, once, and leaves them in the disk cache for
    the workers.

    Args:
        bench: what all runs share.
        norms, batch_sizes: all there are.
        scheme: the input scheme to try it under.

    Returns:
        The number of parameters with the first of the norms, and what a reader must know of the norms.

    Raises:
        ModelError: `build` raises, returns no Module, returns the same one twice, never calls `norm`, or
            its network does not give one number for each class.
        SlabError: a norm does not fit the network.
    """
    counts: list[int] = []
    notes: list[str] = []
    with quiet_corner(), warnings.catch_warnings():
        # What layers say of one forward before any training is of no use to anybody.
        warnings.simplefilter("ignore", SlabWarning)
        x, y = bench.inputs(scheme), torch.as_tensor(bench.data.y)
        for norm in norms:
            model = try_build(bench, norm)
            few = x[torch.as_tensor(bench.data.split.train[:2])]
            with watched(model) as constant:
                try_forward(model, few, len(bench.data.classes), norm)
            if constant:
                notes.append(f"{norm_label(norm)}: a slab is a single value here, so the output is constant")
            counts.append(sum(p.numel() for p in model.parameters()))
            for size in batch_sizes:
                part = batches(torch.as_tensor(bench.data.split.train), size)[0]
                try_step(model, x[part], y[part], norm)
    return counts[0], tuple(notes)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Collect the norm layers that keep statistics per sample and find one element in each slab."""
    found: list[nn.Module] = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, SlabNorm)
        slab = plan(layer.pattern, (), tuple(inputs[0].shape), tuple(sorted(layer.sizes.items())))
        if slab.count == 1 and layer.center and not layer.pattern.pools_samples:
            found.append(layer)

    layers = [layer for layer in model.modules() if isinstance(layer, SlabNorm)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def shared(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two networks share a parameter or a buffer."""
    tensors = ({id(t) for t in (*model.parameters(), *model.buffers())} for model in (first, second))
    return bool(set.intersection(*tensors))


def try_build(bench: Bench, norm: str) -> nn.Module:
    """Return the network with a norm, built twice to see that it is a new one each time."""
    label = norm_label(norm)
    try:
        model, factory = start(bench.build, norm, 0)
        again, _ = start(bench.build, norm, 0)
    except SlabError:
        raise
    except Exception as error:
        raise ModelError(
            "build(norm) returns a network", f"{type(error).__name__} with {label}: {printable(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            "build(norm) returns a torch.nn.Module",
            f"an object of type {type(model).__name__}",
            "return the network",
        )
    if model is again or shared(model, again):
        raise ModelError(
            "build(norm) makes a new network each time",
            "the same one twice, or two that share weights",
            "make the network and all its layers inside of build",
        )
    if not any(layer is made for layer in model.modules() for made in factory.made):
        raise ModelError(
            "build(norm) calls norm, which makes the layers to compare",
            "it was never called, or its layers are not in the network",
            "use norm(channels) where a norm layer belongs",
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("a network has parameters to train", "none", "return a network with weights")
    return model


def try_forward(model: nn.Module, x: torch.Tensor, classes: int, norm: str) -> None:
    """Raise ModelError unless the network gives one real number for each sample and class."""
    model.eval()
    try:
        with torch.no_grad():
            output = model(x)
    except SlabError:
        raise
    except Exception as error:
        raise ModelError(
            "the network takes the data",
            f"{type(error).__name__} on input of shape {tuple(x.shape)}, {norm_label(norm)}: "
            f"{printable(error)}",
            "compare the shape with the network's first layer",
        ) from error
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
    if got != (len(x), classes) or not output.is_floating_point():
        raise ModelError(
            f"the network gives one number for each of the {classes} classes: shape ({len(x)}, {classes})",
            str(got),
            "set the size of its last layer",
        )


def try_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> None:
    """Run forward and backward in train mode; statistics that cannot be are left for the run to report."""
    model.train()
    try:
        F.cross_entropy(model(x), y).backward()
    except StatisticsError:
        return
    except SlabError:
        raise
    except Exception as error:
        raise ModelError(
            "the network can be trained",
            f"{type(error).__name__} on a batch of {len(x)}, {norm_label(norm)}: {printable(error)}",
        ) from error
