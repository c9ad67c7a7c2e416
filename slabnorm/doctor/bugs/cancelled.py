"""Time stamps in seconds go into a batch norm as float32.

Symptom: R^2 is far below what the column says
Cause: float32 knows seconds since 1970 to the next 128 only, and the norm subtracts two such numbers
Kind: structure
Rule: 503
Healed: by the printed `sn.fit(...) on float64 data`, which the tests run
Thread: no public thread known
"""

import torch
from torch import nn
from torch.nn import functional as F

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, explained, train

BAD, GOOD = 0.5, 0.95


def run(repaired: bool) -> Case:
    """Predict the time of day from a time stamp."""
    seconds = 240 * torch.rand(1200, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = ((seconds - 120) / 70).float()
    stamps = 1.7e9 + seconds
    if repaired:
        stamps = stamps - 1.7e9
    x = stamps.float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Linear(1, 1))
    train(model, x[:800], y[:800], rate=0.05, epochs=4, loss=F.mse_loss)
    findings = check(model, x[:64]).findings
    with torch.no_grad():
        return Case(explained(model(x[800:]), y[800:]), findings)
