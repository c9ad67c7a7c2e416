"""The service hands over images column by column.

Symptom: accuracy in service is low
Cause: Fortran order, or width before height: the same numbers in other places
Kind: inputs
Rule: 408
Healed: not tested, the printed words say only where to look
Thread: https://github.com/triton-inference-server/server/issues/2971
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.4, 0.85


def run(repaired: bool) -> Case:
    """Serve rows of 64 pixels."""
    data = digits()
    served = data.x_test.unflatten(1, (8, 8)).transpose(1, 2).flatten(1)
    if repaired:
        served = data.x_test
    model = network()
    train(model, data.x, data.y)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:128], reference=data.x).findings)
