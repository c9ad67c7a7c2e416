"""Layers that take the place of a norm and compute no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class DyT(nn.Module):
    """Dynamic tanh, which takes the place of a norm.

        y = weight * tanh(alpha * x) + bias

    Args:
        channels: the size of the second axis, along which weight and bias vary; or the sizes of the last
            axes, where `last` is true. `alpha` is one number.
        last: whether weight and bias vary along the last axes.
        affine: whether there are weight and bias.
        device, dtype: of the parameters.

    Zhu et al., "Transformers without Normalization" (2025), https://arxiv.org/abs/2503.10622

    >>> import torch
    >>> DyT(2)(torch.tensor([[2.0, -2.0]])).round(decimals=4)
    tensor([[ 0.7616, -0.7616]], grad_fn=<RoundBackward1>)
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int | Sequence[int],
        *,
        last: bool = False,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.last = channels, last
        self.alpha = nn.Parameter(torch.tensor(0.5, device=device, dtype=dtype))
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            filled = torch.full(_shape(channels), value, device=device, dtype=dtype) if affine else None
            self.register_parameter(name, None if filled is None else nn.Parameter(filled))

    def forward(self, x: Tensor) -> Tensor:
        """Return x squashed, in its shape."""
        y = self.squash(x)
        y = y if self.weight is None else self._spread(self.weight, x) * y
        return y if self.bias is None else y + self._spread(self.bias, x)

    def squash(self, x: Tensor) -> Tensor:
        """Return tanh(alpha * x)."""
        return torch.tanh(self.alpha * x)

    def extra_repr(self) -> str:
        """Return the sizes of weight and bias."""
        return f"{self.channels}{', last=True' if self.last else ''}"

    def _spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Return weight or bias so that it broadcasts against x."""
        return values if self.last else values.reshape(-1, *[1] * (x.ndim - 2))


class Derf(DyT):
    """Dynamic erf, which takes the place of a norm.

        y = weight * erf(alpha * x + shift) + bias

    Args:
        channels: the size of the second axis; `shift` is one number, 0 at first.

    Chen et al., "Stronger Normalization-Free Transformers" (2025).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.shift = nn.Parameter(torch.tensor(0.0))

    def squash(self, x: Tensor) -> Tensor:
        """Return erf(alpha * x + shift)."""
        return torch.erf(self.alpha * x + self.shift)


def _shape(channels: int | Sequence[int]) -> tuple[int, ...]:
    return (channels,) if isinstance(channels, int) else tuple(channels)
