"""A norm was switched to eval mode for a look at its features, and stayed there while the model trained.

Symptom: it normalises by the statistics of random weights, and training is slow or unstable
Cause: layer.eval() in a model that trains
Kind: modes
Rule: 102
Healed: by sn.fixes
Thread: https://github.com/facebookresearch/higher/issues/55
"""

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network, train

BAD, GOOD = 0.5, 0.2


def run(repaired: bool) -> Case:
    """Train, and compare what the norm gives with mean 0 and variance 1 before its weight and bias."""
    data = digits()
    model = network()
    model(data.x[:256])
    model[4].eval()
    if repaired:
        model[4].train()
    train(model, data.x, data.y)
    findings = check(model, data.x[:64]).findings
    model.eval()
    y = ((model[:5](data.x) - model[4].bias) / model[4].weight).detach()
    return Case(float(y.mean(0).square().mean().sqrt()), findings)
