"""Pixels from 0 to 255 go into a network as they are.

Symptom: test accuracy is that of chance
Cause: the division by 255 is missing, and weights are initialised for inputs of about 1
Kind: inputs
Rule: 401
Healed: by the printed `sn.fit(x_train, "zscore", split="train")`, which the tests run
Thread: https://github.com/kwotsin/transfer_learning_tutorial/issues/14
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.85


def run(repaired: bool) -> Case:
    """Train on the pixels of a file."""
    data = digits()
    pixels, test = 255 * data.x, 255 * data.x_test
    if repaired:
        pixels, test = pixels / 255, test / 255
    model = network(norm=nn.Identity)
    train(model, pixels, data.y, epochs=8)
    return Case(accuracy(model, test, data.y_test), check(model, pixels[:64]).findings)
