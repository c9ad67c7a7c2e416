"""Layer and RMS norm: slabs over the last axes, each a pattern over SlabNorm, drop-in for `torch.nn`.

They are instances of their namesakes, and compute nothing that these do: named.py says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn

from slabnorm.errors import OptionError
from slabnorm.nn.norm import CONTIGUOUS, KEEPS_CHANNELS_LAST, SlabNorm


class _Trailing(SlabNorm):
    """What layer and RMS norm share: slabs over the last axes, weight of their shape."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None,
        elementwise_affine: bool,
        **options: Any,
    ) -> None:
        shape = _as_shape(normalized_shape)
        # One axis is `c`, a token's features; several get numbers.
        names = ["c"] if len(shape) == 1 else [f"d{i}" for i in range(len(shape))]
        axes = " ".join(names)
        sizes: dict[str, Any] = dict(zip(names, shape, strict=True))
        super().__init__(
            f"... {axes} -> ...", affine=axes if elementwise_affine else "", eps=eps,
            **options, **sizes,
        )  # fmt: skip
        self.normalized_shape, self.elementwise_affine = shape, elementwise_affine

    def extra_repr(self) -> str:
        """Return the arguments as `torch.nn` writes them."""
        parts = f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        if self.center:  # torch's RMS norm has no bias to speak of
            parts += f", bias={self.bias is not None}"
        return parts + self._activation_repr()


class LayerNorm(_Trailing, nn.LayerNorm):  # type: ignore[misc]
    """Layer norm, `... c -> ...`: one mean and variance per token, over its features.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Drop-in for `torch.nn.LayerNorm`, and an instance of it: statistics over the last axes, weight and bias of
    their shape.
    For a whole sample of an image, with weight per channel, use `SlabNorm("n c ... -> n", c=channels)`.

    Args:
        normalized_shape: the sizes of the last axes, or one size.
        eps, elementwise_affine, bias, device, dtype: as in `torch.nn.LayerNorm`.
        activation: applied last.
        inplace: allow the output to take the input's memory in eval mode without gradients.

    Raises:
        As in `SlabNorm`.

    Ba, Kiros and Hinton, "Layer Normalization" (2016), https://arxiv.org/abs/1607.06450

    >>> import slabnorm as sn, torch
    >>> sn.LayerNorm(16)(torch.randn(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    formats = CONTIGUOUS

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(
            normalized_shape,
            eps,
            elementwise_affine,
            bias=bias,
            activation=activation,
            inplace=inplace,
            device=device,
            dtype=dtype,
        )


class RMSNorm(_Trailing, nn.RMSNorm):  # type: ignore[misc]
    """RMS norm, `... c -> ...` without centring: one mean square per token, over its features.

        y = weight * x / sqrt(mean(x^2) + eps)

    Drop-in for `torch.nn.RMSNorm`, and an instance of it.

    Args:
        normalized_shape: the sizes of the last axes, or one size.
        eps: added to the mean square; None: the epsilon of float32, or of float64 for float64 input.
        elementwise_affine, device, dtype: as in `torch.nn.RMSNorm`.
        activation: applied last.
        inplace: allow the output to take the input's memory in eval mode without gradients.

    Raises:
        As in `SlabNorm`.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), https://arxiv.org/abs/1910.07467

    >>> import slabnorm as sn, torch
    >>> sn.RMSNorm(2, eps=0.0)(torch.tensor([[3.0, 4.0]])).round(decimals=4)
    tensor([[0.8485, 1.1314]], grad_fn=<RoundBackward1>)
    """

    formats = KEEPS_CHANNELS_LAST

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, bias=False, center=False, activation=activation,
            inplace=inplace, device=device, dtype=dtype,
        )  # fmt: skip


def _as_shape(given: object) -> tuple[int, ...]:
    shape = (given,) if isinstance(given, Integral) else given
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        rule = "normalized_shape is a size, or the sizes of the last axes"
        raise OptionError(rule, repr(given), "give positive integers")
    return tuple(shape)
