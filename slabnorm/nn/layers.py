"""The five named layers, each a pattern over SlabNorm and drop-in for its namesake in `torch.nn`."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from slabnorm.errors import OptionError
from slabnorm.nn.norm import CONTIGUOUS, KEEPS_CHANNELS_LAST, SlabNorm

# Batch, instance and group norm: channels on the second axis, each a pattern over SlabNorm.
#
# All five take the arguments, keep the attributes and read and write the state_dict keys of their namesakes
# in `torch.nn`, for any number of spatial axes, so that a checkpoint loads in both directions.
# `activation=` and `inplace=` are theirs in addition.
#
# They are instances of what the ecosystem looks for: `_BatchNorm`, `_InstanceNorm`, `nn.GroupNorm`,
# `nn.LayerNorm` and `nn.RMSNorm`. So `torch.optim.swa_utils.update_bn`, `convert_sync_batchnorm`, loops
# that freeze statistics and filters of weight decay find them. What computes is SlabNorm's alone: it stands
# before the torch class among the bases, defines all that a layer runs (constructor, forward, reset, repr),
# and leaves to torch's class what names its type and how it reads old checkpoints. BatchNorm is no
# `nn.BatchNorm2d`, and InstanceNorm no `nn.InstanceNorm2d`: those promise a number of axes.


class _PerFeature(SlabNorm):
    """What batch and instance norm share: one argument list, one repr."""

    _pattern: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        inplace: bool = False,
        **modes: Any,
    ) -> None:
        super().__init__(
            self._pattern, affine=None if affine else "", bias=bias, eps=eps, momentum=momentum,
            track_running_stats=track_running_stats, activation=activation, inplace=inplace,
            device=device, dtype=dtype, c=num_features, **modes,
        )  # fmt: skip
        self.num_features, self.affine = num_features, affine

    def extra_repr(self) -> str:
        """Return the arguments as `torch.nn` writes them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        ) + self._activation_repr()


class BatchNorm(_PerFeature, _BatchNorm):  # type: ignore[misc]
    """Batch norm, `n c ... -> c`: one mean and variance per channel, over batch and space.

        y = weight * (x - mean_c) / sqrt(var_c + eps) + bias

    Drop-in for `torch.nn.BatchNorm1d`, `2d` and `3d`: input (N, C, ...) with any number of spatial axes. An
    instance of `torch.nn.modules.batchnorm._BatchNorm`. What puts another layer in the place of one, such as
    `convert_sync_batchnorm` or `fuse_conv_bn_eval`, knows no `activation`: give it layers without.

    Args:
        num_features: channels C.
        eps, momentum, affine, track_running_stats, bias, device, dtype: as in `torch.nn.BatchNorm2d`.
        activation: applied last, such as "relu".
        inplace: allow the output to take the input's memory in eval mode without gradients.
        ghost: in train mode normalise so many samples at a time, each ghost batch by its own statistics. A
            remainder is one of its own, but a single sample joins the ghost batch before it.
        renorm: (rmax, dmax) of batch renormalisation, which in train mode corrects by the running statistics:
            y = weight * (z * r + d) + bias with z as above, r = clip(sigma / sigma_run, 1 / rmax, rmax) and
            d = clip((mean - mean_run) / sigma_run, -dmax, dmax), through which no gradient flows, and
            sigma = sqrt(var + eps). With (1, 0) it is batch norm. Set the attribute anew to widen it.

    Running statistics take in a batch once a step and as a whole, also in ghost batches. Hoffer et al. let
    one ghost batch after another enter, whose variances lack that between them.

    Raises:
        StatisticsError: in train mode, one element per channel.
        OptionError: `ghost` or `renorm` is out of range, or both are given.
        Others as in `SlabNorm`.

    Ioffe and Szegedy, "Batch Normalization" (2015), https://arxiv.org/abs/1502.03167
    Hoffer, Hubara and Soudry, "Train longer, generalize better" (2017), https://arxiv.org/abs/1705.08741
    Ioffe, "Batch Renormalization" (2017), https://arxiv.org/abs/1702.03275

    >>> import slabnorm as sn, torch
    >>> norm = sn.BatchNorm(3)
    >>> y = norm(100 + 5 * torch.randn(8, 3, 4, 4))
    >>> bool(y.mean().abs() < 1e-5), norm.num_batches_tracked
    (True, tensor(1))
    """

    _pattern, formats = "n c ... -> c", KEEPS_CHANNELS_LAST

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        inplace: bool = False,
        ghost: int | None = None,
        renorm: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            activation=activation, inplace=inplace, ghost=ghost, renorm=renorm,
        )  # fmt: skip


class InstanceNorm(_PerFeature, _InstanceNorm):  # type: ignore[misc]
    """Instance norm, `n c ... -> n c`: one mean and variance per sample and channel, over space.

        y = weight * (x - mean_nc) / sqrt(var_nc + eps) + bias

    Drop-in for `torch.nn.InstanceNorm1d`, `2d` and `3d`: input (N, C, ...), always with a batch axis.
    An instance of `torch.nn.modules.instancenorm._InstanceNorm`.
    With `track_running_stats=True`, eval mode uses the running average over all samples.

    Args:
        num_features: channels C.
        eps, momentum, affine, track_running_stats, bias, device, dtype: as in `torch.nn.InstanceNorm2d`.
        activation: applied last, such as "leaky_relu".
        inplace: allow the output to take the input's memory in eval mode without gradients.

    Raises:
        As in `SlabNorm`.

    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization" (2016), https://arxiv.org/abs/1607.08022

    >>> import slabnorm as sn, torch
    >>> y = sn.InstanceNorm(2)(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]))
    >>> y.round(decimals=3)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """

    _pattern, formats = "n c ... -> n c", CONTIGUOUS

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            activation=activation, inplace=inplace,
        )  # fmt: skip


class GroupNorm(SlabNorm, nn.GroupNorm):  # type: ignore[misc]
    """Group norm, `n (g c) ... -> n g`: one mean and variance per sample and group of channels.

        y = weight * (x - mean_ng) / sqrt(var_ng + eps) + bias

    Drop-in for `torch.nn.GroupNorm`, and an instance of it: input (N, C, ...), weight and bias per channel.

    Args:
        num_groups: groups g; divides the channels.
        num_channels: channels C.
        eps, affine, bias, device, dtype: as in `torch.nn.GroupNorm`.
        activation: applied last, such as "silu".
        inplace: allow the output to take the input's memory in eval mode without gradients.

    Raises:
        OptionError: the groups do not divide the channels.
        Others as in `SlabNorm`.

    Wu and He, "Group Normalization" (2018), https://arxiv.org/abs/1803.08494

    >>> import slabnorm as sn, torch
    >>> sn.GroupNorm(2, 6)(torch.randn(4, 6, 5)).shape
    torch.Size([4, 6, 5])
    """

    formats = KEEPS_CHANNELS_LAST

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        inplace: bool = False,
    ) -> None:
        _check_groups(num_groups, num_channels)
        super().__init__(
            "n (g c) ... -> n g", affine=None if affine else "", bias=bias, eps=eps, activation=activation,
            inplace=inplace, device=device, dtype=dtype, g=num_groups, c=num_channels // num_groups,
        )  # fmt: skip
        self.num_groups, self.num_channels, self.affine = num_groups, num_channels, affine

    def extra_repr(self) -> str:
        """Return the arguments as `torch.nn` writes them."""
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        ) + self._activation_repr()


def _check_groups(groups: Any, channels: Any) -> None:
    fix = "give positive integers"
    if isinstance(groups, Integral) and isinstance(channels, Integral) and groups > 0 and channels > 0:  # type: ignore[operator]
        if channels % groups == 0:
            return
        divisors = [str(number) for number in range(1, int(channels) + 1) if channels % number == 0]
        fix = f"use one of {', '.join(divisors[:12])} groups"
    raise OptionError(f"{channels!r} channels cannot be divided into {groups!r} groups", "", fix)


# Layer and RMS norm: slabs over the last axes, each a pattern over SlabNorm, drop-in for `torch.nn`.


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
        problem = "normalized_shape must be a size, or the sizes of the last axes"
        raise OptionError(problem, repr(given), "give positive integers")
    return tuple(shape)
