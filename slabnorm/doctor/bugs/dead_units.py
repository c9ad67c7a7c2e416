"""A learning rate that is too large for a network without norms kills its ReLUs.

Symptom: test accuracy is that of chance
Cause: one step makes biases so negative that no input reaches beyond 0 again
Kind: structure
Rule: 404
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/keras-team/keras/issues/7057
"""

import torch
from torch import nn

from slabnorm.doctor import watch
from slabnorm.doctor.bugs.task import Case, accuracy, digits, train

BAD, GOOD = 0.4, 0.85


def run(repaired: bool) -> Case:
    """Train with biases."""
    data = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    rate = 2.0
    if repaired:
        rate = 0.1
    with watch(model) as seen:
        train(model, data.x, data.y, epochs=8, rate=rate)
    return Case(accuracy(model, data.x_test, data.y_test), seen.findings)
