"""A laboratory reports one column in another unit than before.

Symptom: accuracy falls from one delivery to the next
Cause: milligrams became grams, and the fitted statistics are those of milligrams
Kind: inputs
Rule: 408
Healed: not tested, the printed words say only where to look
Thread: no public thread known
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, network, statistics, table, train

BAD, GOOD = 0.8, 0.9
PROLINE = 12  # the column


def run(repaired: bool) -> Case:
    """Serve wines whose proline is in grams."""
    data = table("wine")
    served = data.x_test.clone()
    served[:, PROLINE] /= 1000
    if repaired:
        served[:, PROLINE] *= 1000
    model = nn.Sequential(statistics(data.x), network(nn.Identity, inputs=13, outputs=3))
    train(model, data.x, data.y, epochs=20, size=16, rate=0.01)
    return Case(accuracy(model, served, data.y_test), check(model, served).findings)
