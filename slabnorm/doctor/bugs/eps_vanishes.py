"""eps=1e-8 in half precision is 0.

Symptom: the output for an empty input is NaN
Cause: 1e-8 is below the smallest number of float16, and 0 is divided by 0
Kind: structure
Rule: 501
Healed: by sn.fixes
Thread: https://github.com/pytorch/pytorch/issues/41527
"""

import torch
from torch import Tensor, nn

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits

BAD, GOOD = 0.05, 0.0


class RMSNorm(nn.RMSNorm):
    """An RMS norm as papers write it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x over its root mean square."""
        return self.weight * (x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt())


def run(repaired: bool) -> Case:
    """Run on digits of which some are empty."""
    x = digits().x[:64].clone()
    x[::8] = 0
    eps = 1e-8
    if repaired:
        eps = 1e-5
    model = nn.Sequential(RMSNorm(64, eps=eps), nn.Linear(64, 10)).half()
    findings = check(model, x.half()).findings
    with torch.no_grad():
        lost = model(x.half()).isnan().any(1).float().mean()
    return Case(float(lost), findings)
