"""Running statistics follow so slowly that a short training does not move them.

Symptom: accuracy in eval mode is far below that in train mode
Cause: momentum 0.001, for a training of 72 steps
Kind: modes
Rule: 203
Healed: by sn.fixes
Thread: https://github.com/pytorch/pytorch/issues/4741
"""

from functools import partial

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Train a few epochs."""
    data = digits()
    x, test = 0.05 * data.x, 0.05 * data.x_test
    momentum = 0.001
    if repaired:
        momentum = 0.1
    model = network(partial(nn.BatchNorm1d, momentum=momentum))
    train(model, x, data.y)
    findings = check(model, x[:64]).findings
    model.eval()
    return Case(accuracy(model, test, data.y_test), findings)
