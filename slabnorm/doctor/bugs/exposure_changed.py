"""A new camera is half as bright as the one of the training data.

Symptom: accuracy in service is low
Cause: the fitted statistics are those of the old camera
Kind: inputs
Rule: 408
Healed: not tested, the printed words say only where to look
Thread: no public thread known
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, convolutions, digits, images, statistics, train

BAD, GOOD = 0.8, 0.9


def run(repaired: bool) -> Case:
    """Serve dark images."""
    data = digits()
    x, served = images(data.x), 0.3 * images(data.x_test)
    if repaired:
        served = served / 0.3
    model = nn.Sequential(statistics(x), convolutions())
    train(model, x, data.y)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:128]).findings)
