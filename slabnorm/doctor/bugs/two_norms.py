"""A block that ends with a norm stands before one that begins with a norm.

Symptom: the weight of the first norm gets no gradient
Cause: the second norm takes out what the first one's weight and bias put in
Kind: structure
Rule: 304
Healed: by the repair, `nn.Identity()`
Thread: no public thread known
"""

import torch
from torch import nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits

BAD, GOOD = 1e-4, 1e-3


def run(repaired: bool) -> Case:
    """Compute the gradients of the first step."""
    data = digits()
    torch.manual_seed(0)
    second: nn.Module = nn.BatchNorm1d(32)
    if repaired:
        second = nn.Identity()
    model = nn.Sequential(
        nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), second, nn.ReLU(), nn.Linear(32, 10)
    )
    F.cross_entropy(model(data.x[:64]), data.y[:64]).backward()
    return Case(float(model[1].weight.grad.norm()), check(model, data.x[:64]).findings)
