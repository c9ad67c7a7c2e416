"""How far a peer's results are from the same step in float64: a fast wrong result is worth nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.peers import Peer, Tensors, make

Results = tuple[Tensor, ...]  # the output, then the gradients


def reference(case: Case, tensors: Tensors) -> Results:
    """Return output and gradients of PyTorch's layers in float64."""
    x, residual = (
        None if given is None else given.detach().double().requires_grad_(given.requires_grad)
        for given in (tensors.x, tensors.residual)
    )
    exact = replace(tensors, x=x, residual=residual)
    layer = make(case, "eager", exact).double().to(x.device)
    if not x.requires_grad:
        with torch.no_grad():
            return (layer.eval()(*exact.arguments),)
    y = layer(*exact.arguments)
    inputs = (*exact.arguments, *layer.parameters())
    # In the layout of y: PyTorch's instance norm of one sample reads any other in the wrong order.
    gradient = torch.empty_like(y).copy_(tensors.gradient)
    return (y.detach(), *torch.autograd.grad(y, inputs, gradient))


def step(peer: Peer) -> Results:
    """Return a peer's output and gradients."""
    y = peer.layer(*peer.arguments)
    return (y.detach(), *torch.autograd.grad(y, peer.inputs, peer.gradient))


def error(found: Results, exact: Results) -> float:
    """Return the largest relative difference in the mean square.

    Not of single elements: where an activation has a kink, rounding decides about a whole one.
    """
    pairs = zip(found, exact, strict=True)
    return max(float((ours.double() - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
