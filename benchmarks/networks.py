"""Three networks in plain PyTorch, as people write them: a ResNet-18, a UNet and a transformer."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut: He et al. (2015), as torchvision has it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """ResNet-18 with the 3x3 stem for small images: 11 million parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(*(BasicBlock(a, b, 1 if a == b else 2) for a, b in pairwise(widths)))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        out = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(out.mean((2, 3)))


class ResidualBlock(nn.Module):
    """Group norm, SiLU, convolution, twice, and a shortcut, as in the UNets of diffusion models."""

    def __init__(self, inputs: int, outputs: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.conv1(self.act(self.norm1(x)))
        out = self.conv2(self.act(self.norm2(out)))
        return out + self.shortcut(x)


class UNet(nn.Module):
    """Three resolutions down and up, with skips; returns the noise in an image."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        wide, wider = 2 * width, 4 * width
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down1, self.down2 = ResidualBlock(width, width), ResidualBlock(width, wide)
        self.middle = ResidualBlock(wide, wider)
        self.up2, self.up1 = ResidualBlock(wider + wide, wide), ResidualBlock(wide + width, width)
        self.norm = nn.GroupNorm(32, width)
        self.act = nn.SiLU()
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the predicted noise."""
        high = self.down1(self.stem(x))
        low = self.down2(F.avg_pool2d(high, 2))
        out = self.middle(F.avg_pool2d(low, 2))
        out = self.up2(torch.cat([F.interpolate(out, scale_factor=2.0), low], 1))
        out = self.up1(torch.cat([F.interpolate(out, scale_factor=2.0), high], 1))
        return self.head(self.act(self.norm(out)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (n, t, c)."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A small language model over characters."""

    def __init__(
        self, vocabulary: int, context: int, width: int = 192, heads: int = 4, depth: int = 4
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, indices: Tensor) -> Tensor:
        """Return the logits (n, t, vocabulary) of the next character."""
        return self.head(self.norm(self.blocks(self.tokens(indices) + self.positions)))
