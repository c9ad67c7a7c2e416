"""Ten layers without norms, each with weights of variance 1.

Symptom: the loss is NaN or huge after the first steps
Cause: each layer makes its input six times as large
Kind: structure
Rule: 405
Healed: not tested, the repair does what the printed words say
Thread: no public thread known
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, digits, train

BAD, GOOD = 0.4, 0.8


def run(repaired: bool) -> Case:
    """Train a deep perceptron."""
    data = digits()
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(64, 64)]
    for _ in range(9):
        layers += [nn.Identity() if not repaired else nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    findings = check(model, data.x[:64]).findings
    train(model, data.x, data.y, epochs=6, rate=0.03)
    model.eval()
    return Case(accuracy(model, data.x_test, data.y_test), findings)
