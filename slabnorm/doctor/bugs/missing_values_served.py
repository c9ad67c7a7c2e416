"""Training filled missing values, the service passes NaN on.

Symptom: a third of the outputs are NaN
Cause: NaN minus a mean is NaN, and no layer stops it
Kind: inputs
Rule: 408
Healed: not tested, the repair does what the printed words say
Thread: https://github.com/FederatedAI/FATE/issues/3961
"""

import torch
from torch import nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, network, statistics, table, train

BAD, GOOD = 0.1, 0.0


def run(repaired: bool) -> Case:
    """Serve rows of which every third lacks a value."""
    data = table("wine")
    served = data.x_test.clone()
    served[::3, 4] = torch.nan
    if repaired:
        served = served.where(served.isfinite(), data.x.mean(0))
    model = nn.Sequential(statistics(data.x), network(nn.Identity, inputs=13, outputs=3))
    train(model, data.x, data.y, size=16, rate=0.01)
    with torch.no_grad():
        lost = model(served).isnan().any(1).float().mean()
    return Case(float(lost), check(model, served).findings)
