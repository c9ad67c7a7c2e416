"""One batch norm serves two places of a network, to save parameters.

Symptom: accuracy in eval mode is far below that in train mode
Cause: its running statistics are a mixture of both places, and right for neither
Kind: modes
Rule: 205
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/keras-team/keras/issues/8794
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.85


def run(repaired: bool) -> Case:
    """Train."""
    data = digits()
    x, test = 0.05 * data.x, 0.05 * data.x_test
    model = network()
    model[4] = model[1]
    if repaired:
        model[4] = nn.BatchNorm1d(32)
    train(model, x, data.y)
    findings = check(model, x[:64]).findings
    model.eval()
    return Case(accuracy(model, test, data.y_test), findings)
