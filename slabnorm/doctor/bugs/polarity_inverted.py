"""Training had white ink on black, the scanner has black ink on white.

Symptom: accuracy in service is that of chance
Cause: 1 - x where x was meant
Kind: inputs
Rule: 408
Healed: not tested, the printed words say only where to look
Thread: https://github.com/9crk/caffe-mnist-test/issues/2
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.4, 0.85


def run(repaired: bool) -> Case:
    """Serve scans."""
    data = digits()
    served = 1 - data.x_test
    if repaired:
        served = 1 - served
    model = network()
    train(model, data.x, data.y)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:128], reference=data.x).findings)
