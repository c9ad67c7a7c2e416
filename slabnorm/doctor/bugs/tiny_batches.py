"""Images are so large that two of them fill the memory, and the norm is batch norm.

Symptom: test accuracy is below that of a norm which does not pool samples
Cause: a mean over two samples is off by 70% of a standard deviation, another one in each step
Kind: modes
Rule: 206
Healed: by the printed `sn.convert(model, to="layer")`, which the tests run
Thread: https://github.com/Deci-AI/super-gradients/issues/1858
"""

from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.6, 0.8


def run(repaired: bool) -> Case:
    """Train in batches of two."""
    data = digits()
    model = network()
    if repaired:
        model = network(nn.LayerNorm)
    train(model, data.x[:1000], data.y[:1000], epochs=1, size=2, rate=0.005)
    findings = check(model, data.x[:2]).findings
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
