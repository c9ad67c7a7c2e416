"""An L1 penalty on the weights of norms, meant for pruning, is far too large.

Symptom: test accuracy is that of chance
Cause: nearly all weights of the norm are 0, and its channels with them
Kind: structure
Rule: 406
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/Eric-mingjie/rethinking-network-pruning/issues/24
"""

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, network, train

BAD, GOOD = 0.5, 0.85


def run(repaired: bool) -> Case:
    """Train, and shrink the weights of the second norm after each step, as a proximal step of L1 does."""
    data = digits()
    model = network()
    penalty = 0.3
    if repaired:
        penalty = 0.0005

    @torch.no_grad()
    def shrink() -> None:
        weight = model[4].weight
        weight.copy_(weight.sign() * (weight.abs() - penalty).clamp(min=0))

    train(model, data.x, data.y, step=shrink)
    findings = check(model, data.x[:64]).findings
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
