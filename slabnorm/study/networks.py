"""The networks of the studies. Each is given a function from a number of channels to a norm layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def conv(norm: Norm, channels: int, classes: int) -> nn.Module:
    """Return a small convolutional network: three 3x3 convolutions, each followed by `norm` and ReLU.

    The convolutions have biases under every norm: the network without a norm needs them, and all networks
    must draw the same weights.

    Args:
        norm: a function from a number of channels to a layer.
        channels: the number of channels of the input, (n, channels, height, width).
        classes: the number of outputs.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 16),
        nn.MaxPool2d(2, ceil_mode=True),
        *block(16, 32),
        *block(32, 32),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 32, classes),
    )


def conv_with_head(norm: Norm, channels: int, classes: int) -> nn.Module:
    """Return two 3x3 convolutions and a hidden linear layer, each followed by `norm` and ReLU.

    The norm of the linear layer has a single value of a sample in each channel. Weights start as He et al.
    2015 have them, and biases at 0.

    Args:
        norm: a function from a number of channels to a layer.
        channels: the number of channels of the input, (n, channels, height, width).
        classes: the number of outputs.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]

    network = nn.Sequential(
        *block(channels, 16),
        nn.MaxPool2d(2, ceil_mode=True),
        *block(16, 32),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 32, 64),
        norm(64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


class PerPixel(nn.Module):
    """A norm of each pixel of each channel of an image by itself, as of the units of a perceptron.

    Args:
        norm: a function from a number of channels to a layer for (n, channels).
        shape: the size of the images, (channels, height, width).
    """

    def __init__(self, norm: Norm, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape = norm(math.prod(shape)), shape

    def forward(self, x: Tensor) -> Tensor:
        """Return the images (n, c, h, w) with every pixel normalised over the batch."""
        normed: Tensor = self.layer(x.flatten(1))
        return normed.unflatten(1, self.shape)


def conv_per_pixel(norm: Norm, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the network `conv` with the same weights, in which each pixel has statistics of its own.

    Args:
        norm: a function from a number of channels to a layer for (n, channels).
        shape: the size of the images, (channels, height, width).
        classes: the number of outputs.
    """
    sizes = [shape[1:], *[tuple(-(-size // 2) for size in shape[1:])] * 2]  # the pooling rounds up
    places = iter(sizes)
    return conv(lambda channels: PerPixel(norm, (channels, *next(places))), shape[0], classes)


def mlp(
    norm: Norm,
    features: int,
    classes: int,
    depth: int = 2,
    width: int = 64,
    gain: float = 1.0,
) -> nn.Module:
    """Return a perceptron of hidden layers, each followed by `norm` and ReLU.

    Weights and biases are PyTorch's own, uniform in +-1/sqrt(inputs), times the gain.

    Args:
        norm: a function from a number of channels to a layer.
        features: the number of values of a sample.
        classes: the number of outputs.
        depth: the number of hidden layers.
        width: the number of units of each.
        gain: a factor of the initial weights and biases of the hidden layers.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in [features, *[width] * (depth - 1)]:
        linear = nn.Linear(inputs, width)
        with torch.no_grad():
            linear.weight.mul_(gain)
            linear.bias.mul_(gain)
        layers += [linear, norm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Channels(nn.Module):
    """A norm of channels for a sequence (n, t, c), which sees it as (n, c, t), as a norm of images does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the sequence with its channels normalised."""
        normed: Tensor = self.layer(x.movedim(-1, 1))
        return normed.movedim(1, -1)


class Block(nn.Module):
    """A block of a transformer: norm, causal attention and a sum; norm, two linear layers and a sum."""

    def __init__(self, norm: Norm, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = Channels(norm(width)), Channels(norm(width))
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sequence (n, t, width) after the block."""
        parts = self.mix(self.first(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        fed: Tensor = x + self.feed(self.second(x))
        return fed


class Transformer(nn.Module):
    """A character transformer (Vaswani et al. 2017) with norms before attention and feed-forward layers.

    Args:
        norm: a function from a number of channels to a layer for (n, channels, t).
        letters: the size of the alphabet.
        width: the number of channels.
        depth: the number of blocks.
        longest: the longest sequence.
    """

    def __init__(self, norm: Norm, letters: int, width: int = 64, depth: int = 2, longest: int = 64) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(longest, width)
        self.blocks = nn.Sequential(*(Block(norm, width, 4) for _ in range(depth)))
        self.last, self.out = Channels(norm(width)), nn.Linear(width, letters)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the scores (n, letters, t) of the letters that follow each of `codes`, (n, t)."""
        x = self.letter(codes) + self.place.weight[: codes.shape[1]]
        scores: Tensor = self.out(self.last(self.blocks(x)))
        return scores.movedim(-1, 1)


class Recurrent(nn.Module):
    """A recurrent network that normalises its summed inputs at every step (Ba et al. 2016).

        h_t = tanh(norm(W x_t + U h_(t-1)))

    Args:
        norm: a function from a number of channels to a layer for (n, channels).
        letters: the size of the alphabet.
        width: the number of channels.
    """

    def __init__(self, norm: Norm, letters: int, width: int = 96) -> None:
        super().__init__()
        self.letter, self.step = nn.Embedding(letters, width), nn.Linear(width, width)
        self.norm, self.out = norm(width), nn.Linear(width, letters)
        nn.init.uniform_(self.letter.weight, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the scores (n, letters, t) of the letters that follow each of `codes`, (n, t)."""
        inputs = self.letter(codes)
        state, states = inputs.new_zeros(len(codes), inputs.shape[2]), []
        for given in inputs.unbind(1):
            state = torch.tanh(self.norm(given + self.step(state)))
            states.append(state)
        scores: Tensor = self.out(torch.stack(states, 1))
        return scores.movedim(-1, 1)
