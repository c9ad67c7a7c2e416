"""The loader normalises, and so does the first layer of the model.

Symptom: test accuracy is low, as each input is a large constant and a tiny rest
Cause: statistics of raw data are applied to data that are normalised already
Kind: inputs
Rule: 402
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/huggingface/transformers/pull/25688
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, statistics, train

BAD, GOOD = 0.3, 0.8


def run(repaired: bool) -> Case:
    """Train on pixels from 0 to 255."""
    data = digits()
    pixels, test = 255 * data.x, 255 * data.x_test
    norm = statistics(pixels)
    model = nn.Sequential(norm, network(nn.Identity))
    x, seen = norm(pixels), norm(test)
    if repaired:
        x, seen = pixels, test
    train(model, x, data.y, rate=0.03)
    return Case(accuracy(model, seen, data.y_test), check(model, x[:64]).findings)
