"""A moving average of the weights is evaluated with buffers that nobody averaged.

Symptom: the averaged model is far worse than the model
Cause: parameters() has no running statistics, and so the average keeps the initial ones
Kind: modes
Rule: 202
Healed: by sn.fixes
Thread: https://github.com/CuriousAI/mean-teacher/issues/9
"""

import copy

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Follow a model with an average of its weights."""
    data = digits()
    x, test = 0.05 * data.x, 0.05 * data.x_test
    model = network()
    average = copy.deepcopy(model).eval()

    @torch.no_grad()
    def follow() -> None:
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 0.1)
        if repaired:
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)

    train(model, x, data.y, step=follow)
    return Case(accuracy(average, test, data.y_test), check(average, test[:64]).findings)
