"""Mean and scale are those of 0..255, and ToTensor() has made 0..1 of the pixels.

Symptom: test accuracy is that of chance, as every input is about -1
Cause: (x - 127.5) / 128 of pixels between 0 and 1
Kind: inputs
Rule: 401
Healed: by the printed `sn.fit(x_train, "zscore", split="train")`, which the tests run
Thread: https://github.com/choyingw/SynergyNet/issues/19
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.8


def run(repaired: bool) -> Case:
    """Train on pixels that a transform has already scaled to 0..1."""
    data = digits()
    mean, scale = 127.5, 128.0
    if repaired:
        mean, scale = mean / 255, scale / 255
    x, test = (data.x - mean) / scale, (data.x_test - mean) / scale
    model = network(nn.Identity)
    train(model, x, data.y)
    return Case(accuracy(model, test, data.y_test), check(model, x[:64]).findings)
