"""The learning rate is so large that activations move faster than running statistics follow.

Symptom: accuracy in eval mode is far below that in train mode
Cause: a momentum of 0.01 looks back 100 steps, and the weights are others by then
Kind: structure
Rule: 407
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/pytorch/pytorch/issues/4741
"""

from functools import partial

from torch import nn

from slabnorm.doctor import watch
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.8, 0.9


def run(repaired: bool) -> Case:
    """Train."""
    data = digits()
    rate, momentum = 1.0, 0.01
    if repaired:
        rate, momentum = 0.1, 0.1
    model = network(partial(nn.BatchNorm1d, momentum=momentum))
    with watch(model) as seen:
        train(model, data.x, data.y, rate=rate)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), seen.findings)
