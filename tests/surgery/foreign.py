"""Norms as other libraries write them, and impostors that are nearly norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LlamaRMSNorm(nn.Module):
    """As transformers has it: computed in float32, cast back, then multiplied."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(dtype)


class T5LayerNorm(LlamaRMSNorm):
    """RMS norm by another name, which returns half precision only where the weight has it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            hidden_states = hidden_states.to(self.weight.dtype)
        return self.weight * hidden_states


class GemmaRMSNorm(nn.Module):
    """Its weight lies around 0."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class FrozenBatchNorm2d(nn.Module):
    """As torchvision has it: buffers only."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        var, mean = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = weight * (var + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


class DetrFrozenBatchNorm2d(FrozenBatchNorm2d):
    """The same with an eps that is a constant of the forward."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.eps

    def forward(self, x: Tensor) -> Tensor:
        epsilon = 1e-5
        scale = self.weight * (self.running_var + epsilon).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale[None, :, None, None] + bias[None, :, None, None]


class PoolFormerGroupNorm(nn.GroupNorm):
    """One group; no forward of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)


class BitGroupNormActivation(nn.GroupNorm):
    """Group norm with an activation inside."""

    def __init__(self, width: int) -> None:
        super().__init__(2, width)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class LayerNorm2d(nn.LayerNorm):
    """As timm has it: over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it: batch norm, dropout and activation in one module."""

    def __init__(self, width: int, act: nn.Module | None = None) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), act or nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "4-D input")
        return self.act(self.drop(super().forward(x)))


class OlmoLayerNorm(nn.Module):
    """No weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(torch.float32), self.normalized_shape, None, None, eps=1e-5).to(x.dtype)


class Vector(nn.Module):
    """What the impostors share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


class CancellingNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = x.square().mean(-1, keepdim=True) - mean.square()
        return (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias


class HalfCentredNorm(Vector):
    """Centred below, not above."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.var(-1, keepdim=True, correction=0) + self.eps).rsqrt() * self.weight + self.bias


class UnbiasedNorm(Vector):
    """The standard deviation of samples, eps outside the root: as in the annotated transformer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.bias


class AbsoluteNorm(Vector):
    """Of positive weights the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight.abs(), self.bias, self.eps)


class StuckNorm(Vector):
    """The right outputs, but no gradient of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight.detach(), self.bias, self.eps)


class NoisyNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (torch.randn_like(x) if self.training else 0)


class DroppingNorm(Vector):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


class PrintingNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        print("a norm runs")
        return super().forward(x)


class CountingNorm(Vector):
    """Counts on the object."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class ClassCountingNorm(Vector):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


CALLS: list[int] = []


class ListingNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(x.dim())
        return super().forward(x)


class RaisingNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


class ConditionedNorm(Vector):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return super().forward(x) * condition


class OverwritingNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = super().forward(x)
            x.zero_()
        return y


class BiasedBatchNorm(nn.BatchNorm2d):
    """Its running variance is that of the batch as a population."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, None if self.training else self.running_mean,
                         None if self.training else self.running_var, self.weight, self.bias,
                         self.training, 0.0, self.eps)  # fmt: skip
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean((0, 2, 3)), self.momentum)
                self.running_var.lerp_(x.var((0, 2, 3), correction=0), self.momentum)
                self.num_batches_tracked.add_(1)
        return y


class ClippedNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-50, 50)


class FlooredNorm(Vector):
    """The eps is a floor, not a summand."""

    def forward(self, x: Tensor) -> Tensor:
        var = x.var(-1, keepdim=True, correction=0).clamp(min=self.eps)
        return (x - x.mean(-1, keepdim=True)) * var.rsqrt() * self.weight + self.bias


class ForgivingNorm(Vector):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.nan_to_num(0.0))


class ViewNorm(Vector):
    """Takes contiguous input alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, x.shape[-1])).view(x.shape)


class ChannelNorm(nn.Module):
    """As super-resolution models write it: a weight of the images' rank, several operations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        var = torch.var(x, dim=1, unbiased=False, keepdim=True)
        return (x - torch.mean(x, dim=1, keepdim=True)) * (var + 1e-5).rsqrt() * self.g + self.b


class TanhNorm(nn.Module):
    """Dynamic tanh, which is no norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.alpha = nn.Parameter(torch.ones(width)), 0.5

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight


class LayerScale(nn.Module):
    """Neither a norm's name nor what one computes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def randomised(module: Any, seed: int = 0) -> Any:
    """Give parameters and buffers values worth telling apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.randn(t.shape, generator=generator))
                if "var" in name:
                    t.abs_().add_(0.5)
    return module
