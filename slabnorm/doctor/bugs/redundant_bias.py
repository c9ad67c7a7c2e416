"""A layer has a bias, and a norm after it.

Symptom: the bias gets no gradient
Cause: the norm subtracts the mean, and the bias with it
Kind: structure
Rule: 301
Healed: by sn.fixes
Thread: https://github.com/milesial/Pytorch-UNet/pull/325
"""

import torch
from torch import nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits

BAD, GOOD = 1e-6, 1e-3


def run(repaired: bool) -> Case:
    """Compute the gradient of the bias, or of the norm's, which does what it was meant to do."""
    data = digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32, bias=not repaired), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )
    findings = check(model, data.x[:64]).findings
    F.cross_entropy(model(data.x[:64]), data.y[:64]).backward()
    bias = model[1].bias if model[0].bias is None else model[0].bias
    return Case(float(bias.grad.norm()), findings)
