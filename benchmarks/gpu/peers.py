"""The peers of a case on a GPU, each with several inputs in turn, so that the L2 is cold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import DTYPES, Case
from benchmarks.peers import Eager, Tensors, make

PEERS = ("slabnorm", "eager", "compile", "liger")
MOST_INPUTS = 64


@dataclass
class Rotating:
    """A layer and the inputs it is called with in turn."""

    name: str
    call: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    inputs: list[Tensors]

    def forwards(self) -> list[Callable[[], Any]]:
        """Return a forward of a training step for every input."""
        return [lambda given=given: self.call(*given.arguments) for given in self.inputs]

    def steps(self) -> list[Callable[[], Any]]:
        """Return forward and backward for every input."""
        return [lambda given=given: self.step(given) for given in self.inputs]

    def step(self, given: Tensors) -> tuple[Tensor, ...]:
        """Return output and gradients."""
        y = self.call(*given.arguments)
        return (y.detach(), *torch.autograd.grad(y, (*given.arguments, *self.parameters), given.gradient))


def draw(case: Case, device: torch.device, l2: int) -> list[Tensors]:
    """Return so many inputs that four times the L2 lies between two uses of one."""
    size = case.elements * DTYPES[case.dtype].itemsize
    number = min(MOST_INPUTS, max(2, -(-4 * l2 // size)))
    return [Tensors.draw(case, device, seed) for seed in range(number)]


def rotating(case: Case, name: str, inputs: list[Tensors]) -> Rotating | None:
    """Return a peer that has run, and compiled, once; None if it has no such norm."""
    layer = _liger(case) if name == "liger" else make(case, name, inputs[0])
    if layer is None:
        return None
    layer = layer.to(inputs[0].x.device)
    call: Callable[..., Tensor] = torch.compile(layer, dynamic=False) if name == "compile" else layer
    y = call(*inputs[0].arguments)
    for given in inputs:
        if y.stride() != given.gradient.stride():
            # In a network the gradient comes in the layout that the output went out in.
            given.gradient = torch.empty_like(y).copy_(given.gradient)
    found = Rotating(name, call, tuple(layer.parameters()), inputs)
    found.step(inputs[0])
    return found


def _liger(case: Case) -> nn.Module | None:
    """Return Liger's layer with PyTorch's activation after it; None if it is not installed, or has none."""
    if case.layout != "contiguous" or find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerGroupNorm, LigerLayerNorm, LigerRMSNorm

    channels, last = case.shape[1], case.shape[-1]
    if case.norm == "group32" and len(case.shape) == 4:
        return Eager(LigerGroupNorm(channels, case.groups, eps=1e-5, bias=True), case.function)
    if case.norm == "layer_rows":
        return LigerLayerNorm(last, eps=1e-5, bias=True)
    return LigerRMSNorm(last, eps=1e-5) if case.norm == "rms_rows" else None
