"""A backbone is frozen by requires_grad_(False) and eval(), and model.train() undoes the latter.

Symptom: the frozen backbone gives other features than before
Cause: train() switches every module, and running statistics are no parameters
Kind: modes
Rule: 103
Healed: by sn.fixes
Thread: https://github.com/chemprop/chemprop/pull/952
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network, train

BAD, GOOD = 0.1, 0.0


def run(repaired: bool) -> Case:
    """Train a head on darker images than those of the backbone."""
    data = digits()
    model, dark = network(), 0.5 * data.x
    train(model, data.x, data.y)
    backbone = model[:6].requires_grad_(False).eval()
    before = backbone(data.x_test)
    model.train()
    if repaired:
        backbone.eval()
    train(model, dark, data.y)
    findings = check(model, dark[:64]).findings
    moved = (backbone.eval()(data.x_test) - before).norm() / before.norm()
    return Case(float(moved), findings)
