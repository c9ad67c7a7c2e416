"""What a norm module of any class computes, in slabnorm's words, and the formula that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slabnorm.kernels import eager
from slabnorm.kernels.call import Call, Statistics
from slabnorm.notation import Item, Pattern, parse
from slabnorm.slab import plan
from slabnorm.surgery.fusion.call_sites import name_of

# Where statistics come from: the batch; buffers; or the batch in train mode, and buffers in eval mode.
Source = Literal["batch", "fixed", "running"]
# Rank and memory format of an input, and the memory format of its output.
Orders = dict[tuple[int, torch.memory_format], torch.memory_format]


@dataclass(frozen=True)
class Computes:
    """What a module computes.

        y = activation((shift + weight) * (x - mean_S) / sqrt(var_S + eps) + bias)

    Without centring, y = (shift + weight) * x / sqrt(mean_S(x^2) + eps).

    Attributes:
        layer: the norm's name: BatchNorm, InstanceNorm, GroupNorm, LayerNorm or RMSNorm.
        text: the pattern, such as "n (g c) ... -> n g".
        groups: the size of g; 0 for a pattern without it.
        center: whether the mean is subtracted.
        source: where mean and variance come from.
        eps, momentum: as the module has them.
        weight, bias, mean, var: the names of its parameters or buffers; None: it has none.
        shift: what is added to the weight: 0, or 1 for a weight around 0.
        eps_name, momentum_name: the attributes that hold the two; None for a constant of the forward.
        counter: the name of the buffer that counts batches.
        after: the name of the submodule that takes the norm's result, an activation.
        channels: the size of axis c; None: any.
        partly: whether the module computes something else for inputs of other ranks, which it takes, too.
        partly: whether the module computes something else for inputs of other ranks, which it takes, too.
        kernel: whether its forward runs one of PyTorch's kernels for norms.
        dtypes: of inputs and parameters, in which the module's results are those of the formula.
        orders: the inputs for which they are, and how the module lays out its output.
    """

    layer: str
    text: str
    groups: int = 0
    center: bool = True
    source: Source = "batch"
    eps: float = 0.0
    momentum: float = 0.0
    weight: str | None = None
    bias: str | None = None
    mean: str | None = None
    var: str | None = None
    shift: float = 0.0
    eps_name: str | None = None
    momentum_name: str | None = None
    counter: str | None = None
    after: str | None = None
    channels: int | None = None
    partly: bool = False
    kernel: bool = False
    dtypes: frozenset[torch.dtype] = frozenset()
    orders: Orders = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [
            "weight + 1" if self.shift else "",
            "over channels" if self.over_channels else "",
            "fixed statistics" if self.source == "fixed" else "",
            f"{self.groups} groups" if self.groups > 1 else "1 group" if self.groups else "",
        ]
        said = ", ".join(filter(None, parts))
        return f"{self.layer}({said})" if said else self.layer

    @property
    def pattern(self) -> Pattern:
        """The parsed pattern."""
        return parse(self.text)

    @property
    def axis(self) -> int:
        """The axis of the input that weight and bias vary along."""
        return -1 if self.text.startswith("...") else 1

    @property
    def over_channels(self) -> bool:
        """Whether it is layer or RMS norm over the second axis."""
        return self.text == "n c ... -> n ..."

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """The sizes that the pattern needs, as sorted pairs."""
        return (("g", self.groups),) if self.groups else ()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters and buffers that take part in the formula."""
        return tuple(filter(None, (self.weight, self.bias, self.mean, self.var)))

    def affine(self) -> tuple[Item, ...]:
        """Return the axes of weight and bias."""
        return self.pattern.default_affine if self.weight or self.bias else ()

    def given(self, training: bool) -> bool:
        """Whether statistics come from buffers in this mode."""
        return self.source == "fixed" or (self.source == "running" and not training)

    def formula(self, module: nn.Module, tensors: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Return what the module should return, in float64 and differentiable.

        Args:
            module: for its submodule `after`.
            tensors: parameters and buffers by name, in float64.
            x: the input, in float64.
            training: the mode.
        """
        weight, bias = (None if n is None else tensors[n].reshape(-1) for n in (self.weight, self.bias))
        weight = weight if weight is None or not self.shift else weight + self.shift
        activation, child = tail(module, self.after)
        slab = plan(self.pattern, self.affine(), tuple(x.shape), self.sizes)
        call = Call(slab, self.eps, self.center, activation=activation)
        if self.given(training):
            assert self.mean is not None
            assert self.var is not None
            mean, var = (tensors[name].detach().reshape(-1) for name in (self.mean, self.var))
            y = eager.apply(x, weight, bias, None, Statistics(mean, None, (var + self.eps).rsqrt()), call)
        else:
            y = eager.formula(x, weight, bias, None, call)
        return y if child is None else child(y)


def tail(module: nn.Module, after: str | None) -> tuple[str | None, Any]:
    """Return the activation that a submodule is, by name, or the submodule to call; None, None for none."""
    if after is None:
        return None, None
    child = module._modules[after]
    name = name_of(child)
    return name, None if name is not None else child
