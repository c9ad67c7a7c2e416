"""What is measured once, after the last step of a training: a forgotten eval(), and how well it fits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from slabnorm.study.train import CHUNK, Training, accuracy, batches, train_eval_gap

MATES = (2, 4, 8, 16, 32, 64, 128)  # the sizes of the batches with eval() forgotten
TESTED = 512  # test samples that are looked at


def ended(training: Training) -> bool:
    """Return whether the last step has been taken."""
    parts = batches(torch.as_tensor(training.split.train), training.run.batch_size)
    return len(training.times) == len(parts) * training.rules.epochs


class Forgotten:
    """The accuracy in train mode minus that in eval mode, on test samples, by the size of the batch.

    The list holds one number for each size of MATES, with the samples in random order, and then the same with
    the samples in the order of their classes. It is empty before the last step.
    """

    def __call__(self, training: Training) -> list[float]:
        """Return the differences, once the training has ended."""
        if not ended(training):
            return []
        few = torch.as_tensor(training.split.test[:TESTED])
        x, y = training.x[few], training.y[few]
        shuffled = torch.randperm(len(few), generator=torch.Generator().manual_seed(training.run.seed))
        sorted_by_class = torch.argsort(y, stable=True)
        return [
            train_eval_gap(training.model, x, y, batches(order, size))
            for order in (shuffled, sorted_by_class)
            for size in MATES
        ]


class Fit:
    """Accuracy and cross-entropy of the training split, then of the test split, both in eval mode.

    The list is empty before the last step.
    """

    def __call__(self, training: Training) -> list[float]:
        """Return the four numbers, once the training has ended."""
        if not ended(training):
            return []
        found = []
        for part in (training.split.train, training.split.test):
            x, y = training.x[torch.as_tensor(part)], training.y[torch.as_tensor(part)]
            found.append(accuracy(training.model, x, y))
            with torch.no_grad():
                scores = torch.cat([training.model(few) for few in x.split(CHUNK)])
            found.append(F.cross_entropy(scores, y).item())
        return found
