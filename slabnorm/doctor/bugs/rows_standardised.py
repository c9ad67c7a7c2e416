"""A table is standardised along its rows instead of its columns.

Symptom: test accuracy is low
Cause: axis=1 where axis=0 was meant: each row loses its level and its contrast
Kind: inputs
Rule: none
Thread: https://github.com/EpistasisLab/scikit-rebate/pull/21
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, network, table, train

BAD, GOOD = 0.8, 0.9


def run(repaired: bool) -> Case:
    """Train on columns that reach from 0.1 to 1700: the result has mean 0 and variance 1 either way."""
    data = table("wine")
    axis = 1
    if repaired:
        axis = 0
    mean, std = (f(data.x, axis, keepdim=True) for f in (type(data.x).mean, type(data.x).std))
    x = (data.x - mean) / std
    if axis == 1:
        mean, std = (f(data.x_test, 1, keepdim=True) for f in (type(data.x).mean, type(data.x).std))
    model = network(nn.Identity, inputs=13, outputs=3)
    train(model, x, data.y, epochs=20, size=16, rate=0.01)
    return Case(accuracy(model, (data.x_test - mean) / std, data.y_test), check(model, x[:64]).findings)
