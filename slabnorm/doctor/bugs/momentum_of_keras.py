"""momentum=0.99 is copied from a Keras model.

Symptom: accuracy in eval mode changes wildly from step to step
Cause: PyTorch's momentum is the weight of the new batch, 1 minus that of Keras and Flax
Kind: modes
Rule: 204
Healed: by sn.fixes
Thread: https://github.com/kazuto1011/deeplab-pytorch/issues/79
"""

from functools import partial

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.7, 0.85


def run(repaired: bool) -> Case:
    """Train; the last batch is a small one."""
    data = digits()
    momentum = 0.99
    if repaired:
        momentum = 1 - 0.99
    model = network(partial(nn.BatchNorm1d, momentum=momentum))
    train(model, data.x, data.y, epochs=16)
    with torch.no_grad():
        model(data.x[data.y == 3][:3])
    findings = check(model, data.x[:64]).findings
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
