"""Weights are initialised for ReLU, three times as large again, and the activation is a sigmoid.

Symptom: the first layer gets next to no gradient
Cause: most values lie where the sigmoid is flat
Kind: structure
Rule: 403
Healed: not tested, the repair does what the printed words say
Thread: no public thread known
"""

from torch import nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network

BAD, GOOD = 0.1, 0.12


def run(repaired: bool) -> Case:
    """Compute the gradients of the first step, for weights of the same size."""
    data = digits()
    model = network(nn.BatchNorm1d if repaired else nn.Identity)
    model[2], model[5] = nn.Sigmoid(), nn.Sigmoid()
    first = model[0]
    assert isinstance(first, nn.Linear)
    nn.init.normal_(first.weight, std=20.0)
    F.cross_entropy(model(data.x[:64]), data.y[:64]).backward()
    assert first.weight.grad is not None
    change = (first.weight.grad.norm() * first.weight.norm()).item()
    return Case(change / 10, check(model, data.x[:64]).findings)
