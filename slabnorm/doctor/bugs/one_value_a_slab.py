"""Batch norm of 32 features is replaced by group norm of 32 groups.

Symptom: the output is the same for every input
Cause: a group is one value, and a value minus its mean is 0
Kind: structure
Rule: 206
Healed: by the repair, `groups = 4`, printed as `such as 4`
Thread: https://github.com/meta-pytorch/opacus/issues/567
"""

from functools import partial

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.8


def run(repaired: bool) -> Case:
    """Train."""
    data = digits()
    groups = 32
    if repaired:
        groups = 4
    model = network(partial(nn.GroupNorm, groups))
    train(model, data.x, data.y)
    return Case(accuracy(model, data.x_test, data.y_test), check(model, data.x[:64]).findings)
