"""What the page's rooms compute with: real pictures, and a small network that slabnorm's layers have trained.

All of it is made from scikit-learn's digits and photographs and a fixed seed, so that the page is the same on
every machine. The browser does the rest: nothing here is an answer.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from slabnorm.extras import extra
from slabnorm.kernels import using
from slabnorm.nn import BatchNorm
from slabnorm.study.data import Dataset, digits
from slabnorm.study.train import batches, orders, quiet_corner

SEED = 0
PATCH = 28  # pixels along a side, as in MNIST
SHRINK = 4  # pixels of the photograph along the side of one pixel of a patch
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights that greyscale conversions use
TRAIN_DIGITS = 40

HIDDEN = 32
BATCH, EPOCHS, RATE = 32, 6, 0.05
TRACED = 4  # units whose statistics are exported for every step
FIGURES = 7  # significant digits of what is exported, as many as float32 has


@cache
def samples() -> dict[str, Any]:
    """Return pictures and a trained network as lists and numbers, ready for `json.dumps`.

    The keys are `photos` and `digits` (pixels, side, range), and `network` (see `trained`).

    Raises:
        ExtraError: scikit-learn, or Pillow that reads its photographs, is not installed.
    """
    extra("sklearn", "the page", "'slabnorm[study]'")
    data = digits()
    images = data.x.reshape(len(data.x), -1).astype(int)
    train, test = data.split.train[:TRAIN_DIGITS], data.split.test
    return {
        "photos": {"side": PATCH, "range": [0, 255], "pixels": patches()},
        "digits": {
            "side": 8,
            "range": [0, 16],
            "pixels": images[train].tolist(),
            "test": images[test].tolist(),
            "labels": data.y[test].tolist(),
        },
        "network": trained(data),
    }


def patches() -> list[list[int]]:
    """Return grey patches of 28x28 pixels, 0 to 255, cut from scikit-learn's two photographs side by side.

    Each pixel is the mean of 4x4 pixels of the photograph.
    """
    extra("PIL", "reading the page's photographs", "'slabnorm[images]'")
    from sklearn.datasets import load_sample_images

    cut = PATCH * SHRINK
    found: list[list[int]] = []
    for photo in load_sample_images().images:
        grey: NDArray[np.float64] = photo @ np.array(LUMA)
        rows, columns = (size // cut for size in grey.shape)
        grid = grey[: rows * cut, : columns * cut].reshape(rows, PATCH, SHRINK, columns, PATCH, SHRINK)
        small = grid.mean(axis=(2, 5)).round().astype(int)  # (rows, PATCH, columns, PATCH)
        found += [small[r, :, c].flatten().tolist() for r in range(rows) for c in range(columns)]
    return found


def trained(data: Dataset) -> dict[str, Any]:
    """Train linear -> batch norm -> ReLU -> linear on the digits, and return its numbers.

    Its input is pixel / 16. The keys are `hidden`, `norm` and `output` for the layers, and `trace`: for a few
    units of the hidden layer, and after each training step, the mean and variance (unbiased) of the batch,
    and the exact ones of the whole training split with the weights as they are after the step.
    """
    pixels = torch.as_tensor(data.x.reshape(len(data.x), -1)).double() / 16
    with quiet_corner(), using("eager"):
        torch.manual_seed(SEED)
        hidden, norm = nn.Linear(pixels.shape[1], HIDDEN), BatchNorm(HIDDEN)
        output = nn.Linear(HIDDEN, len(data.classes))
        model = nn.Sequential(hidden, norm, nn.ReLU(), output).double()
        steps = train(model, pixels, torch.as_tensor(data.y), torch.as_tensor(data.split.train))
    moved = (steps[-1, 2] - steps[0, 2]).abs().argsort(descending=True)[:TRACED]
    names = ("batch_mean", "batch_var", "exact_mean", "exact_var")
    return {
        "hidden": {"weight": plain(hidden.weight), "bias": plain(hidden.bias)},
        "norm": {name: plain(tensor) for name, tensor in norm.state_dict().items() if tensor.dim()}
        | {"eps": norm.eps, "momentum": norm.momentum},
        "output": {"weight": plain(output.weight), "bias": plain(output.bias)},
        "trace": {name: plain(steps[:, i, moved].T) for i, name in enumerate(names)}
        | {"units": moved.tolist(), "batch_size": BATCH},
    }


def train(model: nn.Sequential, x: Tensor, y: Tensor, samples: Tensor) -> Tensor:
    """Train with SGD; return the four statistics of every hidden unit after each step: (steps, 4, units)."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    hidden, seen = model[0], []
    for order in orders(SEED, samples, EPOCHS):
        for part in batches(order, BATCH):
            before = hidden(x[part]).detach()
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
            after = hidden(x[samples]).detach()
            seen.append(torch.stack([before.mean(0), before.var(0), after.mean(0), after.var(0)]))
    return torch.stack(seen)


def plain(tensor: Tensor) -> list[Any]:
    """Return a tensor as nested lists of numbers, rounded to what float32 can tell apart."""
    if tensor.dim() > 1:
        return [plain(row) for row in tensor]
    return [float(f"{value:.{FIGURES}g}") for value in tensor.tolist()]
