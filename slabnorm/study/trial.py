"""A trial of the user's model before hours are spent on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from slabnorm.errors import ModelError, SlabError, SlabWarning, StatisticsError
from slabnorm.nn import SlabNorm
from slabnorm.report.wording import norm_label
from slabnorm.slab import plan
from slabnorm.study.train import Bench, batches, quiet_corner, start
from slabnorm.text import printable


def try_model(
    bench: Bench, norms: tuple[str, ...], scheme: str, batch_sizes: tuple[int, ...]
) -> tuple[int, tuple[str, ...]]:
    """Build the network with every norm, run it forward, and train it for one step of each batch size.

    This also compiles the kernels that the runs will use, and leaves them in the disk cache for the workers.

    Args:
        bench: what all runs share.
        norms, batch_sizes: all norms and batch sizes of the study.
        scheme: the input scheme to try the network with.

    Returns:
        The number of parameters with the first norm, and notes on the norms for the reader.

    Raises:
        ModelError: `build` raises an error, does not return a Module, returns the same one twice, or never
            calls `norm`; or the network does not return one number for each class.
        SlabError: a norm does not fit the network.
    """
    counts: list[int] = []
    notes: list[str] = []
    with quiet_corner(), warnings.catch_warnings():
        # Warnings about one forward before any training are of no use to anybody.
        warnings.simplefilter("ignore", SlabWarning)
        x, y = bench.inputs(scheme), torch.as_tensor(bench.data.y)
        for norm in norms:
            model = try_build(bench, norm)
            few = x[torch.as_tensor(bench.data.split.train[:2])]
            with watched(model) as constant:
                try_forward(model, few, len(bench.data.classes), norm)
            if constant:
                text = "every slab is a single value here, so that the output is constant"
                label = norm_label(norm)
                notes.append(f"{label[:1].upper()}{label[1:]}: {text}.")
            counts.append(sum(p.numel() for p in model.parameters()))
            for size in batch_sizes:
                part = batches(torch.as_tensor(bench.data.split.train), size)[0]
                try_step(model, x[part], y[part], norm)
    return counts[0], tuple(notes)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Collect the norm layers with statistics per sample that find only one element in each slab."""
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
    """Return the network with a norm. It is built twice, to check that it is a new one each time."""
    label = norm_label(norm)
    try:
        model, factory = start(bench.build, norm, 0)
        again, _ = start(bench.build, norm, 0)
    except SlabError:
        raise
    except Exception as error:
        why = f"{type(error).__name__} with {label}: {printable(error)}"
        raise ModelError("The function build(norm) raises an error", why, "mend the function") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            "The function build(norm) does not return a torch.nn.Module",
            f"an object of type {type(model).__name__}",
            "return the network",
        )
    if model is again or shared(model, again):
        raise ModelError(
            "The function build(norm) does not make a new network each time",
            "the same network twice, or two that share weights",
            "make the network and all its layers inside build",
        )
    if not any(layer is made for layer in model.modules() for made in factory.made):
        raise ModelError(
            "The network has no layer that norm(channels) has made",
            "norm was never called, or its layers are not in the network",
            "use norm(channels) where a norm layer belongs",
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("The network has no parameters to train", "", "return a network with weights")
    return model


def try_forward(model: nn.Module, x: torch.Tensor, classes: int, norm: str) -> None:
    """Raise ModelError unless the network returns one real number for each sample and class."""
    model.eval()
    try:
        with torch.no_grad():
            output = model(x)
    except SlabError:
        raise
    except Exception as error:
        raise ModelError(
            f"The network raises an error on input of shape {tuple(x.shape)}",
            f"{type(error).__name__}, with {norm_label(norm)}: {printable(error)}",
            "compare the shape with the first layer of the network",
        ) from error
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
    if got != (len(x), classes) or not output.is_floating_point():
        raise ModelError(
            f"The network does not return one number for each of the {classes} classes",
            f"{got}, not the shape ({len(x)}, {classes})",
            "set the size of its last layer",
        )


def try_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> None:
    """Run forward and backward in train mode. A StatisticsError is left for the run to report."""
    model.train()
    try:
        F.cross_entropy(model(x), y).backward()
    except StatisticsError:
        return
    except SlabError:
        raise
    except Exception as error:
        raise ModelError(
            f"The network cannot be trained on a batch of {len(x)}",
            f"{type(error).__name__}, with {norm_label(norm)}: {printable(error)}",
            "mend the network",
        ) from error
