"""A column that is constant in the training data goes through a batch norm.

Symptom: accuracy in service is low
Cause: its variance is 0, so that eps alone scales it: a change of 1 becomes 300
Kind: structure
Rule: 208
Healed: not tested, the printed words say only where to look
Thread: https://github.com/SheffieldML/GPy/pull/148
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, accuracy, network, statistics, table, train

BAD, GOOD = 0.8, 0.9


def run(repaired: bool) -> Case:
    """Train on wines of one year, and serve those of the next."""
    data = table("wine")
    norm = statistics(data.x)
    x, test = (torch.cat([norm(v), torch.zeros(len(v), 3)], 1) for v in (data.x, data.x_test))
    served = test.clone()
    served[:, 13:] = torch.tensor([0.5, -0.5, 0.7])
    model = nn.Sequential(nn.BatchNorm1d(16), network(nn.Identity, inputs=16, outputs=3))
    if repaired:
        x, served = x[:, :13], served[:, :13]
        model = nn.Sequential(nn.BatchNorm1d(13), network(nn.Identity, inputs=13, outputs=3))
    train(model, x, data.y, epochs=20, size=16, rate=0.01)
    findings = check(model, x[:64]).findings
    model.eval()
    return Case(accuracy(model, served, data.y_test), findings)
