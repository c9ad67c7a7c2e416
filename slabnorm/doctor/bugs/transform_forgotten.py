"""The transform of the training split normalises, that of the test split does not.

Symptom: test accuracy is far below what training promises
Cause: Normalize() is in one of two lists of transforms
Kind: inputs
Rule: 408
Healed: not tested, the printed words say only where to look
Thread: https://github.com/google/automl/issues/872
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, convolutions, digits, images, train

BAD, GOOD = 0.8, 0.9


def run(repaired: bool) -> Case:
    """Evaluate on pixels between 0 and 1."""
    data = digits()
    x, test = (images(data.x) - 0.3) / 0.1, images(data.x_test)
    if repaired:
        test = (test - 0.3) / 0.1
    model = convolutions()
    train(model, x, data.y)
    model.eval()
    return Case(accuracy(model, test, data.y_test), check(model, test[:128], reference=x).findings)
