"""What the networks are trained on: the real data that scikit-learn brings, so that nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import ResNet18, Transformer, UNet

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A network, its batches and its loss."""

    network: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]  # inputs and targets
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    described: str


def digits(size: int) -> Task:
    """Classify handwritten digits, 32x32 in three channels, with a ResNet-18."""
    images, labels = datasets.load_digits(return_X_y=True)
    small = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    large = F.interpolate(small, size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    classes = torch.tensor(labels)

    def batch(generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(large), (size,), generator=generator)
        return large[chosen], classes[chosen]

    def sgd(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    described = f"batch norm, ReLU; digits of 32x32, batch size {size}"
    return Task(ResNet18, batch, F.cross_entropy, sgd, described)


def photos(size: int, side: int) -> Task:
    """Find the noise in crops of photos, with a UNet."""
    pictures = [torch.tensor(picture / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)
                for picture in datasets.load_sample_images().images]  # fmt: skip

    def crop(generator: torch.Generator) -> Tensor:
        picture = pictures[int(torch.randint(len(pictures), (), generator=generator))]
        top, left = (int(torch.randint(edge - side, (), generator=generator)) for edge in picture.shape[1:])
        return picture[:, top : top + side, left : left + side]

    def batch(generator: torch.Generator) -> Batch:
        clean = torch.stack([crop(generator) for _ in range(size)])
        noise = torch.randn(clean.shape, generator=generator)
        return clean + 0.3 * noise, noise

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=1e-3)

    described = f"group norm, SiLU; crops of {side}x{side}, batch size {size}"
    return Task(UNet, batch, F.mse_loss, adam, described)


def text(size: int) -> Task:
    """Guess the next character of English text, with a transformer."""
    loaders = ("iris", "digits", "wine", "breast_cancer", "diabetes", "linnerud")
    written = "\n".join(getattr(datasets, f"load_{name}")().DESCR for name in loaders)
    characters, numbers = np.unique(list(written), return_inverse=True)
    tokens, context = torch.tensor(numbers), 128

    def network() -> nn.Module:
        return Transformer(len(characters), context)

    def batch(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(tokens) - context - 1, (size,), generator=generator).tolist()
        windows = torch.stack([tokens[start : start + context + 1] for start in starts])
        return windows[:, :-1], windows[:, 1:]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=1e-3)

    described = f"layer norm; {size} texts of {context} characters"
    return Task(network, batch, loss, adam, described)


# quick or not
TASKS: dict[str, Callable[[bool], Task]] = {
    "ResNet-18": lambda quick: digits(8 if quick else 32),
    "UNet": lambda quick: photos(2, 64) if quick else photos(4, 96),
    "transformer": lambda quick: text(4 if quick else 16),
}
