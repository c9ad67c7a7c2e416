"""What a surgery does to numbers: outputs before and after, on the same inputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slabnorm.errors import ModelError, SlabWarning
from slabnorm.surgery.transaction import Generators

Span = tuple[str, ...]  # names of modules of which each takes the output of the one before


@dataclass(frozen=True)
class Before:
    """What a model computed in a mode: its outputs, and inputs and outputs of some spans of modules."""

    batch: Any
    training: bool
    outputs: list[Tensor]
    inputs: dict[Span, tuple[Any, Any]]
    results: dict[Span, list[Tensor]]


def before(model: nn.Module, batch: Any, spans: Sequence[Span], *, training: bool = False) -> Before:
    """Run a copy of a model on a batch, and keep what a change can be measured by.

    Args:
        model: it stays as it is.
        batch: a tensor, a tuple of positional or a dict of keyword arguments.
        spans: the modules to be changed, by name.
        training: whether the copy runs in train mode; else it runs in eval mode.

    Raises:
        ModelError: the model cannot be copied, or does not run on the batch.
    """
    inputs: dict[Span, tuple[Any, Any]] = {}
    results: dict[Span, list[Tensor]] = {}
    twin = _twin(model, training)
    for span in spans:

        def enter(module: nn.Module, args: Any, options: Any, span: Span = span) -> None:
            inputs.setdefault(span, copy.deepcopy((args, options)))

        def leave(module: nn.Module, args: Any, output: Any, span: Span = span) -> None:
            results.setdefault(span, _tensors(copy.deepcopy(output)))

        twin.get_submodule(span[0]).register_forward_pre_hook(enter, with_kwargs=True)
        twin.get_submodule(span[-1]).register_forward_hook(leave)
    return Before(batch, training, _run(twin, batch), inputs, results)


def after(model: nn.Module, found: Before) -> tuple[float | None, dict[Span, float]]:
    """Return by how much a changed model's outputs differ, and those of each span on the inputs of before.

    A difference is ||after - before|| / ||before||: 0 where nothing changed, about 1.4 where the two have
    nothing to do with each other. It is None where there are no tensors to compare, as in objects that torch
    does not look into; a span of which that holds, or that did not run, is left out.
    """
    outputs = _run(_twin(model, found.training), found.batch)
    whole = difference(found.outputs, outputs) if found.outputs or outputs else None
    twin, parts = _twin(model, found.training), {}
    for span, (args, options) in found.inputs.items():
        if span not in found.results:
            continue
        args, options = copy.deepcopy((args, options))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlabWarning)
            value = twin.get_submodule(span[0])(*args, **options)
            for name in span[1:]:
                value = twin.get_submodule(name)(value)
        old, new = found.results[span], _tensors(value)
        if old or new:
            parts[span] = difference(old, new)
    return whole, parts


def difference(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    """Return ||new - old|| / ||old|| over all finite elements; inf if shapes differ, or which are finite."""
    if [t.shape for t in old] != [t.shape for t in new]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(old, new, strict=True)]
    if not all(torch.equal(a.isfinite(), b.isfinite()) for a, b in pairs):
        return float("inf")
    both = [(a[keep], b[keep]) for a, b in pairs for keep in [a.isfinite()]]
    moved = sum(float((b - a).square().sum()) for a, b in both) ** 0.5
    size = sum(float(a.square().sum()) for a, _ in both) ** 0.5
    return 0.0 if moved == 0 else moved / size if size else float("inf")


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model is called with: a tensor, a tuple of positional, or a dict of keyword arguments."""
    if isinstance(batch, dict):
        return (), batch
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _twin(model: nn.Module, training: bool) -> nn.Module:
    try:
        return copy.deepcopy(model).train(training)
    except Exception as error:
        raise ModelError(
            "The model could not be copied to measure the effect of the change",
            f"{type(error).__name__}: {error}",
            "leave batch= away",
        ) from error


def _run(model: nn.Module, batch: Any) -> list[Tensor]:
    args, options = arguments(batch)
    run: Callable[..., Any] = model
    generators = Generators()
    try:
        with torch.set_grad_enabled(model.training), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlabWarning)  # what they say is of a copy
            torch.manual_seed(0)
            return _tensors(run(*copy.deepcopy(args), **copy.deepcopy(options)))
    except Exception as error:
        mode = "train" if model.training else "eval"
        raise ModelError(
            f"The model does not run in {mode} mode on the batch given as batch=",
            f"{type(error).__name__}: {error}",
            "give a tensor, a tuple of positional or a dict of keyword arguments, as the model takes them",
        ) from error
    finally:
        generators.put_back()  # the next run draws the same numbers


def _tensors(value: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(value)
    return [t.detach() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
