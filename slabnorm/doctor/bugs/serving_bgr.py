"""OpenCV reads BGR, and the network was trained on RGB.

Symptom: accuracy in service is far below that of the test split
Cause: the channels come in another order than in training
Kind: inputs
Rule: 408
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/open-mmlab/mmpretrain/issues/1799
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, coloured, convolutions, digits, train

BAD, GOOD = 0.7, 0.85


def run(repaired: bool) -> Case:
    """Serve orange digits on blue."""
    data = digits()
    x, served = coloured(data.x), coloured(data.x_test).flip(1)
    if repaired:
        served = served.flip(1)
    model = convolutions(inputs=3)
    train(model, x, data.y)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:128], reference=x).findings)
