"""A table is standardised along its rows instead of its columns.

Symptom: test accuracy is low
Cause: axis=1 where axis=0 was meant: each row loses its level and its contrast
Kind: inputs
Rule: none
Healed: not tested, nothing is found
Thread: https://github.com/EpistasisLab/scikit-rebate/pull/21
"""

from torch import Tensor, nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, network, statistics, table, train

BAD, GOOD = 0.8, 0.9


def standardised(x: Tensor) -> Tensor:
    """Return rows of mean 0 and variance 1."""
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def run(repaired: bool) -> Case:
    """Train on columns that reach from 0.1 to 1700: the result has mean 0 and variance 1 either way."""
    data = table("wine")
    normalise = standardised
    if repaired:
        normalise = statistics(data.x)
    model, x = network(nn.Identity, inputs=13, outputs=3), normalise(data.x)
    train(model, x, data.y, epochs=20, size=16, rate=0.01)
    return Case(accuracy(model, normalise(data.x_test), data.y_test), check(model, x[:64]).findings)
