"""Small networks of the kinds people have, each with its input; and what two models are compared by."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """A residual block as torchvision writes it: one activation module, used twice."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != width:
            conv = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Some words,

        over several lines.
        """
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class ResNet(nn.Module):
    """A stem in a method beside forward, and two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2 = BasicBlock(8, 8), BasicBlock(8, 16, 2)
        self.fc = nn.Linear(16, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class CifarBlock(nn.Module):
    """A residual block as its own words: nested calls, and a shortcut computed after the norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class Up(nn.Module):
    """A block of a UNet: group norm and SiLU before each convolution, an embedding in between."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(embedding, width)
        self.nonlinearity = nn.SiLU()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        h = self.norm1(x)
        h = self.nonlinearity(h)
        h = self.conv1(h)
        if t is not None:
            h = h + self.time(self.nonlinearity(t))[:, :, None, None]
        h = self.norm2(h)
        h = self.nonlinearity(h)
        h = self.conv2(self.dropout(h))
        return (x + h) / 1.5


class UNet(nn.Module):
    """One level down and up again; the time step is embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(1, 6)
        self.down, self.middle, self.up = Up(8, 6), Up(8, 6), Up(8, 6)
        self.out = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        t = self.time(x.mean((1, 2, 3))[:, None])
        high = self.down(self.first(x), t)
        low = self.middle(F.avg_pool2d(high, 2), t)
        return self.out(self.up(F.interpolate(low, scale_factor=2) + high))


class PostNorm(nn.Module):
    """A transformer's layer whose norms stand before the sum: norm + residual without an activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm2 = nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.mix(x))
        return x + self.norm2(self.mlp(x))


class ConvNormAct(nn.Sequential):
    """A Sequential by another name and constructor, as torchvision and timm have it."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Hardswish())


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for width_in, width in ((3, 6), (6, 6)):
        layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 4))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (ResNet, (4, 3, 8, 8)),
    "cifar": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), CifarBlock(6)), (4, 3, 8, 8)),
    "unet": (UNet, (2, 3, 8, 8)),
    "vgg": (vgg, (4, 3, 8, 8)),
    "named sequential": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), ConvNormAct(6)), (4, 3, 8, 8)),
    "post-norm": (lambda: nn.Sequential(PostNorm(8), PostNorm(8)), (2, 5, 8)),
    "encoder": (encoder, (3, 5, 8)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a model with weights worth telling apart, and its input."""
    make, shape = NETS[name]
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, torch.randn(shape)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run forward and backward; return output, gradients and buffers by name."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
    assert x.grad is not None
    found = {"y": y.detach().clone(), "dx": x.grad}
    found |= {f"d {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], bound: float = 5e-5) -> None:
    assert got.keys() == want.keys()
    largest = max((float(value.abs().max()) for key, value in want.items() if key[:2] == "d "), default=0.0)
    for key, value in want.items():
        scale = max(float(value.abs().max()), 0.1 * largest)  # a bias before a batch norm has none but noise
        assert (got[key] - value).abs().max() <= bound * scale, key


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return two copies of a model: one to accelerate, one to compare it with."""
    return copy.deepcopy(model), copy.deepcopy(model)
