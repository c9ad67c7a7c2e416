"""Training batches come class by class, as files in folders do.

Symptom: test accuracy in eval mode is low
Cause: the running statistics are those of the last class
Kind: modes
Rule: 203
Healed: by sn.fixes
Thread: https://github.com/openpifpaf/openpifpaf/pull/308
"""

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.85, 0.9


def run(repaired: bool) -> Case:
    """Go on with training in the order of classes, at a small learning rate."""
    data = digits()
    model = network()
    train(model, data.x, data.y)
    order = data.y.argsort()
    if repaired:
        order = torch.arange(len(data.x))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for batch in order.split(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.x[batch]), data.y[batch]).backward()
        optimizer.step()
    findings = check(model, data.x[::4]).findings
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
