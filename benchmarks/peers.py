"""The same norm, residual and activation by slabnorm, PyTorch eager and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slabnorm as sn
from benchmarks.cases import Case

PEERS = ("slabnorm", "eager", "compile")


@dataclass
class Tensors:
    """What every peer of a case is given."""

    x: Tensor
    residual: Tensor | None
    gradient: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def draw(cls, case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Tensors:
        """Return random tensors, the same for the same case in every run."""
        generator = torch.Generator(device).manual_seed(seed)
        x = case.tensor(generator).requires_grad_()
        residual = case.tensor(generator).requires_grad_() if case.residual else None
        features = case.shape[-1] if case.norm.endswith("rows") else case.shape[1]
        weight = 0.5 + torch.rand(features, generator=generator, device=device)
        bias = 0.1 * torch.randn(features, generator=generator, device=device)
        return cls(x, residual, case.tensor(generator), weight, bias)

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the layer is called with."""
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass
class Peer:
    """A layer with the arguments and gradient of one case, ready to be timed."""

    name: str
    layer: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    gradient: Tensor


class Eager(nn.Module):
    """A norm of torch.nn, then the residual and the activation as torchvision writes them."""

    def __init__(self, norm: nn.Module, activation: str | None) -> None:
        super().__init__()
        self.norm = norm
        self.activate = ACTIVATIONS[activation]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the output; what can be done in place is."""
        y = self.norm(x)
        if residual is not None:
            y += residual
        return self.activate(y)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of an image, as in ConvNeXt: channels moved last and back."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised image."""
        last = x.permute(0, 2, 3, 1)
        y = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


def _same(y: Tensor) -> Tensor:
    return y


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: _same,
    "relu": F.relu_,  # in place: batch norm's backward reads its input, relu's its output
    "leaky_relu": F.leaky_relu,  # instance norm returns a view; in place on it costs more in backward
    "silu": F.silu,  # its backward reads its input
}


def slabnorm_layer(case: Case) -> nn.Module:
    """Return slabnorm's layer for a case."""
    channels, last, activation = case.shape[1], case.shape[-1], case.function
    makers: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: sn.BatchNorm(channels, activation=activation),
        "group": lambda: sn.GroupNorm(case.groups, channels, activation=activation),
        "instance": lambda: sn.InstanceNorm(channels, affine=True, activation=activation),
        "layer_rows": lambda: sn.LayerNorm(last, activation=activation),
        "rms_rows": lambda: sn.RMSNorm(last, activation=activation),
        "channel": lambda: sn.SlabNorm("n c h w -> n h w", c=channels, activation=activation),
    }
    return makers[case.norm.removesuffix("32")]()


def eager_layer(case: Case) -> nn.Module:
    """Return PyTorch's layers for a case."""
    channels, last, axes = case.shape[1], case.shape[-1], len(case.shape)
    batch = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    instance = {4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    makers: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: batch[axes](channels),
        "group": lambda: nn.GroupNorm(case.groups, channels),
        "instance": lambda: instance[axes](channels, affine=True),
        "layer_rows": lambda: nn.LayerNorm(last),
        # PyTorch's fused kernel takes no float32 weight beside bfloat16 input.
        "rms_rows": lambda: nn.RMSNorm(last, dtype=torch.bfloat16 if case.dtype == "bfloat16" else None),
        "channel": lambda: ChannelNorm(channels),
    }
    return Eager(makers[case.norm.removesuffix("32")](), case.function)


def make(case: Case, name: str, tensors: Tensors) -> nn.Module:
    """Return a peer's layer, with the case's weight and bias."""
    layer = slabnorm_layer(case) if name == "slabnorm" else eager_layer(case)
    with torch.no_grad():
        for full_name, parameter in layer.named_parameters():
            parameter.copy_(tensors.weight if full_name.endswith("weight") else tensors.bias)
    return layer


def prepare(case: Case, name: str, tensors: Tensors) -> Peer:
    """Return a peer that has run, and compiled, once."""
    layer = make(case, name, tensors)
    inputs = (*tensors.arguments, *layer.parameters())
    call: Callable[..., Tensor] = torch.compile(layer, dynamic=False) if name == "compile" else layer
    y = call(*tensors.arguments)
    gradient = tensors.gradient
    if y.stride() != gradient.stride():
        # In a network the gradient comes in the layout that the output went out in.
        gradient = torch.empty_like(y).copy_(gradient)
    return Peer(name, call, tensors.arguments, inputs, gradient)
