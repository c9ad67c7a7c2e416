"""ToTensor() divides by 255, and the training loop does so again.

Symptom: test accuracy is that of chance, as no pixel is larger than 0.004
Cause: two parts of a program each believe that the other one does not scale
Kind: inputs
Rule: 402
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/facebookresearch/InterHand2.6M/issues/110
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.3, 0.85


def run(repaired: bool) -> Case:
    """Train on pixels that a transform has already scaled to 0..1."""
    data = digits()
    scaled = data._replace(x=data.x / 255, x_test=data.x_test / 255)
    if repaired:
        scaled = data
    model = network(norm=nn.Identity)
    train(model, scaled.x, data.y, epochs=8)
    return Case(accuracy(model, scaled.x_test, data.y_test), check(model, scaled.x[:64]).findings)
