"""model.bfloat16() casts running statistics, too.

Symptom: accuracy in eval mode is far below that in train mode
Cause: updates below 0.4% of a statistic are rounded away: with a small momentum it stands still
Kind: structure
Rule: 502
Healed: by sn.fixes
Thread: https://github.com/NVIDIA/apex/pull/144
"""

import torch

from slabnorm.doctor import check
from slabnorm.doctor.bugs.task import Case, digits, network

BAD, GOOD = 0.1, 0.05


def run(repaired: bool) -> Case:
    """Let running statistics follow fixed activations, and see how far off they end."""
    x = 3 * digits().x + 20
    model = network()
    norm = model[1]
    norm.momentum = 0.003
    model.bfloat16()
    if repaired:
        norm.float()
    features = model[0](x.bfloat16()).detach()
    findings = check(norm, features[:64]).findings
    with torch.no_grad():
        for _ in range(400):
            for batch in features.split(200):
                norm(batch)
        off = (norm.running_mean.float() - features.float().mean(0)).abs() / features.float().mean(0).abs()
    return Case(float(off.max()), findings)
