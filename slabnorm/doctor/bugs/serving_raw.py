"""Training had pixels from 0 to 1, the service has them from 0 to 255.

Symptom: accuracy in service is low
Cause: the service decodes the image itself and leaves the division out
Kind: inputs
Rule: 401
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/sha2nkt/deco/issues/22
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, convolutions, digits, images, train

BAD, GOOD = 0.85, 0.9


def run(repaired: bool) -> Case:
    """Serve what a file holds."""
    data = digits()
    x, served = images(data.x), 255 * images(data.x_test)
    if repaired:
        served = served / 255
    model = convolutions()
    train(model, x, data.y)
    model.eval()
    return Case(accuracy(model, served, data.y_test), check(model, served[:128], reference=x).findings)
