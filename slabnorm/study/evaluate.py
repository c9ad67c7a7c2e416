"""Accuracy in eval mode, and how far train mode is from it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

CHUNK = 1024


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples classified right, in eval mode with frozen statistics.

    Args:
        model: left in eval mode.
        x: samples as the network sees them.
        y: class numbers.
    """
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
        )
    return right / len(y)


def train_eval_gap(model: nn.Module, x: Tensor, y: Tensor, parts: list[Tensor]) -> float:
    """Return train-mode minus eval-mode accuracy, as a share, on the same samples.

    Train mode sees the samples in `parts`; a copy of the model does, so that the running statistics
    stay as they are.

    Args:
        model: left in eval mode.
        x, y: samples and class numbers.
        parts: positions of the samples of each batch.
    """
    seen = torch.cat(parts)
    evaluated = accuracy(model, x[seen], y[seen])
    training = copy.deepcopy(model).train()
    # Gradients stay on: without them slabnorm takes train mode for a forgotten eval(), and says so.
    right = sum(int((training(x[part]).detach().argmax(1) == y[part]).sum()) for part in parts)
    return right / len(seen) - evaluated
