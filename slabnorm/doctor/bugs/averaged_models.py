"""Weights of several models are averaged, and the running statistics are those of one of them.

Symptom: the average is worse than each of its parts
Cause: averaged weights make other activations, which nobody has measured
Kind: modes
Rule: 203
Healed: by sn.fixes
Thread: https://github.com/Lightning-AI/pytorch-lightning/issues/14866
"""

import torch
from torch.optim.swa_utils import update_bn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.85, 0.9


def run(repaired: bool) -> Case:
    """Average a model of early and one of late training, far apart, and evaluate."""
    data = digits()
    model, late = network(), network()
    train(model, data.x, data.y, epochs=1)
    late.load_state_dict(model.state_dict())
    train(late, data.x, data.y, epochs=6, rate=0.3)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), late.parameters(), strict=True):
            mine.lerp_(theirs, 0.5)
    if repaired:
        update_bn(data.x.split(100), model)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), check(model, data.x[:256]).findings)
