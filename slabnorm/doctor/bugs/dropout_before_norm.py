"""Dropout stands before a batch norm.

Symptom: test accuracy is lower than with the two in the other order
Cause: dropout makes the variance larger in training alone, and that one is kept
Kind: structure
Rule: 303
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/luigibonati/mlcolvar/pull/205
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, train

BAD, GOOD = 1.3, 1.1


def run(repaired: bool) -> Case:
    """Train, and compare the variance that a norm has kept with that of its input in eval mode."""
    data = digits()
    torch.manual_seed(0)
    layers = [nn.Dropout(0.8), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32)]
    if repaired:
        layers = [*layers[1:], layers[0]]
    model = nn.Sequential(
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), *layers, nn.ReLU(), nn.Linear(32, 10)
    )
    train(model, data.x, data.y)
    findings = check(model, data.x[:64]).findings
    model.eval()
    at = 5 if not repaired else 4
    with torch.no_grad():
        larger = (model[at].running_var / model[:at](data.x).var(0)).mean()
    return Case(float(larger), findings)
