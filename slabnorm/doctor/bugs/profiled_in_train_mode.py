"""A profiler runs the model on random inputs before it is saved.

Symptom: the saved model is no better than chance
Cause: it ran in train mode, and each of its forwards moved the running statistics
Kind: modes
Rule: 203
Healed: by sn.fixes
Thread: https://github.com/princeton-vl/pytorch_stacked_hourglass/issues/44
"""

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Train, measure the speed, save."""
    data = digits()
    model = network()
    train(model, data.x, data.y)
    if repaired:
        model.eval()
    with torch.no_grad():
        for _ in range(50):
            model(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), check(model, data.x_test[:256]).findings)
