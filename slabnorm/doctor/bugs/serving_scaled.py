"""The model normalises raw pixels itself, and the service scales them first.

Symptom: accuracy in service is low
Cause: statistics of 0..255 are applied to pixels from 0 to 1
Kind: inputs
Rule: 402
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/DreamtaleCore/USI3D/issues/3
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, convolutions, digits, images, statistics, train

BAD, GOOD = 0.5, 0.9


def run(repaired: bool) -> Case:
    """Serve through ToTensor()."""
    data = digits()
    x, served = 255 * images(data.x), images(data.x_test)
    if repaired:
        served = 255 * served
    model = nn.Sequential(statistics(x), convolutions())
    train(model, x, data.y)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:128]).findings)
